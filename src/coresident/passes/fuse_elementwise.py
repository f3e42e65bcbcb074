"""Chains and trees of element-wise nodes become one node "Elementwise" with the attribute "expression".

1. A node takes in the element-wise node that makes one of its inputs, if nothing else reads that input, it
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
"""Values that an expression reads at most: each takes a pointer register."""


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
        if len(merged.expression.steps) > STEPS or merged.expression.inputs > INPUTS:
            continue
        fused = Node("Elementwise", merged.inputs, node.outputs, {"expression": merged.expression}, node.name)
        return Patch((maker, node), (fused,))
    return None


PASS = pattern_pass("fuse_elementwise", _take_in)
