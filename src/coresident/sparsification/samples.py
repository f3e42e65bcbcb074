"""Samples to calibrate and to judge with."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coresident.errors import CoresidentWarning, InputError
from coresident.graph.graph import Fact
from coresident.sparsification.labels import stacked
from coresident.sparsification.sources import (
    Array,
    Augmented,
    Item,
    digest_of,
    pixels_of,
    takes_batches,
    takes_pictures,
)
from coresident.vision.tensors import Preprocessing

ENOUGH = 256
"""Pictures to calibrate with; more bring little."""
_FEW = 4 << 20
"""Pixels of all pictures together: with as many, few pictures have places enough to learn from."""
_STACKED, _STACKED_BYTES = 16, 1 << 20
"""How many samples a batch has where the model leaves it open, and their bytes at most: what a network
makes of them on the way is often a hundred times as much, and is held for a whole batch."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in an order in which those of one shape stand together, otherwise by name.

    Args:
        names: of the samples.
        items: where their arrays come from.
        inputs: of the network: names, types and shapes, in which a string is a free size.
        labels: one for each sample, None without. Integers: classes [N]; masks [N, H, W], or a tuple of
            [H, W] where they differ in size. Floats: boxes, for each sample [boxes, 5].
        rejected: names of what could not be read, with the reasons.
        preprocessing: of the pictures.
    """

    names: tuple[str, ...]
    items: tuple[Item, ...]
    inputs: Mapping[str, Fact]
    labels: Array | tuple[Array, ...] | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """Of names, arrays and labels: the same samples have the same."""
        labels = () if self.labels is None else tuple(self.labels)
        lines = [digest_of(labels), *(f"{n!r} {item.digest}" for n, item in zip(self.names, self.items))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def fixed_batch(self) -> int | None:
        """How many samples the network takes at once, None where that is free.

        A network with an input that does not count samples takes one.
        """
        if not all(map(takes_batches, self.inputs.values())):
            return 1
        fixed = {fact.shape[0] for fact in self.inputs.values() if isinstance(fact.shape[0], int)}
        return max(fixed, default=None)

    def feeds(self, index: int) -> dict[str, Array]:
        """The arrays of one sample, a batch of 1 where the input takes batches.

        Raises:
            ImageError, InputError: its file is no longer what it was.
        """
        return self.items[index].load()

    def batches(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """All samples in order, those of one shape stacked.

        Args:
            size: samples in a batch at most, where the network leaves it open; None for some that make a
                batch of moderate size.

        Raises:
            InputError: the network takes another number of samples at once.
        """
        fixed = self.fixed_batch
        if fixed is not None and size not in (None, fixed):
            raise InputError(f"the network takes {fixed} samples at once, not {size}")
        for first, last in self.groups():
            step = fixed or size or self._stacked(first)
            for start in range(first, last, step):
                parts = [self.feeds(index) for index in range(start, min(start + step, last))]
                yield {
                    name: parts[0][name]
                    if len(parts) == 1
                    else np.concatenate([part[name] for part in parts])
                    for name in self.inputs
                }

    def groups(self) -> list[tuple[int, int]]:
        """First index, and the one after the last, of the samples of each shape."""
        shapes = [item.shapes for item in self.items]
        starts = [i for i in range(len(shapes)) if i == 0 or shapes[i] != shapes[i - 1]]
        return list(zip(starts, [*starts[1:], len(shapes)]))

    def _stacked(self, index: int) -> int:
        sizes = zip(self.inputs.values(), self.items[index].shapes)
        one = sum(fact.dtype.itemsize * int(np.prod(shape)) for fact, shape in sizes)
        return int(np.clip(_STACKED_BYTES // max(one, 1), 1, _STACKED))

    def subset(self, indices: Iterable[int]) -> Samples:
        """Some of the samples, in the order they have here."""
        chosen = sorted(set(indices))
        labels = self.labels
        if isinstance(labels, tuple):
            labels = stacked([labels[index] for index in chosen]) if chosen else None
        elif labels is not None:
            labels = labels[chosen]
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            items=tuple(self.items[index] for index in chosen),
            labels=labels,
        )

    def split(self, held_out: float, seed: int) -> tuple[Samples, Samples]:
        """Samples to calibrate with and samples to judge with, drawn at random.

        Args:
            held_out: share of the samples to judge with, at least one; where the network takes batches of a
                fixed size, whole batches of one shape.

        Returns:
            Both; with too few samples for two parts both are all of them, with a warning.
        """
        rng = np.random.default_rng(seed)
        batch = self.fixed_batch or 1
        units = [unit for group in self.groups() for unit in _shuffled(group, batch, rng)]
        if len(units) < 2:
            message = "too few samples to hold some back: the result is judged on those it is made with"
            warnings.warn(message, CoresidentWarning, stacklevel=2)
            return self, self
        count = int(np.clip(round(held_out * len(units)), 1, len(units) - 1))
        held = set(rng.permutation(len(units))[:count].tolist())
        kept = [index for number, unit in enumerate(units) if number not in held for index in unit]
        judged = [index for number in held for index in units[number]]
        return self.subset(kept), self.subset(judged)

    def completed(self, seed: int) -> Samples:
        """These samples and, where they are few small pictures, parts of them up to `ENOUGH`."""
        if not len(self) or not any(map(takes_pictures, self.inputs.values())):
            return self
        pixels = sum(
            pixels_of(fact, shape)
            for item in self.items
            for fact, shape in zip(self.inputs.values(), item.shapes)
        )
        rounds = -(-ENOUGH // len(self)) - 1
        return self.augmented(rounds, seed) if rounds > 0 and pixels < _FEW else self

    def augmented(self, rounds: int, seed: int) -> Samples:
        """These samples and `rounds` times as many, each a part of one, at its size, half of them mirrored.

        Parts have half of the picture's area at least and its proportions. Labels are given up, since those
        of places would no longer fit.

        Raises:
            InputError: no input takes pictures.
        """
        if not any(map(takes_pictures, self.inputs.values())):
            raise InputError("none of the inputs takes pictures, which are what can be augmented")
        rng = np.random.default_rng(seed)
        names, items = [], []
        for name, item in zip(self.names, self.items):
            names.append(name)
            items.append(item)
            for number in range(rounds):
                share = float(np.sqrt(rng.uniform(0.5, 1)))
                top, left = rng.uniform(0, 1 - share, 2).tolist()
                names.append(f"{name} #{number + 1}")
                items.append(
                    Augmented(item, self.inputs, (top, left, share, share), bool(rng.random() < 0.5))
                )
        return replace(self, names=tuple(names), items=tuple(items), labels=None)


def _shuffled(group: tuple[int, int], batch: int, rng: np.random.Generator) -> list[Sequence[int]]:
    """The samples of a group in whole batches, at random."""
    order = (group[0] + rng.permutation(group[1] - group[0])).tolist()
    return [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]


def whole_batches(samples: Samples) -> Samples:
    """Without the samples that make no whole batch where the network fixes its size."""
    batch = samples.fixed_batch or 1
    if batch == 1:
        return samples
    kept = [
        index for first, last in samples.groups() for index in range(first, last - (last - first) % batch)
    ]
    if not kept:
        raise InputError(f"the network takes {batch} samples at once; there are {len(samples)} of one size")
    return samples.subset(kept)
