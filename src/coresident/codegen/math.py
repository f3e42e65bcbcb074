"""The arithmetic of `graph.expression` on values in registers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import functions
from coresident.codegen.builder import Function, Value
from coresident.codegen.types import F16, F32, I1, I8, I32, Type, of_dtype
from coresident.graph.expression import Expression


def register_type(dtype: np.dtype[Any] | str) -> Type:
    """How an element is held while it is computed with: bool as one bit, float16 as single precision."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return I1
    return F32 if dtype == np.float16 else of_dtype(dtype)


@dataclass(frozen=True)
class Typed:
    """A value and what it means.

    Args:
        value: scalar or vector, of `register_type(dtype)` lanes.
        dtype: name of the numpy type ("float32"); tells unsigned from signed.
        number: its value where it is known now, the same in all lanes.
    """

    value: Value
    dtype: str
    number: float | None = None

    @property
    def function(self) -> Function:
        return self.value.function

    @property
    def is_float(self) -> bool:
        return self.value.type.kind == "f"

    @property
    def is_signed(self) -> bool:
        return np.dtype(self.dtype).kind in "if"

    def _with(self, other: Typed | float, act: Callable[[Value, Value], Value]) -> Typed:
        a, b = _alike(self, other)
        return Typed(act(a.value, b.value), self.dtype)

    def __add__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.add)

    def __sub__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.sub)

    def __mul__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.mul)

    def __truediv__(self, other: Typed | float) -> Typed:
        return CodeMath(self.function).divide(self, other)

    def __and__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.and_)

    def __or__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.or_)

    def __xor__(self, other: Typed | float) -> Typed:
        return self._with(other, operator.xor)

    def __neg__(self) -> Typed:
        return Typed(-self.value, self.dtype)

    def _compare(self, other: Typed | float, act: Callable[[Value, Value], Value], unsigned: str) -> Typed:
        a, b = _alike(self, other)
        if self.is_signed:
            return Typed(act(a.value, b.value), "bool")
        kind = a.value.type
        text = f"icmp {unsigned} {kind} {a.value.text}, {b.value.text}"
        return Typed(self.function.emit(text, I1.by(kind.lanes)), "bool")

    def __lt__(self, other: Typed | float) -> Typed:
        return self._compare(other, operator.lt, "ult")

    def __le__(self, other: Typed | float) -> Typed:
        return self._compare(other, operator.le, "ule")

    def __gt__(self, other: Typed | float) -> Typed:
        return self._compare(other, operator.gt, "ugt")

    def __ge__(self, other: Typed | float) -> Typed:
        return self._compare(other, operator.ge, "uge")


def _alike(a: Typed, b: Typed | float) -> tuple[Typed, Typed]:
    """Both with the same number of lanes; a number takes the type of a."""
    if not isinstance(b, Typed):
        b = typed_constant(a.function, b, a.dtype, a.value.type.lanes)
    if a.dtype != b.dtype:
        raise TypeError(f"{a.dtype} meets {b.dtype} in {a.function.name}")
    lanes = max(a.value.type.lanes, b.value.type.lanes)
    return _spread(a, lanes), _spread(b, lanes)


def _spread(a: Typed, lanes: int) -> Typed:
    if a.value.type.lanes == lanes:
        return a
    return Typed(a.function.splat(a.value, a.value.type.by(lanes)), a.dtype, a.number)


def typed_constant(function: Function, number: float, dtype: np.dtype[Any] | str, lanes: int) -> Typed:
    """A number in all lanes, of a numpy type."""
    kind = register_type(dtype).by(lanes)
    return Typed(function.constant(number, kind), np.dtype(dtype).name, number)


def evaluate(function: Function, expression: Expression, values: Sequence[Value | Typed]) -> Value:
    """The result of an expression for values in registers.

    Args:
        values: one an input; a bare Value is taken as a float, a signed integer or (one bit) a bool.
    """
    typed = [v if isinstance(v, Typed) else Typed(v, _natural_dtype(v.type)) for v in values]
    result: Typed = expression.evaluate(CodeMath(function), typed)
    return result.value


def _natural_dtype(kind: Type) -> str:
    if kind.bits == 1:
        return "bool"
    return f"{'float' if kind.kind == 'f' else 'int'}{kind.bits}"


