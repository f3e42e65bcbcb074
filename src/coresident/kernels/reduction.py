"""Reductions over any axes. Source: ONNX Reduce*-18 and -20."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.math import CodeMath, Typed
from coresident.codegen.types import Type, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.reduction import extreme_of_none, reduced_axes
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.conversion import Conversion
from coresident.kernels.layout import Layout
from coresident.kernels.lines import Line, Lines
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.vectors import fold, fold_many, pieces, store_first

DType = np.dtype[Any]


def larger(f: Function, a: Value, b: Value, dtype: DType) -> Value:
    """The larger, lane by lane; a NaN in either passes."""
    return _extreme(f, a, b, dtype, True)


def smaller(f: Function, a: Value, b: Value, dtype: DType) -> Value:
    """The smaller, lane by lane; a NaN in either passes."""
    return _extreme(f, a, b, dtype, False)


def _extreme(f: Function, a: Value, b: Value, dtype: DType, largest: bool) -> Value:
    if dtype.kind != "f":
        m, x, y = CodeMath(f), Typed(a, dtype.name), Typed(b, dtype.name)
        return (m.maximum(x, y) if largest else m.minimum(x, y)).value
    if f.target.arch == "aarch64":
        return f.call(f"llvm.{'maximum' if largest else 'minimum'}.{a.type.suffix}", a.type, a, b)
    found = f.maximum(a, b) if largest else f.minimum(a, b)
    if 128 <= 8 * a.type.bytes <= f.target.register_bits:
        # Of which LLVM makes two comparisons and an `or` of masks otherwise: pools of 3 x 3 are 1.2 times as
        # fast on Zen 5 with one instruction for this.
        found = f.opaque(found)
    return f.select(b.differs(b), b, found)


@dataclass(frozen=True)
class Reduction:
    """A reduction: finish(combine of prepare(x) over all x).

    Args:
        combine: of two elements of a type.
        neutral: what combines with anything without changing it, for a type.
        prepare: applied to each element.
        finish: applied to the result, given how many elements there were.
        floats_only: whether it exists for floats alone.
        ignores_zeros: whether zeros change nothing.
    """

    combine: Callable[[Function, Value, Value, DType], Value]
    neutral: Callable[[DType], float]
    prepare: Callable[[Function, Value, DType], Value]
    finish: Callable[[Function, Value, DType, int], Value]
    floats_only: bool = False
    ignores_zeros: bool = True


def _plain(f: Function, x: Value, dtype: DType) -> Value:
    return x


def _unchanged(f: Function, x: Value, dtype: DType, count: int) -> Value:
    return x


def _square(f: Function, x: Value, dtype: DType) -> Value:
    return x * x


def _absolute(f: Function, x: Value, dtype: DType) -> Value:
    return CodeMath(f).absolute(Typed(x, dtype.name)).value


def _mean(f: Function, x: Value, dtype: DType, count: int) -> Value:
    if dtype.kind == "f":
        return x / float(count)
    m = CodeMath(f)
    return m.divide(Typed(x, dtype.name), m.constant(count, Typed(x, dtype.name))).value


def _log(f: Function, x: Value, dtype: DType, count: int) -> Value:
    return CodeMath(f).log(Typed(x, dtype.name)).value


def _sum(f: Function, a: Value, b: Value, dtype: DType) -> Value:
    return a + b


def _lowest(dtype: DType) -> float:
    return extreme_of_none(dtype, True)


def _highest(dtype: DType) -> float:
    return extreme_of_none(dtype, False)


def _zero(dtype: DType) -> float:
    return 0


ADDITION = Reduction(_sum, _zero, _plain, _unchanged)
LARGEST = Reduction(larger, _lowest, _plain, _unchanged, ignores_zeros=False)
REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": ADDITION,
    "ReduceMean": replace(ADDITION, finish=_mean),
    "ReduceMax": LARGEST,
    "ReduceMin": Reduction(smaller, _highest, _plain, _unchanged, ignores_zeros=False),
    "ReduceProd": Reduction(
        lambda f, a, b, dtype: a * b, lambda dtype: 1, _plain, _unchanged, ignores_zeros=False
    ),
    "ReduceL1": replace(ADDITION, prepare=_absolute),
    "ReduceL2": replace(
        ADDITION, prepare=_square, finish=lambda f, x, dtype, count: f.unary("sqrt", x), floats_only=True
    ),
    "ReduceLogSum": replace(ADDITION, finish=_log, floats_only=True),
    "ReduceSumSquare": replace(ADDITION, prepare=_square),
}
"""Name -> the reduction, for those that need one pass."""


@lowers(*REDUCTIONS, "ReduceLogSumExp")
def lower(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    axes = reduced_axes(node, len(x.shape), plan.graph.constant(node.input(1)))
    if node.op == "ReduceLogSumExp":
        log_sum_exp(plan, x, y, axes)
    else:
        reduce(plan, x, y, axes, REDUCTIONS[node.op], {"op": node.op})


def spread(y: Tensor, x: Tensor, axes: Sequence[int]) -> Layout:
    """The layout of a reduction's result as seen from its input: stride 0 along the axes."""
    rank = len(x.shape)
    kept = [d for d in range(rank) if d not in axes]
    own = y.layout.strides if len(y.shape) == rank else None
    strides = [0] * rank
    for i, d in enumerate(kept):
        strides[d] = own[d] if own is not None else y.layout.strides[i]
    return y.layout.view(x.shape, strides, 0)


