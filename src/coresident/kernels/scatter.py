"""Rows written to rows that indices name; indices are held to the rows that there are."""

from __future__ import annotations

from coresident.codegen.builder import Value
from coresident.codegen.math import CodeMath, Typed, to_memory, to_register
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.scatter import reduction
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.movement import copy
from coresident.kernels.scalar import held, items


@lowers("ScatterRows")
def scatter_rows(node: Node, plan: Plan) -> None:
    """Updates in their order, so that of several for one place the last stays; columns in parallel."""
    data, index, updates = (plan.tensor(name) for name in node.inputs)
    y, how = plan.tensor(node.outputs[0]), reduction(node)
    if y.dtype.kind == "b" and how != "none":
        raise UnsupportedModel(f"reduction {how} of bool; numbers are supported", shape=y.shape)
    info = {"op": node.op, "nodes": [node.name], "kernel": "scatter"}
    copy(plan, data, y, info)
    rows, columns = y.shape
    count = columns if y.layout.elements and updates.layout.elements else 0
    cost = 4 * index.shape[0]
    with items(plan, "scatter", count, cost, [y], [index, updates], info) as (f, column, accesses):
        to, where, new = accesses
        math = CodeMath(f)

        def joined(old: Value, value: Value) -> Value:
            a, b = (to_register(f, x, y.dtype) for x in (old, value))
            result: Typed = {
                "none": lambda: b,
                "add": lambda: a + b,
                "mul": lambda: a * b,
                "max": lambda: math.maximum(a, b),
                "min": lambda: math.minimum(a, b),
            }[how]()
            return to_memory(f, result)

        with f.loop(0, index.shape[0]) as i:
            row = held(f, where.load_index(i), rows)
            value = f.load(new.kind, new.start, new.place((i, column)))
            place = to.place((row, column))
            if how != "none":
                value = joined(f.load(to.kind, to.start, place), value)
            f.store(value, to.start, place)
