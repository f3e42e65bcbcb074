"""Resize, axis by axis as `graph.operators.resize` tells. Source: ONNX Resize-19.

All axes but the last are blended first, row by row; the columns of the blended row are then interpolated: by
shuffles where the last axis grows by 2, 4 or 8 and the neighbours of an output follow from its index alone,
else by a table of neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import I64, Function, Value, kernel, word
from coresident.codegen.types import I32, Type, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.resize import AxisResize, resize_axes
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.conversion import Conversion
from coresident.kernels.lowering import Operand, Plan, Tensor, lowers
from coresident.kernels.striped_resize import Taps, resize_stripes
from coresident.kernels.vectors import load_first, pieces, share, store_first, unravel

Array = np.ndarray[Any, Any]


def _gains_in_stripes(node: Node, graph: Graph) -> bool | None:
    """Whether striped rows suit a resize (`Family.stripes`): where they grow by a whole factor, and columns
    are made of those next to them."""
    return None if _striped(node, graph) is None else False


def _striped(node: Node, graph: Graph) -> tuple[AxisResize | None, Taps] | None:
    """How rows and columns of pictures are resized, where striped rows suit that."""
    shape, operands = graph.facts[node.inputs[0]].sizes, [graph.constant(node.input(i)) for i in (1, 2, 3)]
    if any(node.input(i) and operand is None for i, operand in zip((1, 2, 3), operands)):
        return None
    axes = {axis.axis: axis for axis in resize_axes(node, shape, operands)}
    if len(shape) != 4 or not axes.keys() <= {2, 3} or any(axis.outside.any() for axis in axes.values()):
        return None
    if 3 not in axes:
        return axes.get(2), (((0, 1.0),),)
    periodic = Periodic.of(axes[3], shape[3])
    return None if periodic is None or periodic.reach > 1 else (axes.get(2), periodic.taps)


@lowers("Resize", stripes=_gains_in_stripes, copies=lambda node: (node.inputs[0],))
def resize(node: Node, plan: Plan) -> None:
    y = plan.tensor(node.outputs[0])
    if y.layout.stripes:
        how = _striped(node, plan.graph)
        assert how is not None
        x = plan.striped(node.inputs[0], ((0, 0), (0, 0)))
        resize_stripes(plan, x, y, *how, {"op": node.op, "tile": node.get("mode", "nearest")})
        return
    source = plan.tensor(node.inputs[0])
    nearest = node.get("mode", "nearest") == "nearest"
    conversion = Conversion.of(node, source.dtype)
    if source.dtype == np.float16 or (not nearest and conversion.computed.kind != "f"):
        raise UnsupportedModel(
            f"a resize of {source.dtype}; float32 and float64 are supported, integers by mode nearest",
            shape=source.shape,
        )
    axes = resize_axes(node, source.shape, [plan.graph.constant(node.input(i)) for i in (1, 2, 3)])
    rank = len(source.shape)
    if rank == 0 or source.layout.strides[-1] == 1 or source.shape[-1] == 1:
        x = source
    elif rank > 2 and source.dtype in (np.float32, np.uint8, np.int8):
        x = plan.planar(node.inputs[0])
    else:
        x = plan.contiguous(node.inputs[0])
    full = of_dtype(conversion.computed).by(plan.target.lanes(of_dtype(conversion.computed)))
    outside = float(node.get("extrapolation_value", 0.0))
    job = Job.of(x, y, axes, outside, full.lanes, conversion)
    f = kernel(plan.target, "resize")
    rows = math.prod(y.shape[:-1]) if y.layout.elements else 0
    tasks = pieces(plan.threads, rows, rows * job.row_cost)
    emitter = _Emitter(f, job, full, plan)
    if tasks:
        emitter.emit(tasks)
    plan.step(
        f,
        [operand(x), operand(y), *emitter.tables],
        tasks,
        reads=[x],
        writes=[y],
        info={
            "op": node.op,
            "kernel": f"resize, {job.columns_by}",
            "tile": node.get("mode", "nearest"),
            "bytes": x.layout.elements * x.dtype.itemsize + y.layout.elements * y.dtype.itemsize,
        },
    )


@dataclass(frozen=True)
class Periodic:
    """Columns that grow by a whole factor, the neighbours of output factor * i + r being those of input i.

    Args:
        taps: for each r, (distance from i, weight) of each neighbour; a row repeats its ends beyond them.
        reach: the largest distance.
    """

    taps: tuple[tuple[tuple[int, float], ...], ...]
    reach: int

    @staticmethod
    def of(axis: AxisResize, size: int) -> Periodic | None:
        """The pattern of an axis of this input size, if it has one."""
        outputs, count = axis.indices.shape
        factor = outputs // size
        if factor not in (2, 4, 8) or factor * size != outputs or axis.outside.any():
            return None
        places = np.arange(size)
        taps = []
        for r in range(factor):
            indices, weights = axis.indices[r::factor], axis.weights[r::factor]
            if not (weights == weights[0]).all():
                return None
            for first in range(-count, count + 1):
                if (indices == np.clip(places[:, None] + first + np.arange(count), 0, size - 1)).all():
                    break
            else:
                return None
            # A size of 1 or 2 fits several distances: all of them give the same.
            taps.append(tuple((first + t, float(w)) for t, w in enumerate(weights[0]) if w != 0))
        return Periodic(tuple(taps), max(abs(d) for tap in taps for d, _ in tap))


@dataclass(frozen=True)
class Job:
    """What is to be resized.

    Args:
        x, y: input, whose last dimension has stride 1, and output.
        rows: the axes that change, but the last dimension.
        columns: how the last dimension changes, if it does.
        periodic: its pattern, if it has one.
        outside: the value of outputs outside the input.
        lanes: of a vector that is computed with.
        conversion: what is done to elements as they are loaded, and to results as they are stored.
    """

    x: Tensor
    y: Tensor
    rows: tuple[AxisResize, ...]
    columns: AxisResize | None
    periodic: Periodic | None
    outside: float
    lanes: int
    conversion: Conversion

    @staticmethod
    def of(
        x: Tensor,
        y: Tensor,
        axes: Sequence[AxisResize],
        outside: float,
        lanes: int,
        conversion: Conversion,
    ) -> Job:
        last = len(x.shape) - 1
        rows = tuple(a for a in axes if a.axis != last)
        columns = next((a for a in axes if a.axis == last), None)
        periodic = Periodic.of(columns, x.shape[-1]) if columns is not None and y.layout.elements else None
        return Job(x, y, rows, columns, periodic, outside, lanes, conversion)

    @property
    def combinations(self) -> list[tuple[int, ...]]:
        """Which tap of each axis of `rows`, for every input row that an output row is blended of."""
        return list(itertools.product(*(range(a.indices.shape[1]) for a in self.rows)))

    @property
    def blends(self) -> bool:
        """Whether several input rows make one."""
        return len(self.combinations) > 1

    @property
    def columns_by(self) -> str:
        if self.columns is None:
            return "columns unchanged"
        return "columns by shuffles" if self.periodic is not None else "columns by table"

    @property
    def row_cost(self) -> float:
        """Cycles of one output row, roughly."""
        blend = self.x.shape[-1] / self.lanes * len(self.combinations)
        if self.columns is None or self.periodic is not None:
            return blend + 2 * self.y.shape[-1] / self.lanes
        return float(blend + self.y.shape[-1] * self.columns.indices.shape[1])


class _Emitter:
    """Emits the kernel: each task makes a share of the output's rows.

    Args:
        f, job: the kernel and what it does.
        full: type of a whole vector.
        plan: takes the tables; `tables` are their argument words.
    """

    def __init__(self, f: Function, job: Job, full: Type, plan: Plan) -> None:
        self.f, self.job, self.full, self.plan = f, job, full, plan
        self.stored = of_dtype(job.x.dtype)
        self.tables: list[Operand] = []
        self.width, self.columns = job.x.shape[-1], job.y.shape[-1]
        reach = job.periodic.reach if job.periodic is not None else 0
        self.margin = -(-reach // full.lanes) * full.lanes

    def _table(self, array: Array) -> Value:
        self.tables.append(self.plan.constant(array))
        return word(self.f, 1 + len(self.tables))

    def emit(self, tasks: int) -> None:
        f, job = self.f, self.job
        rank = len(job.y.shape)
        px, py = element_0(f, 0, job.x), element_0(f, 1, job.y)
        steps = [job.x.layout.strides[a.axis] for a in job.rows]
        places = [self._table((a.indices * s).astype(np.int64)) for a, s in zip(job.rows, steps)]
        weighted = job.blends
        computed = job.conversion.computed
        weights = [self._table(a.weights.astype(computed)) if weighted else None for a in job.rows]
        outsides = [self._table(a.outside.astype(np.int32)) if a.outside.any() else None for a in job.rows]
        self._begin_columns()
        changed = {a.axis for a in job.rows}
        kept = [0 if d in changed else job.x.layout.strides[d] for d in range(rank - 1)]
        digits = [[int(d == a.axis) for d in range(rank - 1)] for a in job.rows]
        first, last = share(f, math.prod(job.y.shape[:-1]), tasks)
        with f.loop(first, last) as row:
            at_x, at_y, *index = unravel(f, row, job.y.shape[:-1], kept, job.y.layout.strides[:-1], *digits)
            x, y = f.offset(px, at_x, self.stored), f.offset(py, at_y, of_dtype(job.y.dtype))
            flags = [f.load(I32, o, i).differs(0) for o, i in zip(outsides, index) if o is not None]
            sources = self._sources(x, index, places, weights)
            if not flags:
                self._row(sources, y)
                return
            outside = flags[0]
            for flag in flags[1:]:
                outside = outside | flag
            with f.either(outside) as other:
                self._fill(y)
                with other():
                    self._row(sources, y)

    def _sources(
        self, x: Value, index: Sequence[Value], places: Sequence[Value], weights: Sequence[Value | None]
    ) -> list[tuple[Value, Value | None]]:
        """(address, weight) of each input row that an output row is made of."""
        f = self.f
        sources: list[tuple[Value, Value | None]] = []
        for combination in self.job.combinations:
            address, weight = x, None
            for axis, i, place, table, tap in zip(self.job.rows, index, places, weights, combination):
                at = i * axis.indices.shape[1] + tap
                address = f.offset(address, f.load(I64, place, at), self.stored)
                if table is not None:
                    own = f.load(self.full.scalar, table, at)
                    weight = own if weight is None else weight * own
            sources.append((address, weight))
        return sources

    def _load(self, source: Value, column: Value | int, count: int) -> Value:
        whole = count == self.full.lanes or self.job.x.layout.slack >= self.full.lanes
        kind = self.stored.by(self.full.lanes)
        loaded = load_first(self.f, kind, source, column, self.full.lanes if whole else count)
        return self.job.conversion.entered(self.f, loaded)

    def _blended(
        self, sources: Sequence[tuple[Value, Value | None]], column: Value | int, count: int
    ) -> Value:
        """One vector of the row that is made of the sources."""
        total: Value | None = None
        for source, weight in sources:
            value = self._load(source, column, count)
            if weight is not None:
                scale = self.f.splat(weight, self.full)
                value = value * scale if total is None else self.f.fma(value, scale, total)
            total = value
        assert total is not None
        return total

    def _vectors(self, size: int, body: Any) -> None:
        """`body(column, lanes)` for all vectors of a row of this size."""
        lanes = self.full.lanes
        whole = size // lanes * lanes
        if whole:
            with self.f.loop(0, whole, lanes) as column:
                body(column, lanes)
        if size % lanes:
            body(self.f.constant(whole, I64), size % lanes)

    def _store(self, value: Value, y: Value, column: Value, count: int) -> None:
        stride = self.job.y.layout.strides[-1] if self.columns > 1 else 1
        conversion = self.job.conversion
        if conversion.scale != 1:
            value = value * conversion.scale
        value = conversion.left(self.f, value)
        store_first(self.f, value, y, column * stride if stride != 1 else column, count, stride)

    def _fill(self, y: Value) -> None:
        value = self.f.constant(self.job.outside, self.full)
        self._vectors(self.columns, lambda column, count: self._store(value, y, column, count))

    def _begin_columns(self) -> None:
        job, lanes = self.job, self.full.lanes
        self.plan.scratch((self.width + 2 * self.margin + 2 * lanes) * self.full.scalar.bytes)
        if job.columns is None or job.periodic is not None:
            return
        padded = -(-self.columns // lanes) * lanes
        taps = job.columns.indices.shape[1]

        def by_vector(array: Array) -> Array:
            full = np.pad(array, ((0, padded - self.columns), (0, 0)))
            return np.ascontiguousarray(full.reshape(-1, lanes, taps).swapaxes(1, 2))

        self._places = self._table(by_vector(job.columns.indices).astype(np.int32))
        weights = by_vector(job.columns.weights).astype(job.conversion.computed)
        self._weights = self._table(weights) if taps > 1 else None
        outside = job.columns.outside
        self._outside = self._table(np.pad(outside, (0, lanes)).astype(np.int32)) if outside.any() else None

    def _row(self, sources: Sequence[tuple[Value, Value | None]], y: Value) -> None:
        f, job = self.f, self.job
        if job.columns is None:
            self._vectors(
                self.width, lambda c, count: self._store(self._blended(sources, c, count), y, c, count)
            )
            return
        if job.periodic is not None and job.periodic.reach == 0:
            self._grow(lambda column, distance, count: self._blended(sources, column, count), y)
            return
        row = sources[0][0]
        if job.blends or job.periodic is not None or job.conversion.zero_point is not None:
            row = f.offset(f["scratch"], self.margin, self.full.scalar)
            self._vectors(self.width, lambda c, count: f.store(self._blended(sources, c, count), row, c))
        if job.periodic is None:
            self._look_up(row, y)
            return
        begin, end = f.load(self.full.scalar, row), f.load(self.full.scalar, row, self.width - 1)
        for i in range(job.periodic.reach):
            f.store(begin, row, -1 - i)
            f.store(end, row, self.width + i)
        self._grow(lambda column, distance, count: f.load(self.full, row, column + distance), y)

    def _grow(self, load: Any, y: Value) -> None:
        """Columns by shuffles; `load(column, distance, lanes)` gives the inputs so far from a column."""
        f, lanes, periodic = self.f, self.full.lanes, self.job.periodic
        assert periodic is not None
        factor = len(periodic.taps)

        def vectors(column: Value, count: int) -> None:
            known: dict[int, Value] = {}
            phases = []
            for taps in periodic.taps:
                total: Value | None = None
                for distance, weight in taps:
                    if distance not in known:
                        known[distance] = load(column, distance, count)
                    value = known[distance]
                    if weight != 1:
                        value = value * weight if total is None else f.fma(value, weight, total)
                    elif total is not None:
                        value = value + total
                    total = value
                phases.append(total if total is not None else f.constant(0, self.full))
            for v, value in enumerate(_interleaved(f, phases)):
                left = count * factor - v * lanes
                if left > 0:
                    self._store(value, y, column * factor + v * lanes, min(left, lanes))

        self._vectors(self.width, vectors)

    def _look_up(self, row: Value, y: Value) -> None:
        """Columns by the table of neighbours."""
        f, lanes, scalar = self.f, self.full.lanes, self.full.scalar
        assert self.job.columns is not None
        taps = self.job.columns.indices.shape[1]

        def vector(column: Value, count: int) -> None:
            total: Value | None = None
            for t in range(taps):
                at = column * taps + t * lanes
                value = f.constant(0, self.full)
                for lane in range(lanes):
                    place = f.convert(f.load(I32, self._places, at + lane), I64)
                    value = f.insert(value, f.load(scalar, row, place), lane)
                if self._weights is not None:
                    weight = f.load(self.full, self._weights, at)
                    value = value * weight if total is None else f.fma(value, weight, total)
                total = value
            assert total is not None
            if self._outside is not None:
                flag = f.load(I32.by(lanes), self._outside, column).differs(0)
                total = f.select(flag, self.job.outside, total)
            self._store(total, y, column, count)

        self._vectors(self.columns, vector)


def _interleaved(f: Function, phases: Sequence[Value]) -> list[Value]:
    """Lane 0 of all, lane 1 of all, ... as so many vectors (a power of two)."""
    if len(phases) == 1:
        return list(phases)
    lanes = phases[0].type.lanes
    even, odd = _interleaved(f, phases[0::2]), _interleaved(f, phases[1::2])
    low = [i // 2 + (i % 2) * lanes for i in range(lanes)]
    high = [lane + lanes // 2 for lane in low]
    return [f.shuffle(a, b, half) for a, b in zip(even, odd) for half in (low, high)]
