"""Whether a network treats the pictures of a batch by themselves, so that a batch may run in pieces.

Decided for two sizes of the batch by comparing the graph inferred at both, node by node. A value is *fixed*
(the same at both sizes, whatever the pictures), lies *along* an axis (index i of it depends on picture i
and fixed values alone, alike for all i), or is arithmetic on *sizes*, which only operands of movement may
be. What no rule here vouches for makes the network dependent: nothing is tried out or guessed.

The rules of movement, reductions and element-wise operators are those of `graph.counted`, whose dimensions
are treated index by index as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from coresident.errors import ModelError, UnsupportedModel
from coresident.graph import counted
from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import inputs_of, operator

Tag = int | None
"""The axis along which the pictures lie; None for a fixed value."""
Facts = Sequence[Fact | None]
Rule = Callable[[Node, Facts, Sequence[Tag], Sequence[Fact]], Tag]
"""Node, inputs (at the larger size), their tags, outputs -> the tag of the outputs; raises `_Dependent`."""

_SIZES = -1
"""The tag of arithmetic on sizes."""
_PICTURES = "pictures"


class _Dependent(Exception):
    """The pictures of a batch may meet; says where."""


@dataclass(frozen=True)
class Batch:
    """What a network does with its batch.

    Args:
        axes: for each output, the axis along which the pictures lie, None if it is the same for all.
        why: why the batch can't run in pieces; "" if it can.
    """

    axes: tuple[int | None, ...] = ()
    why: str = ""


def examined(large: Graph, small: Graph, pictures: Collection[str]) -> Batch:
    """Whether results at one size of the batch can be put together from results at another.

    Args:
        large, small: the same graph with all facts inferred, at two sizes of the batch, larger first.
        pictures: the inputs whose first dimension is the batch; it has one size in all of them.
    """
    tags: dict[str, Tag] = {name: 0 if name in pictures else None for name in large.inputs}
    for a, b in zip(large.nodes, small.nodes):
        inputs = inputs_of(a, large.initializers, large.facts)
        results = [large.facts[name] for name in a.outputs if name]
        others = [small.facts[name] for name in b.outputs if name]
        known = [tags.get(name) if name else None for name in a.inputs]
        if a.op == "CastLike":
            known[1] = None  # whose type alone matters
        try:
            found = _node(a, inputs, known, results, inputs_of(b, small.initializers, small.facts), others)
        except (_Dependent, ModelError) as error:
            return Batch(why=f"{a.op} {a.name!r}: {error}")
        tags.update(zip((name for name in a.outputs if name), found))
    axes = [tags.get(name) for name in large.outputs]
    if _SIZES in axes:
        return Batch(why=f"the output {large.outputs[axes.index(_SIZES)]!r} depends on the size of the batch")
    return Batch(tuple(axes))


def _node(
    node: Node,
    inputs: Facts,
    tags: Sequence[Tag],
    results: Sequence[Fact],
    before: Facts,
    others: Sequence[Fact],
) -> list[Tag]:
    """The tags of the outputs that are wanted; `before`, `others`: inputs and results at the smaller size."""
    if any(fact.counts for fact in results):
        raise _Dependent("sizes depend on the data")
    if all(tag is None for tag in tags) and all(a.shape == b.shape for a, b in zip(results, others)):
        return [None] * len(results)
    if all(fact.value is not None for fact in [*results, *others]):
        return [_of_values(a, b) for a, b in zip(results, others)]
    operands = operator(node).operands
    if any(tag == _SIZES and i not in operands for i, tag in enumerate(tags)):
        raise _Dependent("the size of the batch is part of the numbers")
    if all(tag is None or tag == _SIZES for tag in tags):
        return [_filled(node, inputs, a, b) for a, b in zip(results, others)]
    if any(tag is not None and tag >= 0 for i, tag in enumerate(tags) if i in operands):
        raise _Dependent("pictures say how to move others")
    rule = _RULES.get(node.op)
    if rule is None:
        raise _Dependent("this operator may let pictures meet")
    tag = rule(node, inputs, tags, results)
    if tag is None:
        raise _Dependent("the batch is lost")
    size = next(
        fact.sizes[axis] for fact, axis in zip(inputs, tags) if fact and axis is not None and axis >= 0
    )
    lesser = next(
        fact.sizes[axis] for fact, axis in zip(before, tags) if fact and axis is not None and axis >= 0
    )
    for a, b in zip(results, others):
        if (*a.sizes[:tag], *a.sizes[tag + 1 :]) != (*b.sizes[:tag], *b.sizes[tag + 1 :]):
            raise _Dependent("more than the batch changes its size with it")
        if (a.sizes[tag], b.sizes[tag]) != (size, lesser):
            raise _Dependent("the batch is cut, or joined with another dimension")
        if node.op in _RESHAPING and not _apart(before[0], tags[0], b, tag):
            raise _Dependent("the batch is joined with another dimension")
    return [tag] * len(results)


def _of_values(large: Fact, small: Fact) -> Tag:
    """The tag of a value known at both sizes."""
    a, b = large.value, small.value
    assert a is not None
    assert b is not None
    if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return None
    axis = _only_difference(large, small)
    if axis is None or not small.sizes[axis]:
        return _SIZES
    one = b.take([0], axis)
    same = all(np.array_equal(x, np.broadcast_to(one, x.shape)) for x in (a, b))
    return axis if same else _SIZES


def _only_difference(large: Fact, small: Fact) -> int | None:
    """The one axis whose size differs."""
    if len(large.shape) != len(small.shape):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(large.sizes, small.sizes)) if a != b]
    return axes[0] if len(axes) == 1 else None


def _filled(node: Node, inputs: Facts, large: Fact, small: Fact) -> Tag:
    """The tag of a fixed value repeated as often as there are pictures."""
    axis = _only_difference(large, small)
    if axis is None:
        raise _Dependent("the size of the batch is part of the numbers")
    if node.op == "ConstantOfShape":
        return axis
    data = inputs[0]
    if node.op in ("Expand", "Tile") and data is not None:
        own = axis - len(large.shape) + len(data.shape)
        if own < 0 or data.sizes[own] == 1:
            return axis
    raise _Dependent("the size of the batch is part of the numbers")


def _apart(old: Fact | None, axis: Tag, new: Fact, tag: int) -> bool:
    """Whether a reshape leaves a dimension as it is, with the same elements before and after it."""
    assert old is not None
    assert axis is not None
    return (prod(old.sizes[:axis]), prod(old.sizes[axis + 1 :])) == (
        prod(new.sizes[:tag]),
        prod(new.sizes[tag + 1 :]),
    )


def _by_index(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    """By the rule for dimensions of which each index is treated by itself."""
    marked = [
        replace(fact, counts=((tag, _PICTURES),))
        if fact is not None and tag is not None and tag >= 0
        else fact
        for fact, tag in zip(inputs, tags)
    ]
    try:
        found = counted.RULES[node.op](node, marked, results)
    except UnsupportedModel:
        raise _Dependent("pictures meet") from None
    axes = {axis for counts in found for axis in counts}
    if len(axes) != 1 or not all(found):
        raise _Dependent("pictures meet")
    return axes.pop()


def _gathered(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    data = inputs[0]
    assert data is not None
    if tags[0] == int(node.get("axis", 0)) % len(data.shape):
        raise _Dependent("pictures are chosen by index")
    return _by_index(node, inputs, tags, results)


def _first(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    """Pictures in the first dimension of the first input; the others are fixed."""
    if tags[0] != 0 or any(tag is not None for tag in tags[1:]) or len(results) != 1:
        raise _Dependent("pictures are in another place than the first dimension of the first input")
    return 0


def _gemm(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    bias = inputs[2] if len(inputs) > 2 else None
    if node.get("transA", 0) or (bias is not None and len(bias.shape) == 2 and bias.sizes[0] != 1):
        raise _Dependent("pictures meet")
    return _first(node, inputs, tags, results)


def _matmul(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    rank = len(results[0].shape)
    shapes = [fact.sizes for fact in inputs[:2] if fact is not None]
    if min(map(len, shapes)) < 2:
        raise _Dependent("a vector")
    places = [None if tag is None else tag + rank - len(shape) for tag, shape in zip(tags, shapes)]
    found = {place for place in places if place is not None}
    if len(found) != 1:
        raise _Dependent("pictures meet")
    place = found.pop()
    if place >= rank - 2:
        if place == rank - 2 and places[1] is None:
            return place
        raise _Dependent("pictures meet")
    for shape, own in zip(shapes, places):
        axis = place - rank + len(shape)
        if own is None and axis >= 0 and shape[axis] != 1:
            raise _Dependent("each picture has another constant")
    return place


def _normalised(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    """Over the dimensions from `axis` on, or over `axis` alone."""
    tag, rank = tags[0], len(results[0].shape)
    if tag is None or any(other is not None for other in tags[1:]) or len(results) != 1:
        raise _Dependent("scales that are not constant")
    if int(node.get("axis", -1)) % rank <= tag:
        raise _Dependent("pictures meet")
    for fact in inputs[1:]:
        own = tag - rank + len(fact.shape) if fact is not None else -1
        if fact is not None and own >= 0 and fact.sizes[own] != 1:
            raise _Dependent("each picture has another constant")
    return tag


def _quantised(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    tag, scale = tags[0], inputs[1]
    if tag is None or scale is None or any(other is not None for other in tags[1:]):
        raise _Dependent("scales that are not constant")
    along = int(node.get("axis", 1)) % len(results[0].shape)
    sizes = scale.sizes
    if prod(sizes) != 1 and (len(scale.shape) != 1 or along == tag):
        raise _Dependent("each picture has another scale")
    return tag


def _padded(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    tag = _by_index(node, inputs, tags, results)
    pads, rank = inputs[1], len(results[0].shape)
    axes = inputs[3].value if len(inputs) > 3 and inputs[3] is not None else np.arange(rank)
    if pads is None or pads.value is None or axes is None:
        raise _Dependent("padding that is not constant")
    ends = pads.value.reshape(2, -1)
    if any(int(axis) % rank == tag and ends[:, i].any() for i, axis in enumerate(axes.ravel())):
        raise _Dependent("pictures are shifted")
    return tag


def _resized(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    if (
        node.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        or node.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise _Dependent("a resize that may look at several pictures")
    if tags[0] != 0 or any(tag is not None and tag != _SIZES for tag in tags[1:]):
        raise _Dependent("pictures are in another place than the first dimension of the first input")
    scales = inputs[2] if len(inputs) > 2 else None
    if scales is not None and scales.sizes != (0,):
        axes = list(node.get("axes") or range(len(results[0].shape)))
        if scales.value is None or (0 in axes and scales.value[axes.index(0)] != 1):
            raise _Dependent("the batch is resized")
    return 0


def _sampled(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    if list(tags) != [0, 0]:
        raise _Dependent("a picture without its grid")
    return 0


def _attended(node: Node, inputs: Facts, tags: Sequence[Tag], results: Sequence[Fact]) -> Tag:
    """Queries, keys and values of pictures in the first dimension; a mask that is the same for all."""
    mask = inputs[3] if len(inputs) > 3 else None
    if list(tags[:3]) != [0] * 3 or any(tag is not None for tag in tags[3:]) or any(inputs[4:]):
        raise _Dependent("pictures are in another place than the first dimension of the first inputs")
    if mask is not None and len(mask.shape) == 4 and mask.sizes[0] != 1:
        raise _Dependent("each picture has another mask")
    return 0


_RESHAPING = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *(*ELEMENTWISE, "Sum", "Mean", "CastLike", "Transpose", "Slice", "Split", "Expand", "Tile"),
            *(*_RESHAPING, "Concat", "GatherElements", "Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK"),
            *(f"Reduce{kind}" for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare")),
        ),
        _by_index,
    ),
    **dict.fromkeys(
        (
            *("Conv", "ConvTranspose", "ConvInteger", "MaxPool", "AveragePool", "LpPool"),
            *("GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "InstanceNormalization"),
            *("GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth"),
        ),
        _first,
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "LpNormalization"), _normalised),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantised),
    "Attention": _attended,
    "Gather": _gathered,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _padded,
    "Resize": _resized,
    "GridSample": _sampled,
}
