"""Remove nodes that hand on what they read.

1. Identity (except one that gives an input, a constant or another output its name as an output); Dropout.
2. Cast to the same type.
3. Reshape, Flatten, Squeeze, Unsqueeze, Expand and Tile whose output has the shape of the input.
4. Transpose that leaves the order.
5. Slice that takes everything; Split into one.
6. Pad by nothing.
7. Concat of one part; parts without elements are dropped first.
8. Resize by 1.
9. MaxPool and AveragePool with a window of 1 and a stride of 1.
10. Add or Sub of 0, Mul or Div by 1, power of 1; Clip without bounds.
11. Sum, Mean, Max and Min of one value.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operators.movement import permutation
from coresident.passes.constants import integers
from coresident.passes.patch import Patch, View, pattern_pass

SAME_ELEMENTS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"))


def _bypass(view: View, node: Node, source: str | None = None) -> Patch:
    return Patch((node,), renames={node.outputs[0]: node.inputs[0] if source is None else source})


def _same_shape(view: View, node: Node) -> bool:
    return view.shape(node.inputs[0]) == view.shape(node.outputs[0])


def _identity(view: View, node: Node) -> Patch | None:
    if node.op == "Dropout":
        training = view.constant(node.input(2))
        passes = not node.input(2) or (training is not None and not training.any())
        return _bypass(view, node) if passes and view.gives_one(node) else None
    if node.op != "Identity":
        return None
    source, target = node.inputs[0], node.outputs[0]
    if view.is_output(target) and (view.maker(source) is None or view.is_output(source)):
        return None
    return _bypass(view, node)


def _cast(view: View, node: Node) -> Patch | None:
    if node.op != "Cast" or view.dtype(node.inputs[0]) != view.dtype(node.outputs[0]):
        return None
    return _bypass(view, node)


def _reshape(view: View, node: Node) -> Patch | None:
    if node.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile") or not _same_shape(
        view, node
    ):
        return None
    return _bypass(view, node)


def _transpose(view: View, node: Node) -> Patch | None:
    if node.op != "Transpose":
        return None
    order = permutation(node, len(view.shape(node.inputs[0])))
    return _bypass(view, node) if order == tuple(range(len(order))) else None


def _slice(view: View, node: Node) -> Patch | None:
    if node.op == "Split":
        return _bypass(view, node) if len(node.outputs) == 1 and _same_shape(view, node) else None
    if node.op != "Slice" or not _same_shape(view, node):
        return None
    steps = integers(view, node.input(4)) if node.input(4) else ()
    # A slice of full size with a negative step reverses.
    return _bypass(view, node) if steps is not None and all(step > 0 for step in steps) else None


def _pad(view: View, node: Node) -> Patch | None:
    if node.op != "Pad":
        return None
    pads = integers(view, node.inputs[1])
    return _bypass(view, node) if pads is not None and not any(pads) else None


def _concat(view: View, node: Node) -> Patch | None:
    if node.op != "Concat":
        return None
    if len(node.inputs) == 1:
        return _bypass(view, node)
    full = tuple(name for name in node.inputs if 0 not in view.shape(name))
    if len(full) == len(node.inputs) or not full:
        return None
    return Patch((node,), (node.with_(inputs=full),))


def _resize(view: View, node: Node) -> Patch | None:
    if node.op != "Resize" or not _same_shape(view, node):
        return None
    if node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    if node.input(3):
        return _bypass(view, node)
    scales = view.constant(node.input(2))
    return _bypass(view, node) if scales is not None and bool(np.all(scales == 1)) else None


def _pool(view: View, node: Node) -> Patch | None:
    if node.op not in ("MaxPool", "AveragePool") or not view.gives_one(node):
        return None
    # With such a window, what keeps the shape has no padding.
    plain = (
        _same_shape(view, node)
        and all(k == 1 for k in node.get("kernel_shape"))
        and all(s == 1 for s in node.get("strides", ()))
    )
    return _bypass(view, node) if plain else None


NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}
"""The right operand with which the left one comes out."""


def _neutral(view: View, node: Node) -> Patch | None:
    if node.op == "Clip":
        low, high = (view.scalar(name) if name else None for name in (node.input(1), node.input(2)))
        open_below = not node.input(1) or low == -np.inf
        open_above = not node.input(2) or high == np.inf
        return _bypass(view, node) if open_below and open_above else None
    if node.op not in NEUTRAL:
        return None
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op in ("Add", "Mul"):
        pairs.append((node.inputs[1], node.inputs[0]))
    for kept, other in pairs:
        constant = view.constant(other)
        if constant is None or not np.all(constant == NEUTRAL[node.op]):
            continue
        target = view.fact(node.outputs[0])
        if (view.shape(kept), view.dtype(kept)) == (target.shape, target.dtype):
            return _bypass(view, node, kept)
    return None


def _single(view: View, node: Node) -> Patch | None:
    if node.op not in ("Sum", "Mean", "Max", "Min") or len(node.inputs) != 1:
        return None
    return _bypass(view, node)


COPIES = pattern_pass("remove_copies", _identity)
"""Identity and Dropout alone: what holds for all sizes."""

PASS = pattern_pass(
    "remove_identities",
    _identity,
    _cast,
    _reshape,
    _transpose,
    _slice,
    _pad,
    _concat,
    _resize,
    _pool,
    _neutral,
    _single,
)
