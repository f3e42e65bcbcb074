"""Short ways to the bytes that sums of dequantised bytes are quantised to, as in residual additions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_LARGEST = 1 << 17
"""Combinations of bytes that are tried, at most."""

_STEPS = (0, 1, -1, 2, -2)
"""Units in the last place by which constants are moved until all combinations are right."""


@dataclass(frozen=True)
class Dequantised:
    """A whole number n from `low` to `high` as the float (n + moved) * scale."""

    low: int
    high: int
    moved: int
    scale: float


@lru_cache(maxsize=256)
def weights(
    terms: tuple[Dequantised, ...], scale: float, low: int, high: int
) -> tuple[tuple[float, ...], float] | None:
    """Float32 numbers w and c such that for all whole numbers n of two terms w0 n0 + (w1 n1 + c), each step
    one fused multiply-add, rounds to what the sum of the terms divided by the scale rounds to, both held to
    low..high. All combinations are tried.

    Returns:
        w and c; None where none were found.
    """
    if len(terms) != 2 or math.prod(t.high - t.low + 1 for t in terms) > _LARGEST:
        return None
    with np.errstate(all="ignore"):
        return _found(terms, scale, low, high)


def _found(
    terms: tuple[Dequantised, ...], scale: float, low: int, high: int
) -> tuple[tuple[float, ...], float] | None:
    numbers = [np.arange(t.low, t.high + 1) for t in terms]
    values = [(n + t.moved).astype(np.float32) * np.float32(t.scale) for n, t in zip(numbers, terms)]
    total = values[0][:, None] + values[1][None, :]
    wanted = np.clip(np.rint(total / np.float32(scale)), low, high)
    exact = [np.float32(t.scale / scale) for t in terms]
    start = np.float32(sum(t.moved * t.scale for t in terms) / scale)
    for moves in itertools.product(_STEPS[:3], _STEPS[:3], _STEPS):
        first, second, constant = (_moved(x, by) for x, by in zip((*exact, start), moves))
        inner = _fused(numbers[1], second, constant)
        outer = None if inner is None else _fused(numbers[0][:, None], first, inner[None, :])
        if outer is None:
            return None
        if np.array_equal(np.clip(np.rint(outer), low, high), wanted):
            return (float(first), float(second)), float(constant)
    return None


def _moved(value: np.float32, by: int) -> np.float32:
    for _ in range(abs(by)):
        value = np.nextafter(value, np.float32(np.inf if by > 0 else -np.inf))
    return value


def _fused(n: np.ndarray, weight: np.float32, addend: np.ndarray | np.float32) -> np.ndarray | None:
    """n * weight + addend rounded once to float32; None where float64 can't hold it on the way."""
    product = n.astype(np.float64) * np.float64(weight)
    other = np.asarray(addend, np.float64)
    total = product + other
    back = total - product
    if np.any((product - (total - back)) + (other - back)):
        return None
    return total.astype(np.float32)
