"""Normalisations that were not fused into what stands before them.

Source: ONNX BatchNormalization-15, InstanceNormalization-22, GroupNormalization-21, LayerNormalization-17,
RMSNormalization-23, LpNormalization-22, LRN-13. Variances are taken in a second pass, after the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.math import CodeMath, Typed
from coresident.graph.graph import Node
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.layout import Layout
from coresident.kernels.lines import Line, Lines, Place
from coresident.kernels.loopnest import nest
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.reduction import check, spread
from coresident.kernels.vectors import load_first, pieces, store_first


def _add_step(
    plan: Plan,
    node: Node,
    f: Function,
    lines: Lines,
    tensors: Sequence[Tensor],
    written: Sequence[Tensor],
    emit: Callable[[Line], None],
) -> None:
    """One kernel over all lines; `tensors` are its argument words, in the order of the lines' strides."""
    elements = tensors[0].layout.elements
    tasks = pieces(plan.threads, lines.items, lines.steps * 6) if elements else 0
    kinds = [check(t, True) for t in tensors]
    if tasks:
        lines.emit(f, tasks, [element_0(f, i, t) for i, t in enumerate(tensors)], emit, kinds)
    info = {
        "op": node.op,
        "kernel": f"normalisation, {'across' if lines.across else 'along'} lines",
        "bytes": 2 * elements * tensors[0].dtype.itemsize,
    }
    reads = [t for t in tensors if t not in written]
    plan.step(f, [operand(t) for t in tensors], tasks, reads=reads, writes=written, info=info)


def _strided(tensor: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Layout:
    return tensor.layout.view(shape, strides, 0)


def _broadcast(tensor: Tensor, shape: Sequence[int]) -> Layout:
    """The layout as seen from a shape onto which it broadcasts, last dimensions aligned."""
    own = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.layout.strides)]
    return _strided(tensor, shape, [0] * (len(shape) - len(own)) + own)


def _channels(tensor: Tensor, shape: Sequence[int]) -> Layout:
    """The layout of one number a channel, as seen from [N, C, ...]."""
    return _strided(tensor, shape, [0, tensor.layout.strides[0], *[0] * (len(shape) - 2)])


