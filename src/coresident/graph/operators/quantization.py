"""Quantisation: QuantizeLinear-25, DequantizeLinear-25 and DynamicQuantizeLinear-11 of ONNX.

Scale and zero point are of one element; or of one dimension, along the attribute "axis" (1 where it is left
out); or, with the attribute "block_size", of the data's rank with one element for so many along the axis.
Beyond ONNX, any other shapes broadcast onto the data as numpy has it: `passes.expand_quantization` writes all
forms so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.graph import Fact, Node
from coresident.graph.numpy_math import NumpyMath
from coresident.graph.operator import register
from coresident.graph.operators.operands import axis_in, broadcast, floating, optional, required

Array = np.ndarray[Any, Any]

QUANTISED = tuple(np.dtype(name) for name in ("uint8", "int8", "uint16", "int16"))
"""Types that QuantizeLinear makes."""

STORED = (*QUANTISED, np.dtype(np.int32))
"""Types that DequantizeLinear reads; int32 is a bias."""


def parameter_shape(node: Node, data: tuple[int, ...], parameter: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that makes a scale or zero point broadcast onto the data (before blocks are repeated).

    Raises:
        InvalidModel: it does not fit the data.
    """
    block = int(node.get("block_size", 0) or 0)
    if block:
        axis = axis_in(int(node.get("axis", 1)), len(data))
        wanted = tuple(-(-size // block) if d == axis else size for d, size in enumerate(data))
        if parameter != wanted:
            raise InvalidModel(
                f"scale and zero point must be {wanted}, one number for {block} along axis {axis}",
                shape=parameter,
            )
        return parameter
    if parameter in ((), (1,)):
        return ()
    if len(parameter) == 1:
        axis = axis_in(int(node.get("axis", 1)), len(data))
        if parameter[0] != data[axis]:
            raise InvalidModel(
                f"scale and zero point must have one number, or {data[axis]} along axis {axis}",
                shape=parameter,
            )
        return (*parameter, *(1,) * (len(data) - axis - 1))
    if broadcast([data, parameter]) != data:
        raise InvalidModel("scale and zero point must broadcast onto the data", shape=(data, parameter))
    return parameter


def spread(node: Node, data: tuple[int, ...], parameter: Array) -> Array:
    """A scale or zero point as it broadcasts onto the data by numpy's rule."""
    shaped = parameter.reshape(parameter_shape(node, data, parameter.shape))
    block = int(node.get("block_size", 0) or 0)
    if not block:
        return shaped
    axis = axis_in(int(node.get("axis", 1)), len(data))
    return np.repeat(shaped, block, axis)[(*(slice(None),) * axis, slice(data[axis]))]


def _parameters(node: Node, facts: Sequence[Fact | None], data: tuple[int, ...]) -> Fact:
    scale, zero_point = required(facts, 1, "the scale"), optional(facts, 2)
    floating(scale)
    parameter_shape(node, data, scale.sizes)
    if zero_point is not None:
        parameter_shape(node, data, zero_point.sizes)
        if scale.sizes != zero_point.sizes and len(scale.sizes) == len(zero_point.sizes) == 1:
            raise InvalidModel(
                "scale and zero point must have one shape", shape=(scale.shape, zero_point.shape)
            )
    return scale


def quantised_type(node: Node, zero_point: np.dtype[Any] | None) -> np.dtype[Any]:
    """The element type that QuantizeLinear makes: its zero point's, or the attribute output_dtype, or uint8.

    Raises:
        UnsupportedModel: one that is not in `QUANTISED`.
    """
    named = np.dtype(node.get("output_dtype") or "uint8")
    found = zero_point if zero_point is not None else named
    if found not in QUANTISED:
        allowed = ", ".join(map(str, QUANTISED))
        raise UnsupportedModel(f"quantised to {found}; only to {allowed}")
    return found


def _quantize_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, zero_point = required(facts, 0, "the data"), optional(facts, 2)
    if x.dtype.kind != "f" and x.dtype != np.int32:
        raise InvalidModel(f"a floating-point type or int32 is needed, not {x.dtype}", shape=x.shape)
    _parameters(node, facts, x.sizes)
    return [Fact(quantised_type(node, None if zero_point is None else zero_point.dtype), x.sizes)]


def _quantize_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale, zero_point = required(arrays, 0, "x"), required(arrays, 1, "y_scale"), optional(arrays, 2)
    if zero_point is None:
        zero_point = np.zeros(scale.shape, quantised_type(node, None))
    return [NumpyMath().quantize(x, spread(node, x.shape, scale), spread(node, x.shape, zero_point))]


def _dequantize_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, zero_point = required(facts, 0, "the data"), optional(facts, 2)
    if x.dtype not in STORED:
        raise UnsupportedModel(f"dequantised from {x.dtype}; only from {', '.join(map(str, STORED))}")
    if zero_point is not None and zero_point.dtype != x.dtype:
        raise InvalidModel(f"the zero point is {zero_point.dtype}, the data {x.dtype}; they must be the same")
    scale = _parameters(node, facts, x.sizes)
    return [Fact(np.dtype(node.get("output_dtype") or scale.dtype), x.sizes)]


def _dequantize_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, scale, zero_point = required(arrays, 0, "x"), required(arrays, 1, "x_scale"), optional(arrays, 2)
    if zero_point is None:
        zero_point = np.zeros(scale.shape, x.dtype)
    y = NumpyMath().dequantize(x, spread(node, x.shape, scale), spread(node, x.shape, zero_point))
    return [y.astype(np.dtype(node.get("output_dtype") or y.dtype), copy=False)]


def _dynamic_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    if x.dtype != np.float32:
        raise InvalidModel(f"float32 is needed, not {x.dtype}", shape=x.shape)
    byte = np.dtype(np.uint8)
    return [Fact(byte, x.sizes), Fact(x.dtype, ()), Fact(byte, ())]


def _dynamic_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "x")
    zero = np.float32(0)
    low = np.minimum(x.min(initial=zero), zero)
    high = np.maximum(x.max(initial=zero), zero)
    scale = np.asarray((high - low) / np.float32(255))
    # All zeros: any scale does.
    scale = np.where(scale == 0, np.float32(1), scale)
    zero_point = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return [NumpyMath().quantize(x, scale, zero_point), scale, np.asarray(zero_point)]


register("QuantizeLinear", _quantize_infer, _quantize_reference)
register("DequantizeLinear", _dequantize_infer, _dequantize_reference)
register("DynamicQuantizeLinear", _dynamic_infer, _dynamic_reference)
