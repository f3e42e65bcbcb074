"""The arithmetic of `graph.expression` in numpy: the reference that compiled code is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.graph.expression import Expression

Array = np.ndarray[Any, Any]


class NumpyMath:
    """`graph.expression.Math` over numpy arrays; the dtype of a result is that of its first operand.

    Results follow IEEE 754 without numpy's warnings; integer quotients round toward zero, as ONNX's do.
    """

    def constant(self, value: float, like: Array) -> Array:
        return np.asarray(value).astype(np.asarray(like).dtype)

    def maximum(self, a: Array, b: Array) -> Array:
        return np.maximum(a, b)

    def minimum(self, a: Array, b: Array) -> Array:
        return np.minimum(a, b)

    def equal(self, a: Array, b: Array) -> Array:
        return np.equal(a, b)

    def invert(self, a: Array) -> Array:
        return np.logical_not(a) if np.asarray(a).dtype == bool else np.invert(a)

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        return np.where(condition, a, b)

    def is_nan(self, a: Array) -> Array:
        return np.isnan(a)

    def absolute(self, a: Array) -> Array:
        return np.absolute(a)

    @np.errstate(all="ignore")
    def sqrt(self, a: Array) -> Array:
        return np.sqrt(a)

    def floor(self, a: Array) -> Array:
        return np.floor(a)

    def ceil(self, a: Array) -> Array:
        return np.ceil(a)

    def round_even(self, a: Array) -> Array:
        return np.rint(a)

    @np.errstate(all="ignore")
    def exp(self, a: Array) -> Array:
        return np.exp(a)

    @np.errstate(all="ignore")
    def log(self, a: Array) -> Array:
        return np.log(a)

    @np.errstate(all="ignore")
    def sin(self, a: Array) -> Array:
        return np.sin(a)

    @np.errstate(all="ignore")
    def cos(self, a: Array) -> Array:
        return np.cos(a)

    def tanh(self, a: Array) -> Array:
        return np.tanh(a)

    @np.errstate(all="ignore")
    def sigmoid(self, a: Array) -> Array:
        from scipy.special import expit  # takes longer to import than a small model to compile

        return np.asarray(expit(a)).astype(np.asarray(a).dtype, copy=False)

    @np.errstate(all="ignore")
    def erf(self, a: Array) -> Array:
        from scipy.special import erf  # takes longer to import than a small model to compile

        return np.asarray(erf(a)).astype(np.asarray(a).dtype, copy=False)

    @np.errstate(all="ignore")
    def power(self, a: Array, b: Array) -> Array:
        dtype = np.asarray(a).dtype
        whole = dtype.kind in "iu" and np.asarray(b).dtype.kind in "iu"
        if whole and not np.any(np.less(b, 0)):
            return np.asarray(np.power(a, b)).astype(dtype)
        # numpy refuses an integer to a negative integer power.
        exponent = np.asarray(b, np.float64) if whole else b
        return np.asarray(np.power(a, exponent)).astype(dtype)

    @np.errstate(all="ignore")
    def modulo(self, a: Array, b: Array, fmod: bool) -> Array:
        return np.fmod(a, b) if fmod else np.mod(a, b)

    @np.errstate(all="ignore")
    def divide(self, a: Array, b: Array) -> Array:
        if np.asarray(a).dtype.kind not in "iu":
            return np.divide(a, b)
        down = np.floor_divide(a, b)
        inexact_negative = (np.multiply(down, b) != a) & (np.less(a, 0) != np.less(b, 0))
        return np.asarray(down + inexact_negative).astype(np.asarray(a).dtype)

    @np.errstate(all="ignore")
    def cast(self, a: Array, dtype: str) -> Array:
        return np.asarray(a).astype(np.dtype(dtype))

    @np.errstate(all="ignore")
    def quantize(self, a: Array, scale: Array, zero_point: Array) -> Array:
        """a / scale, rounded half to even, plus the zero point, held to the zero point's type; NaN becomes
        the least value."""
        dtype = np.asarray(zero_point).dtype
        bounds = np.iinfo(dtype)
        single = np.divide(np.asarray(a).astype(np.float32), np.asarray(scale).astype(np.float32))
        moved = np.rint(single).astype(np.float64) + zero_point
        held = np.clip(np.where(np.isnan(moved), bounds.min, moved), bounds.min, bounds.max)
        return np.asarray(held).astype(dtype)

    def dequantize(self, a: Array, scale: Array, zero_point: Array) -> Array:
        """(a - zero point) * scale in the scale's type; the difference is of int32."""
        difference = np.subtract(np.asarray(a).astype(np.int32), np.asarray(zero_point).astype(np.int32))
        product = np.multiply(difference.astype(np.float32), np.asarray(scale).astype(np.float32))
        return np.asarray(product).astype(np.asarray(scale).dtype)


@np.errstate(all="ignore")
def evaluate(expression: Expression, arrays: Sequence[Array]) -> Array:
    """An expression of numpy arrays that broadcast onto each other, of any dtypes that its steps take."""
    return np.asarray(expression.evaluate(NumpyMath(), arrays))
