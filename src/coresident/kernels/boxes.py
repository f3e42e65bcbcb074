"""NonMaxSuppression: of boxes that overlap, the one of the best score. Source: ONNX NonMaxSuppression-11."""

from __future__ import annotations

import math

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I64
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.scalar import Access, digits, items

Corners = tuple[tuple[Value, Value], tuple[Value, Value]]
"""The least and the greatest coordinate along both axes."""


@lowers("SelectBoxes")
def select_boxes(node: Node, plan: Plan) -> None:
    """Each class takes its best box, drops what that hides and finds the next best at once.

    The boxes kept of all classes are then put one behind another.
    """
    boxes, scores = plan.tensor(node.inputs[0]), plan.tensor(node.inputs[1])
    y, count = (plan.tensor(name) for name in node.outputs)
    if boxes.dtype.itemsize < 4:
        raise UnsupportedModel(
            f"boxes of {boxes.dtype}; float32 and float64 are supported", shape=boxes.shape
        )
    batch, classes, total = scores.shape
    groups = batch * classes
    kept = y.shape[0] // groups if groups else 0
    picked = plan.temporary(Layout.contiguous((groups, kept)), np.int64)
    found = plan.temporary(Layout.contiguous((groups,)), np.int64)
    named = [plan.tensor(name) if name else None for name in (node.input(3), node.input(4))]
    thresholds = [tensor for tensor in named if tensor is not None]
    plan.scratch(total * scores.dtype.itemsize)
    info = {"op": node.op, "nodes": [node.name], "kernel": "best boxes"}
    reads = [boxes, scores, *thresholds]
    writes, cost = [picked, found], 8 * total * (kept + 1)
    with items(plan, "select_boxes", groups, cost, writes, reads, info) as (f, group, accesses):
        chosen, many, corners, score, *limits = accesses
        kind = score.kind
        at = iter(limits)
        overlap, least = (
            next(at).load(*[0] * len(tensor.shape)) if tensor is not None else f.constant(default, kind)
            for tensor, default in zip(named, (0.0, -math.inf))
        )
        n, c = digits(group, (batch, classes))
        left, nothing = f["scratch"], f.constant(-math.inf, kind)
        best, best_score, number = f.var(-1, I64), f.var(nothing), f.var(0, I64)

        def consider(i: Value, value: Value) -> None:
            better = value > best_score.get()
            best.set(f.select(better, i, best.get()))
            best_score.set(f.select(better, value, best_score.get()))

        with f.loop(0, total) as i:
            value = score.load(n, c, i)
            value = f.select(value > least, value, nothing)
            f.store(value, left, i)
            consider(i, value)
        with f.while_(lambda: (best.get() >= 0) & (number.get() < kept)):
            taken = best.get()
            chosen.store(taken, group, number.get())
            number.set(number.get() + 1)
            f.store(nothing, left, taken)
            box = _corners(f, node, corners.at(n, taken))
            best.set(-1)
            best_score.set(nothing)
            with f.loop(0, total) as i:
                value = f.load(kind, left, i)
                with f.when(value > nothing):
                    hides = _hides(f, box, _corners(f, node, corners.at(n, i)), overlap)
                    value = f.select(hides, nothing, value)
                    f.store(value, left, i)
                    consider(i, value)
        many.store(number.get(), group)
    with items(plan, "gather_boxes", 1, 8 * groups * kept, [y, count], [picked, found], info) as (
        f,
        _,
        accesses,
    ):
        to, size, chosen, many = accesses
        row = f.var(0, I64)
        with f.loop(0, groups) as group, f.loop(0, many.load(group)) as i:
            place = (*digits(group, (batch, classes)), chosen.load(group, i))
            for column, index in enumerate(place):
                to.store(f.value(index, I64), row.get(), column)
            row.set(row.get() + 1)
        size.store(row.get(), 0)


def _corners(f: Function, node: Node, box: Access) -> Corners:
    a, b, c, d = (box.load(i) for i in range(4))
    if node.get("center_point_box", 0):
        return ((a - c * 0.5, a + c * 0.5), (b - d * 0.5, b + d * 0.5))
    return ((f.minimum(a, c), f.maximum(a, c)), (f.minimum(b, d), f.maximum(b, d)))


def _hides(f: Function, a: Corners, b: Corners, overlap: Value) -> Value:
    """Whether the intersection of two boxes is more than this share of their union."""
    shared: Value | None = None
    for (low_a, high_a), (low_b, high_b) in zip(a, b):
        along = f.maximum(f.minimum(high_a, high_b) - f.maximum(low_a, low_b), 0.0)
        shared = along if shared is None else shared * along
    assert shared is not None
    area_a, area_b = ((box[0][1] - box[0][0]) * (box[1][1] - box[1][0]) for box in (a, b))
    union = area_a + area_b - shared
    return (union > 0.0) & (shared / union > overlap)
