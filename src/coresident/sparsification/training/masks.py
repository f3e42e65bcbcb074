"""Which weights of a layer are zero and stay so: layers that can be pruned, patterns, choice by magnitude."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coresident.errors import InputError

Pattern = Literal["unstructured", "4block"]
BLOCK = 4
"""Consecutive input channels at one tap that a block of the pattern "4block" has."""
ALL, ALL_PRUNABLE = "__ALL__", "__ALL_PRUNABLE__"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution, transposed convolution or linear layer whose weights may be pruned.

    Args:
        name: of the weight in `named_parameters`.
        weight: [outputs, inputs / groups, ...], transposed [inputs, outputs / groups, ...].
        transposed: which of the two.
        dense: why it is left dense unless it is asked for by name; "" where it isn't.
    """

    name: str
    weight: nn.Parameter
    transposed: bool = False
    dense: str = ""


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """The layers of a model in the order in which it registers them, a shared weight once.

    The first and the last one, and grouped convolutions of fewer than four input channels a group
    (depthwise ones among them), are marked to stay dense.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[int, Layer] = {}
    for module in model.modules():
        if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            continue
        weight = module.weight
        if id(weight) not in names or id(weight) in found:
            continue
        transposed = isinstance(module, _TRANSPOSED)
        groups = getattr(module, "groups", 1)
        narrow = groups > 1 and module.in_channels // groups < BLOCK
        found[id(weight)] = Layer(names[id(weight)], weight, transposed, "depthwise" if narrow else "")
    return mark_ends(found.values())


def mark_ends(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The same layers, the first and the last marked to stay dense."""
    ordered = list(layers)
    for index, why in ((0, "first layer"), (-1, "last layer")):
        if ordered:
            old = ordered[index]
            ordered[index] = Layer(old.name, old.weight, old.transposed, old.dense or why)
    return tuple(ordered)


def choose(layers: Sequence[Layer], patterns: Sequence[str], skip: Sequence[str] = ()) -> tuple[Layer, ...]:
    """The layers that patterns name: `__ALL__`, `__ALL_PRUNABLE__`, a name, or `re:` and an expression.

    A name is that of the weight ("stages.0.conv1.weight") or of its module. An expression has to match at
    the name's start, as in SparseML.

    Raises:
        InputError: a pattern that is no expression or matches no layer.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = _matching(layers, pattern)
        if not matched and pattern not in (ALL, ALL_PRUNABLE):
            names = ", ".join(layer.name for layer in layers)
            raise InputError(f"no layer is called {pattern!r}; there are {names or 'none'}")
        chosen |= matched
    for pattern in skip:
        unwanted = _matching(layers, pattern)
        if not unwanted:
            raise InputError(f"no layer is called {pattern!r}, which is to be skipped")
        chosen -= unwanted
    return tuple(layer for layer in layers if layer.name in chosen)


def _matching(layers: Sequence[Layer], pattern: str) -> set[str]:
    if pattern == ALL:
        return {layer.name for layer in layers}
    if pattern == ALL_PRUNABLE:
        return {layer.name for layer in layers if not layer.dense}
    if not pattern.startswith("re:"):
        return {layer.name for layer in layers if pattern in (layer.name, layer.name.rpartition(".")[0])}
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from None
    return {layer.name for layer in layers if expression.match(layer.name)}


def blocks(layer: Layer) -> Tensor:
    """The number of each weight's block, int64 shaped as the weight, from 0 without gaps.

    A block is `BLOCK` consecutive input channels of one output channel at one tap; channels left over make
    a shorter block.
    """
    shape = list(layer.weight.shape)
    axis = 0 if layer.transposed else 1
    channels = shape[axis]
    groups = -(-channels // BLOCK)
    shape[axis] = 1
    rest = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    sizes = [1] * len(shape)
    sizes[axis] = channels
    return rest * groups + (torch.arange(channels) // BLOCK).reshape(sizes)


@torch.no_grad()
def by_magnitude(
    layers: Sequence[Layer], sparsity: Mapping[str, float], pattern: Pattern, *, together: bool = False
) -> dict[str, Tensor]:
    """Masks (bool, True keeps) that drop the least weights, or blocks of the least mean square.

    Args:
        layers: to mask.
        sparsity: the share of zeros wanted, by layer.
        pattern: of the zeros.
        together: rank the weights of all layers with one another; the share is then that of all of them.

    Returns:
        By layer's name. No fewer zeros than asked, and more by less than a block.
    """
    scores = {layer.name: _scores(layer, pattern) for layer in layers}
    if not together:
        return {
            layer.name: _keep(*scores[layer.name], sparsity[layer.name]).reshape(layer.weight.shape)
            for layer in layers
        }
    if not layers:
        return {}
    total = sum(layer.weight.numel() for layer in layers)
    wanted = sum(sparsity[layer.name] * layer.weight.numel() for layer in layers) / total
    parts, counts = [], []
    offset = 0
    for score, numbers in scores.values():
        parts.append(score)
        counts.append(numbers + offset)
        offset += len(score)
    kept = _keep(torch.cat(parts), torch.cat(counts), wanted)
    pieces = kept.split([layer.weight.numel() for layer in layers])
    return {layer.name: piece.reshape(layer.weight.shape) for layer, piece in zip(layers, pieces)}


def _scores(layer: Layer, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The mean square of each block, and each weight's block, flat."""
    squares = layer.weight.detach().double().cpu().flatten().square()
    if pattern == "unstructured":
        return squares, torch.arange(len(squares))
    numbers = blocks(layer).flatten()
    sums = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64).index_add_(0, numbers, squares)
    return sums / torch.bincount(numbers), numbers


def _keep(scores: Tensor, numbers: Tensor, sparsity: float) -> Tensor:
    sizes = torch.bincount(numbers, minlength=len(scores))
    order = torch.argsort(scores, stable=True)
    before = sizes[order].cumsum(0) - sizes[order]
    dropped = before < round(sparsity * len(numbers))
    alive = torch.ones(len(scores), dtype=torch.bool)
    alive[order[dropped]] = False
    return alive[numbers]


@torch.no_grad()
def enforce(
    layers: Iterable[Layer], masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    """Zero the weights that the masks drop, and whatever an optimiser remembers of them (its momentum)."""
    for layer in layers:
        mask = masks.get(layer.name)
        if mask is None:
            continue
        dead = ~mask.to(layer.weight.device)
        layer.weight.masked_fill_(dead, 0.0)
        state: dict[str, Any] = {} if optimizer is None else optimizer.state.get(layer.weight, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.masked_fill_(dead, 0.0)


def sparsity_of(weight: Tensor) -> float:
    """The share of weights that are zero."""
    return float((weight.detach() == 0).double().mean()) if weight.numel() else 0.0
