"""Convolutions in any number of spatial dimensions. Source: ONNX Conv-22, ConvTranspose-22, ConvInteger-10.

All may carry an epilogue (`operators.epilogue`), whose operands follow the operator's own: X, W and B of
Conv and ConvTranspose; X, W, the zero points of X and W, and B of ConvInteger and of ConvTransposeInteger,
which is to ConvTranspose what ConvInteger is to Conv. Their B, int32[M], is not in ONNX; it is added to the
sums.
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
from coresident.graph.operators.epilogue import epilogue_fact, with_epilogue
from coresident.graph.operators.operands import check_bytes, floating, optional, required, same_type
from coresident.graph.operators.windows import TransposedWindow, Window

Array = np.ndarray[Any, Any]

COLUMNS = 1 << 23
"""Elements of the input that a reference lays out as columns at a time."""


def _operands(node: Node, facts: Sequence[Fact | None]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The sizes of X and W and the number of groups, checked against each other."""
    x, w = required(facts, 0, "X"), required(facts, 1, "the weights W")
    data, weights, group = x.sizes, w.sizes, int(node.get("group", 1))
    if len(data) < 3 or len(weights) != len(data):
        raise InvalidModel(
            "X must be [N, C, spatial...] and W have as many dimensions", shape=(x.shape, w.shape)
        )
    if group < 1 or data[1] % group or weights[0] % group:
        raise InvalidModel(
            f"group {group} must divide the channels of X and the first dimension of W", shape=(data, weights)
        )
    kernel = node.get("kernel_shape")
    if kernel and tuple(kernel) != weights[2:]:
        raise InvalidModel(f"kernel_shape {tuple(kernel)} is not that of W", shape=weights)
    return data, weights, group


def _check_floats(facts: Sequence[Fact | None]) -> np.dtype[Any]:
    x, w, b = required(facts, 0, "X"), required(facts, 1, "the weights W"), optional(facts, 2)
    floating(x)
    return same_type([f for f in (x, w, b) if f is not None])


def _check_bias(b: Fact | None, channels: int) -> None:
    if b is not None and b.shape != (channels,):
        raise InvalidModel(f"B must be [{channels}], one number an output channel", shape=b.shape)


def _conv_shape(node: Node, facts: Sequence[Fact | None]) -> tuple[int, ...]:
    data, weights, group = _operands(node, facts)
    if weights[1] * group != data[1]:
        raise InvalidModel(
            f"W reads {weights[1]} channels a group in {group} groups; X with {data[1]} channels needs "
            f"{data[1] // group}",
            shape=(data, weights),
        )
    window = Window.of(node, data[2:], weights[2:])
    return (data[0], weights[0], *window.output(data[2:]))


def _conv_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    dtype, shape = _check_floats(facts), _conv_shape(node, facts)
    _check_bias(optional(facts, 2), shape[1])
    return [epilogue_fact(node, Fact(dtype, shape), facts, 3)]


