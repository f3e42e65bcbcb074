"""Pools over striped rows (`Layout.striped`), whose windows reach over no stripe's end: of whole vectors.

One behind a sparse convolution is computed from the registers that hold the convolution's results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.types import F32
from coresident.graph.graph import Node
from coresident.graph.operators.windows import Window
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.geometry import Tiles
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.stripes import Columns
from coresident.kernels.vectors import pieces, share, unravel

ROWS_AHEAD = 2
"""Output rows whose input is asked for in advance."""


@dataclass(frozen=True)
class StripedPool:
    """A pool over striped rows [N, C, (depth,) rows, columns].

    Args:
        node: it.
        y: its output, in striped rows.
        window: what is pooled.
        prepare, combine, finish: applied to each element first, of two, and to what becomes of a window.
    """

    node: Node
    y: Tensor
    window: Window
    prepare: Callable[[Function, Value], Value]
    combine: Callable[[Function, Value, Value], Value]
    finish: Callable[[Function, Value], Value]

    def of(self, f: Function, pixels: Sequence[Value]) -> Value:
        """What becomes of the elements of a window."""
        prepared = [self.prepare(f, pixel) for pixel in pixels]
        return self.finish(f, reduce(lambda a, b: self.combine(f, a, b), prepared))

    def pooled(self, tiles: Tiles, out: Tensor) -> Tiles | None:
        """Tiles of a convolution's output that tell where their windows' results lie as well; None where
        windows lie in two tiles.

        Args:
            out: of the convolution.
        """
        strides, lanes = self.window.strides, out.layout.stripes
        extents = (*tiles.runs, tiles.across)
        if tiles.full < tiles.count or len(extents) < len(strides):
            return None
        if any(size % step for size, step in zip(extents, strides, strict=True)):
            return None
        left, places = tiles.table[:, 1], np.zeros(tiles.count, np.int64)
        units = zip((*out.layout.strides[2:-1], lanes), (*self.y.layout.strides[2:-1], lanes), strides)
        for unit, there, step in units:
            index, left = np.divmod(left, unit)
            if (index % step).any():
                return None
            places += index // step * there
        table = np.insert(tiles.table, tiles.operands, places, axis=1).astype(np.int32)
        return replace(tiles, table=table, rows=(*tiles.rows, (0,) * tiles.below))


@dataclass(frozen=True)
class PoolStore:
    """Stores what a pool makes of a tile of a convolution's results.

    Args:
        pool: it.
        pointer: of the picture in its output.
        tiles: of the convolution's output, each of whole windows.
    """

    pool: StripedPool
    pointer: Value
    tiles: Tiles

    def store(
        self, f: Function, channel: Value, rows: Sequence[Sequence[Value]], at: Value, ends: Value | None
    ) -> None:
        """Store what it makes of one channel.

        Args:
            rows: of the tile (`Tiles.runs`), column by column.
            at: elements from pixel 0 to the tile's first window, in its output.
            ends: of a row that the tile has (`Tiles.ends`).
        """
        window, lanes = self.pool.window, self.pool.y.layout.stripes
        outer, stored = Columns.of(self.pool.y.layout), []
        by_place = dict(zip(itertools.product(*map(range, self.tiles.runs)), rows, strict=True))
        for index, row in self._rows(f, channel, at):
            windows = (range(i * s, i * s + k) for i, s, k in zip(index, window.strides, window.kernel))
            lines = [by_place[place] for place in itertools.product(*windows)]
            parts = [slice(x, x + window.kernel[-1]) for x in range(0, len(rows[0]), window.strides[-1])]
            found = [self.pool.of(f, [v for line in lines for v in line[part]]) for part in parts]
            for i, value in enumerate(found):
                f.store(value, row, i * lanes)
            stored.append((row, found))
        if outer is not None:
            assert ends is not None
            outer.store(f, ends, stored)

    def prefetch(self, f: Function, channel: Value, at: Value) -> None:
        """Ask for the lines that `store` will write."""
        for _, row in self._rows(f, channel, at):
            for column in range(self.tiles.across // self.pool.window.strides[-1]):
                f.prefetch(row, 4 * column * self.pool.y.layout.stripes, write=True)

    def _rows(self, f: Function, channel: Value, at: Value) -> Iterator[tuple[tuple[int, ...], Value]]:
        """Of each row of windows in a tile, which one it is, and the address of its results."""
        layout, strides = self.pool.y.layout, self.pool.window.strides
        target = f.offset(self.pointer, channel * layout.strides[1] + at, F32)
        for index in itertools.product(*(range(size // s) for size, s in zip(self.tiles.runs, strides))):
            yield index, f.offset(target, 4 * sum(i * s for i, s in zip(index, layout.strides[2:-1])))


def pool_stripes(plan: Plan, x: Tensor, pool: StripedPool, info: dict[str, Any]) -> None:
    """Add the step of a pool from striped rows to striped rows."""
    y, window = pool.y, pool.window
    lanes = x.layout.stripes
    vector, outer = F32.by(lanes), Columns.of(y.layout)
    step, columns = window.strides[-1], y.shape[-1] // lanes
    rows = x.layout.strides[2:-1]
    taps = [
        sum(at * stride for at, stride in zip(place, (*rows, lanes)))
        for place in itertools.product(*map(range, window.kernel))
    ]
    sizes = y.shape[:-1]
    places = (*x.layout.strides[:2], *(stride * s for stride, s in zip(rows, window.strides)))
    f = kernel(plan.target, "pool_stripes")
    x_0, y_0 = element_0(f, 0, x), element_0(f, 1, y)
    tasks = pieces(plan.threads, math.prod(sizes), len(taps) * y.layout.elements / lanes)
    far = 4 * x.layout.elements > plan.target.l2_bytes
    first, end = share(f, math.prod(sizes), tasks)
    with f.loop(first, end) as index:
        at_x, at_y = unravel(f, index, sizes, places, y.layout.strides[:-1])
        here, there = f.offset(x_0, at_x, F32), f.offset(y_0, at_y, F32)

        def column(i: Value | int, here: Value = here) -> Value:
            start = f.offset(here, f.value(i, at_x.type) * (step * lanes), F32)
            if far:
                ahead = ROWS_AHEAD * places[-1]
                for tap in taps:
                    f.prefetch(start, 4 * (ahead + tap), near=False)
            return pool.of(f, [f.load(vector, start, tap) for tap in taps])

        with f.loop(0, columns) as i:
            f.store(column(i), there, i * lanes)
        if outer is not None:
            outer.store_whole(f, there, f.load(vector, there), f.load(vector, there, (columns - 1) * lanes))
    details = {
        "kernel": "pool, striped rows",
        "tile": "x".join(map(str, window.kernel)),
        "bytes": 4 * (x.layout.elements + y.layout.elements),
        **info,
    }
    plan.step(f, [operand(x), operand(y)], tasks, reads=[x], writes=[y], info=details)
