"""Rows of pixels cut into stripes (`Layout.striped`): what lies beside the stripes, and copies from and to
rows as users have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.types import F32, I64
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.geometry import FIRST, LAST
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import load_first, pieces, share, store_first, transpose, unravel


@dataclass(frozen=True)
class Columns:
    """The outer columns of rows that are written: the pixels beside the stripes, which their neighbours have.

    Args:
        row: elements of a row.
        before, after: whether there is one before the first column, and one after the last.
        streams: whether they are stored past the caches.
    """

    row: int
    before: bool
    after: bool
    streams: bool = False

    @staticmethod
    def of(layout: Layout, phases: int = 1, streams: bool = False) -> Columns | None:
        """Those of a layout, None where it has none.

        Args:
            phases: of a row, of which the layout counts one (`transposed.coarse`).
        """
        before, after = layout.outer_columns
        assert max(before, after) <= 1
        if not before and not after:
            return None
        return Columns(layout.shape[-1] * phases, bool(before), bool(after), streams)

    def store(self, f: Function, ends: Value, parts: Sequence[tuple[Value, Sequence[Value]]]) -> None:
        """Store them, given parts of some rows that begin and end at the same columns.

        Args:
            ends: of a row that the parts have (`Tiles.ends`).
            parts: of each its address, and its columns.
        """
        if self.after:
            with f.when((ends & FIRST).differs(0)):
                for row, columns in parts:
                    self._store_after(f, row, columns[0])
        if self.before:
            with f.when((ends & LAST).differs(0)):
                for row, columns in parts:
                    end = (len(columns) - 1) * columns[0].type.lanes
                    self._store_before(f, f.offset(row, 4 * (end - self.row)), columns[-1])

    def store_whole(self, f: Function, row: Value, first: Value, last: Value) -> None:
        """Store them, given the address of a row and its first and last column."""
        if self.after:
            self._store_after(f, row, first)
        if self.before:
            self._store_before(f, f.offset(row, -first.type.bytes), last)

    def _store_after(self, f: Function, row: Value, first: Value) -> None:
        """After the last column: the first pixel of each stripe's next one."""
        lanes, zero = first.type.lanes, f.constant(0, first.type)
        self._put(f, f.shuffle(first, zero, range(1, lanes + 1)), row, self.row)

    def _store_before(self, f: Function, place: Value, last: Value) -> None:
        """Before the first column, at an address: the last pixel of each stripe's one before."""
        lanes, zero = last.type.lanes, f.constant(0, last.type)
        self._put(f, f.shuffle(zero, last, range(lanes - 1, 2 * lanes - 1)), place, 0)

    def _put(self, f: Function, column: Value, row: Value, at: int) -> None:
        f.store(column, row, at, align=column.type.bytes if self.streams else 4, streaming=self.streams)


def cut(plan: Plan, x: Tensor, y: Tensor, info: dict[str, Any]) -> None:
    """Add a step that copies rows of unit stride into striped ones, with their outer columns."""

    def row(f: Function, here: Value, there: Value, columns: int) -> None:
        lanes = y.layout.stripes
        vector, outer = F32.by(lanes), Columns.of(y.layout)

        def some(first: Value, count: int) -> None:
            stripes = [load_first(f, vector, here, first + lane * columns, count) for lane in range(lanes)]
            for i, column in enumerate(transpose(f, stripes)[:count]):
                f.store(column, there, (first + i) * lanes)

        _each_square(f, columns, lanes, some)
        if outer is not None:
            outer.store_whole(f, there, f.load(vector, there), f.load(vector, there, (columns - 1) * lanes))

    _each_row(plan, x, y, "cut_into_stripes", info, row)


def join(plan: Plan, x: Tensor, y: Tensor, info: dict[str, Any]) -> None:
    """Add a step that copies striped rows into rows of unit stride."""

    def row(f: Function, here: Value, there: Value, columns: int) -> None:
        lanes = x.layout.stripes
        vector = F32.by(lanes)

        def some(first: Value, count: int) -> None:
            held = [f.load(vector, here, (first + i) * lanes) for i in range(count)]
            for lane, stripe in enumerate(transpose(f, [*held, *[held[-1]] * (lanes - count)])):
                store_first(f, stripe, there, first + lane * columns, count)

        _each_square(f, columns, lanes, some)

    _each_row(plan, x, y, "join_stripes", info, row)


def striped_target(plan: Plan, x: Tensor, y: Tensor) -> Tensor:
    """What a kernel is to write that reads striped rows: its output, or such rows that are `joined` to it."""
    if not x.layout.stripes or y.layout.stripes:
        return y
    none = ((0, 0),) * (len(y.shape) - 2)
    return plan.temporary(Layout.striped(y.shape, none, x.layout.stripes), y.dtype)


def joined(plan: Plan, made: Tensor, y: Tensor) -> None:
    """Copy what was made (`striped_target`) to an output, if it is not that."""
    if made is not y:
        join(plan, made, y, {"op": "Copy", "kernel": "copy from stripes"})


def _each_square(f: Function, columns: int, lanes: int, body: Callable[[Value, int], None]) -> None:
    """Call a body with the first of as many columns as a vector has lanes, or fewer, and their number."""
    whole = columns // lanes * lanes
    if whole:
        with f.loop(0, whole, lanes) as first:
            body(first, lanes)
    if columns > whole:
        body(f.constant(whole, I64), columns - whole)


def _each_row(
    plan: Plan,
    x: Tensor,
    y: Tensor,
    name: str,
    info: dict[str, Any],
    body: Callable[[Function, Value, Value, int], None],
) -> None:
    """A step that calls a body with the addresses of each row, and columns of one.

    Rows have unit strides, or stripes.
    """
    lanes = max(x.layout.stripes, y.layout.stripes)
    sizes = x.shape[:-1]
    f = kernel(plan.target, name)
    x_0, y_0 = element_0(f, 0, x), element_0(f, 1, y)
    tasks = pieces(plan.threads, math.prod(sizes), 0.3 * x.layout.elements)
    first, end = share(f, math.prod(sizes), tasks)
    with f.loop(first, end) as index:
        here, there = unravel(f, index, sizes, x.layout.strides[:-1], y.layout.strides[:-1])
        body(f, f.offset(x_0, here, F32), f.offset(y_0, there, F32), x.shape[-1] // lanes)
    plan.step(f, [operand(x), operand(y)], tasks, reads=[x], writes=[y], info=info)
