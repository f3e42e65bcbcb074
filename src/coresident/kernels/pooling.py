"""Pools over sliding windows. Source: ONNX MaxPool-22, AveragePool-22, LpPool-22.

A window is reduced over all dimensions but the last first: whole rows are combined, vector by vector, into
one row in scratch that has what the padding counts as on both sides. The last dimension is then reduced from
there. Windows of two columns that do not overlap skip the row in scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, Variable, kernel, word
from coresident.codegen.math import CodeMath, Typed
from coresident.codegen.types import I64, Type, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.pooling import average_counts, pool_geometry
from coresident.graph.operators.windows import Window
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.conversion import Conversion
from coresident.kernels.indexed_pooling import max_indices
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.reduction import REDUCTIONS, larger, reduce
from coresident.kernels.striped_pooling import ROWS_AHEAD, StripedPool, pool_stripes
from coresident.kernels.stripes import joined, striped_target
from coresident.kernels.vectors import load_first, pieces, share, store_first, unravel

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pool:
    """What is computed over each window.

    Args:
        window: its geometry.
        spatial, output: sizes of the input's and the output's spatial dimensions.
        dtype: of the elements.
        neutral: what the padding counts as.
        prepare: applied to each element first.
        combine: of two elements.
        finish: applied to the sum, norm or maximum.
        counts: how many elements each window averages: the product of these over the dimensions; None if it
            is the same for all, and then part of `finish`.
        conversion: what is done to elements as they are loaded, before `prepare`, and to results after
            `finish`.
    """

    window: Window
    spatial: tuple[int, ...]
    output: tuple[int, ...]
    dtype: np.dtype[Any]
    neutral: float
    prepare: Callable[[Function, Value], Value]
    combine: Callable[[Function, Value, Value], Value]
    finish: Callable[[Function, Value], Value]
    counts: tuple[Array, ...] | None = None
    conversion: Conversion = field(default_factory=lambda: Conversion(np.dtype(np.float32)))

    @property
    def outer(self) -> int:
        """Spatial dimensions but the last."""
        return len(self.output) - 1

    @property
    def pairs(self) -> bool:
        """Whether output column i is of the input columns 2i and 2i + 1, for all i."""
        w = self.window
        fits = 2 * self.output[-1] <= self.spatial[-1] and w.pads_begin[-1] == 0
        return (w.kernel[-1], w.strides[-1], w.dilations[-1]) == (2, 2, 1) and fits


def _same(f: Function, x: Value) -> Value:
    return x


def _add(f: Function, a: Value, b: Value) -> Value:
    return a + b


def _pool(node: Node, plan: Plan, dtype: np.dtype[Any]) -> Pool:
    fact = plan.graph.fact(node.inputs[0])
    assert fact is not None
    spatial = fact.sizes[2:]
    window, output = pool_geometry(node, spatial)
    if node.op == "MaxPool":
        lowest = -math.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)
        return Pool(
            window, spatial, output, dtype, lowest, _same, lambda f, a, b: larger(f, a, b, dtype), _same
        )
    if node.op == "LpPool":
        power = float(node.get("p", 2))

        def raised(f: Function, x: Value, exponent: float) -> Value:
            math_ = CodeMath(f)
            typed = Typed(x, dtype.name)
            return math_.power(typed, math_.constant(exponent, typed)).value

        return Pool(
            window,
            spatial,
            output,
            dtype,
            0,
            lambda f, x: raised(f, f.unary("fabs", x), power),
            _add,
            lambda f, x: raised(f, x, 1 / power),
        )
    conversion = Conversion.of(node, fact.dtype)
    counts = average_counts(node, window, spatial, output)
    if all((c == c[0]).all() for c in counts):
        factor, tables = conversion.scale / math.prod(int(c[0]) for c in counts), None
    else:
        factor, tables = conversion.scale, tuple(c.astype(dtype) for c in counts)
    finish = _same if factor == 1 else lambda f, x: x * factor
    return Pool(window, spatial, output, dtype, 0, _same, _add, finish, tables, conversion)


def _gains_in_stripes(node: Node, graph: Graph) -> bool | None:
    """Whether striped rows suit a pool (`Family.stripes`): where no window reaches over the ends of stripes,
    columns are pooled."""
    if len(node.outputs) > 1 and node.outputs[1]:
        return None
    x, y = (graph.facts[name].sizes[2:] for name in (node.inputs[0], node.outputs[0]))
    w, _ = pool_geometry(node, x)
    fits = all(size == out * step for size, out, step in zip(x, y, w.strides))
    apart = w.kernel[-1] <= w.strides[-1] and not any((*w.pads_begin, *w.pads_end))
    return False if fits and apart and all(d == 1 for d in w.dilations) else None


def striped_behind(node: Node, plan: Plan) -> StripedPool | None:
    """A pool over striped rows that reads what a convolution makes."""
    for reader in plan.readers(node.outputs[0]):
        if reader.op in ("MaxPool", "AveragePool", "LpPool") and plan.is_striped(reader.outputs[0]):
            p = _pool(reader, plan, np.dtype(np.float32))
            return _of_stripes(reader, p, plan.tensor(reader.outputs[0]))
    return None


def _of_stripes(node: Node, p: Pool, y: Tensor) -> StripedPool:
    return StripedPool(node, y, p.window, p.prepare, p.combine, p.finish)


@lowers("MaxPool", "AveragePool", "LpPool", stripes=_gains_in_stripes, copies=lambda node: (node.outputs[0],))
def pool(node: Node, plan: Plan) -> None:
    if len(node.outputs) > 1 and node.outputs[1]:
        max_indices(node, plan)
        return
    source, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    if source.dtype.kind not in "fiu" or source.dtype == np.float16:
        raise UnsupportedModel(f"a pool over {source.dtype}", shape=source.shape)
    lies_in_planes = source.dtype in (np.float32, np.uint8, np.int8)
    x = plan.planar(node.inputs[0]) if lies_in_planes else plan.contiguous(node.inputs[0])
    p = _pool(node, plan, Conversion.of(node, source.dtype).computed)
    if x.layout.stripes:
        made = striped_target(plan, x, y)
        pool_stripes(plan, x, _of_stripes(node, p, made), {"op": node.op})
        joined(plan, made, y)
        return
    f = kernel(plan.target, node.op.lower())
    rows = math.prod(y.shape[:-1])
    cost = math.prod(y.shape) * (math.prod(p.window.kernel[:-1]) * p.window.strides[-1] + p.window.kernel[-1])
    tasks = pieces(
        plan.threads, rows if y.layout.elements else 0, cost / plan.target.lanes(of_dtype(p.dtype))
    )
    tables = [] if p.counts is None else [plan.constant(np.pad(c, (0, 64))) for c in p.counts]
    if tasks:
        plan.scratch(_emit(f, p, x, y, tasks))
    plan.step(
        f,
        [operand(x), operand(y), *tables],
        tasks,
        reads=[x],
        writes=[y],
        info={
            "op": node.op,
            "kernel": "pool, pairs of columns" if p.pairs else "pool, rows then columns",
            "tile": "x".join(map(str, p.window.kernel)),
            "bytes": x.layout.elements * x.dtype.itemsize + y.layout.elements * y.dtype.itemsize,
        },
    )


def _emit(f: Function, p: Pool, x: Tensor, y: Tensor, tasks: int) -> int:
    """The kernel: each task makes a share of the rows of all output planes.

    Returns:
        Bytes of scratch that it needs.
    """
    full = of_dtype(p.dtype).by(f.target.lanes(of_dtype(p.dtype)))
    px, py = element_0(f, 0, x), element_0(f, 1, y)
    emitter = _Pairs(f, p, full, x, y) if p.pairs else _Rows(f, p, full, x, y)
    emitter.begin()
    strides = tuple(s * step for s, step in zip(p.window.strides, x.layout.strides[2:-1]))
    sizes = y.shape[:-1]
    places = [(*x.layout.strides[:2], *strides), y.layout.strides[:-1]]
    digits = [tuple(int(i == d + 2) for i in range(len(sizes))) for d in range(p.outer)]
    first, last = share(f, math.prod(sizes), tasks)
    with f.loop(first, last) as row:
        at_x, at_y, *index = unravel(f, row, sizes, *places, *digits)
        spans = [_span(f, p, d, i) for d, i in enumerate(index)]
        count = _outer_count(f, p, index)
        emitter.row(f.offset(px, at_x, emitter.stored), f.offset(py, at_y, of_dtype(y.dtype)), spans, count)
    return emitter.scratch_bytes


def _span(f: Function, p: Pool, d: int, index: Value) -> tuple[Value, Value]:
    """The elements of window `index` of dimension d inside the input: the first, and one after the last."""
    w, size = p.window, p.spatial[d]
    kernel_size, dilation, begin = w.kernel[d], w.dilations[d], w.pads_begin[d]
    start = index * w.strides[d] - begin
    low, high = f.constant(0, I64), f.constant(kernel_size, I64)
    if begin:
        low = f.maximum((-start + (dilation - 1)) // dilation, 0)
    if (p.output[d] - 1) * w.strides[d] - begin + (kernel_size - 1) * dilation >= size:
        high = f.minimum((f.value(size + dilation - 1, I64) - start) // dilation, kernel_size)
    return low, high


def _outer_count(f: Function, p: Pool, index: Sequence[Value]) -> Value | None:
    if p.counts is None:
        return None
    kind = of_dtype(p.dtype)
    total = f.constant(1, kind)
    for d, i in enumerate(index):
        total = total * f.load(kind, word(f, 2 + d), i)
    return total


class _Emitter:
    """Emits the reduction of the windows of one output row.

    Args:
        f, p: the kernel and what it computes.
        full: type of a whole vector that is computed with.
        x, y: input and output.
    """

    scratch_bytes = 0

    def __init__(self, f: Function, p: Pool, full: Type, x: Tensor, y: Tensor) -> None:
        self.f, self.p, self.full, self.x, self.y = f, p, full, x, y
        self.stored = of_dtype(x.dtype)
        self.lanes = full.lanes
        self.columns, self.width = p.output[-1], p.spatial[-1]

    def begin(self) -> None:
        """What is done once in a task."""

    def row(self, px: Value, py: Value, spans: Sequence[tuple[Value, Value]], count: Value | None) -> None:
        """One row.

        Args:
            px, py: of the first window's first element if there were no padding, and of the output row.
            spans: elements of the window inside the input, one pair a dimension but the last.
            count: elements averaged, those of the last dimension not counted.
        """
        raise NotImplementedError

    def over_rows(
        self, px: Value, spans: Sequence[tuple[Value, Value]], body: Callable[[Value], None]
    ) -> None:
        """`body` with the address of each input row under the window."""
        f, w = self.f, self.p.window

        def nest(d: int, at: Value) -> None:
            if d == self.p.outer:
                body(at)
                return
            step = self.x.layout.strides[2 + d]
            with f.loop(*spans[d]) as i:
                nest(d + 1, f.offset(at, (i * w.dilations[d] - w.pads_begin[d]) * step, self.stored))

        nest(0, px)

    def ask(self, row: Value, column: Value, vectors: int) -> None:
        """Ask L2 for what will be read below so many vectors of an input row, if the input comes from beyond.

        Rows are shorter than pages, where hardware prefetchers start anew.
        """
        if self.p.outer == 0 or self.x.layout.elements * self.stored.bytes <= self.f.target.l2_bytes:
            return
        below = ROWS_AHEAD * self.p.window.strides[-2] * self.x.layout.strides[-2]
        place = self.f.offset(row, column + below, self.stored)
        for line in range(0, vectors * self.lanes * self.stored.bytes, 64):
            self.f.prefetch(place, line, near=False)

    def load(self, row: Value, column: Value | int, count: int) -> Value:
        """A vector of the input with `count` columns that matter."""
        whole = count >= self.lanes or self.x.layout.slack >= self.lanes
        kind = self.stored.by(self.lanes)
        loaded = load_first(self.f, kind, row, column, self.lanes if whole else count)
        return self.p.prepare(self.f, self.p.conversion.entered(self.f, loaded))

    def combine_into(self, total: Variable, value: Value) -> None:
        total.set(self.p.combine(self.f, total.get(), value))

    def store(self, value: Value, py: Value, column: Value | int, lanes: int, count: Value | None) -> None:
        """Finish and store `lanes` results."""
        f, stride = self.f, self.y.layout.strides[-1]
        if count is not None:
            of_columns = f.load(self.full, word(f, 2 + self.p.outer), column)
            value = value / (of_columns * count)
        value = self.p.conversion.left(f, self.p.finish(f, value))
        place = column * stride if stride != 1 else column
        store_first(f, value, py, place, lanes, stride if self.columns > 1 else 1)


def _local_pairs(lanes: int, group: int) -> tuple[list[int], list[int], list[int]]:
    """Shuffles of two vectors: even and odd lanes, in an order that keeps within 128 bits, which is cheap;
    and the shuffle that puts such a result in order."""
    starts = range(0, lanes, group)
    even = [s + side + i for s in starts for side in (0, lanes) for i in range(0, group, 2)]
    half = group // 2
    order = [s + side + i for side in (0, half) for s in starts for i in range(half)]
    return even, [i + 1 for i in even], order


class _Pairs(_Emitter):
    """Windows of two columns that do not overlap: nothing but registers."""

    def row(self, px: Value, py: Value, spans: Sequence[tuple[Value, Value]], count: Value | None) -> None:
        f, lanes = self.f, self.lanes
        unroll = 2 if self.columns >= 2 * lanes else 1
        whole = self.columns // (unroll * lanes) * (unroll * lanes)
        if whole:
            with f.loop(0, whole, unroll * lanes) as column:
                self._vectors(px, py, spans, count, column, [lanes] * unroll)
        rest = self.columns - whole
        if rest:
            counts = [lanes] * (rest // lanes) + [rest % lanes] * (rest % lanes > 0)
            self._vectors(px, py, spans, count, f.constant(whole, I64), counts)

    def _vectors(
        self,
        px: Value,
        py: Value,
        spans: Sequence[tuple[Value, Value]],
        count: Value | None,
        column: Value,
        counts: Sequence[int],
    ) -> None:
        f, lanes, p = self.f, self.lanes, self.p
        totals = [(f.var(p.neutral, self.full), f.var(p.neutral, self.full)) for _ in counts]

        def add(row: Value) -> None:
            self.ask(row, column * 2, 2 * len(counts))
            for v, (valid, (low, high)) in enumerate(zip(counts, totals)):
                at = column * 2 + 2 * v * lanes
                self.combine_into(low, self.load(row, at, min(2 * valid, lanes)))
                if 2 * valid > lanes:
                    self.combine_into(high, self.load(row, at + lanes, 2 * valid - lanes))

        self.over_rows(px, spans, add)
        for v, (valid, (low, high)) in enumerate(zip(counts, totals)):
            value = _adjacent(f, p, low.get(), high.get())
            self.store(value, py, column + v * lanes, valid, count)


def _adjacent(f: Function, p: Pool, low: Value, high: Value) -> Value:
    lanes = low.type.lanes
    if lanes == 2:
        return p.combine(f, f.shuffle(low, high, (0, 2)), f.shuffle(low, high, (1, 3)))
    even, odd, order = _local_pairs(lanes, min(lanes, 128 // low.type.bits))
    mixed = p.combine(f, f.shuffle(low, high, even), f.shuffle(low, high, odd))
    return f.shuffle(mixed, None, order) if order != list(range(lanes)) else mixed


class _Rows(_Emitter):
    """Any window: input rows are combined into one in scratch, whose columns are then combined."""

    def __init__(self, f: Function, p: Pool, full: Type, x: Tensor, y: Tensor) -> None:
        super().__init__(f, p, full, x, y)
        w = p.window
        self.left = -(-w.pads_begin[-1] // self.lanes) * self.lanes
        self.first = self.left - w.pads_begin[-1]
        rounded = -(-self.columns // self.lanes) * self.lanes
        reached = self.first + (rounded - 1) * w.strides[-1] + w.extent[-1] + 2 * self.lanes
        stored = self.left + -(-self.width // self.lanes) * self.lanes
        self.length = -(-max(reached, stored) // self.lanes) * self.lanes
        self.scratch_bytes = self.length * full.scalar.bytes

    def begin(self) -> None:
        f = self.f
        with f.loop(0, self.length, self.lanes) as i:
            f.store(f.constant(self.p.neutral, self.full), f["scratch"], i)

    def row(self, px: Value, py: Value, spans: Sequence[tuple[Value, Value]], count: Value | None) -> None:
        f, lanes = self.f, self.lanes
        unroll = 4
        whole = self.width // (unroll * lanes) * (unroll * lanes)
        if whole:
            with f.loop(0, whole, unroll * lanes) as column:
                self._down(px, spans, column, [lanes] * unroll)
        rest = self.width - whole
        if rest:
            counts = [lanes] * (rest // lanes) + [rest % lanes] * (rest % lanes > 0)
            self._down(px, spans, f.constant(whole, I64), counts)
        full = self.columns // lanes * lanes
        if full:
            with f.loop(0, full, lanes) as column:
                self.store(self._across(column), py, column, lanes, count)
        if self.columns % lanes:
            column = f.constant(full, I64)
            self.store(self._across(column), py, column, self.columns % lanes, count)

    def _down(
        self, px: Value, spans: Sequence[tuple[Value, Value]], column: Value, counts: Sequence[int]
    ) -> None:
        """Combine the rows under the window for some vectors of input columns."""
        f, lanes = self.f, self.lanes
        totals = [f.var(self.p.neutral, self.full) for _ in counts]

        def add(row: Value) -> None:
            for v, (valid, total) in enumerate(zip(counts, totals)):
                self.combine_into(total, self.load(row, column + v * lanes, valid))

        self.over_rows(px, spans, add)
        for v, (valid, total) in enumerate(zip(counts, totals)):
            value = total.get()
            if valid < lanes:
                value = f.select(f.first(valid, lanes), value, self.p.neutral)
            f.store(value, f["scratch"], column + (self.left + v * lanes))

    def _across(self, column: Value) -> Value:
        """Combine the columns under the window for one vector of output columns."""
        f, w = self.f, self.p.window
        stride, dilation, lanes = w.strides[-1], w.dilations[-1], self.lanes
        base = f.offset(f["scratch"], column * stride + self.first, self.full.scalar)
        if stride == 2 and dilation == 1 and lanes > 2:
            even, odd, order = _local_pairs(lanes, min(lanes, 128 // self.full.bits))
            taps = []
            for at in range(0, w.kernel[-1], 2):
                low, high = f.load(self.full, base, at), f.load(self.full, base, at + lanes)
                taps.append(f.shuffle(low, high, even))
                if at + 1 < w.kernel[-1]:
                    taps.append(f.shuffle(low, high, odd))
            total = self._all(taps)
            return f.shuffle(total, None, order) if order != list(range(lanes)) else total
        return self._all(
            [load_first(f, self.full, base, i * dilation, lanes, stride) for i in range(w.kernel[-1])]
        )

    def _all(self, values: Sequence[Value]) -> Value:
        total = values[0]
        for value in values[1:]:
            total = self.p.combine(self.f, total, value)
        return total


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    kind = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
    conversion = Conversion.of(node, x.dtype)
    reduce(plan, x, y, tuple(range(2, len(x.shape))), REDUCTIONS[kind], {"op": node.op}, conversion)
