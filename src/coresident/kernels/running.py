"""Running sums along an axis. Source: ONNX CumSum-14."""

from __future__ import annotations

import math

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.reduction import cumulated_axis
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.scalar import digits, items


@lowers("CumSum")
def running_sums(node: Node, plan: Plan) -> None:
    """Element after element of each line; lines in parallel."""
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    axis = cumulated_axis(plan.graph.constant(node.inputs[1]), len(x.shape))
    if x.dtype.itemsize < 4 and x.dtype.kind == "f":
        raise UnsupportedModel(f"running sums of {x.dtype}; float32, float64 and integers are supported")
    others = [size for d, size in enumerate(x.shape) if d != axis]
    length = x.shape[axis]
    exclusive, reverse = bool(node.get("exclusive", 0)), bool(node.get("reverse", 0))
    info = {"op": node.op, "nodes": [node.name], "kernel": "running sums"}
    lines = math.prod(others) if y.layout.elements else 0
    with items(plan, "running_sums", lines, 5 * length, [y], [x], info) as (f, line, (to, source)):
        place = digits(line, others)
        total = f.var(0, source.kind)
        with f.loop(0, length) as i:
            at = (length - 1) - i if reverse else i
            here = (*place[:axis], at, *place[axis:])
            before, value = total.get(), source.load(*here)
            after = before + value
            total.set(after)
            to.store(before if exclusive else after, *here)