def _convolved(node: Node, x: Array, w: Array) -> Array:
    group, batch, outputs, inputs = int(node.get("group", 1)), x.shape[0], w.shape[0], w.shape[1]
    window = Window.of(node, x.shape[2:], w.shape[2:])
    spatial = window.output(x.shape[2:])
    padded = window.padded(x, spatial, 0)
    weights = np.moveaxis(w.reshape(group, outputs // group, inputs, prod(window.kernel)), -1, 2)
    positions = list(product(*(range(size) for size in window.kernel)))
    result = np.zeros((batch, group, outputs // group, prod(spatial)), x.dtype)
    step = max(COLUMNS // max(x.size, batch * x.shape[1] * prod(spatial), 1), 1)
    for first in range(0, len(positions), step):
        some = positions[first : first + step]
        seen = [window.tap(padded, p, spatial).reshape(batch, group, inputs, prod(spatial)) for p in some]
        taps = weights[:, :, first : first + step].reshape(group, outputs // group, len(some) * inputs)
        result += np.matmul(taps, np.concatenate(seen, axis=2))
    return result.reshape(batch, outputs, *spatial)


def _reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, w, b = required(arrays, 0, "X"), required(arrays, 1, "W"), optional(arrays, 2)
    y = (_convolved if node.op == "Conv" else _transposed)(node, x, w)
    if b is not None:
        y += b.reshape(-1, *(1,) * (y.ndim - 2))
    return [with_epilogue(node, y, arrays, 3)]


def _integer_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    shape = (_conv_shape if node.op == "ConvInteger" else _transposed_shape)(node, facts)
    weights_point = optional(facts, 3)
    check_bytes(facts)
    if weights_point is not None and weights_point.sizes not in ((), (1,), (shape[1],)):
        raise InvalidModel(
            f"the zero point of W must be one number, or one of {shape[1]} output channels",
            shape=weights_point.shape,
        )
    x_point = optional(facts, 2)
    if x_point is not None and x_point.sizes not in ((), (1,)):
        raise InvalidModel("the zero point of X must be one number", shape=x_point.shape)
    _check_bias(optional(facts, 4), shape[1])
    return [epilogue_fact(node, Fact(np.dtype(np.int32), shape), facts, 5)]


def _integer_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, w = required(arrays, 0, "X"), required(arrays, 1, "W")
    x_point, w_point, b = (optional(arrays, i) for i in (2, 3, 4))
    # Doubles hold these sums exactly, and numpy multiplies matrices of them fast.
    data, weights = x.astype(np.float64), w.astype(np.float64)
    if x_point is not None:
        data -= x_point.reshape(())
    if w_point is not None:
        weights -= _weights_point(node, w, w_point)
    y = (_convolved if node.op == "ConvInteger" else _transposed)(node, data, weights)
    sums = y.astype(np.int64)
    if b is not None:
        sums += b.reshape(-1, *(1,) * (y.ndim - 2))
    return [with_epilogue(node, sums.astype(np.int32), arrays, 5)]


def _weights_point(node: Node, w: Array, point: Array) -> Array:
    """The zero point of the weights as it broadcasts onto them."""
    if point.size == 1:
        return point.reshape(())
    if node.op == "ConvInteger":
        return point.reshape(-1, *(1,) * (w.ndim - 1))
    group = int(node.get("group", 1))
    by_group = np.repeat(point.reshape(group, w.shape[1]), w.shape[0] // group, axis=0)
    return by_group.reshape(*by_group.shape, *(1,) * (w.ndim - 2))


def _transposed_shape(node: Node, facts: Sequence[Fact | None]) -> tuple[int, ...]:
    data, weights, group = _operands(node, facts)
    if weights[0] != data[1]:
        raise InvalidModel(f"W reads {weights[0]} channels; X has {data[1]}", shape=(data, weights))
    window = TransposedWindow.of(node, data[2:], weights[2:])
    return (data[0], weights[1] * group, *window.output)


def _transposed_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    dtype, shape = _check_floats(facts), _transposed_shape(node, facts)
    _check_bias(optional(facts, 2), shape[1])
    return [epilogue_fact(node, Fact(dtype, shape), facts, 3)]


def _transposed(node: Node, x: Array, w: Array) -> Array:
    group, batch, spatial = int(node.get("group", 1)), x.shape[0], x.shape[2:]
    channels = w.shape[1] * group
    window = TransposedWindow.of(node, spatial, w.shape[2:])
    reach = [
        max((i - 1) * s + (k - 1) * d + 1, o + p)
        for i, s, k, d, o, p in zip(
            spatial, window.strides, window.kernel, window.dilations, window.output, window.pads_begin
        )
    ]
    full = np.zeros((batch, channels, *reach), x.dtype)
    data = x.reshape(batch, group, x.shape[1] // group, prod(spatial))
    weights = w.reshape(group, w.shape[0] // group, w.shape[1], prod(window.kernel))
    weights = np.ascontiguousarray(weights.transpose(3, 0, 2, 1))
    for taps, position in zip(weights, product(*(range(size) for size in window.kernel))):
        part = np.matmul(taps, data)
        place = tuple(
            slice(p * d, p * d + (i - 1) * s + 1, s)
            for p, d, i, s in zip(position, window.dilations, spatial, window.strides)
        )
        full[(slice(None), slice(None), *place)] += part.reshape(batch, channels, *spatial)
    cut = tuple(slice(p, p + o) for p, o in zip(window.pads_begin, window.output))
    return full[(slice(None), slice(None), *cut)].copy()


register("Conv", _conv_infer, _reference)
register("ConvTranspose", _transposed_infer, _reference)
register("ConvInteger", _integer_infer, _integer_reference)
register("ConvTransposeInteger", _integer_infer, _integer_reference)
