"""The arithmetic of `graph.expression` on values in registers: polynomials in place of a library.

Objects made from it have no undefined symbols. Single precision is within 2 units in the last place of the
exact result, double precision within 4, over the ranges that each function names. Sources: S. L. Moshier,
Cephes Mathematical Library 2.8 (exp, log, sin, cos, tanh, double erf); N. Juffa's single-precision erf (minimax
for |x| < 0.92, 1 - exp(polynomial) beyond); W. J. Cody and W. Waite, Software Manual for the Elementary
Functions (range reduction).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import F16, F32, F64, I1, I8, I32, I64, Type, of_dtype
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


@dataclass(frozen=True)
class _Format:
    """What range reduction needs to know of a floating-point format.

    Args:
        mantissa: bits of it stored.
        integer: the type its bits are looked at through.
        magic: 1.5 * 2**mantissa; adding it rounds to an integer, which then stands in the low bits.
        magic_bits: the same, as bits.
    """

    mantissa: int
    integer: Type
    magic: float
    magic_bits: int
    bias: int
    sqrt_half_bits: int
    smallest_normal: float
    ln2: tuple[float, float]
    exp_bounds: tuple[float, float]
    exp_normal_bounds: tuple[float, float]


_FORMATS = {
    32: _Format(
        23, I32, 12582912.0, 0x4B400000, 127, 0x3F3504F3, 2.0**-126,
        (0.693359375, -2.12194440e-4), (-104.0, 89.0), (-87.0, 88.0),
    ),
    64: _Format(
        52, I64, 6755399441055744.0, 0x4338000000000000, 1023, 0x3FE6A09E667F3BCD, 2.0**-1022,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10), (-746.0, 710.0), (-708.0, 709.0),
    ),
}  # fmt: skip

_EXP = {
    32: (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ),
    64: tuple(1 / math.factorial(k) for k in range(13, 1, -1)),
}
_LOG_32 = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_64 = tuple(2 / k for k in range(23, 1, -2))
_SIN = {
    32: (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1),
    64: tuple((-1) ** (k // 2) / math.factorial(k) for k in range(17, 1, -2)),
}
_COS = {
    32: (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2),
    64: tuple((-1) ** (k // 2) / math.factorial(k) for k in range(16, 2, -2)),
}
_HALF_PI = (1.5707963267948966, 6.123233995736766e-17)
_TANH_32 = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_TANH_64 = (
    (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3),
    (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3),
)
_ERF_32_SMALL = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)
_ERF_32_LARGE = (
    -1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1, -1.28717512e-1,
)  # fmt: skip
_ERF_64_SMALL = (
    (9.60497373987051638749e0, 9.00260197203842689217e1, 2.23200534594684319226e3, 7.00332514112805075473e3,
     5.55923013010394962768e4),
    (1.0, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3, 2.26290000613890934246e4,
     4.92673942608635921086e4),
)  # fmt: skip
_ERFC_64 = (
    (2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687e0, 4.86371970985681366614e1,
     1.96520832956077098242e2, 5.26445194995477358631e2, 9.34528527171957607540e2, 1.02755188689515710272e3,
     5.57535335369399327526e2),
    (1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2, 9.75708501743205489753e2,
     1.82390916687909736289e3, 2.24633760818710981792e3, 1.65666309194161350182e3, 5.57535340817727675546e2),
)  # fmt: skip


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
        return Typed(_exp(self.function, a.value), a.dtype)

    def log(self, a: Typed) -> Typed:
        """Natural logarithm: -inf of 0, NaN of what is negative, denormals included."""
        return Typed(_log(self.function, a.value), a.dtype)

    def sin(self, a: Typed) -> Typed:
        """Sine; single precision for |a| < 2**30, double for |a| < 2**20."""
        return Typed(_sin_or_cos(self.function, a.value, 0), a.dtype)

    def cos(self, a: Typed) -> Typed:
        """Cosine, over the range of `sin`."""
        return Typed(_sin_or_cos(self.function, a.value, 1), a.dtype)

    def tanh(self, a: Typed) -> Typed:
        return Typed(_tanh(self.function, a.value), a.dtype)

    def sigmoid(self, a: Typed) -> Typed:
        """1 / (1 + e**-a); at most the smallest normal float above 0 for large negative a."""
        f, one = self.function, self.function.constant(1.0, a.value.type)
        return Typed(one / (_exp(f, -a.value, normal=True) + one), a.dtype)

    def erf(self, a: Typed) -> Typed:
        return Typed(_erf(self.function, a.value), a.dtype)

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
        minus = Typed(
            self.function.call(f"llvm.copysign.{a.value.type.suffix}", a.value.type, one.value, a.value),
            a.dtype,
        )
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
        back = Typed(_copy_sign(f, wide_b.value, wide_a.value), "float64")
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


# The functions, on bare values of F32 or F64 lanes


def _polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, highest power first."""
    total = f.constant(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        total = f.fma(total, x, coefficient)
    return total


def _copy_sign(f: Function, size: Value, sign: Value) -> Value:
    return f.call(f"llvm.copysign.{size.type.suffix}", size.type, size, sign)


def _exp(f: Function, x: Value, normal: bool = False) -> Value:
    """e**x; with `normal`, x is held to where the result is a finite normal number, which saves a scaling."""
    form = _FORMATS[x.type.bits]
    low, high = form.exp_normal_bounds if normal else form.exp_bounds
    x = f.minimum(f.maximum(x, low), high)
    shifted = f.fma(x, f.constant(math.log2(math.e), x.type), form.magic)
    n = shifted - form.magic
    r = f.fma(n, f.constant(-form.ln2[1], x.type), f.fma(n, f.constant(-form.ln2[0], x.type), x))
    power = f.fma(_polynomial(f, r, _EXP[x.type.bits]), r * r, r) + 1.0
    bits = f.bitcast(shifted, form.integer.by(x.type.lanes)) - form.magic_bits
    if normal:
        return power * _power_of_two(f, bits, x.type)
    # 2**n itself may lie outside the format where the result does not: scale in two steps.
    half = bits >> 1
    return power * _power_of_two(f, half, x.type) * _power_of_two(f, bits - half, x.type)


def _power_of_two(f: Function, n: Value, kind: Type) -> Value:
    form = _FORMATS[kind.bits]
    return f.bitcast((n + form.bias) << form.mantissa, kind)


def _log(f: Function, x: Value) -> Value:
    form, kind = _FORMATS[x.type.bits], x.type
    integer = form.integer.by(kind.lanes)
    denormal = x < form.smallest_normal
    bits = f.bitcast(f.select(denormal, x * 2.0**form.mantissa, x), integer)
    exponent = (bits - form.sqrt_half_bits) >> form.mantissa
    fraction = f.bitcast(bits - (exponent << form.mantissa), kind) - 1.0
    exponent = exponent - f.select(denormal, f.constant(form.mantissa, integer), 0)
    e = f.bitcast(exponent + form.magic_bits, kind) - form.magic
    high, low = form.ln2
    if kind.bits == 32:
        square = fraction * fraction
        small = f.fma(_polynomial(f, fraction, _LOG_32) * fraction, square, e * low)
        result = f.fma(e, high, fraction + f.fma(square, f.constant(-0.5, kind), small))
    else:
        s = fraction / (fraction + 2.0)
        square = s * s
        small = f.fma(_polynomial(f, square, _LOG_64) * square, s, e * low)
        result = f.fma(e, high, f.fma(s, 2.0, small))
    result = f.select(x.equals(math.inf), x, result)
    outside = f.select(x.equals(0.0), f.constant(-math.inf, kind), math.nan)
    return f.select(x > 0.0, result, outside)


def _sin_or_cos(f: Function, x: Value, quarter: int) -> Value:
    kind, form = x.type, _FORMATS[64]
    wide = f.convert(x, F64)
    shifted = f.fma(wide, f.constant(2 / math.pi, wide.type), form.magic)
    n = shifted - form.magic
    reduced = wide
    for part in _HALF_PI:
        reduced = f.fma(n, f.constant(-part, wide.type), reduced)
    r = f.convert(reduced, kind.scalar)
    turn = f.bitcast(shifted, I64.by(kind.lanes)) + quarter
    turn = f.convert(turn, _FORMATS[kind.bits].integer)
    square = r * r
    sine = f.fma(_polynomial(f, square, _SIN[kind.bits]) * square, r, r)
    cosine = f.fma(
        _polynomial(f, square, _COS[kind.bits]), square * square, f.fma(square, f.constant(-0.5, kind), 1.0)
    )
    size = f.select((turn & 1).differs(0), cosine, sine)
    result = f.select((turn & 2).differs(0), -size, size)
    # Beyond the range of the reduction the polynomials leave the unit interval.
    return f.minimum(f.maximum(result, -1.0), 1.0)


def _tanh(f: Function, x: Value) -> Value:
    kind = x.type
    size, square = f.unary("fabs", x), x * x
    if kind.bits == 32:
        correction = _polynomial(f, square, _TANH_32)
    else:
        correction = _polynomial(f, square, _TANH_64[0]) / _polynomial(f, square, _TANH_64[1])
    small = f.fma(correction * square, x, x)
    large = f.constant(1.0, kind) - f.constant(2.0, kind) / (_exp(f, size + size, normal=True) + 1.0)
    return f.select(size < 0.625, small, _copy_sign(f, large, x))


def _erf(f: Function, x: Value) -> Value:
    kind = x.type
    size, square = f.unary("fabs", x), x * x
    if kind.bits == 32:
        small = f.fma(_polynomial(f, square, _ERF_32_SMALL), x, x)
        capped = f.minimum(size, 4.0)
        exponent = f.fma(_polynomial(f, capped, _ERF_32_LARGE), capped, -capped)
        large = f.constant(1.0, kind) - _exp(f, exponent, normal=True)
        return f.select(size < 0.921875, small, _copy_sign(f, large, x))
    small = x * _polynomial(f, square, _ERF_64_SMALL[0]) / _polynomial(f, square, _ERF_64_SMALL[1])
    capped = f.minimum(size, 6.0)
    ratio = _polynomial(f, capped, _ERFC_64[0]) / _polynomial(f, capped, _ERFC_64[1])
    large = f.constant(1.0, kind) - _exp(f, -(capped * capped), normal=True) * ratio
    return f.select(size < 1.0, small, _copy_sign(f, large, x))


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
