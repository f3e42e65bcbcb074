"""Recipes: what happens to a network, and when, while it trains. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from coresident.errors import InputError

Curve = Literal["constant", "linear", "cosine", "cubic"]
ALL_PRUNABLE = "__ALL_PRUNABLE__"


@dataclass(frozen=True)
class Prune:
    """Zeros that grow in number, then stay where they are.

    The sparsity is final + (initial - final) (1 - t)^3 for a cubic curve at share t of the time
    (Zhu and Gupta, 2017), chosen anew by magnitude every `every` epochs.

    Args:
        sparsity: share of zeros at the end; or pattern of layers' names -> share.
        start, end: epochs.
        initial: share of zeros at the start.
        every: epochs between two choices.
        pattern: "unstructured", or "4block" for four consecutive input channels at one tap.
        layers: names, `re:` expressions, `__ALL__` or `__ALL_PRUNABLE__`.
        skip: names or expressions of layers that stay dense.
        together: one share for all layers, with weights ranked across them.
        curve: "cubic" or "linear".
    """

    sparsity: float | Mapping[str, float]
    start: float = 0.0
    end: float = 1.0
    initial: float = 0.05
    every: float = 0.1
    pattern: Literal["unstructured", "4block"] = "4block"
    layers: tuple[str, ...] = (ALL_PRUNABLE,)
    skip: tuple[str, ...] = ()
    together: bool = False
    curve: Curve = "cubic"


@dataclass(frozen=True)
class Alternate:
    """Alternating compressed and decompressed training (AC/DC; Peste et al., 2021).

    Dense up to `start`, then sparse and dense by turns of `every` epochs, sparse from `end` on. Momentum of
    the weights that revive starts from zero.

    Args:
        sparsity: share of zeros in the sparse phases.
        start, end, every: epochs.
        pattern, layers, skip, together: as `Prune` has them.
    """

    sparsity: float
    start: float
    end: float
    every: float = 1.0
    pattern: Literal["unstructured", "4block"] = "4block"
    layers: tuple[str, ...] = (ALL_PRUNABLE,)
    skip: tuple[str, ...] = ()
    together: bool = False


@dataclass(frozen=True)
class Constant:
    """Weights that are zero at epoch `start` stay zero."""

    start: float = 0.0
    layers: tuple[str, ...] = ("__ALL__",)
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantise:
    """Quantisation-aware training from epoch `start` on.

    Args:
        start: epoch.
        freeze_ranges: epoch from which ranges of activations stay; None for half-way to the end.
        freeze_norms: epoch from which batch normalisations keep their statistics; None for the same.
        weight_bits: 8, or 7 so that sums of pairs of products fit 16 bits on CPUs without VNNI, in other
            engines too.
        ranges: of activations: moving averages of "minmax" or of the least rounding error, "mse".
        skip: names or expressions of layers whose products stay in floats.
    """

    start: float = 0.0
    freeze_ranges: float | None = None
    freeze_norms: float | None = None
    weight_bits: Literal[7, 8] = 8
    ranges: Literal["minmax", "mse"] = "minmax"
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distil:
    """The loss is (1 - share) x the user's + share x the divergence from the dense network's answers.

    Args:
        share: 0 to 1.
        temperature: of the divergence.
        answer: "softmax" over channels or "sigmoid" for each.
        start, end: epochs; None for the recipe's end.
    """

    share: float = 0.7
    temperature: float = 2.0
    answer: Literal["softmax", "sigmoid"] = "softmax"
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class LearningRate:
    """The learning rate from epoch `start` on, along a curve from `first` to `last` up to `end`.

    Args:
        first: rate at the start, and all along where the curve is "constant".
        last: rate at the end.
        start, end: epochs; None for the recipe's end.
        curve: "constant", "linear" or "cosine".
        groups: numbers of the optimiser's parameter groups; all where empty.
    """

    first: float
    last: float | None = None
    start: float = 0.0
    end: float | None = None
    curve: Curve = "constant"
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class WeightDecay:
    """The weight decay of all parameter groups from epoch `start` on."""

    value: float
    start: float = 0.0


Modifier = Prune | Alternate | Constant | Quantise | Distil | LearningRate | WeightDecay


@dataclass(frozen=True)
class Recipe:
    """What happens to a network while it trains.

    Args:
        epochs: of training in all.
        modifiers: what happens; at most one `Quantise` and one `Distil`.
    """

    epochs: float
    modifiers: tuple[Modifier, ...] = ()
    variables: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.epochs < 1e6:
            raise InputError(f"a recipe of {self.epochs} epochs")
        for modifier in self.modifiers:
            check(modifier)
        for kind in (Quantise, Distil):
            if len(self.of(kind)) > 1:
                raise InputError(f"a recipe with more than one {kind.__name__}")

    def of(self, kind: type[Any]) -> list[Any]:
        """The modifiers of one kind, in order."""
        return [modifier for modifier in self.modifiers if isinstance(modifier, kind)]

    @staticmethod
    def gradual(
        sparsity: float,
        epochs: float,
        *,
        pattern: Literal["unstructured", "4block"] = "4block",
        quantise: bool = True,
        weight_bits: Literal[7, 8] = 8,
        distil: float = 0.7,
        answer: Literal["softmax", "sigmoid"] = "softmax",
        rate: float | None = None,
    ) -> Recipe:
        """The usual one: prune for half of the epochs, fine-tune, and quantise in the last quarter.

        Args:
            sparsity: share of zeros in the layers that can be pruned; 0 prunes nothing.
            epochs: of training in all.
            pattern: of the zeros.
            quantise: train for 8-bit arithmetic at the end.
            weight_bits: as `Quantise` has it.
            distil: share of distillation from the dense network in the loss; 0 for none.
            answer: as `Distil` has it.
            rate: learning rate to start with, falling to a hundredth; None leaves it to the user.
        """
        modifiers: list[Modifier] = []
        if sparsity > 0:
            every = min(0.1, epochs / 50)
            modifiers.append(Prune(sparsity, 0.0, 0.5 * epochs, every=every, pattern=pattern))
        if quantise:
            begin = 0.75 * epochs
            modifiers.append(Quantise(begin, begin + epochs / 8, begin + epochs / 8, weight_bits=weight_bits))
        if distil > 0:
            modifiers.append(Distil(distil, answer=answer))
        if rate is not None:
            modifiers.append(LearningRate(rate, rate / 100, curve="cosine"))
        return Recipe(epochs, tuple(modifiers))


def check(modifier: Modifier) -> None:
    """Raise an InputError that names the field where a modifier holds what makes no sense."""
    name = type(modifier).__name__
    for key, low, high in (
        ("initial", 0.0, 1.0),
        ("share", 0.0, 1.0),
        ("start", 0.0, 1e6),
        ("end", 0.0, 1e6),
        ("every", 1e-6, 1e6),
        ("temperature", 1e-3, 1e3),
        ("first", 0.0, 1e6),
        ("last", 0.0, 1e6),
        ("freeze_ranges", 0.0, 1e6),
        ("freeze_norms", 0.0, 1e6),
        ("value", 0.0, 1e6),
    ):
        value = getattr(modifier, key, None)
        if value is not None and not (_is_number(value) and low <= value <= high):
            raise InputError(f"{name}: {key} is {value!r}; a number from {low:g} to {high:g} is accepted")
    for key, accepted in (
        ("pattern", ("unstructured", "4block")),
        ("curve", ("constant", "linear", "cosine", "cubic")),
        ("weight_bits", (7, 8)),
        ("ranges", ("minmax", "mse")),
        ("answer", ("softmax", "sigmoid")),
        ("together", (True, False)),
    ):
        value = getattr(modifier, key, accepted[0])
        if value not in accepted:
            raise InputError(f"{name}: {key} is {value!r}; accepted: {', '.join(map(str, accepted))}")
    if isinstance(modifier, Prune | Alternate):
        shares = modifier.sparsity.values() if isinstance(modifier.sparsity, Mapping) else [modifier.sparsity]
        if not all(_is_number(share) and 0 <= share < 1 for share in shares):
            raise InputError(f"{name}: sparsity is {modifier.sparsity!r}; from 0 to less than 1 is accepted")
    end = getattr(modifier, "end", None)
    if end is not None and end < modifier.start:
        raise InputError(f"{name}: it ends at epoch {end:g}, before it starts at {modifier.start:g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
