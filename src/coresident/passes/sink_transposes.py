"""Move Transposes behind the operators that read them, where they meet others and cancel.

Exporters of networks that keep channels last wrap each convolution in a pair. In every rule the Transposes
that a node reads have the same order, and their other readers are such that the rules move them too.

1. Element-wise operators that read Transposes, constants and values of few dimensions above 1: the constants
   are transposed instead, what moves nothing but dimensions of size 1 is reshaped.
2. Softmax and LogSoftmax, along the dimension that comes to lie there.
3. Concat of Transposes, likewise.
4. Reductions with constant axes; where these are not kept, only if what remains is in order, and then no
   Transpose is left.
5. Split, and Pad with constant widths.
6. Element-wise operators of one value that read a Reshape go before it, so that they can join what made it.
7. So do Softmax and LogSoftmax where the Reshape keeps their dimension.
8. Transposes and Reshapes that now follow each other become one (`collapse_movement`).
"""

from __future__ import annotations

import math

import numpy as np

from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.graph.operators.movement import permutation
from coresident.passes.collapse_movement import merge_reshapes, merge_transposes
from coresident.passes.constants import integers
from coresident.passes.patch import Patch, View, pattern_pass

REDUCTIONS = frozenset(
    (
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
    )
)


def _order(view: View, name: str) -> tuple[int, ...] | None:
    """The order of the Transpose that makes a value."""
    maker = view.maker(name)
    if maker is None or maker.op != "Transpose" or view.is_output(name):
        return None
    return permutation(maker, len(view.shape(name)))


def _order_for(view: View, name: str, node: Node) -> tuple[int, ...] | None:
    """The order of the Transpose that makes a value, if all that reads it beside `node` moves it on."""
    order = _order(view, name)
    if order is None or not all(r is node or _moves_on(view, r, order) for r in view.readers(name)):
        return None
    return order


def _moves_on(view: View, reader: Node, order: tuple[int, ...]) -> bool:
    """Whether a rule moves a Transpose of this order behind its reader, as far as its other inputs tell."""
    if reader.op in ("Transpose", "Softmax", "LogSoftmax"):
        return True
    if reader.op in REDUCTIONS:
        return bool(reader.input(1) and integers(view, reader.input(1)) and reader.get("keepdims", 1))
    if reader.op == "Concat":
        return all(_order(view, name) == order for name in reader.inputs)
    if reader.op not in ELEMENTWISE or not all(reader.inputs):
        return False
    return len(view.shape(reader.outputs[0])) == len(order) and all(
        _order(view, name) == order
        or _is_unmoved(view, name, order)
        or ((constant := view.constant(name)) is not None and constant.ndim <= len(order))
        for name in reader.inputs
    )


def _is_unmoved(view: View, name: str, order: tuple[int, ...]) -> bool:
    """Whether the Transpose moves nothing of a value but dimensions of size 1."""
    shape = view.shape(name)
    if len(shape) != len(order) or 0 in shape:
        return False
    moving = [int(axis) for axis in np.argsort(order) if shape[axis] != 1]
    return moving == sorted(moving)


def _source(view: View, name: str) -> str:
    maker = view.maker(name)
    assert maker is not None
    return maker.inputs[0]


def _behind(
    view: View, node: Node, inputs: tuple[str, ...], order: tuple[int, ...], **attributes: object
) -> Patch:
    """The patch that applies `node` to other inputs and transposes its result."""
    target = node.outputs[0]
    before = view.fresh(f"{target}.before")
    moved = node.with_(inputs=inputs, outputs=(before,), attributes={**node.attributes, **attributes})
    return Patch((node,), (moved, Node("Transpose", (before,), (target,), {"perm": order}, node.name)))


def _elementwise(view: View, node: Node) -> Patch | None:
    if node.op not in ELEMENTWISE or not all(node.inputs):
        return None
    orders = {found for name in node.inputs if (found := _order_for(view, name, node)) is not None}
    if len(orders) != 1:
        return None
    order = orders.pop()
    if len(view.shape(node.outputs[0])) != len(order):
        return None
    reshapes: list[Node] = []
    constants: dict[str, Array] = {}
    inputs: list[str] = []
    for name in node.inputs:
        before = _source(view, name) if _order_for(view, name, node) is not None else None
        constant = view.constant(name)
        if before is None and constant is not None:
            before = _transposed_constant(view, name, constant, order, constants)
        if before is None:
            before = _reshaped(view, name, order, constants, reshapes)
        if before is None:
            return None
        inputs.append(before)
    patch = _behind(view, node, tuple(inputs), order)
    return Patch(patch.remove, (*reshapes, *patch.add), constants)


def _transposed_constant(
    view: View, name: str, constant: Array, order: tuple[int, ...], constants: dict[str, Array]
) -> str | None:
    """The name of the constant as it is before a Transpose; entered in `constants` where it changes."""
    if constant.ndim > len(order):
        return None
    if constant.size == 1:
        return name
    full = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape)
    before = view.fresh(f"{name}.transposed")
    constants[before] = np.ascontiguousarray(full.transpose(np.argsort(order)))
    return before


