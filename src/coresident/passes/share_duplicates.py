"""Compute what is computed twice only once (common subexpression elimination).

1. A node whose operator, inputs and attributes are those of an earlier node hands on that node's outputs.
   Small constants count as the same input where their elements are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.passes.patch import Patch, View, pattern_pass

SMALL = 64
"""Elements of constants that are compared by value."""


def _duplicate(view: View, node: Node) -> Patch | None:
    if not node.inputs or node.op == "Identity":
        return None
    for other in view.readers(node.inputs[0]):
        if other is not node and _same(view, other, node) and view.precedes(other, node):
            return Patch((node,), renames={old: new for old, new in zip(node.outputs, other.outputs) if old})
    return None


def _same(view: View, a: Node, b: Node) -> bool:
    if a.op != b.op or len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
        return False
    if any(wanted and not made for wanted, made in zip(b.outputs, a.outputs)):
        return False
    if not all(_same_input(view, x, y) for x, y in zip(a.inputs, b.inputs)):
        return False
    return a.attributes.keys() == b.attributes.keys() and all(
        _same_attribute(value, b.attributes[name]) for name, value in a.attributes.items()
    )


def _same_input(view: View, a: str, b: str) -> bool:
    if a == b:
        return True
    x, y = view.constant(a), view.constant(b)
    if x is None or y is None or x.size > SMALL:
        return False
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def _same_attribute(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and np.array_equal(a, b)
        )
    return type(a) is type(b) and bool(a == b)


PASS = pattern_pass("share_duplicates", _duplicate)
