"""Integer weights as the stream that a kernel reads: entries of an offset and of weights for each row.

Only elements (two or four channels) with a weight that is not zero are in it. Where products are first added
in 16 bits, entries stand in pairs that can't overflow, and after a row's pairs come the *singles*: what these
meet is flipped (`Dot.add_any`), so that any weights give the exact sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.kernels.tiling import Cut

Array = np.ndarray[Any, Any]

UNROLL = 4
"""Entries in one round of the inner loop, a power of two."""

_WINDOW = 96
"""Entries of a row among which pairs are sought, at most."""

_TOGETHER = 4096
"""Windows worked on at once."""


@dataclass(frozen=True)
class Entries:
    """The entries of some rows.

    Args:
        row: [entries] which row, ascending.
        column: [entries] which element and tap.
        weights: [entries, rows that share it, channels of an element] int16.
    """

    row: Array
    column: Array
    weights: Array

    def among(self, which: Array) -> Entries:
        """Those that a mask or indices pick."""
        return Entries(self.row[which], self.column[which], self.weights[which])


def elements(weights: Array, channels: int) -> Array:
    """[outputs, inputs, taps] -> [outputs, elements * taps, channels of one] int16, zeros after the last."""
    outputs, inputs, taps = weights.shape
    padded = np.zeros((outputs, -(-inputs // channels) * channels, taps), np.int16)
    padded[:, :inputs] = weights
    return padded.reshape(outputs, -1, channels, taps).transpose(0, 1, 3, 2).reshape(outputs, -1, channels)


def first_channels(outputs: int, shared: int) -> Array:
    """The first of each row's output channels; the last row overlaps the one before rather than the end."""
    return np.minimum(np.arange(-(-outputs // shared)) * shared, outputs - shared)


def _grouped(whole: Array, first: Array, shared: int) -> Array:
    """[rows, output channels of one, columns, channels of an element]."""
    return whole[first[:, None] + np.arange(shared)]


def entries(grouped: Array, dot: Dot, safe: bool = False) -> Entries:
    """The entries of [rows, output channels of one, columns, channels of an element], each of weights that
    can be multiplied.

    Args:
        safe: each product fits 16 bits, if that is where products are added.
    """
    shared = grouped.shape[1]
    row, column = np.nonzero((grouped != 0).any(axis=(1, 3)))
    left = grouped[row, :, column]
    found: list[Entries] = []
    while len(row):
        part = np.clip(left, dot.low, dot.high)
        if dot.held and safe:
            part = safe_products(part)
        found.append(Entries(row, column, part))
        left = left - part
        more = (left != 0).any(axis=(1, 2))
        row, column, left = row[more], column[more], left[more]
    if not found:
        empty = np.zeros(0, np.int64)
        return Entries(empty, empty, np.zeros((0, shared, dot.channels), np.int16))
    if len(found) == 1:
        return found[0]
    order = np.argsort(np.concatenate([e.row for e in found]), kind="stable")
    return Entries(
        *(np.concatenate([getattr(e, f) for e in found])[order] for f in ("row", "column", "weights"))
    )


def safe_products(weights: Array) -> Array:
    """The weights, less what makes two neighbours of the same sign sum to more than 16 bits can hold."""
    pairs = weights.reshape(-1, 2)
    result = pairs.copy()
    for sign in (1, -1):
        excess = np.maximum(pairs * sign, 0).sum(axis=1) - Dot.BOUND
        over = np.flatnonzero(excess > 0)
        result[over, 0] -= (sign * excess[over]).astype(np.int16)
    return result.reshape(weights.shape)


def _loads(weights: Array) -> Array:
    """[entries, signs, lanes] of how much of the bound each entry takes."""
    pairs = weights.reshape(len(weights), 2 * weights.shape[1], 2)
    return np.stack([np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)], axis=1)


def pair(e: Entries, rows: int) -> Array:
    """[pairs, 2] indices of entries that may be added in 16 bits, by row; -1 where one stays alone.

    Within each row (or part of one that is long), that which takes most is put with what takes most of those
    that it fits with, and so on.
    """
    loads = _loads(e.weights).reshape(len(e.row), 4 * e.weights.shape[1]).astype(np.uint8)
    counts = np.bincount(e.row, minlength=rows)
    order = np.lexsort((-loads.max(axis=1).astype(np.int16), e.row))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = -(-counts // _WINDOW)
    first = np.cumsum(parts) - parts
    window = first[e.row[order]] + rank % np.maximum(parts, 1)[e.row[order]]
    place = rank // np.maximum(parts, 1)[e.row[order]]
    total = int(parts.sum())
    done = [np.zeros((0, 2), np.int64)]
    for begin in range(0, total, _TOGETHER):
        some = np.flatnonzero((window >= begin) & (window < begin + _TOGETHER))
        width = int(place[some].max()) + 1
        index = np.full((min(_TOGETHER, total - begin), width), -1, np.int64)
        index[window[some] - begin, place[some]] = order[some]
        done.append(_match(index, loads))
    every = np.concatenate(done)
    return every[np.argsort(e.row[every[:, 0]], kind="stable")]


def _match(index: Array, loads: Array) -> Array:
    """The pairs of some windows.

    Args:
        index: [windows, places] of entries, those that take most first; -1 for none.
        loads: of all entries.
    """
    # One array for each load; places without an entry fit nothing.
    taken = [np.where(index >= 0, lane[index], 255).astype(np.uint8) for lane in loads.T]
    free = index >= 0
    windows = np.arange(len(index))
    found = []
    for i in range(index.shape[1]):
        here = free[:, i].copy()
        free[:, i] = False
        fits = free[:, i + 1 :].copy()
        for lane in taken:
            fits &= lane[:, i + 1 :] <= (Dot.BOUND - np.minimum(lane[:, i], Dot.BOUND))[:, None]
        if fits.shape[1]:
            partner = fits.argmax(axis=1)
            good = fits[windows, partner] & here
            free[windows[good], i + 1 + partner[good]] = False
            mate = np.where(good, index[windows, i + 1 + partner], -1)
        else:
            mate = np.full(len(index), -1)
        found.append(np.stack([index[here, i], mate[here]], axis=1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Packed:
    """The stream of all rows.

    Args:
        stream: bytes: of each row steps of `depth` offsets, then as many times `shared` quads of weights;
            then the singles, an offset and a quad each.
        rows: [.., 3] uint16 or uint32: the first output channel of a row, its numbers of steps and of
            singles, in order of these numbers within each (group, part of the rows, block).
        starts: [groups, parts of the rows, blocks] int64: where each begins in `stream`.
        entries: in all.
        lacking: [groups, outputs] int64: what the sums lack because of the singles.
    """

    stream: Array
    rows: Array
    starts: Array
    entries: int
    lacking: Array


@dataclass(frozen=True)
class Count:
    """How long the rows of a stream are, about.

    Args:
        steps, singles: of all rows.
        changes: rows whose numbers are not those of the row before.
    """

    steps: float
    singles: float
    changes: float


@dataclass(frozen=True)
class Offsets:
    """How entries say where they read.

    Args:
        table: of each column the number that stands in its entries.
        size: bytes of such a number.
        unit: packed pixels that it counts.
    """

    table: Array
    size: int
    unit: int

    @staticmethod
    def of(elements: int, taps: tuple[int, ...], span: int) -> Offsets:
        """For so many elements.

        Args:
            taps, span: packed pixels to each tap and from one element to the next.
        """
        if taps == (0,):
            return Offsets(np.arange(elements), 1 if elements <= 256 else 2, span)
        table = (np.arange(elements)[:, None] * span + np.array(taps)[None, :]).reshape(-1)
        return Offsets(table, 2 if elements * span <= 1 << 16 else 4, 1)

    def step_bytes(self, dot: Dot, shared: int) -> int:
        """Bytes of a step in the stream."""
        return dot.depth * ((4 if dot.gathers else 1) * self.size + 4 * shared)

    def single_bytes(self, shared: int) -> int:
        """Bytes of a single."""
        return self.size + 4 * shared


def pack(weights: Array, offsets: Offsets, dot: Dot, shared: int, work: Cut, block: int) -> Packed:
    """The stream of [groups, outputs, inputs, taps].

    Args:
        block: elements of the input channels that are added before the next ones are.
    """
    streams: list[Array] = []
    rows: list[Array] = []
    starts: list[int] = []
    lacking = np.zeros(weights.shape[:2], np.int64)
    at = entries_in_all = 0
    of_block = np.arange(offsets.table.size) // (block * weights.shape[3])
    blocks = range(int(of_block[-1]) + 1)
    for group, lacks in zip(weights, lacking):
        whole = elements(group, dot.channels)
        for first, end in map(work.row_range, range(work.row_parts)):
            channels = first_channels(len(whole), shared)[first:end]
            every = entries(_grouped(whole, channels, shared), dot)
            for number in blocks:
                e = every.among(of_block[every.column] == number)
                found = (_gathered_rows if dot.gathers else _rows)(e, offsets, dot, end - first)
                data, steps, singles = found.data, found.steps, found.singles
                # Channels that are in two rows lack the same in both.
                lack = np.zeros_like(lacks)
                lack[channels[:, None] + np.arange(shared)] = found.lacking
                lacks += lack
                order = np.lexsort((-singles, -steps))
                counts = steps * dot.depth + singles
                begins = np.cumsum(counts) - counts
                spread = np.repeat(begins[order] - (np.cumsum(counts[order]) - counts[order]), counts[order])
                streams.append(data[np.arange(len(data)) + spread].reshape(-1))
                rows.append(np.stack([channels, steps, singles], axis=1)[order])
                starts.append(at)
                at += data.size
                entries_in_all += len(data)
    padding = np.zeros(UNROLL * offsets.step_bytes(dot, shared), np.uint8)
    described = np.concatenate(rows)
    return Packed(
        np.concatenate([*streams, padding]),
        described.astype(np.uint16 if described.max(initial=0) < 1 << 16 else np.uint32),
        np.array(starts, np.int64).reshape(len(weights), -1, len(blocks)),
        entries_in_all,
        lacking,
    )


def _paired(e: Entries, dot: Dot, rows: int) -> tuple[Array, Array]:
    """[steps, depth] indices of the entries that are added together, by row, and those of the singles."""
    every = np.arange(len(e.row))
    if not dot.held:
        return every[:, None], every[:0]
    fits = np.flatnonzero((_loads(e.weights) <= Dot.BOUND).all(axis=(1, 2)))
    picked = pair(e.among(fits), rows)
    lone = picked[:, 1] < 0
    together = fits[picked[~lone]].reshape(-1, 2)
    alone = np.ones(len(e.row), bool)
    alone[together] = False
    return together, np.flatnonzero(alone)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a stream.

    Args:
        data: [entries, bytes of one] uint8, by row. A step's bytes are its offsets and then its weights.
        steps, singles: [rows] how many each row has.
        lacking: [rows, output channels of one] int64, as in `Packed`.
    """

    data: Array
    steps: Array
    singles: Array
    lacking: Array


def _rows(e: Entries, offsets: Offsets, dot: Dot, rows: int) -> _Rows:
    picked, singles = _paired(e, dot, rows)
    size = offsets.single_bytes(e.weights.shape[1])
    parts = []
    for chosen in (picked, singles[:, None]):
        steps, depth = chosen.shape
        at = np.ascontiguousarray(offsets.table[e.column[chosen]].astype(f"uint{8 * offsets.size}"))
        weights = np.ascontiguousarray(e.weights[chosen].astype(np.int8 if dot.channels == 4 else np.int16))
        whole = np.empty((steps, depth * size), np.uint8)
        whole[:, : depth * at.itemsize] = at.view(np.uint8)
        whole[:, depth * at.itemsize :] = weights.view(np.uint8).reshape(steps, depth * (size - at.itemsize))
        parts.append(whole.reshape(-1, size))
    row = np.concatenate([e.row[picked].reshape(-1), e.row[singles]])
    counts = [np.bincount(e.row[i], minlength=rows) for i in (picked[:, 0], singles)]
    lacking = np.zeros((rows, e.weights.shape[1]), np.int64)
    np.add.at(lacking, e.row[singles], dot.lacking(e.weights[singles]).sum(axis=2))
    return _Rows(np.concatenate(parts)[np.argsort(row, kind="stable")], counts[0], counts[1], lacking)


def fours(e: Entries, dot: Dot, rows: int) -> tuple[Array, Array]:
    """Entries of one weight, four of a row together, so that neighbours fit 16 bits where they must.

    Positive weights stand beside negative ones, large ones first: these always fit.

    Returns:
        [fours, 4] indices of entries, by row, and whether the entry is there; else its weight is to be zero.
    """
    order = np.lexsort((e.weights[:, 0, 0], e.row))
    counts = np.bincount(e.row, minlength=rows)
    begins = np.cumsum(counts) - counts
    halves = -(-counts // 2)
    row = np.repeat(np.arange(rows), halves)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(halves) - halves, halves)
    low, high = order[begins[row] + rank], order[begins[row] + counts[row] - 1 - rank]
    both = low != high
    if dot.held:
        values = e.weights[:, 0, 0].astype(np.int64)
        fits = (values[low] * values[high] <= 0) | (np.abs(values[low] + values[high]) <= Dot.BOUND)
    else:
        fits = both
    apart = both & ~fits
    pairs = np.concatenate([np.stack([low, high], axis=1), np.stack([high, high], axis=1)[apart]])
    there = np.stack([np.ones(len(pairs), bool), np.concatenate([both & fits, both[apart] & False])], axis=1)
    of_row = np.concatenate([row, row[apart]])
    sort = np.argsort(of_row, kind="stable")
    pairs, there, of_row = pairs[sort], there[sort], of_row[sort]
    counts = np.bincount(of_row, minlength=rows)
    wanted = -(-counts // 2)
    begins = np.cumsum(counts) - counts
    row = np.repeat(np.arange(rows), wanted)
    first = begins[row] + 2 * (np.arange(len(row)) - np.repeat(np.cumsum(wanted) - wanted, wanted))
    alone = first + 1 == begins[row] + counts[row]
    second = np.where(alone, first, first + 1)
    return (
        np.concatenate([pairs[first], pairs[second]], axis=1),
        np.concatenate([there[first], there[second] & ~alone[:, None]], axis=1),
    )


def _gathered_rows(e: Entries, offsets: Offsets, dot: Dot, rows: int) -> _Rows:
    """For entries of one weight: four offsets and four weights a step."""
    picked, there = fours(e, dot, rows)
    at = np.ascontiguousarray(offsets.table[e.column[picked]].astype(f"uint{8 * offsets.size}"))
    weights = np.where(there, e.weights[picked, 0, 0], 0).astype(np.int8)
    data = np.concatenate([at.view(np.uint8), weights.view(np.uint8)], axis=1)
    steps = np.bincount(e.row[picked[:, 0]], minlength=rows)
    none = np.zeros(rows, np.int64)
    return _Rows(data, steps, none, none[:, None])


def count(weights: Array, dot: Dot, shared: int, sample: int = 64) -> Count:
    """About how long the rows of [outputs, inputs, taps] are."""
    whole = elements(weights, dot.channels)
    first = first_channels(len(whole), shared)
    rows = len(first)
    taken = min(rows, sample)
    e = entries(_grouped(whole, first[np.linspace(0, rows - 1, taken).astype(int)], shared), dot)
    picked, singles = (
        (fours(e, dot, taken)[0], np.zeros(0, np.int64)) if dot.gathers else _paired(e, dot, taken)
    )
    steps, alone = (np.bincount(e.row[i], minlength=taken) for i in (picked[:, 0], singles))
    kinds = len(np.unique(steps)) + (len(np.unique(alone)) if len(singles) else 0)
    return Count(
        float(steps.mean() * rows),
        float(alone.mean() * rows),
        min(rows * (2 if len(singles) else 1), kinds * 1.5),
    )


__all__ = [
    "UNROLL",
    "Count",
    "Entries",
    "Offsets",
    "Packed",
    "count",
    "elements",
    "entries",
    "pack",
    "pair",
    "safe_products",
]
