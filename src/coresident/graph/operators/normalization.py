"""Normalisations.

Source: ONNX BatchNormalization-15 (inference), InstanceNormalization-22, LayerNormalization-17,
RMSNormalization-23, GroupNormalization-21, LRN-13, LpNormalization-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite, expands
from coresident.graph.composite import reference as composite_reference
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import (
    axis_in,
    broadcast,
    floating,
    mean,
    optional,
    required,
    same_type,
)

Array = np.ndarray[Any, Any]


def _channels(x: Fact) -> int:
    if len(x.shape) < 2:
        raise InvalidModel("X must be [N, C, ...]", shape=x.shape)
    return x.sizes[1]


def _per_channel(array: Array, rank: int) -> Array:
    return array.reshape(-1, *(1,) * (rank - 2))


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / deviation over the axes; the mean; one over the deviation."""
    center = mean(x, axes)
    variance = mean(np.square(x - center), axes)
    inverse = x.dtype.type(1) / np.sqrt(variance + x.dtype.type(epsilon))
    return (x - center) * inverse, center, inverse


def _batch_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    floating(x)
    channels = _channels(x)
    for i, what in enumerate(("scale", "B", "input_mean", "input_var"), 1):
        if required(facts, i, what).shape != (channels,):
            raise InvalidModel(
                f"{what} must be [{channels}], one number a channel", shape=required(facts, i, what).shape
            )
    running = [Fact(required(facts, i, "a statistic").dtype, (channels,)) for i in (3, 4)]
    return [Fact(x.dtype, x.sizes), *(running if node.get("training_mode", 0) else ())]


@expands("BatchNormalization")
def _batch_training(body: Body) -> list[str] | None:
    """In training mode by the statistics of the batch, which join the running ones."""
    node, (x, scale, bias, mean_so_far, variance_so_far) = body.node, body.inputs
    if not node.get("training_mode", 0):
        return None
    rank = len(body.shape(x))
    axes = body.constant([d for d in range(rank) if d != 1], np.int64)
    center = body.add("ReduceMean", x, axes, keepdims=1)
    apart = body.add("Sub", x, center)
    variance = body.add("ReduceMean", body.add("Mul", apart, apart), axes, keepdims=1)
    column = (body.shape(x)[1], *(1,) * (rank - 2))
    deviation = body.add("Sqrt", body.add("Add", variance, body.like(node.get("epsilon", 1e-5), x)))
    y = body.add("Mul", body.add("Div", apart, deviation), body.reshape(scale, *column))
    results = [body.add("Add", y, body.reshape(bias, *column))]
    momentum = float(node.get("momentum", 0.9))
    for before, now in ((mean_so_far, center), (variance_so_far, variance)):
        kept = body.add("Mul", before, body.like(momentum, before))
        new = body.add("Mul", body.reshape(now, *column[:1]), body.like(1 - momentum, now))
        results.append(body.add("Add", kept, new))
    return results[: len(node.outputs)]


@composite("MeanVarianceNormalization")
def _mean_variance(body: Body) -> list[str]:
    (x,) = body.inputs
    axes = body.constant(body.node.get("axes", (0, 2, 3)), np.int64)
    apart = body.add("Sub", x, body.add("ReduceMean", x, axes, keepdims=1))
    variance = body.add("ReduceMean", body.add("Mul", apart, apart), axes, keepdims=1)
    # The 1e-9 is that of the function body that ONNX gives.
    deviation = body.add("Add", body.add("Sqrt", variance), body.like(1e-9, x))
    return [body.add("Div", apart, deviation)]


def _batch_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    if node.get("training_mode", 0):
        return composite_reference(node, arrays)
    x = required(arrays, 0, "X")
    scale, b, mean, variance = (
        _per_channel(required(arrays, i, "a statistic"), x.ndim).astype(x.dtype, copy=False)
        for i in range(1, 5)
    )
    return [(x - mean) / np.sqrt(variance + x.dtype.type(node.get("epsilon", 1e-5))) * scale + b]


