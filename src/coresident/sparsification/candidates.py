"""Which forms layers may take: patterns, element types, and shares of zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coresident.runtime import cpu
from coresident.sparsification.forms import DType, Form
from coresident.sparsification.reconstruction import Pattern
from coresident.sparsification.settings import Settings

UNSTRUCTURED = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
FOUR_BLOCK = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
"""Shares of zeros that are worked out, ascending. Blocks cost more accuracy than single weights do, and pay
earlier; few of them in layers that matter most spare others (SqueezeNet at 40 %: divergence 0.060 with 10 and
20 %, 0.064 without, and 0.039, not 0.049, for pictures held out)."""
FAST = 2
"""With little effort, every so many of them."""


@dataclass(frozen=True)
class Family:
    """Forms that make up one network.

    Args:
        dtype: of its products.
        pattern: of its zeros.
        sparsities: shares of zeros, ascending.
    """

    dtype: DType
    pattern: Pattern
    sparsities: tuple[float, ...]

    @property
    def dense(self) -> Form:
        """The form without zeros."""
        return Form(self.dtype)

    @property
    def forms(self) -> tuple[Form, ...]:
        """All of them, the dense one first."""
        return (self.dense, *(Form(self.dtype, self.pattern, s) for s in self.sparsities))


def families(settings: Settings) -> tuple[Family, ...]:
    """What is tried: pattern and element type as asked, or both of the pairs that suit each other."""
    found = []
    for dtype, pattern in (("float32", "unstructured"), ("int8", "4block")):
        if settings.quantize != "auto":
            dtype = "int8" if settings.quantize == "int8" else "float32"
        if settings.pattern != "auto":
            pattern = settings.pattern
        elif settings.quantize != "auto":
            pattern = "4block" if dtype == "int8" else "unstructured"
        sparsities: tuple[float, ...] = FOUR_BLOCK if pattern == "4block" else UNSTRUCTURED
        if settings.effort == "fast":
            sparsities = sparsities[1::FAST]
        found.append(Family(dtype, pattern, sparsities))  # type: ignore[arg-type]
    return tuple(dict.fromkeys(found))


def weight_bits() -> Literal[7, 8]:
    """Bits of int8 weights: 7 where the CPU multiplies pairs of bytes into 16 bits that would overflow.

    With weights of at most 7 bits `vpmaddubsw` can't overflow, so that this engine needs no second pass and
    others (ONNX Runtime, OpenVINO) do not saturate.
    """
    exact = {"avx512vnni", "avxvnni"} & (cpu.features() or frozenset())
    return 7 if cpu.machine() == "x86_64" and not exact else 8
