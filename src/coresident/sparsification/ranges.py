"""The range that eight bits are to span, for each value that is quantised: from histograms of its elements
over the samples.

Not the extremes but the range with the least error is taken (MSE search: sum of |rounded - exact|^2.4 over
the histogram, for ranges from the extremes inwards), because a rare outlier would make all steps coarse. A
fixed percentile is no substitute: it cuts what networks depend on.

Source of the exponent: Frantar et al. 2022, "Optimal Brain Compression".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, frexp, prod
from typing import Literal

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification.execution import Engine, activations
from coresident.sparsification.placement import place
from coresident.sparsification.preparation import bound

Method = Literal["mse", "minmax"]

LEVELS = 255
"""Steps between the least and the greatest byte."""

BINS = 2048
"""Of a histogram, on each side of zero."""

SAMPLED = 1 << 17
"""Elements of a value that are counted of one batch, at most; its extremes are exact."""

POWER = 2.4

CANDIDATES = 80
"""Ranges that are tried on the way from the extremes to `LEAST` of them."""

LEAST = 0.2


@dataclass(frozen=True)
class Range:
    """What a value's bytes span; 0 lies within.

    Args:
        low, high: what bytes 0 and 255 stand for, up to rounding of the zero point.
        minimum, maximum: of the elements seen.
    """

    low: float
    high: float
    minimum: float
    maximum: float

    @property
    def scale(self) -> np.float32:
        """What one step is worth."""
        width = (self.high - self.low) / LEVELS
        # A constant zero needs no step; any does.
        return np.float32(width) if np.float32(width) > np.finfo(np.float32).tiny else np.float32(1)

    @property
    def zero_point(self) -> np.uint8:
        """The byte that stands for 0."""
        return np.uint8(np.clip(np.rint(-self.low / float(self.scale)), 0, LEVELS))


class Histogram:
    """Counts of elements in bins of one width, a power of two, on both sides of zero.

    The width doubles when an element lies outside, so that one pass over the data does.
    """

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf
        self.counts = np.zeros(2 * BINS)
        self._exponent: int | None = None

    def add(self, values: Array, chosen: Array) -> None:
        """Count some elements.

        Args:
            values: all of them, for the extremes.
            chosen: those to count.
        """
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        greatest = max(self.maximum, -self.minimum)
        if not np.isfinite(greatest) or greatest == 0:
            return
        # The greatest lies below the edge of the last bin.
        needed = frexp(greatest)[1] - (BINS.bit_length() - 1)
        if self._exponent is None:
            self._exponent = needed
        while self._exponent < needed:
            self._double()
            self._exponent += 1
        bins = np.floor(np.ldexp(chosen.astype(np.float64), -self._exponent)).astype(np.int64) + BINS
        self.counts += np.bincount(bins, minlength=2 * BINS)

    def _double(self) -> None:
        merged = self.counts.reshape(BINS, 2).sum(1)
        self.counts[:] = 0
        self.counts[BINS // 2 : BINS // 2 + BINS] = merged

    def centres(self) -> tuple[Array, Array]:
        """Middles of the bins that are not empty, and how many elements each has."""
        if self._exponent is None:
            return np.zeros(1), np.ones(1)
        filled = np.flatnonzero(self.counts)
        return np.ldexp(filled - BINS + 0.5, self._exponent), self.counts[filled]


def search(histogram: Histogram, method: Method = "mse") -> Range:
    """The range for elements that are distributed as a histogram says."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    extremes = Range(low, high, histogram.minimum, histogram.maximum)
    if method == "minmax" or low == high:
        return extremes
    centres, counts = histogram.centres()
    shares = np.linspace(1, LEAST, CANDIDATES)
    best = (1.0, 1.0)
    if low < 0 < high:
        best = _least(centres, counts, low, high, [(share, share) for share in shares])
        best = _least(centres, counts, low, high, [(share, best[1]) for share in shares])
        best = _least(centres, counts, low, high, [(best[0], share) for share in shares])
    else:
        best = _least(centres, counts, low, high, [(share, share) for share in shares])
    return Range(best[0] * low, best[1] * high, histogram.minimum, histogram.maximum)


def _least(
    centres: Array, counts: Array, low: float, high: float, shares: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    lows, highs = (np.array(column)[:, None] * end for column, end in zip(zip(*shares), (low, high)))
    scales = (highs - lows) / LEVELS
    points = np.rint(-lows / scales)
    rounded = (np.clip(np.rint(centres / scales) + points, 0, LEVELS) - points) * scales
    errors = (np.abs(rounded - centres) ** POWER) @ counts
    return shares[int(np.argmin(errors))]


def ranges(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    *,
    engine: Engine,
    method: Method = "mse",
    seed: int = 0,
    memory: int = 1 << 30,
) -> dict[str, Range]:
    """The range of each value that may be quantised.

    Args:
        graph: prepared (`network.prepare`).
        batches: arrays for the inputs; gone through once for each group of values.
        engine: to run the network by.
        method: least error, or extremes.
        seed: of the choice of elements that are counted, where a value has more than `SAMPLED`.
        memory: bytes of values that are computed at a time.

    Raises:
        InputError: no batches, or a value with NaN or infinity; names it.
        ModelError: the network can't be compiled.
    """
    held = batches if isinstance(batches, Sequence) else list(batches)
    if not held:
        raise InputError("no samples to find ranges with; at least one is needed")
    values = place(graph).values
    found: dict[str, Range] = {}
    known = bound(graph, {name: held[0][name].shape for name in graph.inputs}).facts
    sizes = {name: prod(known[name].sizes) * known[name].dtype.itemsize for name in values}
    for group in _groups(sizes, memory):
        histograms = {name: Histogram() for name in group}
        generator = np.random.default_rng(seed)
        for arrays in activations(graph, group, held, engine):
            for name in group:
                _count(histograms[name], arrays[name], generator, name)
        found |= {name: search(histogram, method) for name, histogram in histograms.items()}
    return {name: found[name] for name in values}


def _groups(sizes: Mapping[str, int], memory: int) -> list[list[str]]:
    count = max(ceil(sum(sizes.values()) / memory), 1)
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > max(sum(sizes.values()) / count, max(sizes.values())):
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return [group for group in groups if group]


def _count(histogram: Histogram, array: Array, generator: np.random.Generator, name: str) -> None:
    flat = array.reshape(-1)
    if not flat.size:
        return
    chosen = flat if flat.size <= SAMPLED else flat[generator.integers(0, flat.size, SAMPLED)]
    histogram.add(flat, chosen)
    if not np.isfinite(histogram.minimum) or not np.isfinite(histogram.maximum):
        raise InputError(f"the value {name!r} is NaN or infinite for a sample: it has no range")
