"""Let bytes be moved instead of floats: DequantizeLinear sinks, QuantizeLinear rises.

1. Reshape, Transpose, Slice, Split, Pad, Tile, MaxPool, Resize to the nearest and their like, of
   DequantizeLinear with one scale and zero point: the operator reads the integers, its result is dequantised.
   A Pad's value must be that of an integer.
2. Transpose of DequantizeLinear with constant parameters along an axis, likewise.
3. Concat of DequantizeLinear that all have the same parameters, likewise.
4. QuantizeLinear of what only it reads and such an operator moves goes before the operator; before all parts
   of a Concat.
5. QuantizeLinear of DequantizeLinear with the same parameters goes.
6. QuantizeLinear with constant parameters of a Relu or Clip that holds its operand within bounds that
   saturation has anyway goes before it, and that goes.

All are exact.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.graph.operators.movement import permutation
from coresident.passes.patch import Patch, View, pattern_pass
from coresident.passes.quantization import dequantised, parameters

VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"))
"""Operators whose result has all elements of the operand, once each."""

MOVERS = VIEWS | {"Slice", "Split", "Expand", "Tile", "Gather", "Pad", "MaxPool", "Resize"}
"""Operators whose result has elements of the first operand, and nothing else (a Pad: and its value)."""


def _moves(view: View, node: Node) -> bool:
    """Whether a node gives elements of its first input as they are."""
    if node.op == "Resize":
        crop = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return node.get("mode", "nearest") == "nearest" and not crop
    if node.op == "MaxPool":
        return view.gives_one(node)
    return node.op in MOVERS


def _sink(view: View, node: Node) -> Patch | None:
    if node.op not in MOVERS or not _moves(view, node):
        return None
    maker = view.maker(node.inputs[0])
    if maker is None or maker.op != "DequantizeLinear" or len(maker.inputs) != 3:
        return None
    scale, point = view.fact(maker.inputs[1]), view.fact(maker.inputs[2])
    if scale.shape or point.shape:
        return None
    found = dequantised(view, node.inputs[0])
    constants: dict[str, Array] = {}
    inputs = (maker.inputs[0], *node.inputs[1:])
    if node.op == "MaxPool" and (found is None or not found.per_tensor):
        return None
    if node.op == "Pad" and node.get("mode", "constant") == "constant":
        value = view.scalar(node.input(2)) if node.input(2) else 0.0
        if found is None or not found.per_tensor or value is None:
            return None
        integer = found.quantized(value)
        if found.value(integer) != value:
            return None
        name = view.fresh(f"{node.outputs[0]}.value")
        constants[name] = np.array(integer, found.dtype)
        inputs = (*(*inputs, "")[:2], name, *inputs[3:])
    names = tuple(view.fresh(f"{name}.bytes") if name else "" for name in node.outputs)
    moved = node.with_(inputs=inputs, outputs=names)
    after = [
        _with_axis(view, maker.with_(inputs=(new, *maker.inputs[1:]), outputs=(old,)), old)
        for new, old in zip(names, node.outputs)
        if new
    ]
    return Patch((node,), (moved, *after), constants)


def _with_axis(view: View, node: Node, like: str) -> Node:
    """A QuantizeLinear or DequantizeLinear of a value of the same shape as `like`."""
    return node.with_(attributes={"axis": 0} if len(view.shape(like)) == 1 else {})


def _sink_transpose(view: View, node: Node) -> Patch | None:
    if node.op != "Transpose":
        return None
    maker = view.maker(node.inputs[0])
    found = dequantised(view, node.inputs[0])
    if maker is None or found is None:
        return None
    rank = len(view.shape(node.inputs[0]))
    order = permutation(node, rank)
    constants: dict[str, Array] = {}
    names = []
    for name, array in zip(maker.inputs[1:], (found.scale, found.zero_point)):
        if array.ndim:
            full = array.reshape((1,) * (rank - array.ndim) + array.shape)
            name = view.fresh(f"{name}.transposed")
            constants[name] = np.ascontiguousarray(full.transpose(order))
        names.append(name)
    moved = view.fresh(f"{node.outputs[0]}.bytes")
    after = maker.with_(inputs=(moved, *names), outputs=node.outputs)
    return Patch((node,), (node.with_(inputs=(found.source,), outputs=(moved,)), after), constants)


def _sink_concat(view: View, node: Node) -> Patch | None:
    if node.op != "Concat":
        return None
    parts = [dequantised(view, name) for name in node.inputs]
    first = parts[0]
    if first is None or not first.per_tensor or any(p is None or not p.same_as(first) for p in parts):
        return None
    maker = view.maker(node.inputs[0])
    assert maker is not None
    joined = view.fresh(f"{node.outputs[0]}.bytes")
    whole = node.with_(inputs=tuple(p.source for p in parts if p is not None), outputs=(joined,))
    after = maker.with_(inputs=(joined, *maker.inputs[1:]), outputs=node.outputs)
    return Patch((node,), (whole, after))


def _rise(view: View, node: Node) -> Patch | None:
    found = parameters(view, node, "QuantizeLinear")
    if found is None or not found.per_tensor:
        return None
    mover = view.maker(node.inputs[0])
    if mover is None or view.sole_reader(node.inputs[0]) is not node or not view.gives_one(mover):
        return None
    if mover.op == "Concat":
        count = len(mover.inputs)
    elif mover.op in VIEWS | {"Expand", "Tile", "Pad", "MaxPool", "Resize"} and _moves(view, mover):
        count = 1
    else:
        return None
    constants: dict[str, Array] = {}
    before, names = [], []
    for name in mover.inputs[:count]:
        names.append(view.fresh(f"{name}.quantized"))
        quantize = node.with_(inputs=(name, *node.inputs[1:]), outputs=(names[-1],))
        before.append(_with_axis(view, quantize, name))
    inputs = (*names, *mover.inputs[count:])
    if mover.op == "Pad" and mover.get("mode", "constant") == "constant":
        value = view.scalar(mover.input(2)) if mover.input(2) else 0.0
        if value is None:
            return None
        name = view.fresh(f"{node.outputs[0]}.value")
        constants[name] = np.array(found.quantized(value), found.dtype)
        inputs = (*(*inputs, "")[:2], name, *inputs[3:])
    moved = mover.with_(inputs=inputs, outputs=node.outputs)
    return Patch((mover, node), (*before, moved), constants)


def _back_and_forth(view: View, node: Node) -> Patch | None:
    outer = parameters(view, node, "QuantizeLinear")
    inner = dequantised(view, node.inputs[0]) if outer is not None else None
    if outer is None or inner is None or not inner.same_as(outer):
        return None
    if not np.all((inner.scale > 0) & np.isfinite(inner.scale)):
        return None
    return Patch((node,), renames={node.outputs[0]: inner.source})


def _saturates(view: View, node: Node) -> Patch | None:
    found = parameters(view, node, "QuantizeLinear")
    if found is None or not found.per_tensor:
        return None
    bounding = view.maker(node.inputs[0])
    if bounding is None or bounding.op not in ("Relu", "Clip"):
        return None
    bounds = np.iinfo(found.dtype)
    low: float | None = 0.0
    high: float | None = np.inf
    if bounding.op == "Clip":
        low = view.scalar(bounding.input(1)) if bounding.input(1) else -np.inf
        high = view.scalar(bounding.input(2)) if bounding.input(2) else np.inf
    if low is None or high is None or not low <= high:
        return None
    if found.quantized(low) != bounds.min or found.quantized(high) != bounds.max:
        return None
    return Patch((node,), (node.with_(inputs=(bounding.inputs[0], *node.inputs[1:])),))


PASS = pattern_pass(
    "move_quantization",
    _back_and_forth,
    _saturates,
    _sink,
    _sink_transpose,
    _sink_concat,
    _rise,
)
