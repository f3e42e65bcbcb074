"""Products of byte matrices with constant ones in which blocks of four weights are zero: only the others are
stored and multiplied.

Lanes are the blocks of one column, each of which meets the four elements of the row that it belongs to; their
sums are added at the column's end. A block is named by one byte within a *window* of 256 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, Variable
from coresident.codegen.integers import Dot
from coresident.codegen.types import I8, I16, I32, I64
from coresident.kernels.integer_stream import elements, entries

Array = np.ndarray[Any, Any]

WINDOW = 256
"""Blocks of a column that one byte tells apart."""


@dataclass(frozen=True)
class Packed:
    """The blocks that are not all zero, column by column.

    Args:
        stream: bytes: of each step the places of as many blocks as there are lanes within their window, then
            their weights.
        steps: [columns, windows] uint16.
        starts: [groups] int32: where the columns of a vector of results begin in `stream`.
    """

    stream: Array
    steps: Array
    starts: Array

    @property
    def count(self) -> int:
        """Steps in all."""
        return int(self.steps.sum(dtype=np.int64))


def pack(weights: Array, dot: Dot, lanes: int, columns: int) -> Packed:
    """The blocks of [depth, columns], with columns of zeros up to `columns`."""
    whole = elements(np.ascontiguousarray(weights.T)[:, :, None], 4)
    windows = -(-whole.shape[1] // WINDOW)
    e = entries(whole[:, None], dot)
    place = e.row * windows + e.column // WINDOW
    order = np.argsort(place, kind="stable")
    counts = np.bincount(place, minlength=columns * windows)
    steps = -(-counts // lanes)
    first = np.cumsum(steps) - steps
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = first[place[order]] * lanes + rank
    total = int(steps.sum())
    index = np.zeros(total * lanes, np.uint8)
    index[at] = e.column[order] % WINDOW
    values = np.zeros((total * lanes, 4), np.int8)
    values[at] = e.weights[order, 0]
    stream = np.concatenate(
        [index.reshape(total, lanes), values.reshape(total, 4 * lanes).view(np.uint8)], axis=1
    )
    return Packed(
        stream.reshape(-1),
        steps.reshape(columns, windows).astype(np.uint16),
        (first[:: windows * lanes] * 5 * lanes).astype(np.int32),
    )


def estimated_cycles(packed: Packed, rows: int, lanes: int) -> float:
    """On one core: elements are gathered one by one."""
    return rows * (packed.count * 1.1 * lanes + 8.0 * len(packed.steps))


@dataclass(frozen=True)
class Blocks:
    """The tables of a kernel under construction.

    Args:
        stream, steps, starts: addresses of what `Packed` describes.
        windows: of a column.
        dot: how blocks are multiplied.
        flip: whether bytes of the rows change their sign bit as they are read.
    """

    stream: Value
    steps: Value
    starts: Value
    windows: int
    dot: Dot
    flip: bool

    def sums(self, f: Function, group: Value, rows: Sequence[Value]) -> list[Value]:
        """A vector of sums for each row (their addresses are given) with the columns of a group; they pass
        through the worker's scratch."""
        lanes = f.target.lanes(I32)
        kind = I32.by(lanes)
        position = f.var(f.offset(self.stream, f.convert(f.load(I32, self.starts, group), I64)))
        with f.loop(0, lanes) as column:
            totals = [f.var(f.constant(0, kind)) for _ in rows]
            for total in totals:
                total.set(f.constant(0, kind))
            with f.loop(0, self.windows) as window:
                steps = f.load(I16, self.steps, (group * lanes + column) * self.windows + window)
                bases = [f.offset(row, window * (4 * WINDOW)) for row in rows]
                with f.loop(0, f.convert(steps, I64, signed=False)):
                    here = position.get()
                    self._step(f, here, bases, totals)
                    position.set(f.offset(here, 5 * lanes))
            for r, total in enumerate(totals):
                one = f.call(f"llvm.vector.reduce.add.{kind.suffix}", I32, total.get())
                f.store(one, f["scratch"], column + r * lanes)
        return [f.load(kind, f["scratch"], r * lanes) for r in range(len(rows))]

    def _step(self, f: Function, here: Value, bases: Sequence[Value], totals: Sequence[Variable]) -> None:
        lanes = f.target.lanes(I32)
        kind = I32.by(lanes)
        places = [f.convert(f.load(I8, here, lane), I64, signed=False) for lane in range(lanes)]
        weights = self.dot.any_weights(f, f.load(kind, f.offset(here, lanes), align=1))
        for base, total in zip(bases, totals):
            x = f.constant(0, kind)
            for lane, place in enumerate(places):
                x = f.insert(x, f.load(I32, base, place, align=1), lane)
            x = x ^ -0x7F7F7F80 if self.flip else x
            total.set(self.dot.add_any(f, total.get(), x, weights))
