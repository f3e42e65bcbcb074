"""Elements chosen by their values. Source: ONNX TopK-24."""

from __future__ import annotations

import math

import numpy as np

from coresident.codegen.builder import Value
from coresident.codegen.math import Typed
from coresident.codegen.types import I64
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.operands import axis_in
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.scalar import digits, items


@lowers("TopK")
def top_k(node: Node, plan: Plan) -> None:
    """Each element that belongs among the best so far is inserted there: few do, once the best are found."""
    x, (values, indices) = plan.tensor(node.inputs[0]), (_wanted(plan, node, i) for i in (0, 1))
    if x.dtype.kind == "f" and x.dtype.itemsize < 4:
        raise UnsupportedModel(f"the largest of {x.dtype}; float32, float64 and integers are supported")
    axis = axis_in(int(node.get("axis", -1)), len(x.shape))
    others, length, count = [s for d, s in enumerate(x.shape) if d != axis], x.shape[axis], values.shape[axis]
    largest, dtype = bool(node.get("largest", 1)), x.dtype
    info = {"op": node.op, "nodes": [node.name], "kernel": "insertion"}
    lines = math.prod(others) if count else 0
    with items(plan, "top_k", lines, 4 * length + 30 * count, [values, indices], [x], info) as (
        f,
        line,
        accesses,
    ):
        best, where, source = accesses
        place = digits(line, others)

        def at(i: Value | int) -> tuple[Value | int, ...]:
            return (*place[:axis], i, *place[axis:])

        def better(new: Value, old: Value) -> Value:
            a, b = Typed(new, dtype.name), Typed(old, dtype.name)
            wins = ((a > b) if largest else (a < b)).value
            return wins | (old.differs(old) & new.equals(new)) if dtype.kind == "f" else wins

        with f.loop(0, length) as i:
            value = source.load(*at(i))
            hole = f.var(i, I64)
            with f.when(i >= count):
                # The last of the best makes room, or the new one has no place.
                hole.set(f.select(better(value, best.load(*at(count - 1))), f.constant(count - 1, I64), -1))
            with f.when(hole.get() >= 0):

                def moves() -> Value:
                    # Before the first there is nothing: it is compared with itself, and does not move.
                    before = f.maximum(hole.get() - 1, 0)
                    return (hole.get() > 0) & better(value, best.load(*at(before)))

                with f.while_(moves):
                    before = hole.get() - 1
                    best.store(best.load(*at(before)), *at(hole.get()))
                    where.store(where.load(*at(before)), *at(hole.get()))
                    hole.set(before)
                best.store(value, *at(hole.get()))
                where.store(i, *at(hole.get()))


def _wanted(plan: Plan, node: Node, output: int) -> Tensor:
    """The tensor of an output; memory of its own where nobody wants it."""
    name = node.outputs[output] if output < len(node.outputs) else ""
    if name:
        return plan.tensor(name)
    dtype = plan.tensor(node.inputs[0]).dtype if output == 0 else "int64"
    return plan.temporary(
        Layout.contiguous(plan.graph.facts[node.outputs[1 - output]].sizes), np.dtype(dtype)
    )
