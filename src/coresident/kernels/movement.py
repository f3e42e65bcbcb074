"""Operators that move elements. What strides can say is a view and costs nothing; the rest is copied.

`copy`, `fill` and `zero_halo` also serve the planner.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function
from coresident.codegen.math import Typed, typed_constant
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.movement import (
    SLICE_OPERANDS,
    block_size,
    pad_widths,
    permutation,
    slice_ranges,
    split_sizes,
)
from coresident.kernels import views
from coresident.kernels.halo import zero_halo
from coresident.kernels.layout import Layout
from coresident.kernels.loopnest import nest
from coresident.kernels.lowering import Plan, Tensor, lowers

__all__ = ["copy", "fill", "view_or_copy", "zero_halo"]

Copy = tuple[Tensor, Tensor]
"""Source and destination."""


def copy(plan: Plan, source: Tensor, destination: Tensor, info: dict[str, Any], barrier: bool = True) -> None:
    """Emit a step that copies one tensor to another of the same dtype, onto whose shape it broadcasts."""
    nest(plan, destination, [source], None, {"kernel": "copy", **info}, barrier=barrier)


def fill(plan: Plan, destination: Tensor, value: float, info: dict[str, Any], barrier: bool = True) -> None:
    """Emit a step that writes one value to every element."""

    def constant(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
        return typed_constant(f, value, destination.dtype, lanes)

    nest(plan, destination, [], constant, {"kernel": "fill", **info}, barrier=barrier)


def _info(node: Node) -> dict[str, Any]:
    return {"op": node.op, "nodes": [node.name]}


def _known(node: Node, plan: Plan, index: int, what: str) -> np.ndarray[Any, Any] | None:
    """The value of an input that says how to move; None where it is left out."""
    name = node.input(index)
    value = plan.graph.constant(name)
    if name and value is None:
        raise UnsupportedModel(
            f"input {index}, {what}, is computed while the network runs; only a constant is supported",
            node=node.name,
            op=node.op,
        )
    return value


def _copies(plan: Plan, copies: Sequence[Copy], node: Node) -> None:
    """Copies that may run beside each other."""
    moving = [pair for pair in copies if pair[1].layout.elements]
    for i, (source, destination) in enumerate(moving):
        copy(plan, source, destination, _info(node), barrier=i == len(moving) - 1)


def view_or_copy(node: Node, plan: Plan, output: str, x: Tensor, view: Layout) -> None:
    """Make an output a view of x if the planner allows it, else a copy."""
    if not plan.alias(output, replace(x, layout=view)):
        copy(plan, replace(x, layout=view), plan.tensor(output), _info(node))


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: Node, plan: Plan) -> None:
    """Any change of shape that keeps the order of elements."""
    x, output = plan.tensor(node.inputs[0]), node.outputs[0]
    shape = plan.graph.facts[output].sizes
    view = views.reshaped(x.layout, shape)
    if view is not None:
        view_or_copy(node, plan, output, x, view)
        return
    y = plan.tensor(output)
    place = views.reshaped(y.layout, x.shape)
    if place is not None:
        copy(plan, x, replace(y, layout=place), _info(node))
        return
    dense = plan.contiguous(node.inputs[0])
    view = views.reshaped(dense.layout, shape)
    assert view is not None, "a contiguous tensor takes any shape"
    copy(plan, replace(dense, layout=view), y, _info(node))


@lowers("Identity", "Dropout")
def identity(node: Node, plan: Plan) -> None:
    """What passes its input on; the mask of Dropout is all true."""
    x = plan.tensor(node.inputs[0])
    view_or_copy(node, plan, node.outputs[0], x, x.layout)
    if len(node.outputs) > 1 and node.outputs[1]:
        fill(plan, plan.tensor(node.outputs[1]), 1, _info(node))


@lowers("ConstantOfShape")
def constant_of_shape(node: Node, plan: Plan) -> None:
    """One value everywhere; smaller results are constants."""
    value = np.asarray(node.get("value", np.zeros(1, np.float32)))
    fill(plan, plan.tensor(node.outputs[0]), value.reshape(()).item(), _info(node))


@lowers("Transpose")
def transpose(node: Node, plan: Plan) -> None:
    """A permutation of dimensions."""
    x = plan.tensor(node.inputs[0])
    view_or_copy(node, plan, node.outputs[0], x, views.permuted(x.layout, permutation(node, len(x.shape))))


@lowers("Slice")
def slice_(node: Node, plan: Plan) -> None:
    """Every step-th index of a part of each dimension."""
    x = plan.tensor(node.inputs[0])
    operands = [_known(node, plan, i, what) for i, what in enumerate(SLICE_OPERANDS, 1)]
    view = x.layout
    for axis, taken in enumerate(slice_ranges(x.shape, operands)):
        view = views.sliced(view, axis, taken)
    view_or_copy(node, plan, node.outputs[0], x, view)


@lowers("Split")
def split(node: Node, plan: Plan) -> None:
    """Consecutive parts of one dimension."""
    x = plan.tensor(node.inputs[0])
    axis = int(node.get("axis", 0)) % len(x.shape)
    start = 0
    for output, size in zip(node.outputs, split_sizes(node, x.shape[axis], _known(node, plan, 1, "split"))):
        if output:
            view_or_copy(node, plan, output, x, x.layout.narrow(axis, start, size))
        start += size


def _gains_in_stripes(node: Node, graph: Graph) -> bool | None:
    """Whether striped rows suit a concatenation (`Family.stripes`): of channels, it is where parts lie."""
    rank = len(graph.facts[node.outputs[0]].shape)
    return False if int(node.get("axis", 1)) % rank == 1 else None


@lowers("Concat", stripes=_gains_in_stripes)
def concat(node: Node, plan: Plan) -> None:
    """Parts that the planner placed inside the output are there already; the others are copied."""
    y = plan.tensor(node.outputs[0])
    axis = int(node.get("axis", 1)) % len(y.shape)
    copies = []
    start = 0
    for name in node.inputs:
        part = plan.tensor(name)
        size = part.shape[axis]
        place = replace(y, layout=y.layout.narrow(axis, start, size))
        if not _same_place(part, place):
            copies.append((part, place))
        start += size
    _copies(plan, copies, node)


def _same_place(a: Tensor, b: Tensor) -> bool:
    return (a.storage, a.layout.origin, a.layout.strides) == (b.storage, b.layout.origin, b.layout.strides)


@lowers("Expand")
def expand(node: Node, plan: Plan) -> None:
    """Broadcasting onto a shape."""
    x = plan.tensor(node.inputs[0])
    view = views.repeated(x.layout, plan.graph.facts[node.outputs[0]].sizes)
    view_or_copy(node, plan, node.outputs[0], x, view)


@lowers("Tile")
def tile(node: Node, plan: Plan) -> None:
    """Repetition of the whole along each dimension."""
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    if y.layout.elements == 0:
        return
    pairs = [(total // size, size) for total, size in zip(y.shape, x.shape)]
    place = _split_dimensions(y.layout, list(itertools.chain(*pairs)))
    source = views.reshaped(x.layout, [n for size in x.shape for n in (1, size)])
    assert source is not None
    copy(plan, replace(x, layout=source), replace(y, layout=place), _info(node))


def _split_dimensions(layout: Layout, shape: Sequence[int]) -> Layout:
    """A view whose shape only cuts dimensions in several, which strides can always say."""
    view = views.reshaped(layout, shape)
    assert view is not None, f"{tuple(shape)} does not cut {layout.shape}"
    return view


@lowers("DepthToSpace")
def depth_to_space(node: Node, plan: Plan) -> None:
    """Channels become blocks of pixels."""
    x, y, b = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0]), block_size(node)
    n, c, h, w = x.shape
    depth = c // (b * b)
    if node.get("mode", "DCR") == "DCR":
        source = views.permuted(_split_dimensions(x.layout, (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        source = views.permuted(_split_dimensions(x.layout, (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    place = _split_dimensions(y.layout, (n, depth, h, b, w, b))
    copy(plan, replace(x, layout=source), replace(y, layout=place), _info(node))


@lowers("SpaceToDepth")
def space_to_depth(node: Node, plan: Plan) -> None:
    """Blocks of pixels become channels."""
    x, y, b = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0]), block_size(node)
    n, c, h, w = x.shape
    blocks = _split_dimensions(x.layout, (n, c, h // b, b, w // b, b))
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    source = views.permuted(blocks, order)
    place = _split_dimensions(y.layout, source.shape)
    copy(plan, replace(x, layout=source), replace(y, layout=place), _info(node))


@lowers("Pad")
def pad(node: Node, plan: Plan) -> None:
    """Elements added around (or, by negative numbers, cut off) each dimension."""
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    pads, axes = _known(node, plan, 1, "pads"), _known(node, plan, 3, "axes")
    widths = pad_widths(node, len(x.shape), pads, axes)
    for axis, (before, after) in enumerate(widths):
        kept = range(max(-before, 0), x.shape[axis] - max(-after, 0))
        x = replace(x, layout=views.sliced(x.layout, axis, kept))
    grown = [(max(before, 0), max(after, 0)) for before, after in widths]
    if node.get("mode", "constant") == "constant":
        _pad_constant(node, plan, x, y, grown)
    else:
        _pad_mirrored(node, plan, x, y, grown)


def _pad_constant(node: Node, plan: Plan, x: Tensor, y: Tensor, grown: Sequence[tuple[int, int]]) -> None:
    inside = y.layout
    borders = []
    for axis, (before, after) in enumerate(grown):
        size = y.shape[axis]
        if before:
            borders.append(inside.narrow(axis, 0, before))
        if after:
            borders.append(inside.narrow(axis, size - after, after))
        inside = inside.narrow(axis, before, size - before - after)
    name = node.input(2)
    value = plan.graph.constant(name)
    copies = [(x, replace(y, layout=inside))]
    if name and value is None:
        number = plan.tensor(name)
        scalar = replace(number, layout=number.layout.view((), (), 0))
        copies += [(scalar, replace(y, layout=border)) for border in borders]
    else:
        filling = 0 if value is None else value.reshape(()).item()
        for i, border in enumerate(borders):
            alone = i == len(borders) - 1 and x.layout.elements == 0
            fill(plan, replace(y, layout=border), filling, _info(node), barrier=alone)
    _copies(plan, copies, node)


def _pad_mirrored(node: Node, plan: Plan, x: Tensor, y: Tensor, grown: Sequence[tuple[int, int]]) -> None:
    """Borders that repeat elements of x: one dimension after another, out of what y holds by then."""
    filled = y.layout
    for axis, ((before, _), size) in enumerate(zip(grown, x.shape)):
        filled = filled.narrow(axis, before, size)
    copy(plan, x, replace(y, layout=filled), _info(node))
    for axis, ((before, after), size) in enumerate(zip(grown, x.shape)):
        shape = (*filled.shape[:axis], y.shape[axis], *filled.shape[axis + 1 :])
        shift = filled.origin - before * filled.strides[axis]
        whole = replace(filled, shape=shape, origin=shift)
        source = np.pad(np.arange(size), (before, after), mode=node.get("mode"))
        copies = []
        for start, stop in ((0, before), (before + size, before + size + after)):
            for place, first, step, count in _progressions(source[start:stop].tolist()):
                to = whole.narrow(axis, start + place, count)
                strides = tuple(s * step if d == axis else s for d, s in enumerate(filled.strides))
                there = replace(filled.narrow(axis, first, count), strides=strides)
                copies.append((replace(y, layout=there), replace(y, layout=to)))
        _copies(plan, copies, node)
        filled = whole


def _progressions(indices: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """A list of indices as runs (position, first index, step, count) with steps of -1, 0 or 1."""
    result = []
    at = 0
    while at < len(indices):
        step = indices[at + 1] - indices[at] if at + 1 < len(indices) else 1
        step = step if abs(step) <= 1 else 1
        count = 1
        while at + count < len(indices) and indices[at + count] == indices[at] + count * step:
            count += 1
        result.append((at, indices[at], step, count))
        at += count
    return result
