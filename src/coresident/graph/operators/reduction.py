"""Operators along axes: reductions, ArgMax and ArgMin, Softmax and its kin, CumSum.

Source: ONNX Reduce*-18 (and -20 of ReduceMax and ReduceMin), ArgMax-13, Softmax-13, CumSum-14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, expands
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import (
    axes_in,
    axis_in,
    floating,
    integers,
    mean,
    optional,
    required,
    values,
)

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]

FLOAT_ONLY = frozenset(("ReduceLogSum", "ReduceLogSumExp"))


def reduced_axes(node: Node, rank: int, axes: Array | None) -> tuple[int, ...]:
    """The dimensions that a Reduce* node reduces, in rising order.

    Args:
        node: its attributes axes and noop_with_empty_axes are read.
        rank: of the data.
        axes: its second input, None where left out.

    Raises:
        InvalidModel: an axis is out of range or named twice.
    """
    named = node.get("axes", ()) if axes is None else integers(axes, "axes")
    if not named:
        return () if node.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axes_in(named, rank)))


def _without(shape: tuple[int, ...], axes: Axes, keep: bool) -> tuple[int, ...]:
    if keep:
        return tuple(1 if i in axes else size for i, size in enumerate(shape))
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def _reduce_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    axes = reduced_axes(node, len(x.shape), values(facts, 1, ["axes"])[0])
    extreme = node.op in ("ReduceMax", "ReduceMin")
    if x.dtype.kind not in ("iufb" if extreme else "f" if node.op in FLOAT_ONLY else "iuf"):
        raise InvalidModel(f"a number is needed, not {x.dtype}", shape=x.shape)
    return [Fact(x.dtype, _without(x.sizes, axes, bool(node.get("keepdims", 1))))]


def extreme_of_none(dtype: np.dtype[Any], largest: bool) -> float:
    """What ReduceMax (largest) or ReduceMin gives of no elements: the least or greatest value of the type."""
    if dtype.kind == "f":
        return -np.inf if largest else np.inf
    if dtype.kind == "b":
        return 0 if largest else 1
    return int(np.iinfo(dtype).min if largest else np.iinfo(dtype).max)


def _mean(x: Array, axes: Axes) -> Array:
    return mean(x, axes) if x.dtype.kind == "f" else np.asarray(np.trunc(mean(x.astype(np.float64), axes)))


def _log_sum_exp(x: Array, axes: Axes) -> Array:
    peak = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, x.dtype.type(0))
    return np.asarray(np.log(np.sum(np.exp(x - peak), axis=axes, keepdims=True)) + peak)


REDUCTIONS: dict[str, Callable[[Array, Axes], Array]] = {
    "ReduceSum": lambda x, axes: np.sum(x, axis=axes, keepdims=True, dtype=x.dtype),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes: np.max(x, axis=axes, keepdims=True, initial=extreme_of_none(x.dtype, True)),
    "ReduceMin": lambda x, axes: np.min(x, axis=axes, keepdims=True, initial=extreme_of_none(x.dtype, False)),
    "ReduceProd": lambda x, axes: np.prod(x, axis=axes, keepdims=True, dtype=x.dtype),
    "ReduceL1": lambda x, axes: np.sum(np.abs(x), axis=axes, keepdims=True, dtype=x.dtype),
    "ReduceL2": lambda x, axes: np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True, dtype=x.dtype)),
    "ReduceLogSum": lambda x, axes: np.log(np.sum(x, axis=axes, keepdims=True, dtype=x.dtype)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, axes: np.sum(np.square(x), axis=axes, keepdims=True, dtype=x.dtype),
}
"""Name -> the reduction over axes of an array, which keeps them with size 1."""


def _reduce_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    axes = reduced_axes(node, x.ndim, optional(arrays, 1))
    result = np.asarray(REDUCTIONS[node.op](x, axes)).astype(x.dtype, copy=False)
    return [result.reshape(_without(x.shape, axes, bool(node.get("keepdims", 1))))]


def _arg_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    axis = axis_in(int(node.get("axis", 0)), len(x.shape))
    if x.sizes[axis] == 0:
        raise InvalidModel("the extreme of no elements", shape=x.shape)
    return [Fact(np.dtype(np.int64), _without(x.sizes, (axis,), bool(node.get("keepdims", 1))))]


def _arg_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, axis, keep = required(arrays, 0, "the data"), int(node.get("axis", 0)), bool(node.get("keepdims", 1))
    choose = np.argmax if node.op == "ArgMax" else np.argmin
    if not node.get("select_last_index", 0):
        return [choose(x, axis=axis, keepdims=keep).astype(np.int64)]
    last = x.shape[axis] - 1 - choose(np.flip(x, axis), axis=axis, keepdims=keep)
    return [np.asarray(last, np.int64)]


def _softmax_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    axis_in(int(node.get("axis", -1)), len(x.shape))
    return [Fact(floating(x), x.sizes)]


def _softmax_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, axis = required(arrays, 0, "the data"), int(node.get("axis", -1))
    shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    total = np.sum(np.exp(shifted), axis=axis, keepdims=True)
    return [np.exp(shifted) / total if node.op == "Softmax" else shifted - np.log(total)]


def _hardmax_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, axis = required(arrays, 0, "the data"), int(node.get("axis", -1))
    y = np.zeros_like(x)
    if x.size:
        np.put_along_axis(y, np.argmax(x, axis=axis, keepdims=True), x.dtype.type(1), axis)
    return [y]


@expands("Hardmax")
def _hardmax(body: Body) -> list[str]:
    (x,) = body.inputs
    axis = axis_in(int(body.node.get("axis", -1)), len(body.shape(x)))
    largest = body.add("ArgMax", x, axis=axis, keepdims=0)
    depth = body.constant(body.shape(x)[axis], np.int64)
    return [body.add("OneHot", largest, depth, body.constant([0, 1], body.dtype(x)), axis=axis)]


def cumulated_axis(axis: Array | None, rank: int) -> int:
    """The axis that CumSum runs along, from its second input, counted from the front."""
    if axis is None:
        raise InvalidModel("input 1, axis, is missing")
    numbers = integers(axis, "axis")
    if len(numbers) != 1:
        raise InvalidModel("axis must be one number", shape=axis.shape)
    return axis_in(numbers[0], rank)


def _cumulated_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    cumulated_axis(values(facts, 1, ["axis"])[0], len(x.shape))
    return [Fact(x.dtype, x.sizes)]


def _cumulated(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    axis = cumulated_axis(optional(arrays, 1), x.ndim)
    directed = np.flip(x, axis) if node.get("reverse", 0) else x
    total = np.cumsum(directed, axis=axis, dtype=x.dtype)
    if node.get("exclusive", 0):
        total = np.roll(total, 1, axis)
        np.moveaxis(total, axis, 0)[:1] = 0
    return [np.flip(total, axis) if node.get("reverse", 0) else total]


for _name in REDUCTIONS:
    register(_name, _reduce_infer, _reduce_reference, operands=[1])
register("ArgMax", _arg_infer, _arg_reference)
register("ArgMin", _arg_infer, _arg_reference)
register("Softmax", _softmax_infer, _softmax_reference)
register("LogSoftmax", _softmax_infer, _softmax_reference)
register("Hardmax", _softmax_infer, _hardmax_reference)
register("CumSum", _cumulated_infer, _cumulated, operands=[1])
