"""Functions of floats by polynomials, on values of F32 or F64 lanes; no library is called.

Single precision is within 2 units in the last place of the exact result, double precision within 4, over the
ranges that each function names. Sources: S. L. Moshier, Cephes Mathematical Library 2.8 (exp, log, sin, cos,
tanh, double erf); N. Juffa's single-precision erf (minimax for |x| < 0.92, 1 - exp(polynomial) beyond);
W. J. Cody and W. Waite, Software Manual for the Elementary Functions (range reduction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import F64, I32, I64, Type


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
    -1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1, -6.34846687e-1,
    -1.28717512e-1,
)  # fmt: skip
_ERF_64_SMALL = (
    (9.60497373987051638749e0, 9.00260197203842689217e1, 2.23200534594684319226e3,
     7.00332514112805075473e3, 5.55923013010394962768e4),
    (1.0, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3,
     2.26290000613890934246e4, 4.92673942608635921086e4),
)  # fmt: skip
_ERFC_64 = (
    (2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687e0,
     4.86371970985681366614e1, 1.96520832956077098242e2, 5.26445194995477358631e2,
     9.34528527171957607540e2, 1.02755188689515710272e3, 5.57535335369399327526e2),
    (1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2,
     9.75708501743205489753e2, 1.82390916687909736289e3, 2.24633760818710981792e3,
     1.65666309194161350182e3, 5.57535340817727675546e2),
)  # fmt: skip


def _polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, highest power first."""
    total = f.constant(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        total = f.fma(total, x, coefficient)
    return total


def copy_sign(f: Function, size: Value, sign: Value) -> Value:
    return f.call(f"llvm.copysign.{size.type.suffix}", size.type, size, sign)


def exp(f: Function, x: Value, normal: bool = False) -> Value:
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


def log(f: Function, x: Value) -> Value:
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


def sin_or_cos(f: Function, x: Value, quarter: int) -> Value:
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


def tanh(f: Function, x: Value) -> Value:
    kind = x.type
    size, square = f.unary("fabs", x), x * x
    if kind.bits == 32:
        correction = _polynomial(f, square, _TANH_32)
    else:
        correction = _polynomial(f, square, _TANH_64[0]) / _polynomial(f, square, _TANH_64[1])
    small = f.fma(correction * square, x, x)
    large = f.constant(1.0, kind) - f.constant(2.0, kind) / (exp(f, size + size, normal=True) + 1.0)
    return f.select(size < 0.625, small, copy_sign(f, large, x))


def erf(f: Function, x: Value) -> Value:
    kind = x.type
    size, square = f.unary("fabs", x), x * x
    if kind.bits == 32:
        small = f.fma(_polynomial(f, square, _ERF_32_SMALL), x, x)
        capped = f.minimum(size, 4.0)
        exponent = f.fma(_polynomial(f, capped, _ERF_32_LARGE), capped, -capped)
        large = f.constant(1.0, kind) - exp(f, exponent, normal=True)
        return f.select(size < 0.921875, small, copy_sign(f, large, x))
    small = x * _polynomial(f, square, _ERF_64_SMALL[0]) / _polynomial(f, square, _ERF_64_SMALL[1])
    capped = f.minimum(size, 6.0)
    ratio = _polynomial(f, capped, _ERFC_64[0]) / _polynomial(f, capped, _ERFC_64[1])
    large = f.constant(1.0, kind) - exp(f, -(capped * capped), normal=True) * ratio
    return f.select(size < 1.0, small, copy_sign(f, large, x))
