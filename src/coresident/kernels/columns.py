"""Columns of windows for matrix products, and their sum back into a picture, as strided copies and sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from coresident.codegen.builder import Function
from coresident.codegen.math import Typed
from coresident.graph.graph import Node
from coresident.graph.operators.columns import columns_window, fold_geometry, fold_slices
from coresident.kernels import views
from coresident.kernels.layout import Layout
from coresident.kernels.loopnest import nest
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.movement import copy, fill


@lowers("Columns")
def columns(node: Node, plan: Plan) -> None:
    """Every window of the padded input as a column: one copy with overlapping strides."""
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    if not y.layout.elements:
        return
    info = {"op": node.op, "nodes": [node.name], "kernel": "columns"}
    window, output = columns_window(node, x.shape[2:])
    if any((*window.pads_begin, *window.pads_end)):
        x = _padded(plan, x, window.pads_begin, window.pads_end, info)
    rank = len(output)
    steps = x.layout.strides[2:]
    strides = [
        *x.layout.strides[:2],
        *(s * d for s, d in zip(steps, window.dilations)),
        *(s * t for s, t in zip(steps, window.strides)),
    ]
    shape = (*x.shape[:2], *window.kernel, *output)
    source = replace(x, layout=x.layout.view(shape, strides, 0))
    place = views.reshaped(y.layout, shape)
    assert place is not None, f"{rank} dimensions cut in two"
    copy(plan, source, replace(y, layout=place), info)


def _padded(
    plan: Plan, x: Tensor, before: Sequence[int], after: Sequence[int], info: dict[str, Any]
) -> Tensor:
    sizes = (*x.shape[:2], *(b + n + a for b, n, a in zip(before, x.shape[2:], after)))
    whole = plan.temporary(Layout.contiguous(sizes), x.dtype)
    fill(plan, whole, 0, info)
    inside = whole.layout
    for d, (b, n) in enumerate(zip(before, x.shape[2:]), 2):
        inside = inside.narrow(d, b, n)
    copy(plan, x, replace(whole, layout=inside), info)
    return whole


@lowers("Fold")
def fold(node: Node, plan: Plan) -> None:
    """Position after position of the windows is added to where it lies."""
    x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    window, windows, reach = fold_geometry(node)
    info = {"op": node.op, "nodes": [node.name], "kernel": "fold"}
    whole = (
        y if reach == window.output else plan.temporary(Layout.contiguous((*y.shape[:2], *reach)), y.dtype)
    )
    fill(plan, whole, 0, info)
    for tap, position in enumerate(product(*(range(k) for k in window.kernel))):
        part = views.reshaped(x.layout.narrow(2, tap, 1), (*x.shape[:2], *windows))
        if part is None:
            x = plan.contiguous(node.inputs[0])
            part = views.reshaped(x.layout.narrow(2, tap, 1), (*x.shape[:2], *windows))
            assert part is not None, "a contiguous tensor takes any shape"
        place = whole.layout
        for d, taken in enumerate(fold_slices(window, windows, position), 2):
            place = views.sliced(place, d, taken)
        there = replace(whole, layout=place)
        nest(plan, there, [there, replace(x, layout=part)], _sum, info)
    if whole is not y:
        inside = whole.layout
        for d, (first, size) in enumerate(zip(window.pads_begin, window.output), 2):
            inside = inside.narrow(d, first, size)
        copy(plan, replace(whole, layout=inside), y, info)


def _sum(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
    return loaded[0] + loaded[1]