def _grouped(layout: Layout, groups: int) -> Layout:
    """[N, C, ...] as [N, groups, C / groups, ...]."""
    (n, c, *rest), (s0, s1, *strides) = layout.shape, layout.strides
    return layout.view((n, groups, c // groups, *rest), (s0, s1 * (c // groups), s1, *strides), 0)


def _grouped_operand(tensor: Tensor, shape: Sequence[int]) -> Layout:
    """The layout of one number a channel, or one a group, as seen from what `_grouped` gives."""
    step, rest = tensor.layout.strides[0], [0] * (len(shape) - 3)
    per_channel = tensor.shape[0] == shape[1] * shape[2]
    return _strided(tensor, shape, [0, step * shape[2], step, *rest] if per_channel else [0, step, 0, *rest])


@lowers("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
def standardize(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    check(x, True)
    affine = [plan.tensor(name) for name in node.inputs[1:3] if name]
    rank, source, target = len(x.shape), x.layout, y.layout
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axes = tuple(range(int(node.get("axis", -1)) % rank, rank))
        operands = [_broadcast(t, x.shape) for t in affine]
    elif node.op == "InstanceNormalization":
        axes = tuple(range(2, rank))
        operands = [_channels(t, x.shape) for t in affine]
    else:
        groups = int(node.get("num_groups", x.shape[1]))
        source, target = _grouped(source, groups), _grouped(target, groups)
        axes = tuple(range(2, rank + 1))
        operands = [_grouped_operand(t, source.shape) for t in affine]
    statistics = [(which, plan.tensor(name)) for which, name in enumerate(node.outputs[1:3]) if name]
    results = [spread(t, x, axes) for _, t in statistics]
    lines = Lines.of(plan.target, check(x, True), (source, target, *operands, *results), axes)
    f = kernel(plan.target, node.op.lower())
    centred, epsilon = node.op != "RMSNormalization", float(node.get("epsilon", 1e-5))

    def one(line: Line) -> None:
        share = 1 / max(lines.length, 1)
        mean = line.total(lambda v: v, _add, 0) * share if centred else f.constant(0, lines.kind)
        squares = line.total(lambda v: (v - mean) * (v - mean), _add, 0)
        inverse = f.constant(1.0, lines.kind) / f.unary("sqrt", squares * share + epsilon)
        for at, (which, _) in enumerate(statistics, 2 + len(affine)):
            _store_result(line, (mean, inverse)[which], at)

        def write(place: Place) -> None:
            value = (place.load() - mean) * inverse
            if affine:
                value = value * place.load(2)
            place.store(value + place.load(3) if len(affine) == 2 else value)

        line.each(write)

    written = [y, *(t for _, t in statistics)]
    _add_step(plan, node, f, lines, [x, y, *affine, *written[1:]], written, one)


def _add(a: Value, b: Value) -> Value:
    return a + b


def _store_result(line: Line, value: Value, tensor: int) -> None:
    """Store what a line has one of."""
    f, lines = line.f, line.lines
    if lines.across:
        store_first(f, value, line.starts[tensor], 0, line.count, lines.kept[-1].strides[tensor])
    else:
        f.store(f.extract(value, 0) if value.type.lanes > 1 else value, line.starts[tensor])


@lowers("LpNormalization")
def lp(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    axis, ones = int(node.get("axis", -1)) % len(x.shape), node.get("p", 2) == 1
    lines = Lines.of(plan.target, check(x, True), (x.layout, y.layout), (axis,))
    f = kernel(plan.target, "lp_normalization")

    def one(line: Line) -> None:
        total = line.total(lambda v: f.unary("fabs", v) if ones else v * v, _add, 0)
        norm = total if ones else f.unary("sqrt", total)
        zero = norm.equals(0.0)
        line.each(lambda place: place.store(f.select(zero, f.constant(0, norm.type), place.load() / norm)))

    _add_step(plan, node, f, lines, [x, y], [y], one)


@lowers("LRN")
def local_response(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    lines = Lines.of(plan.target, check(x, True), (x.layout, y.layout), (1,))
    if not lines.across:
        lines = replace(lines, kind=lines.kind.scalar)
    size, beta = int(node.get("size", 1)), float(node.get("beta", 0.75))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    scale, bias = float(node.get("alpha", 1e-4)) / size, float(node.get("bias", 1.0))
    f = kernel(plan.target, "lrn")

    def load(line: Line, channel: Value) -> Value:
        steps, columns = lines.along[-1].strides, lines.kept[-1].strides if lines.across else (1, 1)
        return load_first(f, lines.kind, line.starts[0], channel * steps[0], line.count, columns[0])

    def one(line: Line) -> None:
        channels = lines.along[-1].size
        columns = lines.kept[-1].strides if lines.across else (1, 1)
        with f.loop(0, channels) as channel:
            total = f.var(0.0, lines.kind)
            low = f.maximum(channel - before, 0)
            high = f.minimum(channel + (after + 1), channels)
            with f.loop(low, high) as other:
                value = load(line, other)
                total.set(f.fma(value, value, total.get()))
            base = total.get() * scale + bias
            result = load(line, channel) / _power(f, base, beta, x.dtype.name)
            place = channel * lines.along[-1].strides[1]
            store_first(f, result, line.starts[1], place, line.count, columns[1])

    _add_step(plan, node, f, lines, [x, y], [y], one)


def _power(f: Function, base: Value, exponent: float, dtype: str) -> Value:
    if exponent == 0.75:
        root = f.unary("sqrt", base)
        return root * f.unary("sqrt", root)
    math_, typed = CodeMath(f), Typed(base, dtype)
    return math_.power(typed, math_.constant(exponent, typed)).value


@lowers("BatchNormalization")
def batch(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    check(x, True)
    epsilon = float(node.get("epsilon", 1e-5))
    shape = (x.shape[1], *[1] * (len(x.shape) - 2))
    info = {"op": node.op, "kernel": "normalisation"}
    constants = [plan.graph.constant(name) for name in node.inputs[1:5]]
    if all(c is not None for c in constants):
        scale, b, mean, variance = (np.asarray(c, np.float64) for c in constants)
        slope = scale / np.sqrt(variance + epsilon)
        folded = [slope.astype(x.dtype), (b - mean * slope).astype(x.dtype)]
        tensors = [Tensor("", x.dtype, Layout.contiguous(shape), plan.constant(a)) for a in folded]
        nest(plan, y, [x, *tensors], lambda f, v, lanes: v[0] * v[1] + v[2], info)
        return
    parameters = [plan.tensor(name) for name in node.inputs[1:5]]
    views = [
        replace(t, layout=t.layout.view(shape, (t.layout.strides[0], *[0] * (len(shape) - 1)), 0))
        for t in parameters
    ]

    def compute(f: Function, v: Sequence[Typed], lanes: int) -> Typed:
        math_ = CodeMath(f)
        value, scale, b, mean, variance = (math_.cast(operand, x.dtype.name) for operand in v)
        deviation = math_.sqrt(variance + math_.constant(epsilon, variance))
        return (value - mean) / deviation * scale + b

    nest(plan, y, [x, *views], compute, info)
