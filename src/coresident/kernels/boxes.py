"""NonMaxSuppression: of boxes that overlap, the one of the best score. Source: ONNX NonMaxSuppression-11."""

from __future__ import annotations

import math

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I1, I64
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.kernels.heap import Entry, Heap
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.scalar import Access, digits, items

Corners = tuple[tuple[Value, Value], tuple[Value, Value]]
"""The least and the greatest coordinate along both axes."""


@lowers("SelectBoxes")
def select_boxes(node: Node, plan: Plan) -> None:
    """Each class takes the best box that is left, until it has enough, and keeps it if none kept hides it.

    Those kept of all classes are then put one behind another.
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
    named = [plan.tensor(name) if name else None for name in (node.input(3), node.input(4), node.input(5))]
    limits = [tensor for tensor in named if tensor is not None]
    plan.scratch(total * (8 + scores.dtype.itemsize))
    info = {"op": node.op, "nodes": [node.name], "kernel": "best boxes"}
    reads = [boxes, scores, *limits]
    writes, cost = [picked, found], 20 * total + 10 * kept * kept
    with items(plan, "select_boxes", groups, cost, writes, reads, info) as (f, group, accesses):
        chosen, many, corners, score, *given = accesses
        kind = score.kind
        at = iter(given)
        defaults = f.constant(0.0, kind), f.constant(-math.inf, kind), f.constant(total, I64)
        overlap, least, number_of_boxes = (
            next(at).load(*[0] * len(tensor.shape)) if tensor is not None else default
            for tensor, default in zip(named, defaults)
        )
        n, c = digits(group, (batch, classes))
        left, number = f.var(0, I64), f.var(0, I64)
        scores_left = f.offset(f["scratch"], 8 * total)

        def put(at: Value, entry: Entry) -> None:
            f.store(entry[0], scores_left, at)
            f.store(entry[1], f["scratch"], at)

        def get(at: Value) -> Entry:
            return f.load(kind, scores_left, at), f.load(I64, f["scratch"], at)

        def better(a: Entry, b: Entry) -> Value:
            return (a[0] > b[0]) | (a[0].equals(b[0]) & (a[1] < b[1]))

        with f.loop(0, number_of_boxes) as i:
            value = score.load(n, c, i)
            with f.when(value > least):
                put(left.get(), (value, i))
                left.set(left.get() + 1)
        heap, top = Heap(f, get, put, better), f.constant(0, I64)
        heap.build(left.get())
        with f.while_(lambda: (left.get() > 0) & (number.get() < kept)):
            _, candidate = get(top)
            left.set(left.get() - 1)
            heap.sink(top, left.get(), get(left.get()))
            box = _corners(f, node, corners.at(n, candidate))
            other, hidden = f.var(0, I64), f.var(0, I1)
            with f.while_(lambda: (other.get() < number.get()) & hidden.get().equals(0)):
                rival = _corners(f, node, corners.at(n, chosen.load(group, other.get())))
                hidden.set(_hides(f, rival, box, overlap))
                other.set(other.get() + 1)
            with f.when(hidden.get().equals(0)):
                chosen.store(candidate, group, number.get())
                number.set(number.get() + 1)
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
