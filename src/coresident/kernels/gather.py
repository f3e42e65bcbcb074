"""Operators that pick elements by index.

Indices that are known only at run time are held to the dimension that they index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from coresident.codegen.builder import Function
from coresident.codegen.math import CodeMath, Typed, typed_constant
from coresident.graph.graph import Node
from coresident.kernels import views
from coresident.kernels.layout import Layout
from coresident.kernels.loopnest import Lookup, nest
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.movement import view_or_copy


@lowers("Gather")
def gather(node: Node, plan: Plan) -> None:
    """Whole slices across one dimension; evenly spaced constant indices are a view."""
    x = plan.tensor(node.inputs[0])
    axis = int(node.get("axis", 0)) % len(x.shape)
    constant = plan.graph.constant(node.inputs[1])
    if constant is not None:
        taken = _even(constant, x.shape[axis])
        if taken is not None:
            view = views.sliced(x.layout, axis, taken)
            shape = (*x.shape[:axis], *constant.shape, *x.shape[axis + 1 :])
            dropped = views.reshaped(view, shape)
            assert dropped is not None, "one index, or a list of them, replaces a dimension"
            view_or_copy(node, plan, node.outputs[0], x, dropped)
            return
    indices, y = plan.tensor(node.inputs[1]), plan.tensor(node.outputs[0])
    before, after = (0,) * axis, (0,) * (len(x.shape) - axis - 1)
    strides = x.layout.strides
    source = x.layout.view(y.shape, (*strides[:axis], *(0 for _ in indices.shape), *strides[axis + 1 :]), 0)
    index = indices.layout.view(y.shape, (*before, *indices.layout.strides, *after), 0)
    _look_up(node, plan, y, replace(x, layout=source), replace(indices, layout=index), x, axis)


@lowers("GatherElements")
def gather_elements(node: Node, plan: Plan) -> None:
    """Single elements across one dimension."""
    x, indices, y = (plan.tensor(name) for name in (*node.inputs, *node.outputs))
    axis = int(node.get("axis", 0)) % len(x.shape)
    strides = tuple(0 if d == axis else s for d, s in enumerate(x.layout.strides))
    _look_up(node, plan, y, replace(x, layout=x.layout.view(y.shape, strides, 0)), indices, x, axis)


def _look_up(node: Node, plan: Plan, y: Tensor, source: Tensor, index: Tensor, x: Tensor, axis: int) -> None:
    lookup = Lookup(1, x.shape[axis], x.layout.strides[axis])
    info = {"op": node.op, "nodes": [node.name], "kernel": "gather"}
    nest(plan, y, [source, index], None, info, lookups=[lookup, None])


def _even(indices: np.ndarray[Any, Any], size: int) -> range | None:
    """Constant indices as a range; None if they are not evenly spaced, or are no list."""
    if indices.ndim > 1 or indices.size == 0:
        return None
    flat = [int(i) + size if i < 0 else int(i) for i in indices.ravel()]
    step = flat[1] - flat[0] if len(flat) > 1 else 1
    if step == 0 or any(b - a != step for a, b in pairwise(flat)):
        return None
    return range(flat[0], flat[-1] + (1 if step > 0 else -1), step)


@lowers("OneHot")
def one_hot(node: Node, plan: Plan) -> None:
    """A new dimension that holds one value where its position is the index, and another elsewhere."""
    indices, values, y = (
        plan.tensor(node.inputs[0]),
        plan.tensor(node.inputs[2]),
        plan.tensor(node.outputs[0]),
    )
    axis = int(node.get("axis", -1)) % len(y.shape)
    depth = y.shape[axis]
    strides = (*indices.layout.strides[:axis], 0, *indices.layout.strides[axis:])
    index = replace(indices, layout=indices.layout.view(y.shape, strides, 0))
    positions = np.arange(depth, dtype=indices.dtype)
    line = Layout.contiguous((depth,)).view(y.shape, [1 if d == axis else 0 for d in range(len(y.shape))], 0)
    position = Tensor("", indices.dtype, line, plan.constant(positions))
    off, on = (
        replace(values, layout=values.layout.view((), (), i * values.layout.strides[0])) for i in (0, 1)
    )

    def choose(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
        wanted, here, low, high = loaded
        math = CodeMath(f)
        zero, count = (typed_constant(f, n, indices.dtype, lanes) for n in (0, depth))
        from_front = math.where(wanted < zero, wanted + count, wanted)
        return math.where(math.equal(from_front, here), high, low)

    nest(
        plan,
        y,
        [index, position, off, on],
        choose,
        {"op": node.op, "nodes": [node.name], "kernel": "one-hot"},
    )
