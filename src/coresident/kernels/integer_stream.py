"""Integer weights as the stream that a kernel reads: entries of an offset and of weights for each row.

Only elements (two or four channels) with a weight that is not zero are in it. Where products are first added
in 16 bits, what could overflow is split into entries of which each is safe: any activations give the exact
sum.
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


def entries(grouped: Array, dot: Dot) -> Entries:
    """The entries of [rows, output channels of one, columns, channels of an element], each of weights that
    can be multiplied."""
    shared = grouped.shape[1]
    row, column = np.nonzero((grouped != 0).any(axis=(1, 3)))
    left = grouped[row, :, column]
    found: list[Entries] = []
    while len(row):
        part = np.clip(left, dot.low, dot.high)
        if dot.held:
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
        stream: bytes: steps of `depth` offsets, then as many times `shared` quads of weights.
        rows: [.., 2] int32: the first output channel of a row and its number of steps, in order of that
            number within each (group, part of the rows).
        starts: [groups, parts of the rows] int64: where each begins in `stream`.
        steps: in all.
    """

    stream: Array
    rows: Array
    starts: Array
    steps: int


def step_bytes(depth: int, shared: int, wide: bool) -> int:
    """Bytes of a step in the stream; `wide` offsets are of 32 bits, others of 16."""
    return depth * ((4 if wide else 2) + 4 * shared)


def pack(
    weights: Array, taps: tuple[int, ...], span: int, dot: Dot, shared: int, work: Cut, wide: bool
) -> Packed:
    """The stream of [groups, outputs, inputs, taps].

    Args:
        taps, span: packed pixels to each tap and from one element to the next.
    """
    streams: list[Array] = []
    rows: list[Array] = []
    starts: list[int] = []
    at = steps = 0
    size = step_bytes(dot.depth, shared, wide)
    total = -(-weights.shape[2] // dot.channels)
    offsets = (np.arange(total)[:, None] * span + np.array(taps)[None, :]).reshape(-1)
    for group in weights:
        whole = elements(group, dot.channels)
        for first, end in map(work.row_range, range(work.row_parts)):
            channels = first_channels(len(whole), shared)[first:end]
            e = entries(_grouped(whole, channels, shared), dot)
            data, counts = _steps(e, offsets, dot, end - first, wide)
            order = np.argsort(-counts, kind="stable")
            begins = np.cumsum(counts) - counts
            spread = np.repeat(begins[order] - (np.cumsum(counts[order]) - counts[order]), counts[order])
            streams.append(data[np.arange(len(data)) + spread].reshape(-1))
            rows.append(np.stack([channels[order], counts[order]], axis=1).astype(np.int32))
            starts.append(at)
            at += data.size
            steps += len(data)
    padding = np.zeros(UNROLL * size, np.uint8)
    return Packed(
        np.concatenate([*streams, padding]),
        np.concatenate(rows),
        np.array(starts, np.int64).reshape(len(weights), -1),
        steps,
    )


def _steps(e: Entries, offsets: Array, dot: Dot, rows: int, wide: bool) -> tuple[Array, Array]:
    """The steps of the rows, [steps, bytes] uint8, and how many each row has."""
    picked = pair(e, rows) if dot.depth == 2 else np.arange(len(e.row))[:, None]
    lone = picked < 0
    picked = np.where(lone, picked[:, :1], picked)
    at = offsets[e.column[picked]].astype(np.uint32 if wide else np.uint16)
    lanes = np.int8 if dot.channels == 4 else np.int16
    weights = np.where(lone[:, :, None, None], 0, e.weights[picked]).astype(lanes)
    parts = [
        np.ascontiguousarray(at).view(np.uint8).reshape(len(picked), dot.depth * at.itemsize),
        np.ascontiguousarray(weights).view(np.uint8).reshape(len(picked), dot.depth * 4 * e.weights.shape[1]),
    ]
    return np.concatenate(parts, axis=1), np.bincount(e.row[picked[:, 0]], minlength=rows)


def count(weights: Array, dot: Dot, shared: int, sample: int = 64) -> tuple[float, float]:
    """About how many steps all rows of [outputs, inputs, taps] have, and how often their number changes."""
    whole = elements(weights, dot.channels)
    first = first_channels(len(whole), shared)
    rows = len(first)
    taken = min(rows, sample)
    e = entries(_grouped(whole, first[np.linspace(0, rows - 1, taken).astype(int)], shared), dot)
    counts = np.bincount(e.row, minlength=taken).astype(float)
    if dot.depth == 2:
        done = pair(e, taken)
        counts = np.bincount(e.row[done[:, 0]], minlength=taken).astype(float)
    return float(counts.mean() * rows), min(rows, len(np.unique(counts)) * 1.5)


__all__ = [
    "UNROLL",
    "Entries",
    "Packed",
    "count",
    "elements",
    "entries",
    "pack",
    "pair",
    "safe_products",
    "step_bytes",
]
