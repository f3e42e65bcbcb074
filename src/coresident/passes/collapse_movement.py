"""Fewer and simpler operators that only move elements.

1. Flatten, Squeeze, Unsqueeze, and Reshape with 0 or -1 in its shape, become a Reshape whose shape is
   spelled out.
2. Reshape of Reshape and Transpose of Transpose become one; one that changes nothing goes.
3. A Transpose that only moves dimensions of size 1 becomes a Reshape.
4. Gather of one constant index, or of constant indices evenly apart, becomes a Slice, and a Reshape where
   the index has no dimensions of its own.
5. Slice of Slice becomes one.
6. Where Slices alone read a Transpose or Reshape they read its source instead and the rest moves less:
   splitting the result of a channel shuffle so becomes taking every second channel.
7. A Slice that takes part of one part of a Concat reads that part.
8. A Concat that only another along the same dimension reads becomes part of that one.

Reshape, Transpose, Reshape that shuffle channels and are read whole stay as they are.
"""

from __future__ import annotations

import math

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.graph.operators.movement import permutation, slice_ranges
from coresident.passes.constants import integers, reshape
from coresident.passes.patch import Patch, View, pattern_pass


def _spelled_out(view: View, node: Node) -> Patch | None:
    if node.op not in ("Flatten", "Squeeze", "Unsqueeze", "Reshape"):
        return None
    shape = view.shape(node.outputs[0])
    if node.op == "Reshape" and integers(view, node.inputs[1]) == shape:
        return None
    return reshape(view, node.inputs[0], node, (node,)) if 0 not in shape else None


def merge_reshapes(view: View, node: Node) -> Patch | None:
    """Rule 2 as it concerns Reshape."""
    if node.op != "Reshape":
        return None
    source, target = node.inputs[0], node.outputs[0]
    if view.shape(source) == view.shape(target) and _may_go(view, source, target):
        return Patch((node,), renames={target: source})
    inner = view.maker(source)
    if inner is None or inner.op != "Reshape" or 0 in view.shape(target):
        return None
    return Patch((node,), (node.with_(inputs=(inner.inputs[0], node.inputs[1])),))


def merge_transposes(view: View, node: Node) -> Patch | None:
    """Rules 2 and 3 as they concern Transpose."""
    if node.op != "Transpose":
        return None
    source, target = node.inputs[0], node.outputs[0]
    order = permutation(node, len(view.shape(node.inputs[0])))
    if order == tuple(range(len(order))):
        return Patch((node,), renames={target: source}) if _may_go(view, source, target) else None
    shape = view.shape(source)
    moving = [axis for axis in order if shape[axis] != 1]
    if moving == sorted(moving) and 0 not in shape:
        return reshape(view, source, node, (node,))
    inner = view.maker(source)
    if inner is None or inner.op != "Transpose":
        return None
    first = permutation(inner, len(order))
    both = tuple(first[axis] for axis in order)
    return Patch((node,), (node.with_(inputs=inner.inputs, attributes={"perm": both}),))


def _may_go(view: View, source: str, target: str) -> bool:
    """Whether renaming leaves no node: an output of the graph can't take an input's or output's place."""
    return not view.is_output(target) or (view.maker(source) is not None and not view.is_output(source))


def _gather(view: View, node: Node) -> Patch | None:
    if node.op != "Gather":
        return None
    source, target = node.inputs[0], node.outputs[0]
    shape, indices = view.shape(source), view.constant(node.inputs[1])
    if indices is None or indices.ndim > 1 or not indices.size:
        return None
    axis = node.get("axis", 0) % len(shape)
    places = [int(i) % shape[axis] for i in indices.ravel()]
    step = places[1] - places[0] if len(places) > 1 else 1
    if step < 1 or places != list(range(places[0], places[-1] + 1, step)):
        return None
    ranges = [range(size) for size in shape]
    ranges[axis] = range(places[0], places[-1] + 1, step)
    if indices.ndim:
        part, constants = _slice_node(view, source, ranges, target, node.name)
        return Patch((node,), (part,), constants)
    part, constants = _slice_node(view, source, ranges, view.fresh(f"{target}.slice"), node.name)
    flat = view.fresh(f"{target}.shape")
    whole = Node("Reshape", (part.outputs[0], flat), (target,), {}, node.name)
    return Patch((node,), (part, whole), {**constants, flat: np.array(view.shape(target), np.int64)})


def _taken(view: View, node: Node | None) -> list[range] | None:
    """What a Slice takes of each dimension, if it steps forward and takes something; None otherwise."""
    if node is None or node.op != "Slice":
        return None
    operands = [view.constant(node.input(i)) for i in range(1, 5)]
    if any(value is None and node.input(i) for i, value in enumerate(operands, 1)):
        return None
    ranges = slice_ranges(view.shape(node.inputs[0]), operands)
    return ranges if all(ranges) and all(part.step > 0 for part in ranges) else None


def _slice_node(
    view: View, source: str, ranges: list[range], target: str, name: str
) -> tuple[Node, dict[str, Array]]:
    """The Slice that takes these ranges, and its constants."""
    shape = view.shape(source)
    axes = [axis for axis, (taken, size) in enumerate(zip(ranges, shape)) if taken != range(size)]
    parts = {
        "starts": [ranges[axis].start for axis in axes],
        "ends": [ranges[axis][-1] + 1 for axis in axes],
        "axes": axes,
        "steps": [ranges[axis].step for axis in axes],
    }
    constants: dict[str, Array] = {
        view.fresh(f"{target}.{part}"): np.array(values, np.int64) for part, values in parts.items()
    }
    return Node("Slice", (source, *constants), (target,), {}, name), constants


