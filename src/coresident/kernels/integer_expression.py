"""Evaluates what follows integer sums with the ranges of the numbers in mind.

Sums, scales and zero points are known or bounded, so most tests for numbers that are too large can go; and
bytes that are dequantised right after they were quantised never leave the float registers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import CodeMath, Typed, typed_constant
from coresident.codegen.types import I32
from coresident.graph.expression import ELEMENTWISE, Apply, Expression
from coresident.kernels import byte_sums
from coresident.kernels.byte_sums import Dequantised

_ROUNDED = 2.0**22
"""Quotients below this are rounded to integers exactly, by any way of doing it."""

_SHRINKING = frozenset(("Relu", "LeakyRelu", "Identity", "Neg", "Abs"))
"""Operators whose result is no larger than their operand (LeakyRelu by its usual slopes)."""


@dataclass(frozen=True)
class Ranged:
    """A value, and how large it can be.

    Args:
        typed: the value; for a byte that is still `rounded`, a float.
        bound: of its magnitude; infinite where unknown.
        rounded: (zero point, dtype) of a byte that is held as the rounded quotient, zero point left out.
        terms: where it is a sum of bytes that were dequantised with constants: floats that hold whole
            numbers, and what each stands for.
    """

    typed: Typed
    bound: float
    rounded: tuple[int, str] | None = None
    terms: tuple[tuple[Typed, Dequantised], ...] = ()


def known(typed: Typed) -> Ranged:
    """A value as it was loaded or written into the code."""
    if typed.number is not None:
        return Ranged(typed, abs(typed.number) if math.isfinite(typed.number) else math.inf)
    dtype = np.dtype(typed.dtype)
    if dtype.kind not in "iu":
        return Ranged(typed, math.inf)
    limits = np.iinfo(dtype)
    return Ranged(typed, float(max(-int(limits.min), int(limits.max))))


def evaluate(f: Function, expression: Expression, values: Sequence[Ranged], quotient: bool) -> Ranged:
    """The expression's result.

    Args:
        values: its inputs.
        quotient: leave the last step's result, which quantises with constants, `rounded` to int32 lanes.
    """
    have = list(values)
    for i, step in enumerate(expression.steps):
        arguments = [have[a] for a in step.arguments]
        last = i == len(expression.steps) - 1
        have.append(_step(f, step, arguments, quotient and last))
    result = have[-1] if expression.steps else have[0]
    return result if quotient else replace(result, typed=_plain(f, result), rounded=None)


def _step(f: Function, step: Apply, arguments: Sequence[Ranged], quotient: bool) -> Ranged:
    if step.op == "QuantizeLinear":
        found = _quantised(f, arguments, quotient)
        if found is not None:
            return found
    if step.op == "DequantizeLinear" and arguments[0].rounded is not None:
        found = _dequantised(f, arguments)
        if found is not None:
            return found
    typed = [_plain(f, a) for a in arguments]
    result: Typed = ELEMENTWISE[step.op](CodeMath(f), *typed, **dict(step.attributes))
    return Ranged(result, _bound(step, arguments), terms=_terms(f, step, arguments))


def _terms(f: Function, step: Apply, arguments: Sequence[Ranged]) -> tuple[tuple[Typed, Dequantised], ...]:
    if step.op == "Add":
        return (*arguments[0].terms, *arguments[1].terms) if all(a.terms for a in arguments) else ()
    if step.op != "DequantizeLinear" or np.dtype(arguments[0].typed.dtype).itemsize != 1:
        return ()
    x, scale, point = (a.typed for a in arguments)
    if scale.number is None or point.number is None or scale.dtype != "float32":
        return ()
    limits = np.iinfo(x.dtype)
    meaning = Dequantised(int(limits.min), int(limits.max), -int(point.number), float(scale.number))
    return ((CodeMath(f).cast(x, "float32"), meaning),)


def _bound(step: Apply, arguments: Sequence[Ranged]) -> float:
    bounds = [a.bound for a in arguments]
    attributes = dict(step.attributes)
    if step.op == "Cast" and attributes.get("to") == "float32":
        return bounds[0]
    if step.op in _SHRINKING:
        return bounds[0] if abs(attributes.get("alpha", 0.01)) <= 1 else math.inf
    if step.op == "Mul":
        return bounds[0] * bounds[1] if all(map(math.isfinite, bounds)) else math.inf
    if step.op in ("Add", "Sub"):
        return bounds[0] + bounds[1]
    if step.op == "DequantizeLinear":
        return (bounds[0] + bounds[2]) * bounds[1]
    if step.op == "QuantizeLinear":
        return 256.0
    return math.inf


def _quantised(f: Function, arguments: Sequence[Ranged], quotient: bool) -> Ranged | None:
    """By constants, of a number that is not too large for them; None otherwise."""
    x, scale, point = arguments
    number, offset = scale.typed.number, point.typed.number
    if number is None or offset is None or scale.typed.dtype != "float32" or x.typed.dtype != "float32":
        return None
    if x.rounded is not None or not 2.0**-90 < number < 2.0**90 or not x.bound / number < 2.0**30:
        return None
    dtype, kind = np.dtype(point.typed.dtype), I32.by(x.typed.value.type.lanes)
    value = _summed(f, x, number, int(offset), dtype) or _divided(f, x.typed, number)
    if quotient:
        name = f"llvm.lrint.{kind.suffix}.{value.value.type.suffix}"
        return Ranged(
            Typed(f.call(name, kind, value.value), "int32"), x.bound / number, (int(offset), dtype.name)
        )
    limits = np.iinfo(dtype)
    low, high = float(limits.min) - offset, float(limits.max) - offset
    held = _held(f, value, low, high, x.bound / number)
    return Ranged(CodeMath(f).round_even(held), max(abs(low), abs(high)), (int(offset), dtype.name))


def _held(f: Function, value: Typed, low: float, high: float, bound: float) -> Typed:
    """A float32 held to low..high, of which none is on the wrong side of 0.

    Bits are compared: as signed integers they stand in the order of the numbers but for two negative ones,
    and as unsigned ones negative numbers stand behind all others, the largest last. Zen 5 has twice as many
    units for that as for floats: layers of ResNet-50 that add residuals of bytes are 1.02-1.03 times as fast.

    Args:
        value: not NaN.
        bound: of its magnitude.
    """
    kind, bits = value.value.type, I32.by(value.value.type.lanes)

    def limited(which: str, limit: float) -> Value:
        number = f.bitcast(f.constant(limit, kind), bits)
        return f.call(f"llvm.{which}.{bits.suffix}", bits, found, number)

    found = f.bitcast(value.value, bits)
    if bound >= -low:
        found = limited("umin", low) if low < 0 else limited("smax", 0.0)
    if bound >= high:
        found = limited("smin", high)
    return Typed(f.bitcast(found, kind), value.dtype)


def _summed(f: Function, x: Ranged, scale: float, point: int, dtype: np.dtype[Any]) -> Typed | None:
    """A number that rounds to the quotient, where there is a shorter way to one from the bytes that x is a
    sum of."""
    limits = np.iinfo(dtype)
    meanings = tuple(meaning for _, meaning in x.terms)
    found = byte_sums.weights(meanings, scale, int(limits.min) - point, int(limits.max) - point)
    if found is None:
        return None
    (first, second), constant = found
    one, other = (typed for typed, _ in x.terms)
    kind = one.value.type
    inner = f.fma(other.value, f.constant(second, kind), f.constant(constant, kind))
    return Typed(f.fma(one.value, f.constant(first, kind), inner), "float32")


def _divided(f: Function, x: Typed, scale: float) -> Typed:
    """x / scale, correctly rounded (P. Markstein, "Computation of elementary functions on the IBM RISC
    System/6000 processor", 1990)."""
    lanes = x.value.type.lanes
    inverse = typed_constant(f, float(np.float32(1 / np.float32(scale))), "float32", lanes)
    quotient = x * inverse
    if math.frexp(float(np.float32(scale)))[0] == 0.5:
        return quotient
    divisor = typed_constant(f, scale, "float32", lanes)
    rest = f.fma(-quotient.value, divisor.value, x.value)
    return Typed(f.fma(rest, inverse.value, quotient.value), "float32")


def _dequantised(f: Function, arguments: Sequence[Ranged]) -> Ranged | None:
    """Of a byte in a float register, by constants."""
    x, scale, point = arguments
    assert x.rounded is not None
    if scale.typed.number is None or point.typed.number is None or scale.typed.dtype != "float32":
        return None
    m = CodeMath(f)
    moved = x.rounded[0] - int(point.typed.number)
    value = x.typed + m.constant(float(moved), x.typed) if moved else x.typed
    bound = (x.bound + abs(moved)) * abs(scale.typed.number)
    limits = np.iinfo(np.dtype(x.rounded[1]))
    low, high = int(limits.min) - x.rounded[0], int(limits.max) - x.rounded[0]
    meaning = Dequantised(low, high, moved, float(scale.typed.number))
    return Ranged(value * m.constant(scale.typed.number, value), bound, terms=((x.typed, meaning),))


def _plain(f: Function, value: Ranged) -> Typed:
    """A value as other operators take it."""
    if value.rounded is None:
        return value.typed
    point, dtype = value.rounded
    m = CodeMath(f)
    whole = value.typed if value.typed.dtype == "int32" else m.cast(value.typed, "int32")
    return m.cast(whole + m.constant(point, whole), dtype)
