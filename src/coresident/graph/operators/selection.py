"""Operators that choose elements by their values.

How many NonZero, Compress, Unique and NonMaxSuppression choose depends on the data (`graph.counted`). The
operators Nonzeros, UniqueRows and SelectBoxes of this graph alone do the work and count; ONNX's are written
with them.

Source: ONNX TopK-24, NonZero-13, Compress-11, Unique-11, NonMaxSuppression-11.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.composite import Body, composite
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import (
    axis_in,
    floating,
    integers,
    optional,
    ranked,
    required,
    values,
)

Array = np.ndarray[Any, Any]


def top_count(k: Array | None, size: int) -> int:
    """How many TopK takes of a dimension of this size.

    Raises:
        InvalidModel: not one number from 0 to the size.
    """
    numbers = integers(required([k], 0, "K"), "K")
    if len(numbers) != 1 or not 0 <= numbers[0] <= size:
        raise InvalidModel(f"K must be one number from 0 to {size}, not {numbers}")
    return numbers[0]


def _top_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    axis = axis_in(int(node.get("axis", -1)), len(x.shape))
    if x.dtype.kind not in "iuf":
        raise InvalidModel(f"a number is needed, not {x.dtype}", shape=x.shape)
    count = top_count(values(facts, 1, ["K"])[0], x.sizes[axis])
    shape = (*x.sizes[:axis], count, *x.sizes[axis + 1 :])
    return [Fact(x.dtype, shape), Fact(np.dtype(np.int64), shape)]


def _top(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """Of equal elements, the first come first; NaN comes last."""
    x = required(arrays, 0, "X")
    axis = axis_in(int(node.get("axis", -1)), x.ndim)
    count = top_count(required(arrays, 1, "K"), x.shape[axis])
    keys = np.moveaxis(x, axis, -1)
    if node.get("largest", 1):
        # Negated, but for unsigned integers and the least of the signed ones, which have no negative.
        keys = -keys if x.dtype.kind == "f" else np.bitwise_not(keys)
    order = np.moveaxis(np.argsort(keys, axis=-1, kind="stable")[..., :count], -1, axis)
    return [np.take_along_axis(x, order, axis), order.astype(np.int64)]


register("TopK", _top_infer, _top, operands=[1])


INT64 = np.dtype(np.int64)


def _nonzeros_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    shape = (len(x.shape), prod(x.sizes))
    return [Fact(INT64, shape, counts=((1, node.outputs[1]),)), Fact(INT64, (1,))]


def _nonzeros(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    found = np.array(np.nonzero(np.atleast_1d(x)), np.int64)[: x.ndim]
    return [found, np.array([np.count_nonzero(x)], np.int64)]


register("Nonzeros", _nonzeros_infer, _nonzeros)


@composite("NonZero")
def _non_zero(body: Body) -> list[str]:
    return [body.add_many("Nonzeros", body.inputs, 2)[0]]


@composite("Compress")
def _compress(body: Body) -> list[str]:
    x, condition = body.inputs
    if body.node.get("axis") is None:
        x = body.reshape(x, prod(body.shape(x)))
    axis = axis_in(int(body.node.get("axis", 0)), len(body.shape(x)))
    if len(body.shape(condition)) != 1 or body.dtype(condition).kind != "b":
        raise InvalidModel("condition must be bool, in one dimension", shape=body.shape(condition))
    if body.shape(condition)[0] > body.shape(x)[axis]:
        raise InvalidModel("condition is longer than the data", shape=(body.shape(x), body.shape(condition)))
    found = body.add_many("Nonzeros", [condition], 2)[0]
    chosen = body.add("Gather", found, body.constant(0, np.int64), axis=0)
    return [body.add("Gather", x, chosen, axis=axis)]


def _unique_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    rows, counts = (ranked(x, (2,), "X")[0],), ((0, node.outputs[3]),)
    if x.dtype.kind not in "iufb":
        raise InvalidModel(f"a number is needed, not {x.dtype}", shape=x.shape)
    some = Fact(INT64, rows, counts=counts)
    return [some, Fact(INT64, rows), some, Fact(INT64, (1,))]


def _unique_rows(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """Where each different row is first, which of them each row is, and how many there are of each."""
    x = required(arrays, 0, "X")
    # The place of each element among its column's: so NaN equals NaN, and stands last.
    ranks = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in x.T]
    codes = np.stack(ranks, axis=1) if ranks else np.zeros((len(x), 1), np.int64)
    _, first, inverse, counts = np.unique(codes, True, True, True, axis=0)
    inverse = inverse.reshape(-1)
    if not node.get("sorted", 1):
        order = np.argsort(first)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    return [first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64), np.array([len(first)])]


register("UniqueRows", _unique_infer, _unique_rows)


@composite("Unique")
def _unique(body: Body) -> list[str]:
    (x,) = body.inputs
    if body.node.get("axis") is None:
        x = body.reshape(x, prod(body.shape(x)))
    shape = body.shape(x)
    axis = axis_in(int(body.node.get("axis", 0)), len(shape))
    rows = body.transpose(x, axis, *(d for d in range(len(shape)) if d != axis)) if axis else x
    matrix = body.reshape(rows, shape[axis], prod(shape) // max(shape[axis], 1))
    sorted_ = int(body.node.get("sorted", 1))
    first, inverse, counts, _ = body.add_many("UniqueRows", [matrix], 4, sorted=sorted_)
    y = body.add("Gather", x, first, axis=axis)
    return [y, first, inverse, counts][: len(body.node.outputs)]


def _limit(most: Array | None, boxes: int) -> int:
    """How many boxes are kept of each class."""
    if most is None:
        return 0
    numbers = integers(most, "max_output_boxes_per_class")
    if len(numbers) != 1:
        raise InvalidModel("max_output_boxes_per_class must be one number", shape=most.shape)
    return min(max(numbers[0], 0), boxes)


def _boxes_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    boxes, scores = required(facts, 0, "boxes"), required(facts, 1, "scores")
    batch, count, four = ranked(boxes, (3,), "boxes")
    classes = ranked(scores, (3,), "scores")[1]
    if four != 4 or scores.sizes != (batch, classes, count) or floating(boxes) != floating(scores):
        raise InvalidModel(
            "boxes [N, B, 4] and scores [N, C, B] are needed", shape=(boxes.shape, scores.shape)
        )
    for i, what in ((3, "iou_threshold"), (4, "score_threshold")):
        threshold = optional(facts, i)
        if threshold is not None and (prod(threshold.sizes) != 1 or threshold.dtype != boxes.dtype):
            raise InvalidModel(f"{what} must be one number of the type of the boxes", shape=threshold.shape)
    counting = node.input(5)
    if (dict(boxes.counts), dict(scores.counts)) != (
        ({1: counting}, {2: counting}) if counting else ({}, {})
    ):
        raise UnsupportedModel(
            "boxes and scores whose numbers depend on the data in different ways", shape=boxes.shape
        )
    kept = _limit(values(facts, 2, ["max_output_boxes_per_class"])[0], count)
    return [Fact(INT64, (batch * classes * kept, 3), counts=((0, node.outputs[1]),)), Fact(INT64, (1,))]


def _select_boxes(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """The boxes of the best scores, class by class, without those that overlap a better one too much.

    Input 5, int64[1], is how many boxes there are, where that depends on the data.
    """
    boxes, scores = required(arrays, 0, "boxes"), required(arrays, 1, "scores")
    counted = optional(arrays, 5)
    if counted is not None:
        boxes, scores = boxes[:, : counted[0]], scores[:, :, : counted[0]]
    kept = _limit(optional(arrays, 2), boxes.shape[1])
    most, least = (
        default if optional(arrays, i) is None else float(required(arrays, i, "a threshold").item())
        for i, default in ((3, 0.0), (4, -np.inf))
    )
    found: list[tuple[int, int, int]] = []
    for n, c in np.ndindex(scores.shape[:2]):
        chosen: list[int] = []
        for i in np.argsort(-scores[n, c], kind="stable"):
            if len(chosen) == kept or not scores[n, c, i] > least:
                break
            if all(_overlap(node, boxes[n, i], boxes[n, j]) <= most for j in chosen):
                chosen.append(int(i))
        found += [(n, c, i) for i in chosen]
    return [np.array(found, np.int64).reshape(-1, 3), np.array([len(found)], np.int64)]


def _overlap(node: Node, a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""

    def corners(box: Array) -> tuple[Array, Array]:
        if node.get("center_point_box", 0):
            return box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
        return np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])

    (low_a, high_a), (low_b, high_b) = corners(a), corners(b)
    shared = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0))
    union = np.prod(high_a - low_a) + np.prod(high_b - low_b) - shared
    return float(shared / union) if union > 0 else 0.0


register("SelectBoxes", _boxes_infer, _select_boxes, operands=[2], counts=True)


@composite("NonMaxSuppression", operands=[2])
def _non_max_suppression(body: Body) -> list[str]:
    inputs = body.inputs
    if counting := body.counting(body.inputs[0], 1):
        inputs = (*inputs, *[""] * (5 - len(inputs)), counting)
    return [body.add_many("SelectBoxes", inputs, 2, **body.node.attributes)[0]]
