"""Pools over sliding windows and over whole planes.

Source: ONNX MaxPool-22, AveragePool-22, LpPool-22, GlobalAveragePool-22, GlobalMaxPool-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.conversion import converting
from coresident.graph.operators.operands import floating, mean, required
from coresident.graph.operators.windows import Window

Array = np.ndarray[Any, Any]


def pool_geometry(node: Node, spatial: Sequence[int]) -> tuple[Window, tuple[int, ...]]:
    """The window of a pool and the number of windows in each dimension.

    Args:
        node: MaxPool, AveragePool or LpPool.
        spatial: sizes of the input's spatial dimensions.

    Raises:
        InvalidModel: the attributes do not fit the input, or a window could lie in the padding alone.
    """
    kernel = node.get("kernel_shape")
    if not kernel:
        raise InvalidModel("the attribute kernel_shape is missing")
    window = Window.of(node, spatial, kernel)
    if any(max(b, e) >= k for b, e, k in zip(window.pads_begin, window.pads_end, window.extent)):
        raise InvalidModel(
            f"padding {window.pads_begin} before and {window.pads_end} after must be smaller than the window "
            f"{window.extent}"
        )
    return window, window.output(spatial, bool(node.get("ceil_mode", 0)))


def average_counts(node: Node, window: Window, spatial: Sequence[int], output: Sequence[int]) -> list[Array]:
    """How many elements each window of an AveragePool averages: the product of these over the dimensions.

    Returns:
        int64[output[d]] for each spatial dimension d.
    """
    counts: list[Array] = []
    for d, count in enumerate(output):
        first = np.arange(count) * window.strides[d] - window.pads_begin[d]
        positions = first[:, None] + np.arange(window.kernel[d]) * window.dilations[d]
        if node.get("count_include_pad", 0):
            counted = positions < spatial[d] + window.pads_end[d]
        else:
            counted = (positions >= 0) & (positions < spatial[d])
        counts.append(counted.sum(1))
    return counts


def _spatial(x: Fact) -> tuple[int, ...]:
    if len(x.shape) < 3:
        raise InvalidModel("X must be [N, C, spatial...]", shape=x.shape)
    return x.sizes[2:]


def _infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    spatial = _spatial(x)
    if node.op != "MaxPool":
        floating(x)
    shape = (*x.shape[:2], *pool_geometry(node, spatial)[1])
    return [Fact(x.dtype, shape), Fact(np.dtype(np.int64), shape)][: 2 if node.op == "MaxPool" else 1]


def _max_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    spatial = x.shape[2:]
    window, output = pool_geometry(node, spatial)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = window.padded(x, output, lowest)
    # Where an element lies in X; the padding is never chosen, because every window has an element of X.
    plane = np.arange(prod(spatial))
    plane = plane.reshape(spatial[::-1]).T if node.get("storage_order", 0) else plane.reshape(spatial)
    places = window.padded(plane[None, None], output, -1)
    best = np.full((*x.shape[:2], *output), lowest, x.dtype)
    where = np.full(best.shape, -1, np.int64)
    for position in product(*(range(k) for k in window.kernel)):
        seen = window.tap(padded, position, output)
        place = np.broadcast_to(window.tap(places, position, output), best.shape)
        better = (place >= 0) & ((where < 0) | (seen > best) | (np.isnan(seen) & ~np.isnan(best)))
        best, where = np.where(better, seen, best), np.where(better, place, where)
    planes = np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(spatial)) * prod(spatial)
    return [best, where + planes]


def _average_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    window, output = pool_geometry(node, x.shape[2:])
    padded = window.padded(x, output, 0)
    total = np.zeros((*x.shape[:2], *output), x.dtype)
    for position in product(*(range(k) for k in window.kernel)):
        total += window.tap(padded, position, output)
    for d, counts in enumerate(average_counts(node, window, x.shape[2:], output)):
        total /= counts.astype(x.dtype).reshape(-1, *(1,) * (len(output) - d - 1))
    return [total]


def _norm_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    power = node.get("p", 2)
    window, output = pool_geometry(node, x.shape[2:])
    padded = np.abs(window.padded(x, output, 0)) ** x.dtype.type(power)
    total = np.zeros((*x.shape[:2], *output), x.dtype)
    for position in product(*(range(k) for k in window.kernel)):
        total += window.tap(padded, position, output)
    return [total ** x.dtype.type(1 / power)]


def _global_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    spatial = _spatial(x)
    if node.op == "GlobalMaxPool" and 0 in spatial:
        raise InvalidModel("the extreme of no elements", shape=x.shape)
    return [Fact(floating(x), (*x.shape[:2], *(1,) * len(spatial)))]


def _global_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    axes = tuple(range(2, x.ndim))
    if node.op == "GlobalMaxPool":
        return [x.max(axis=axes, keepdims=True)]
    return [mean(x, axes)]


register("MaxPool", _infer, _max_reference)
register("AveragePool", *converting(_infer, _average_reference))
register("LpPool", _infer, _norm_reference)
register("GlobalAveragePool", *converting(_global_infer, _global_reference))
register("GlobalMaxPool", _global_infer, _global_reference)
