"""Operators that move elements: shapes, axes, joining, cutting, padding, repeating.

Source: ONNX Reshape-25, Flatten-25, Squeeze-25, Unsqueeze-25, Transpose-25, Concat-13, Split-18, Slice-13,
Pad-25, Expand-13, Tile-13, DepthToSpace-28, SpaceToDepth-28, CenterCropPad-18, Trilu-14.

Functions without an underscore turn operands into plain numbers, for the kernels as for the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import (
    axes_in,
    axis_in,
    broadcast,
    integers,
    optional,
    ranked,
    required,
    same_type,
    values,
)

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def reshaped(node: Node, shape: Shape, target: Array | None) -> Shape:
    """The shape that Reshape gives.

    Args:
        node: its attribute allowzero is read.
        shape: of the data.
        target: its second input.

    Raises:
        InvalidModel: the target holds more or fewer elements.
    """
    if target is None:
        raise InvalidModel("input 1, the shape wanted, is missing")
    wanted = list(integers(target, "the shape wanted"))
    if not node.get("allowzero", 0):
        if any(size == 0 and i >= len(shape) for i, size in enumerate(wanted)):
            raise InvalidModel(
                f"the shape wanted, {wanted}, copies a dimension that the data lacks", shape=shape
            )
        wanted = [shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if wanted.count(-1) > 1 or any(size < -1 for size in wanted):
        raise InvalidModel(
            f"the shape wanted, {wanted}, may have one -1 and no other negative number", shape=shape
        )
    total = prod(shape)
    if -1 in wanted:
        rest = prod(size for size in wanted if size != -1)
        if rest == 0 or total % rest:
            raise InvalidModel(f"{total} elements do not divide into {wanted}", shape=shape)
        wanted[wanted.index(-1)] = total // rest
    if prod(wanted) != total:
        raise InvalidModel(f"{total} elements do not fit {wanted}, which holds {prod(wanted)}", shape=shape)
    return tuple(wanted)


def flattened(node: Node, shape: Shape) -> Shape:
    """The two sizes that Flatten gives."""
    axis = int(node.get("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise InvalidModel(f"axis {axis} is outside [{-len(shape)}, {len(shape)}]", shape=shape)
    axis += len(shape) if axis < 0 else 0
    return prod(shape[:axis]), prod(shape[axis:])


def squeezed(node: Node, shape: Shape, axes: Array | None) -> Shape:
    """The shape that Squeeze or Unsqueeze gives.

    Raises:
        InvalidModel: an axis is out of range, named twice or, to be squeezed, not of size 1.
    """
    named = node.get("axes") if axes is None else integers(axes, "axes")
    if node.op == "Unsqueeze":
        if named is None:
            raise InvalidModel("input 1, axes, is missing")
        rank = len(shape) + len(named)
        new, old = set(axes_in(named, rank)), iter(shape)
        return tuple(1 if i in new else next(old) for i in range(rank))
    gone = (
        axes_in(named, len(shape)) if named is not None else [i for i, size in enumerate(shape) if size == 1]
    )
    if any(shape[a] != 1 for a in gone):
        raise InvalidModel(f"axes {tuple(gone)} must have size 1", shape=shape)
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """The input dimension that each output dimension of Transpose is.

    Raises:
        InvalidModel: not a permutation of the dimensions.
    """
    order = tuple(node.get("perm", tuple(reversed(range(rank)))))
    if sorted(order) != list(range(rank)):
        raise InvalidModel(f"perm {order} is no permutation of {rank} dimensions")
    return order


def split_sizes(node: Node, size: int, split: Array | None) -> tuple[int, ...]:
    """The sizes of the parts that Split makes of a dimension.

    Args:
        node: its outputs and its attribute num_outputs are read.
        size: of the dimension.
        split: the second input, None where left out.

    Raises:
        InvalidModel: the sizes do not add up, or are not as many as the outputs.
    """
    if split is None:
        count = int(node.get("num_outputs", len(node.outputs)))
        if count != len(node.outputs):
            raise InvalidModel(f"num_outputs {count} for {len(node.outputs)} outputs")
        each = -(-size // count)
        sizes = tuple(max(min(each, size - i * each), 0) for i in range(count))
    else:
        sizes = integers(split, "split")
    if sum(sizes) != size or min(sizes, default=0) < 0:
        raise InvalidModel(f"parts of {sizes} do not make up a dimension of {size}")
    if len(sizes) < len(node.outputs):
        raise InvalidModel(f"{len(sizes)} parts for {len(node.outputs)} outputs")
    return sizes


def slice_ranges(shape: Shape, operands: Sequence[Array | None]) -> list[range]:
    """What Slice takes of each dimension: indices start, start + step, ...

    Args:
        shape: of the data.
        operands: starts, ends, axes, steps; the last two may be None.

    Raises:
        InvalidModel: they contradict, or a step is 0.
    """
    if operands[0] is None or operands[1] is None:
        raise InvalidModel("inputs 1 and 2, starts and ends, are needed")
    starts, ends = integers(operands[0], "starts"), integers(operands[1], "ends")
    named = tuple(range(len(starts))) if operands[2] is None else integers(operands[2], "axes")
    steps = (1,) * len(starts) if operands[3] is None else integers(operands[3], "steps")
    if not len(starts) == len(ends) == len(named) == len(steps):
        raise InvalidModel("starts, ends, axes and steps must be as many")
    ranges = [range(size) for size in shape]
    for axis, start, end, step in zip(axes_in(named, len(shape)), starts, ends, steps):
        if step == 0:
            raise InvalidModel("a step of 0")
        ranges[axis] = range(*slice(start, end, step).indices(shape[axis]))
    return ranges


def as_slice(taken: range) -> slice:
    """The slice that takes these indices of a dimension."""
    return slice(taken.start, taken.stop if taken.stop >= 0 else None, taken.step)


def pad_widths(node: Node, rank: int, pads: Array | None, axes: Array | None) -> list[tuple[int, int]]:
    """Elements that Pad adds before and after each dimension; negative ones are cut off.

    Raises:
        InvalidModel: not two numbers an axis.
    """
    if pads is None:
        raise InvalidModel("input 1, pads, is missing")
    numbers = integers(pads, "pads")
    named = axes_in(integers(axes, "axes"), rank) if axes is not None else tuple(range(rank))
    if len(numbers) != 2 * len(named):
        raise InvalidModel(f"pads has {len(numbers)} numbers; {len(named)} axes need {2 * len(named)}")
    widths = [(0, 0)] * rank
    for i, axis in enumerate(named):
        widths[axis] = (numbers[i], numbers[i + len(named)])
    return widths


def _reshape_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    target = values(facts, 1, ["the shape wanted"])[0]
    return [Fact(x.dtype, reshaped(node, x.sizes, target))]


def _reshape(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    return [x.reshape(reshaped(node, x.shape, optional(arrays, 1)))]


def _flatten_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, flattened(node, x.sizes))]


def _flatten(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    return [x.reshape(flattened(node, x.shape))]


def _squeeze_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, squeezed(node, x.sizes, values(facts, 1, ["axes"])[0]))]


def _squeeze(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    return [x.reshape(squeezed(node, x.shape, optional(arrays, 1)))]


def _transpose_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, tuple(x.sizes[i] for i in permutation(node, len(x.shape))))]


def _transpose(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    return [x.transpose(permutation(node, x.ndim))]


def _concat_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    parts = [required(facts, i, "a part") for i in range(max(len(facts), 1))]
    shape = parts[0].sizes
    axis = axis_in(int(node.get("axis", 1)), len(shape))
    for part in parts:
        sizes = part.sizes
        if len(sizes) != len(shape) or any(a != b for i, (a, b) in enumerate(zip(sizes, shape)) if i != axis):
            raise InvalidModel(
                f"the parts must be equal in all dimensions but {axis}", shape=tuple(p.shape for p in parts)
            )
    total = sum(p.sizes[axis] for p in parts)
    return [Fact(same_type(parts), (*shape[:axis], total, *shape[axis + 1 :]))]


def _concat(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    parts = [required(arrays, i, "a part") for i in range(len(arrays))]
    return [np.concatenate(parts, axis=int(node.get("axis", 1)))]


def _split_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    axis = axis_in(int(node.get("axis", 0)), len(x.shape))
    sizes = split_sizes(node, x.sizes[axis], values(facts, 1, ["split"])[0])
    return [Fact(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes]


def _split(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    axis = int(node.get("axis", 0))
    sizes = split_sizes(node, x.shape[axis], optional(arrays, 1))
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


SLICE_OPERANDS = ("starts", "ends", "axes", "steps")


def _slice_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, tuple(len(r) for r in slice_ranges(x.sizes, values(facts, 1, SLICE_OPERANDS))))]


def _slice(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    ranges = slice_ranges(x.shape, [optional(arrays, i) for i in range(1, 5)])
    return [x[tuple(as_slice(r) for r in ranges)]]


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, fill = required(facts, 0, "the data"), optional(facts, 2)
    mode = node.get("mode", "constant")
    if mode not in PAD_MODES:
        raise InvalidModel(f"mode {mode!r} is none of {', '.join(PAD_MODES)}")
    if fill is not None and (same_type([x, fill]), prod(fill.sizes)) != (x.dtype, 1):
        raise InvalidModel("constant_value must be a scalar", shape=fill.shape)
    pads = values(facts, 1, ["pads"])[0]
    axes = values(facts, 3, ["axes"])[0]
    shape = []
    for size, (before, after) in zip(x.sizes, pad_widths(node, len(x.shape), pads, axes)):
        kept = size + min(before, 0) + min(after, 0)
        if kept < 0 or (mode != "constant" and kept == 0 and max(before, after) > 0):
            raise InvalidModel(
                f"pads {(before, after)} leave nothing of a dimension of {size}", shape=x.shape
            )
        if mode == "reflect" and max(before, after) >= kept and max(before, after) > 0:
            raise InvalidModel(
                f"reflection needs pads {(before, after)} smaller than the dimension, {kept}", shape=x.shape
            )
        shape.append(size + before + after)
    return [Fact(x.dtype, tuple(shape))]


def _pad(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, fill = required(arrays, 0, "the data"), optional(arrays, 2)
    widths = pad_widths(node, x.ndim, optional(arrays, 1), optional(arrays, 3))
    kept = x[tuple(slice(max(-b, 0), size - max(-a, 0)) for size, (b, a) in zip(x.shape, widths))]
    grown = [(max(b, 0), max(a, 0)) for b, a in widths]
    if node.get("mode", "constant") == "constant":
        value = 0 if fill is None else fill.reshape(())
        return [np.pad(kept, grown, constant_values=value)]
    return [np.pad(kept, grown, mode=PAD_MODES[node.get("mode")])]  # type: ignore[call-overload]


@composite("CenterCropPad", operands=[1])
def _center_crop_pad(body: Body) -> list[str]:
    x, (target,) = body.inputs[0], values([body.fact(name) for name in body.inputs], 1, ["the shape wanted"])
    shape = body.shape(x)
    wanted = integers(required([target], 0, "the shape wanted"), "the shape wanted")
    axes = axes_in(body.node.get("axes", range(len(shape))), len(shape))
    if len(wanted) != len(axes):
        raise InvalidModel(f"{len(wanted)} sizes for {len(axes)} axes", shape=shape)
    missing = {axis: size - shape[axis] for axis, size in zip(axes, wanted)}
    # What can't be cut evenly loses one more at the end; what can't be filled evenly gets one more there.
    starts = [max(-missing.get(d, 0), 0) // 2 for d in range(len(shape))]
    ends = [start + min(size, size + missing.get(d, 0)) for d, (start, size) in enumerate(zip(starts, shape))]
    cut = body.add("Slice", x, body.constant(starts, np.int64), body.constant(ends, np.int64))
    grown = [max(missing.get(d, 0), 0) for d in range(len(shape))]
    pads = [*(n // 2 for n in grown), *(n - n // 2 for n in grown)]
    return [body.add("Pad", cut, body.constant(pads, np.int64))]


@composite("Trilu", operands=[1])
def _triangle(body: Body) -> list[str]:
    """What lies on one side of a diagonal; the places in a row and in a column are compared."""
    x = body.inputs[0]
    shape = body.shape(x)
    if len(shape) < 2:
        raise InvalidModel("matrices are needed, in at least 2 dimensions", shape=shape)
    (offset,) = values([body.fact(name) for name in body.inputs], 1, ["the diagonal"])
    diagonal = 0 if offset is None else integers(offset, "the diagonal")[0]
    columns = body.constant(np.arange(shape[-1]))
    bounds = body.constant(np.arange(shape[-2])[:, None] + diagonal)
    side = "GreaterOrEqual" if body.node.get("upper", 1) else "LessOrEqual"
    return [body.add("Where", body.add(side, columns, bounds), x, body.like(0, x))]


def expanded(shape: Shape, target: Array | None) -> Shape:
    """The shape that Expand gives."""
    if target is None:
        raise InvalidModel("input 1, the shape wanted, is missing")
    wanted = integers(target, "the shape wanted")
    if min(wanted, default=0) < 0:
        raise InvalidModel(f"the shape wanted, {wanted}, has a negative number", shape=shape)
    return broadcast([shape, wanted])


def tiled(shape: Shape, repeats: Array | None) -> Shape:
    """The shape that Tile gives."""
    if repeats is None:
        raise InvalidModel("input 1, repeats, is missing")
    numbers = integers(repeats, "repeats")
    if len(numbers) != len(shape) or min(numbers, default=0) < 0:
        raise InvalidModel(f"repeats {numbers} must be {len(shape)} numbers of at least 0", shape=shape)
    return tuple(size * n for size, n in zip(shape, numbers))


def _expand_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, expanded(x.sizes, values(facts, 1, ["the shape wanted"])[0]))]


def _expand(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    return [np.broadcast_to(x, expanded(x.shape, optional(arrays, 1)))]


def _tile_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    return [Fact(x.dtype, tiled(x.sizes, values(facts, 1, ["repeats"])[0]))]


def _tile(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.tile(required(arrays, 0, "the data"), integers(required(arrays, 1, "repeats"), "repeats"))]


def block_size(node: Node) -> int:
    """The side of the blocks of DepthToSpace and SpaceToDepth."""
    block = int(node.get("blocksize", 0))
    if block < 1:
        raise InvalidModel(f"blocksize {block} must be at least 1")
    if node.get("mode", "DCR") not in ("DCR", "CRD"):
        raise InvalidModel(f"mode {node.get('mode')!r} is neither DCR nor CRD")
    return block


def _depth_to_space_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, b = required(facts, 0, "the data"), block_size(node)
    n, c, h, w = ranked(x, (4,), "the data")
    if c % (b * b):
        raise InvalidModel(f"{c} channels do not divide into blocks of {b} x {b}", shape=x.shape)
    return [Fact(x.dtype, (n, c // (b * b), h * b, w * b))]


def _depth_to_space(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, b = required(arrays, 0, "the data"), block_size(node)
    n, c, h, w = x.shape
    depth = c // (b * b)
    if node.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [y.reshape(n, depth, h * b, w * b)]


def _space_to_depth_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, b = required(facts, 0, "the data"), block_size(node)
    n, c, h, w = ranked(x, (4,), "the data")
    if h % b or w % b:
        raise InvalidModel(f"height and width must be multiples of blocksize {b}", shape=x.shape)
    return [Fact(x.dtype, (n, c * b * b, h // b, w // b))]


def _space_to_depth(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, b = required(arrays, 0, "the data"), block_size(node)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return [blocks.transpose(order).reshape(n, c * b * b, h // b, w // b)]


register("Reshape", _reshape_infer, _reshape, operands=[1])
register("Flatten", _flatten_infer, _flatten)
register("Squeeze", _squeeze_infer, _squeeze, operands=[1])
register("Unsqueeze", _squeeze_infer, _squeeze, operands=[1])
register("Transpose", _transpose_infer, _transpose)
register("Concat", _concat_infer, _concat)
register("Split", _split_infer, _split, operands=[1])
register("Slice", _slice_infer, _slice, operands=[1, 2, 3, 4])
register("Pad", _pad_infer, _pad, operands=[1, 3])
register("Expand", _expand_infer, _expand, operands=[1])
register("Tile", _tile_infer, _tile, operands=[1])
register("DepthToSpace", _depth_to_space_infer, _depth_to_space)
register("SpaceToDepth", _space_to_depth_infer, _space_to_depth)