def with_zeros(layout: Layout, axes: Sequence[int]) -> Layout:
    """The layout with the zeros between rows counted to the rows, where both row dimensions are reduced.

    Rows then lie without gaps: one run of elements instead of many.
    """
    rank = len(layout.shape)
    if rank < 3 or not {rank - 1, rank - 2} <= set(axes) or layout.strides[-1] != 1:
        return layout
    gap = layout.strides[-2] - layout.shape[-1]
    if layout.fill or not 0 < gap <= sum(layout.halo[-1]):
        return layout
    length = (layout.shape[-2] - 1) * layout.strides[-2] + layout.shape[-1]
    return layout.view((*layout.shape[:-2], 1, length), (*layout.strides[:-2], 0, 1), 0)


def check(x: Tensor, floats_only: bool) -> Type:
    """The element type to compute with, refused if there is none."""
    if x.dtype == np.float16 or (floats_only and x.dtype.kind != "f"):
        accepted = "float32 and float64" + ("" if floats_only else " and integers")
        raise UnsupportedModel(f"no kernel for {x.dtype}; {accepted} are supported", shape=x.shape)
    return of_dtype(x.dtype)


def reduce(
    plan: Plan,
    x: Tensor,
    y: Tensor,
    axes: Sequence[int],
    reduction: Reduction,
    info: dict[str, Any],
    conversion: Conversion | None = None,
) -> None:
    """Add the step of a reduction.

    Args:
        x, y: of one dtype, but for a conversion; y has the axes with size 1, or not at all.
        axes: reduced, counted from the front.
        reduction: what it is; one that commutes with a factor, if there is a conversion.
        info: for `analyze`; kernel and bytes are added.
        conversion: what is done to elements as they are loaded, and to results as they are stored.

    Raises:
        UnsupportedModel: there is no such reduction of this dtype.
    """
    check(x, reduction.floats_only)
    conversion = conversion or Conversion(x.dtype)
    dtype = conversion.computed
    scalar = of_dtype(dtype)
    source, target = x.layout, spread(y, x, axes)
    count = math.prod(x.shape[d] for d in axes)
    if reduction.ignores_zeros and not conversion.zero_point:
        source = with_zeros(source, axes)
        if source is not x.layout:
            target = target.view(source.shape, (*target.strides[:-2], 0, 0), 0)
    lines = replace(Lines.of(plan.target, scalar, (source, target), axes), stored=of_dtype(x.dtype))
    f = kernel(plan.target, f"reduce_{info['op'].lower()}")
    pointers = [element_0(f, 0, x), element_0(f, 1, y)]
    kinds = [of_dtype(x.dtype), of_dtype(y.dtype)]
    neutral = reduction.neutral(dtype)

    def combine(a: Value, b: Value) -> Value:
        return reduction.combine(f, a, b, dtype)

    def prepare(value: Value) -> Value:
        return reduction.prepare(f, conversion.entered(f, value), dtype)

    def finish(value: Value) -> Value:
        result = reduction.finish(f, value, dtype, count)
        return conversion.left(f, result if conversion.scale == 1 else result * conversion.scale)

    def one(line: Line) -> None:
        total = line.partial(prepare, combine, neutral)
        if lines.across:
            store_first(f, finish(total), line.starts[1], 0, line.count, lines.kept[-1].strides[1])
        else:
            f.store(finish(fold(f, total, combine)), line.starts[1])

    def several(members: Sequence[Line]) -> None:
        total = fold_many(f, [line.partial(prepare, combine, neutral) for line in members], combine)
        store_first(f, finish(total), members[0].starts[1], 0, len(members), lines.kept[-1].strides[1])

    short = lines.along[-1].size <= 32 * lines.kind.lanes and len(lines.along) <= 3
    many = bool(lines.kept) and lines.kept[-1].size >= lines.kind.lanes > 1
    grouped = not lines.across and short and many
    items = lines.items
    if grouped:
        items = lines.items // lines.kept[-1].size * -(-lines.kept[-1].size // lines.kind.lanes)
    tasks = pieces(plan.threads, items, lines.steps * 1.5 + 10 * items) if y.layout.elements else 0
    if tasks and grouped:
        lines.emit_groups(f, tasks, pointers, several, one, kinds)
    elif tasks:
        lines.emit(f, tasks, pointers, one, kinds)
    how = "across lines" if lines.across else "groups of lines" if grouped else "along lines"
    moved = x.layout.elements * x.dtype.itemsize + y.layout.elements * y.dtype.itemsize
    details = {**info, "kernel": f"reduction, {how}", "bytes": moved}
    plan.step(f, [operand(x), operand(y)], tasks, reads=[x], writes=[y], info=details)