def _slices(view: View, node: Node) -> Patch | None:
    outer = _taken(view, node)
    if outer is None:
        return None
    inner_node = view.maker(node.inputs[0])
    inner = _taken(view, inner_node)
    if inner is None or inner_node is None:
        return None
    both = [a[b.start : b[-1] + 1 : b.step] for a, b in zip(inner, outer)]
    merged, constants = _slice_node(view, inner_node.inputs[0], both, node.outputs[0], node.name)
    return Patch((node,), (merged,), constants)


def _slice_of_movement(view: View, node: Node) -> Patch | None:
    ranges = _taken(view, node)
    maker = view.maker(node.inputs[0]) if ranges is not None else None
    if ranges is None or maker is None or maker.op not in ("Transpose", "Reshape"):
        return None
    readers = view.readers(maker.outputs[0])
    if view.is_output(maker.outputs[0]) or any(_taken(view, reader) is None for reader in readers):
        return None
    taken = sum(math.prod(view.shape(reader.outputs[0])) for reader in readers)
    if taken > math.prod(view.shape(node.inputs[0])):
        return None
    source, target = maker.inputs[0], node.outputs[0]
    part = view.fresh(f"{target}.part")
    if maker.op == "Transpose":
        order = permutation(maker, len(ranges))
        before = [ranges[order.index(axis)] for axis in range(len(order))]
        cut, constants = _slice_node(view, source, before, part, node.name)
        return Patch((node,), (cut, maker.with_(inputs=(part,), outputs=(target,))), constants)
    through = _through_reshape(view.shape(source), view.shape(node.inputs[0]), ranges)
    if through is None:
        return None
    cut, constants = _slice_node(view, source, through, part, node.name)
    flat = view.fresh(f"{target}.shape")
    whole = Node("Reshape", (part, flat), (target,), {}, maker.name)
    return Patch((node,), (cut, whole), {**constants, flat: np.array(view.shape(target), np.int64)})


def _through_reshape(
    before: tuple[int, ...], after: tuple[int, ...], ranges: list[range]
) -> list[range] | None:
    """The ranges of the source's dimensions that hold what `ranges` take of the reshaped; None where none do.

    Handles one sliced dimension that one dimension of the source holds whole, as its outer or inner factor.
    """
    cut = [axis for axis, (taken, size) in enumerate(zip(ranges, after)) if taken != range(size)]
    if len(cut) != 1:
        return None
    axis = cut[0]
    taken, inner = ranges[axis], math.prod(after[axis + 1 :])
    # The dimension of the source within which the sliced one lies; its elements are `stride` apart.
    strides = [math.prod(before[place + 1 :]) for place in range(len(before))]
    holds = [
        place
        for place, (size, stride) in enumerate(zip(before, strides))
        if stride <= inner and inner * after[axis] <= stride * size
    ]
    if len(holds) != 1:
        return None
    place = holds[0]
    size, stride = before[place], strides[place]
    if inner % stride or (stride * size) % (inner * after[axis]):
        return None
    period, width = inner * after[axis] // stride, inner // stride
    source = [range(n) for n in before]
    if period == size and (taken.step == 1 or width == 1):
        source[place] = range(taken.start * width, (taken[-1] + 1) * width, taken.step)
        return source
    if width == 1 and len(taken) == 1:
        source[place] = range(taken.start, size, period)
        return source
    return None


def _slice_of_concat(view: View, node: Node) -> Patch | None:
    ranges = _taken(view, node)
    maker = view.maker(node.inputs[0]) if ranges is not None else None
    if ranges is None or maker is None or maker.op != "Concat":
        return None
    axis = maker.get("axis") % len(ranges)
    wanted, start = ranges[axis], 0
    for part in maker.inputs:
        size = view.shape(part)[axis]
        if start <= wanted.start and wanted[-1] < start + size:
            within = [*ranges]
            within[axis] = range(wanted.start - start, wanted[-1] + 1 - start, wanted.step)
            cut, constants = _slice_node(view, part, within, node.outputs[0], node.name)
            return Patch((node,), (cut,), constants)
        start += size
    return None


def _concats(view: View, node: Node) -> Patch | None:
    if node.op != "Concat":
        return None
    rank = len(view.shape(node.outputs[0]))
    axis = node.get("axis") % rank
    parts: list[str] = []
    for name in node.inputs:
        maker = view.maker(name)
        nested = maker is not None and maker.op == "Concat" and maker.get("axis") % rank == axis
        alone = view.sole_reader(name) is node and node.inputs.count(name) == 1
        parts += maker.inputs if maker is not None and nested and alone else (name,)
    return Patch((node,), (node.with_(inputs=tuple(parts)),)) if len(parts) > len(node.inputs) else None


PASS = pattern_pass(
    "collapse_movement",
    _spelled_out,
    merge_reshapes,
    merge_transposes,
    _gather,
    _slices,
    _slice_of_movement,
    _slice_of_concat,
    _concats,
)