def _reshaped(
    view: View, name: str, order: tuple[int, ...], constants: dict[str, Array], reshapes: list[Node]
) -> str | None:
    """The name of a value as it is before a Transpose that moves nothing but its dimensions of size 1."""
    if not _is_unmoved(view, name, order):
        return None
    shape, back = view.shape(name), np.argsort(order)
    before, sizes = view.fresh(f"{name}.transposed"), view.fresh(f"{name}.transposed.shape")
    constants[sizes] = np.array([shape[axis] for axis in back], np.int64)
    reshapes.append(Node("Reshape", (name, sizes), (before,), {}, name))
    return before


def _softmax(view: View, node: Node) -> Patch | None:
    if node.op not in ("Softmax", "LogSoftmax"):
        return None
    order = _order_for(view, node.inputs[0], node)
    if order is None:
        return None
    axis = order[node.get("axis", -1)]
    return _behind(view, node, (_source(view, node.inputs[0]),), order, axis=axis)


def _concat(view: View, node: Node) -> Patch | None:
    if node.op != "Concat":
        return None
    orders = [_order_for(view, name, node) for name in node.inputs]
    order = orders[0]
    if order is None or any(other != order for other in orders):
        return None
    sources = tuple(_source(view, name) for name in node.inputs)
    return _behind(view, node, sources, order, axis=order[node.get("axis")])


def _reduction(view: View, node: Node) -> Patch | None:
    if node.op not in REDUCTIONS or not node.input(1):
        return None
    order = _order_for(view, node.inputs[0], node)
    axes = integers(view, node.inputs[1])
    if order is None or not axes:
        return None
    reduced = [order[axis] for axis in axes]
    name = view.fresh(f"{node.outputs[0]}.axes")
    constants = {name: np.array(sorted(reduced), np.int64)}
    inputs = (_source(view, node.inputs[0]), name)
    if node.get("keepdims", 1):
        patch = _behind(view, node, inputs, order)
        return Patch(patch.remove, patch.add, constants)
    left = [axis for axis in order if axis not in reduced]
    return Patch((node,), (node.with_(inputs=inputs),), constants) if left == sorted(left) else None


def _split(view: View, node: Node) -> Patch | None:
    if node.op != "Split" or (order := _order_for(view, node.inputs[0], node)) is None:
        return None
    if node.input(1) and view.constant(node.input(1)) is None:
        return None
    before = tuple(view.fresh(f"{name}.before") if name else "" for name in node.outputs)
    inputs = (_source(view, node.inputs[0]), *node.inputs[1:])
    axis = order[node.get("axis", 0)]
    moved = node.with_(inputs=inputs, outputs=before, attributes={**node.attributes, "axis": axis})
    pairs = [(old, new) for old, new in zip(before, node.outputs) if new]
    turned = [Node("Transpose", (old,), (new,), {"perm": order}, node.name) for old, new in pairs]
    return Patch((node,), (moved, *turned))


def _pad(view: View, node: Node) -> Patch | None:
    if node.op != "Pad" or node.input(3) or (order := _order_for(view, node.inputs[0], node)) is None:
        return None
    pads = integers(view, node.inputs[1])
    if pads is None:
        return None
    back, rank = np.argsort(order), len(order)
    name = view.fresh(f"{node.outputs[0]}.pads")
    constants = {name: np.array([pads[d + half] for half in (0, rank) for d in back], np.int64)}
    patch = _behind(view, node, (_source(view, node.inputs[0]), name, *node.inputs[2:]), order)
    return Patch(patch.remove, patch.add, constants)


def _softmax_before_reshape(view: View, node: Node) -> Patch | None:
    if node.op not in ("Softmax", "LogSoftmax"):
        return None
    maker = view.maker(node.inputs[0])
    if maker is None or maker.op != "Reshape" or view.sole_reader(node.inputs[0]) is not node:
        return None
    shape, source = view.shape(node.inputs[0]), view.shape(maker.inputs[0])
    axis = node.get("axis", -1) % len(shape)
    inner = math.prod(shape[axis + 1 :])
    places = [d for d, n in enumerate(source) if (n, math.prod(source[d + 1 :])) == (shape[axis], inner)]
    if not places or 0 in shape:
        return None
    before = view.fresh(f"{node.outputs[0]}.before")
    moved = node.with_(
        inputs=(maker.inputs[0],), outputs=(before,), attributes={**node.attributes, "axis": places[0]}
    )
    return Patch((node,), (moved, maker.with_(inputs=(before, *maker.inputs[1:]), outputs=node.outputs)))


def _before_reshape(view: View, node: Node) -> Patch | None:
    if node.op not in ELEMENTWISE or not all(node.inputs):
        return None
    maker = view.maker(node.inputs[0])
    if maker is None or maker.op != "Reshape" or view.sole_reader(node.inputs[0]) is not node:
        return None
    target = node.outputs[0]
    others = [view.constant(name) for name in node.inputs[1:]]
    if any(other is None or other.size != 1 for other in others) or view.shape(target) != view.shape(
        node.inputs[0]
    ):
        return None
    rank = len(view.shape(maker.inputs[0]))
    if any(other.ndim > rank for other in others if other is not None):
        return None
    before = view.fresh(f"{target}.before")
    moved = node.with_(inputs=(maker.inputs[0], *node.inputs[1:]), outputs=(before,))
    return Patch((node,), (moved, maker.with_(inputs=(before, *maker.inputs[1:]), outputs=(target,))))


PASS = pattern_pass(
    "sink_transposes",
    merge_transposes,
    merge_reshapes,
    _elementwise,
    _softmax,
    _concat,
    _reduction,
    _split,
    _pad,
    _before_reshape,
    _softmax_before_reshape,
)