def log_sum_exp(plan: Plan, x: Tensor, y: Tensor, axes: Sequence[int]) -> None:
    """Add the step of log(sum(exp(x))), the largest x taken out first so that no exponential overflows."""
    scalar, dtype = check(x, True), x.dtype
    lines = Lines.of(plan.target, scalar, (x.layout, spread(y, x, axes)), axes)
    f = kernel(plan.target, "reduce_log_sum_exp")

    def one(line: Line) -> None:
        def combine(a: Value, b: Value) -> Value:
            return larger(f, a, b, dtype)

        peak = line.total(lambda v: v, combine, -math.inf)
        finite = f.unary("fabs", peak) < math.inf
        peak = f.select(finite, peak, f.constant(0, peak.type))
        math_ = CodeMath(f)
        total = line.total(lambda v: math_.exp(Typed(v - peak, dtype.name)).value, lambda a, b: a + b, 0)
        result = math_.log(Typed(total, dtype.name)).value + peak
        if lines.across:
            store_first(f, result, line.starts[1], 0, line.count, lines.kept[-1].strides[1])
        else:
            f.store(f.extract(result, 0) if result.type.lanes > 1 else result, line.starts[1])

    tasks = pieces(plan.threads, lines.items, lines.steps * 12) if y.layout.elements else 0
    if tasks:
        lines.emit(f, tasks, [element_0(f, 0, x), element_0(f, 1, y)], one, [scalar, scalar])
    plan.step(
        f,
        [operand(x), operand(y)],
        tasks,
        reads=[x],
        writes=[y],
        info={"op": "ReduceLogSumExp", "kernel": "log of a sum of exponentials"},
    )
