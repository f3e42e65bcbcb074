"""Resize over striped rows (`Layout.striped`), where rows grow by a whole factor: of whole vectors.

The neighbours of output column factor * i + r are input columns beside i, in each stripe alike. All axes but
the last are blended first, column by column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.graph.operators.resize import AxisResize
from coresident.kernels.arguments import element_0, operand
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
        _Row(f, lanes, sources, parts, columns).store(there, taps)
        if outer is not None:
            last = (y.shape[-1] // lanes - 1) * lanes
            outer.store_whole(f, there, f.load(vector, there), f.load(vector, there, last))
    tables = (indices * pitch).astype(np.int32), weights.astype(np.float32)
    operands = [operand(x), operand(y), *(plan.constant(table) for table in tables)]
    details = {"kernel": "resize, striped rows", "bytes": 4 * (x.layout.elements + y.layout.elements), **info}
    plan.step(f, operands, tasks, reads=[x], writes=[y], info=details)


class _Row:
    """An input row, blended of several, whose columns are resized.

    Args:
        sources, parts: addresses of the rows that it is blended of, and what each weighs, spread; nothing
            where it is one row as it is.
        columns: of it.
    """

    def __init__(
        self, f: Function, lanes: int, sources: Sequence[Value], parts: Sequence[Value], columns: int
    ) -> None:
        self.f, self.lanes, self.sources, self.parts, self.columns = f, lanes, sources, parts, columns

    def _column(self, i: Value | int) -> Value:
        f, vector = self.f, F32.by(self.lanes)
        loaded = [f.load(vector, source, i * self.lanes) for source in self.sources]
        if not self.parts:
            return loaded[0]
        total = loaded[0] * self.parts[0]
        for one, part in zip(loaded[1:], self.parts[1:]):
            total = f.fma(one, part, total)
        return total

    def store(self, there: Value, taps: Taps) -> None:
        """Store the output's columns."""
        f, lanes = self.f, self.lanes
        if all(tap == ((0, 1.0),) for tap in map(tuple, taps)):
            unroll = max(n for n in (1, 2, 4) if self.columns % n == 0)
            with f.loop(0, self.columns, unroll) as i:
                for one in range(unroll):
                    column = self._column(i + one)
                    for r in range(len(taps)):
                        f.store(column, there, ((i + one) * len(taps) + r) * lanes)
            return
        begin, end = self._column(0), self._column(self.columns - 1)
        # Beside the stripes lie their neighbours' pixels, and a row's ends again.
        before = f.shuffle(end, begin, [lanes, *range(lanes - 1)])
        after = f.shuffle(begin, end, [*range(1, lanes), 2 * lanes - 1])
        previous, current = f.var(before), f.var(begin)

        def some(i: Value | int, following: Value) -> None:
            beside = {-1: previous.get(), 0: current.get(), 1: following}
            for r, tap in enumerate(taps):
                total = None
                for distance, weight in tap:
                    part = beside[distance] if weight == 1 else beside[distance] * weight
                    total = part if total is None else total + part
                assert total is not None
                f.store(total, there, (i * len(taps) + r) * lanes)
            previous.set(beside[0])
            current.set(following)

        with f.loop(0, self.columns - 1) as i:
            some(i, self._column(i + 1))
        some(self.columns - 1, after)