def _instance_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    operands = [x, required(facts, 1, "scale"), required(facts, 2, "B")]
    channels = _channels(x)
    floating(x)
    groups = int(node.get("num_groups", channels))
    if groups < 1 or channels % groups:
        raise InvalidModel(f"num_groups {groups} must divide the {channels} channels", shape=x.shape)
    for fact in operands[1:]:
        # Before opset 21 GroupNormalization had one scale and bias a group.
        if fact.shape != (channels,) and (node.op != "GroupNormalization" or fact.shape != (groups,)):
            raise InvalidModel(f"scale and bias must be [{channels}], one number a channel", shape=fact.shape)
    return [Fact(same_type(operands), x.sizes)]


def _instance_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale, b = (required(arrays, i, "an operand") for i in range(3))
    y = _standardized(x, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))[0]
    return [y * _per_channel(scale, x.ndim) + _per_channel(b, x.ndim)]


def _group_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale, b = (required(arrays, i, "an operand") for i in range(3))
    channels, groups = x.shape[1], int(node.get("num_groups", x.shape[1]))
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _standardized(grouped, (2,), node.get("epsilon", 1e-5))[0].reshape(x.shape)
    scale, b = (np.repeat(a, channels // a.size) for a in (scale, b))
    return [y * _per_channel(scale, x.ndim) + _per_channel(b, x.ndim)]


def _layer_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, scale, b = required(facts, 0, "X"), required(facts, 1, "Scale"), optional(facts, 2)
    floating(x)
    same_type([f for f in (x, scale, b) if f is not None])
    shape = x.sizes
    axis = axis_in(int(node.get("axis", -1)), len(shape))
    for fact in (scale, b):
        if fact is not None and broadcast([shape[axis:], fact.sizes]) != shape[axis:]:
            raise InvalidModel(
                "scale and bias must broadcast onto the normalised dimensions", shape=(shape, fact.shape)
            )
    reduced = Fact(x.dtype, (*shape[:axis], *(1,) * (len(shape) - axis)))
    return (
        [Fact(x.dtype, shape)] if node.op == "RMSNormalization" else [Fact(x.dtype, shape), reduced, reduced]
    )


def _layer_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale, b = required(arrays, 0, "X"), required(arrays, 1, "Scale"), optional(arrays, 2)
    axes = tuple(range(axis_in(int(node.get("axis", -1)), x.ndim), x.ndim))
    y, center, inverse = _standardized(x, axes, node.get("epsilon", 1e-5))
    return [y * scale if b is None else y * scale + b, center, inverse]


def _rms_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale = required(arrays, 0, "X"), required(arrays, 1, "scale")
    axes = tuple(range(axis_in(int(node.get("axis", -1)), x.ndim), x.ndim))
    square = mean(np.square(x), axes)
    return [x / np.sqrt(square + x.dtype.type(node.get("epsilon", 1e-5))) * scale]


def _lrn_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    _channels(x)
    if int(node.get("size", 0)) < 1:
        raise InvalidModel("the attribute size must be at least 1")
    return [Fact(floating(x), x.sizes)]


def _lrn_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, size = required(arrays, 0, "X"), int(node.get("size", 0))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    padded = np.pad(np.square(x), [(0, 0), (before, after), *((0, 0),) * (x.ndim - 2)])
    total = np.zeros_like(x)
    for shift in range(size):
        total += padded[:, shift : shift + x.shape[1]]
    number = x.dtype.type
    base = number(node.get("bias", 1.0)) + number(node.get("alpha", 1e-4) / size) * total
    return [x / base ** number(node.get("beta", 0.75))]


def _lp_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    axis_in(int(node.get("axis", -1)), len(x.shape))
    if node.get("p", 2) not in (1, 2):
        raise InvalidModel(f"p must be 1 or 2, not {node.get('p')}")
    return [Fact(floating(x), x.sizes)]


def _lp_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    axis = int(node.get("axis", -1))
    if node.get("p", 2) == 1:
        norm = np.abs(x).sum(axis=axis, keepdims=True)
    else:
        norm = np.sqrt(np.square(x).sum(axis=axis, keepdims=True))
    return [np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)]


register("BatchNormalization", _batch_infer, _batch_reference)
register("InstanceNormalization", _instance_infer, _instance_reference)
register("GroupNormalization", _instance_infer, _group_reference)
register("LayerNormalization", _layer_infer, _layer_reference)
register("RMSNormalization", _layer_infer, _rms_reference)
register("LRN", _lrn_infer, _lrn_reference)
register("LpNormalization", _lp_infer, _lp_reference)
