"""Softmax and LogSoftmax along any axis. Source: ONNX Softmax-13, LogSoftmax-13."""

from __future__ import annotations

import math

from coresident.codegen.builder import Value, kernel
from coresident.codegen.math import CodeMath, Typed
from coresident.graph.graph import Node
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.lines import Line, Lines, Place
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.reduction import check, larger
from coresident.kernels.vectors import fold, pieces


@lowers("Softmax", "LogSoftmax")
def softmax(node: Node, plan: Plan) -> None:
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    scalar, dtype = check(x, True), x.dtype
    axis = int(node.get("axis", -1)) % len(x.shape)
    lines = Lines.of(plan.target, scalar, (x.layout, y.layout), (axis,))
    f = kernel(plan.target, node.op.lower())
    math_ = CodeMath(f)

    def exp(value: Value) -> Value:
        return math_.exp(Typed(value, dtype.name)).value

    def one(line: Line) -> None:
        peak = line.total(lambda v: v, lambda a, b: larger(f, a, b, dtype), -math.inf)
        if node.op == "LogSoftmax":
            total = line.total(lambda v: exp(v - peak), lambda a, b: a + b, 0)
            shift = math_.log(Typed(total, dtype.name)).value
            line.each(lambda place: place.store(place.load() - peak - shift))
            return
        sums = f.var(0.0, lines.kind)

        def power(place: Place) -> None:
            value = exp(place.load() - peak)
            place.store(value)
            sums.set(sums.get() + place.only(value, 0))

        line.each(power)
        total = sums.get()
        if not lines.across:
            total = f.splat(fold(f, total, lambda a, b: a + b), lines.kind)
        scale = f.constant(1.0, lines.kind) / total
        line.each(lambda place: place.store(place.load(1) * scale))

    tasks = pieces(plan.threads, lines.items, lines.steps * 15) if y.layout.elements else 0
    if tasks:
        lines.emit(f, tasks, [element_0(f, 0, x), element_0(f, 1, y)], one, [scalar, scalar])
    how = "across" if lines.across else "along"
    info = {
        "op": node.op,
        "kernel": f"{node.op.lower()}, {how} lines",
        "bytes": 2 * x.layout.elements * dtype.itemsize,
    }
    plan.step(f, [operand(x), operand(y)], tasks, reads=[x], writes=[y], info=info)
