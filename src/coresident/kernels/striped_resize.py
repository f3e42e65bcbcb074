"""Resize over striped rows (`Layout.striped`), where rows grow by a whole factor: of whole vectors.

The neighbours of output column factor * i + r are input columns beside i, in each stripe alike. All axes but
the last are blended first, column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.graph.operators.resize import AxisResize
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.frame import STREAMED_BYTES
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.stripes import Columns
from coresident.kernels.vectors import pieces, share, unravel

Taps = Sequence[Sequence[tuple[int, float]]]
"""For each output column of an input column i, the (distance from i, weight) of each neighbour: 1 at most,
and a row repeats its ends beyond them."""


def resize_stripes(
    plan: Plan, x: Tensor, y: Tensor, rows: AxisResize | None, taps: Taps, info: dict[str, Any]
) -> None:
    """Add the step of a resize from striped rows [N, C, rows, columns] to striped rows.

    Args:
        rows: how they are resized, if they are.
        taps: how columns are.
    """
    lanes, pitch = x.layout.stripes, x.layout.strides[-2]
    vector, outer, columns = F32.by(lanes), Columns.of(y.layout), x.shape[-1] // lanes
    plain = np.arange(y.shape[-2])[:, None]
    indices, weights = (plain, np.ones_like(plain)) if rows is None else (rows.indices, rows.weights)
    neighbours = indices.shape[1]
    f = kernel(plan.target, "resize_stripes")
    x_0, y_0, places, shares = (element_0(f, 0, x), element_0(f, 1, y), word(f, 2), word(f, 3))
    units = math.prod(y.shape[:-1])
    tasks = pieces(plan.threads, units, (neighbours + len(taps)) * y.layout.elements / lanes)
    first, end = share(f, units, tasks)
    with f.loop(first, end) as index:
        no_rows = (*x.layout.strides[:2], 0)
        at_x, at_y, row = unravel(f, index, y.shape[:-1], no_rows, y.layout.strides[:-1], (0, 0, 1))
        plane, there = f.offset(x_0, at_x, F32), f.offset(y_0, at_y, F32)
        sources = [
            f.offset(plane, f.convert(f.load(I32, places, row * neighbours + t), I64), F32)
            for t in range(neighbours)
        ]
        parts: list[Value] = []
        if (weights != 1).any():
            parts = [f.splat(f.load(F32, shares, row * neighbours + t), vector) for t in range(neighbours)]
        # Past the caches, which would not hold it until it is read.
        far = plan.target.arch == "x86_64" and 4 * y.layout.elements >= STREAMED_BYTES
        made = _Row(f, lanes, sources, parts, columns, taps, far)
        made.store(there)
        if outer is not None:
            outer.store_whole(f, there, *made.first_and_last())
    tables = (indices * pitch).astype(np.int32), weights.astype(np.float32)
    operands = [operand(x), operand(y), *(plan.constant(table) for table in tables)]
    details = {"kernel": "resize, striped rows", "bytes": 4 * (x.layout.elements + y.layout.elements), **info}
    plan.step(f, operands, tasks, reads=[x], writes=[y], info=details)


@dataclass(frozen=True)
class _Row:
    """An input row, blended of several, whose columns are resized.

    Args:
        function: under construction.
        lanes: of a column.
        sources, parts: addresses of the rows that it is blended of, and what each weighs, spread; nothing
            where it is one row as it is.
        columns: of it.
        taps: of its columns.
        far: whether what becomes of it is stored past the caches.
    """

    function: Function
    lanes: int
    sources: Sequence[Value]
    parts: Sequence[Value]
    columns: int
    taps: Taps
    far: bool

    def store(self, there: Value) -> None:
        """Store the output's columns."""
        f = self.function
        if all(tuple(tap) == ((0, 1.0),) for tap in self.taps):
            unroll = max(n for n in (1, 2, 4) if self.columns % n == 0)
            with f.loop(0, self.columns, unroll) as i:
                for one in range(unroll):
                    self._store(there, i + one, [self._column(i + one)] * len(self.taps))
            return
        before, begin, _, after = self._ends()
        previous, current = f.var(before), f.var(begin)

        def some(i: Value, following: Value) -> None:
            beside = previous.get(), current.get(), following
            self._store(there, i, [self._made(tap, beside) for tap in self.taps])
            previous.set(beside[1])
            current.set(following)

        with f.loop(0, self.columns - 1) as i:
            some(i, self._column(i + 1))
        some(f.constant(self.columns - 1, I64), after)

    def first_and_last(self) -> tuple[Value, Value]:
        """The output's first and last column."""
        before, begin, end, after = self._ends()
        second, last_but_one = after, before
        if self.columns > 1:
            second, last_but_one = self._column(1), self._column(self.columns - 2)
        first = self._made(self.taps[0], (before, begin, second))
        return first, self._made(self.taps[-1], (last_but_one, end, after))

    def _ends(self) -> tuple[Value, Value, Value, Value]:
        """The first column with what is before it, and the last with what is after it: beside the stripes lie
        their neighbours' pixels, and the row's ends again."""
        f, lanes = self.function, self.lanes
        begin, end = self._column(0), self._column(self.columns - 1)
        before = f.shuffle(end, begin, [lanes, *range(lanes - 1)])
        after = f.shuffle(begin, end, [*range(1, lanes), 2 * lanes - 1])
        return before, begin, end, after

    def _column(self, i: Value | int) -> Value:
        f, vector = self.function, F32.by(self.lanes)
        loaded = [f.load(vector, source, i * self.lanes) for source in self.sources]
        if not self.parts:
            return loaded[0]
        total = loaded[0] * self.parts[0]
        for one, part in zip(loaded[1:], self.parts[1:]):
            total = f.fma(one, part, total)
        return total

    def _made(self, tap: Sequence[tuple[int, float]], beside: tuple[Value, Value, Value]) -> Value:
        """An output column of an input column with those before and after it."""
        parts = [beside[1 + distance] * weight for distance, weight in tap]
        return reduce(lambda a, b: a + b, parts)

    def _store(self, there: Value, i: Value, columns: Sequence[Value]) -> None:
        """Store what becomes of column i."""
        for r, column in enumerate(columns):
            place = (i * len(columns) + r) * self.lanes
            if self.far:
                self.function.store(column, there, place, align=column.type.bytes, streaming=True)
            else:
                self.function.store(column, there, place)
