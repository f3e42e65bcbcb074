"""Chains and trees of element-wise nodes become one node "Elementwise" with the attribute "expression".

1. An element-wise node that reads a DequantizeLinear of its own result's shape dequantises itself, whatever
   else reads that: bytes are then what lies in memory.
2. What leads from bytes to a QuantizeLinear and reads nothing else but numbers becomes one node, if an
   operator of `COSTLY` is among it: its kernel looks 256 results up.
3. A node takes in the element-wise node that makes one of its inputs, if nothing else reads that input, it
   is no output of the graph and has the shape of the node's own result (it would be computed many times
   over otherwise), and the whole stays within `STEPS` operators and `INPUTS` values read.
"""

from __future__ import annotations

from coresident.graph.graph import Node
from coresident.passes.fused import Fused
from coresident.passes.patch import Patch, View, pattern_pass
from coresident.passes.quantization import BYTES

COSTLY = frozenset(
    (
        *("Sigmoid", "Tanh", "Exp", "Log", "Erf", "Gelu", "Mish", "Swish", "HardSwish", "HardSigmoid"),
        *("Elu", "Selu", "Celu", "Softplus", "Softsign", "Pow", "Sin", "Cos", "Reciprocal", "Sqrt"),
    )
)
"""Operators that take longer than a table of bytes."""

STEPS = 16
"""Operators in an expression at most."""

INPUTS = 8
"""Values that an expression reads at most, numbers aside: each takes a pointer register."""


def is_byte_function(view: View, node: Node) -> bool:
    """Whether a node was made by rule 2."""
    if node.op != "Elementwise" or view.dtype(node.outputs[0]) not in BYTES:
        return False
    read = [name for name in node.inputs if view.scalar(name) is None]
    steps = node.attributes["expression"].steps
    return len(read) == 1 and view.dtype(read[0]) in BYTES and bool(COSTLY.intersection(s.op for s in steps))


def _take_in(view: View, node: Node) -> Patch | None:
    outer = Fused.of(node)
    if outer is None:
        return None
    shape = view.shape(node.outputs[0])
    for value in outer.inputs:
        maker = view.maker(value)
        inner = Fused.of(maker)
        if (
            maker is None
            or inner is None
            or view.sole_reader(value) is not node
            or view.shape(value) != shape
            or is_byte_function(view, maker)
        ):
            continue
        merged = outer.after(value, inner)
        if _fits(view, merged):
            return Patch((maker, node), (_node(merged, node),))
    return None


def _dequantize_inside(view: View, node: Node) -> Patch | None:
    outer = Fused.of(node)
    if outer is None:
        return None
    for value in outer.inputs:
        maker = view.maker(value)
        inner = Fused.of(maker)
        if maker is None or inner is None or maker.op != "DequantizeLinear":
            continue
        merged = outer.after(value, inner)
        if view.shape(value) == view.shape(node.outputs[0]) and _fits(view, merged):
            return Patch((node,), (_node(merged, node),))
    return None


def _function_of_a_byte(view: View, node: Node) -> Patch | None:
    whole = Fused.of(node) if node.op == "QuantizeLinear" else None
    if whole is None or view.dtype(node.outputs[0]) not in BYTES:
        return None
    shape, taken = view.shape(node.outputs[0]), [node]
    found: tuple[Fused, int] | None = None
    while len(whole.expression.steps) <= 2 * STEPS:
        read = [name for name in whole.inputs if view.scalar(name) is None]
        costly = COSTLY.intersection(step.op for step in whole.expression.steps)
        if costly and len(read) == 1 and view.dtype(read[0]) in BYTES and view.shape(read[0]) == shape:
            found = whole, len(taken)
        inner = next((pair for name in whole.inputs if (pair := _interior(view, name, taken, shape))), None)
        if inner is None:
            break
        value, maker, made = inner
        whole = whole.after(value, made)
        taken.append(maker)
    if found is None:
        return None
    merged, count = found
    return Patch(tuple(taken[:count]), (_node(merged, node),))


def _interior(
    view: View, name: str, taken: list[Node], shape: tuple[int, ...]
) -> tuple[str, Node, Fused] | None:
    """A value that is made element by element for the nodes taken alone."""
    maker = view.maker(name)
    made = Fused.of(maker)
    if maker is None or made is None or view.is_output(name) or view.shape(name) != shape:
        return None
    return (name, maker, made) if all(reader in taken for reader in view.readers(name)) else None


def _fits(view: View, merged: Fused) -> bool:
    read = [name for name in merged.inputs if view.scalar(name) is None]
    return len(merged.expression.steps) <= STEPS and len(read) <= INPUTS


def _node(merged: Fused, like: Node) -> Node:
    return Node("Elementwise", merged.inputs, like.outputs, {"expression": merged.expression}, like.name)


BYTE_FUNCTIONS = pattern_pass("fuse_byte_functions", _function_of_a_byte)
DEQUANTIZE = pattern_pass("dequantize_inside", _dequantize_inside)
PASS = pattern_pass("fuse_elementwise", _take_in)