class CodeMath:
    """The `Math` of `graph.expression` over `Typed` values: emits code into one function."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def constant(self, value: float, like: Typed) -> Typed:
        return typed_constant(self.function, value, like.dtype, like.value.type.lanes)

    # Choice and comparison

    def maximum(self, a: Typed, b: Typed) -> Typed:
        """The larger; a NaN in a passes."""
        return self.where(b > a, b, a)

    def minimum(self, a: Typed, b: Typed) -> Typed:
        """The smaller; a NaN in a passes."""
        return self.where(b < a, b, a)

    def equal(self, a: Typed, b: Typed) -> Typed:
        a, b = _alike(a, b)
        return Typed(a.value.equals(b.value), "bool")

    def invert(self, a: Typed) -> Typed:
        ones = 1 if a.dtype == "bool" else -1
        return Typed(a.value ^ self.function.constant(ones, a.value.type), a.dtype)

    def where(self, condition: Typed, a: Typed, b: Typed) -> Typed:
        a, b = _alike(a, b)
        lanes = max(a.value.type.lanes, condition.value.type.lanes)
        a, b, condition = _spread(a, lanes), _spread(b, lanes), _spread(condition, lanes)
        return Typed(self.function.select(condition.value, a.value, b.value), a.dtype)

    def is_nan(self, a: Typed) -> Typed:
        if not a.is_float:
            return Typed(self.function.constant(0, I1.by(a.value.type.lanes)), "bool", 0)
        return Typed(a.value.differs(a.value), "bool")

    def absolute(self, a: Typed) -> Typed:
        if a.is_float:
            return Typed(self.function.unary("fabs", a.value), a.dtype)
        return self.where(a < self.constant(0, a), -a, a) if a.is_signed else a

    # Rounding

    def _rounded(self, name: str, a: Typed) -> Typed:
        return Typed(self.function.unary(name, a.value), a.dtype) if a.is_float else a

    def floor(self, a: Typed) -> Typed:
        return self._rounded("floor", a)

    def ceil(self, a: Typed) -> Typed:
        return self._rounded("ceil", a)

    def round_even(self, a: Typed) -> Typed:
        return self._rounded("roundeven", a)

    # Functions

    def sqrt(self, a: Typed) -> Typed:
        return Typed(self.function.unary("sqrt", a.value), a.dtype)

    def exp(self, a: Typed) -> Typed:
        """e**a: inf beyond the largest float, denormals and then 0 below the smallest."""
        return Typed(functions.exp(self.function, a.value), a.dtype)

    def log(self, a: Typed) -> Typed:
        """Natural logarithm: -inf of 0, NaN of what is negative, denormals included."""
        return Typed(functions.log(self.function, a.value), a.dtype)

    def sin(self, a: Typed) -> Typed:
        """Sine; single precision for |a| < 2**30, double for |a| < 2**20."""
        return Typed(functions.sin_or_cos(self.function, a.value, 0), a.dtype)

    def cos(self, a: Typed) -> Typed:
        """Cosine, over the range of `sin`."""
        return Typed(functions.sin_or_cos(self.function, a.value, 1), a.dtype)

    def tanh(self, a: Typed) -> Typed:
        return Typed(functions.tanh(self.function, a.value), a.dtype)

    def sigmoid(self, a: Typed) -> Typed:
        """1 / (1 + e**-a); at most the smallest normal float above 0 for large negative a."""
        f, one = self.function, self.function.constant(1.0, a.value.type)
        return Typed(one / (functions.exp(f, -a.value, normal=True) + one), a.dtype)

    def erf(self, a: Typed) -> Typed:
        return Typed(functions.erf(self.function, a.value), a.dtype)

    def power(self, a: Typed, b: Typed) -> Typed:
        """a**b in the type of a, as C's pow; integers multiply, and wrap. Integer bases with negative integer
        exponents truncate toward zero (0**negative is 0)."""
        simple = self._simple_power(a, b.number)
        if simple is not None:
            return simple
        if a.is_float:
            wide_a, wide_b = self.cast(a, "float64"), self.cast(b, "float64")
            return self.cast(self._float_power(*_alike(wide_a, wide_b)), a.dtype)
        if b.is_float:
            wide_a, wide_b = self.cast(a, "float64"), self.cast(b, "float64")
            return self.cast(self._float_power(*_alike(wide_a, wide_b)), a.dtype)
        return self._integer_power(*_alike(a, self.cast(b, a.dtype)))

    def _simple_power(self, a: Typed, exponent: float | None) -> Typed | None:
        if exponent in (1, 2, 3, 4):
            square = a * a
            return {1: a, 2: square, 3: square * a, 4: square * square}[int(exponent)]
        if not a.is_float or exponent not in (0.5, -0.5, -1, -2):
            return None
        one = self.constant(1, a)
        return {0.5: self.sqrt(a), -0.5: one / self.sqrt(a), -1: one / a, -2: one / (a * a)}[exponent]

    def _float_power(self, a: Typed, b: Typed) -> Typed:
        zero, one = self.constant(0, a), self.constant(1, a)
        size = self.absolute(a)
        power = self.where(self.equal(size, one), one, self.exp(b * self.log(size)))
        half = b * self.constant(0.5, b)
        integral, even = self.equal(self.floor(b), b), self.equal(self.floor(half), half)
        minus = Typed(functions.copy_sign(self.function, one.value, a.value), a.dtype)
        signed = self.where(even, power, power * minus)
        nan = self.constant(math.nan, a)
        power = self.where(integral, signed, self.where((a < zero) & (size < math.inf), nan, power))
        power = self.where(self.is_nan(b), nan, power)
        return self.where(self.equal(b, zero), one, self.where(self.equal(a, one), one, power))

    def _integer_power(self, a: Typed, b: Typed) -> Typed:
        f = self.function
        zero, one = self.constant(0, a), self.constant(1, a)
        product, square, rest = f.var(one.value), f.var(a.value), f.var(self.absolute(b).value)
        with f.loop(0, a.value.type.bits):
            odd = (rest.get() & one.value).differs(zero.value)
            product.set(f.select(odd, product.get() * square.get(), product.get()))
            square.set(square.get() * square.get())
            kind = rest.type
            rest.set(f.emit(f"lshr {kind} {rest.get().text}, {one.value.text}", kind))
        power = Typed(product.get(), a.dtype)
        return self.where(b < zero, self.divide(one, power), power) if b.is_signed else power

    def modulo(self, a: Typed, b: Typed, fmod: bool) -> Typed:
        """The remainder with the sign of a (fmod) or of b; 0 of an integer modulo 0.

        Floats are exact to a rounding while |a / b| < 2**52.
        """
        a, b = _alike(a, b)
        remainder = self._float_remainder(a, b) if a.is_float else self._integer_remainder(a, b)
        if fmod or not a.is_signed:
            return remainder
        zero = self.constant(0, a)
        other_side = (remainder < zero) ^ (b < zero)
        nonzero = self.invert(self.equal(remainder, zero))
        return self.where(other_side & nonzero, remainder + b, remainder)

    def _float_remainder(self, a: Typed, b: Typed) -> Typed:
        f = self.function
        wide_a, wide_b = self.cast(a, "float64"), self.cast(b, "float64")
        quotient = f.unary("trunc", wide_a.value / wide_b.value)
        rest = Typed(f.fma(-quotient, wide_b.value, wide_a.value), "float64")
        # A quotient just below an integer was rounded up to it: the rest is then of the other sign.
        back = Typed(functions.copy_sign(f, wide_b.value, wide_a.value), "float64")
        beyond = self.where(wide_a < 0.0, rest > 0.0, rest < 0.0)
        remainder = self.cast(self.where(beyond, rest + back, rest), a.dtype)
        infinity = self.constant(math.inf, a)
        fits = self.equal(self.absolute(b), infinity) & (self.absolute(a) < infinity)
        return self.where(fits, a, remainder)

    def _integer_remainder(self, a: Typed, b: Typed) -> Typed:
        return self.where(self.equal(b, self.constant(0, b)), self.constant(0, a), a - self.divide(a, b) * b)

    def divide(self, a: Typed, b: Typed | float) -> Typed:
        """a / b; integers truncate toward zero, anything by 0 is 0 and the smallest by -1 wraps."""
        a, b = _alike(a, b)
        if a.is_float:
            return Typed(a.value / b.value, a.dtype)
        zero, one = self.constant(0, b), self.constant(1, b)
        by_zero = self.equal(b, zero)
        if not a.is_signed:
            divisor = self.where(by_zero, one, b)
            kind = a.value.type
            quotient = Typed(
                self.function.emit(f"udiv {kind} {a.value.text}, {divisor.value.text}", kind), a.dtype
            )
            return self.where(by_zero, zero, quotient)
        by_minus_one = self.equal(b, self.constant(-1, b))
        divisor = self.where(by_zero | by_minus_one, one, b)
        quotient = Typed(a.value / divisor.value, a.dtype)
        return self.where(by_zero, zero, self.where(by_minus_one, -a, quotient))

    def cast(self, a: Typed, dtype: str) -> Typed:
        """To another numpy type.

        A float beyond the range of an integer narrower than 32 bits wraps, as C compilers make it on x86-64;
        beyond that of a wider one it saturates; NaN becomes 0.
        """
        f, target, name = self.function, np.dtype(dtype), np.dtype(dtype).name
        if name == a.dtype:
            return a
        if name == "bool":
            return Typed(a.value.differs(f.constant(0, a.value.type)), name)
        kind = register_type(target)
        if name == "float16":
            single = self.cast(a, "float32").value
            return Typed(f.convert(f.convert(single, F16), F32), name)
        if a.is_float and kind.kind == "i" and kind.bits < 32:
            return Typed(f.convert(f.convert(a.value, I32), kind), name)
        signed = target.kind != "u" if a.is_float else a.is_signed
        number = a.number if target.kind == "f" else None
        return Typed(f.convert(a.value, kind, signed=signed), name, number)

    # Quantisation

    def quantize(self, a: Typed, scale: Typed, zero_point: Typed) -> Typed:
        """a / scale, rounded half to even, plus the zero point, held to the zero point's type; NaN becomes
        the least value."""
        f = self.function
        whole = self._nearest(self.cast(a, "float32"), self.cast(scale, "float32"))
        moved = whole + self.cast(zero_point, "int32")
        kind, bounds = moved.value.type, np.iinfo(zero_point.dtype)
        # Compilers know this form: it becomes instructions that saturate.
        low, high = f.constant(int(bounds.min), kind), f.constant(int(bounds.max), kind)
        held = f.call(f"llvm.smax.{kind.suffix}", kind, moved.value, low)
        held = f.call(f"llvm.smin.{kind.suffix}", kind, held, high)
        return Typed(f.convert(held, register_type(zero_point.dtype)), zero_point.dtype)

    def _nearest(self, a: Typed, scale: Typed) -> Typed:
        """The integer nearest to a / scale, where that lies within `_QUOTIENTS`; otherwise some beyond."""
        f, number = self.function, scale.number
        if number is not None and _inverts(number):
            quotient = self._times_inverse(a, scale, float(np.float32(number)))
        else:
            quotient = self._held(Typed((a / scale).value, "float32"), _QUOTIENTS)
        kind = I32.by(quotient.value.type.lanes)
        name = f"llvm.lrint.{kind.suffix}.{quotient.value.type.suffix}"
        return Typed(f.call(name, kind, quotient.value), "int32")

    def _held(self, a: Typed, bound: float) -> Typed:
        """Within [-bound, bound]; NaN becomes -bound."""
        return self.minimum(self.maximum(self.constant(-bound, a), a), self.constant(bound, a))

    def _times_inverse(self, a: Typed, scale: Typed, number: float) -> Typed:
        """a / scale, correctly rounded, without a division (P. Markstein, "Computation of elementary
        functions on the IBM RISC System/6000 processor", 1990)."""
        f, inverse = self.function, self.constant(float(np.float32(1 / number)), a)
        held = self._held(a, _QUOTIENTS * number)
        quotient = held * inverse
        if math.frexp(number)[0] == 0.5:
            return quotient
        a, scale = _alike(held, scale)
        rest = f.fma(-quotient.value, scale.value, a.value)
        return Typed(f.fma(rest, inverse.value, quotient.value), "float32")

    def dequantize(self, a: Typed, scale: Typed, zero_point: Typed) -> Typed:
        """(a - zero point) * scale in the scale's type; the difference is of int32."""
        difference = self.cast(a, "int32")
        if zero_point.number != 0:
            difference = difference - self.cast(zero_point, "int32")
        product = self.cast(difference, "float32") * self.cast(scale, "float32")
        return self.cast(product, scale.dtype)


_QUOTIENTS = 2.0**20
"""Quotients beyond this saturate whatever the zero point."""


def _inverts(scale: float) -> bool:
    """Whether a scale is far enough from 0 and infinity to be divided by through its inverse."""
    return 2.0**-90 < scale < 2.0**90


def to_register(function: Function, loaded: Value, dtype: np.dtype[Any]) -> Typed:
    """What was loaded from memory (`of_dtype` lanes), as it is computed with."""
    if dtype.kind == "b":
        loaded = loaded.differs(0)
    elif dtype == np.float16:
        loaded = function.convert(loaded, F32)
    return Typed(loaded, dtype.name)


def to_memory(function: Function, result: Typed) -> Value:
    """A result as it is stored: bool as a byte of 0 or 1."""
    if result.dtype == "bool":
        return function.convert(result.value, I8)
    return function.convert(result.value, F16) if result.dtype == "float16" else result.value
