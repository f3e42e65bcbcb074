"""Bring element-wise operators to one plain and cheap form.

1. Sum and Mean, and Max and Min of three or more values, become chains of operators of two values (Mean: and
   a Mul by the reciprocal of their number).
2. Pow by the constants 2, 3, 0.5 and -1 becomes Mul, Mul of Mul, Sqrt and Reciprocal.
3. Div by a constant power of two becomes Mul by its reciprocal, which is exact.
4. Max with 0 and Clip from 0 to nothing or infinity become Relu.
5. The bounds of a Clip become scalars without dimensions; a missing lower one becomes the least value of the
   type.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.passes.patch import Patch, View, pattern_pass


def _variadic(view: View, node: Node) -> Patch | None:
    if node.op not in ("Sum", "Mean", "Max", "Min") or len(node.inputs) < 2:
        return None
    if node.op in ("Max", "Min") and len(node.inputs) == 2:
        return None
    step = node.op if node.op in ("Max", "Min") else "Add"
    target, total = node.outputs[0], node.inputs[0]
    nodes: list[Node] = []
    for number, operand in enumerate(node.inputs[1:], 2):
        last = number == len(node.inputs) and node.op != "Mean"
        result = target if last else view.fresh(f"{target}.{number}")
        nodes.append(Node(step, (total, operand), (result,), {}, node.name))
        total = result
    constants: dict[str, Array] = {}
    if node.op == "Mean":
        share = view.fresh(f"{target}.share")
        constants[share] = np.array(1 / len(node.inputs), view.dtype(target))
        nodes.append(Node("Mul", (total, share), (target,), {}, node.name))
    return Patch((node,), tuple(nodes), constants)


def _power(view: View, node: Node) -> Patch | None:
    if node.op != "Pow" or not np.issubdtype(view.dtype(node.inputs[0]), np.floating):
        return None
    base, target, exponent = node.inputs[0], node.outputs[0], view.scalar(node.inputs[1])
    if exponent is None or view.shape(base) != view.shape(target):
        return None
    if exponent == 2:
        return Patch((node,), (Node("Mul", (base, base), (target,), {}, node.name),))
    if exponent == 3:
        square = view.fresh(f"{target}.square")
        first = Node("Mul", (base, base), (square,), {}, node.name)
        return Patch((node,), (first, Node("Mul", (square, base), (target,), {}, node.name)))
    unary = {0.5: "Sqrt", -1.0: "Reciprocal"}.get(exponent)
    return Patch((node,), (Node(unary, (base,), (target,), {}, node.name),)) if unary else None


def _division(view: View, node: Node) -> Patch | None:
    if node.op != "Div":
        return None
    divisor = view.constant(node.inputs[1])
    if divisor is None or not np.issubdtype(divisor.dtype, np.floating) or not divisor.size:
        return None
    mantissa, exponent = np.frexp(divisor.astype(np.float64))
    if np.any(np.abs(mantissa) != 0.5) or np.any(np.abs(exponent) > 64):
        return None
    name = view.fresh(f"{node.inputs[1]}.reciprocal")
    product = Node("Mul", (node.inputs[0], name), node.outputs, {}, node.name)
    return Patch((node,), (product,), {name: (1 / divisor).astype(divisor.dtype)})


def _relu(view: View, node: Node) -> Patch | None:
    if node.op == "Max" and len(node.inputs) == 2:
        for kept, other in (node.inputs, node.inputs[::-1]):
            if view.scalar(other) == 0 and view.shape(kept) == view.shape(node.outputs[0]):
                return Patch((node,), (Node("Relu", (kept,), node.outputs, {}, node.name),))
    if node.op != "Clip" or view.scalar(node.input(1)) != 0:
        return None
    if node.input(2) and view.scalar(node.input(2)) != np.inf:
        return None
    return Patch((node,), (Node("Relu", node.inputs[:1], node.outputs, {}, node.name),))


def _clip(view: View, node: Node) -> Patch | None:
    if node.op != "Clip" or not any(node.inputs[1:]):
        return None
    constants: dict[str, Array] = {}
    bounds: list[str] = []
    for name in node.inputs[1:]:
        bound = view.constant(name)
        if name and (bound is None or bound.ndim == 0):
            bounds.append(name)
            continue
        dtype = view.dtype(node.inputs[0])
        lowest = -np.inf if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min
        if not name and (len(bounds) == 1):
            continue
        bounds.append(view.fresh(f"{name or node.outputs[0] + '.low'}.scalar"))
        constants[bounds[-1]] = np.array(lowest, dtype) if bound is None else bound.reshape(())
    inputs = (node.inputs[0], *bounds)
    return Patch((node,), (node.with_(inputs=inputs),), constants) if inputs != node.inputs else None


PASS = pattern_pass("reduce_strength", _variadic, _power, _division, _relu, _clip)
