"""Chains and trees of element-wise nodes become one node "Elementwise" with the attribute "expression".

1. An element-wise node that reads a DequantizeLinear of its own result's shape dequantises itself, whatever
   else reads that: bytes are then what lies in memory.
2. A node takes in the element-wise node that makes one of its inputs, if nothing else reads that input, it
   is no output of the graph and has the shape of the node's own result (it would be computed many times
   over otherwise), and the whole stays within `STEPS` operators and `INPUTS` values read.
"""

from __future__ import annotations

from coresident.graph.graph import Node
from coresident.passes.fused import Fused
from coresident.passes.patch import Patch, View, pattern_pass

STEPS = 16
"""Operators in an expression at most."""

INPUTS = 8
"""Values that an expression reads at most, numbers aside: each takes a pointer register."""


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


def _fits(view: View, merged: Fused) -> bool:
    read = [name for name in merged.inputs if view.scalar(name) is None]
    return len(merged.expression.steps) <= STEPS and len(read) <= INPUTS


def _node(merged: Fused, like: Node) -> Node:
    return Node("Elementwise", merged.inputs, like.outputs, {"expression": merged.expression}, like.name)


DEQUANTIZE = pattern_pass("dequantize_inside", _dequantize_inside)
PASS = pattern_pass("fuse_elementwise", _take_in)
