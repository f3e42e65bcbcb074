"""The types that kernels compute with, as LLVM writes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np


@dataclass(frozen=True)
class Type:
    """A scalar or vector type.

    Args:
        kind: "f" float, "i" integer, "p" pointer.
        bits: width of one lane.
        lanes: 1 for a scalar.
    """

    kind: str
    bits: int
    lanes: int = 1

    @property
    def scalar(self) -> Type:
        return self.by(1)

    @property
    def bytes(self) -> int:
        return self.bits * self.lanes // 8

    def by(self, lanes: int) -> Type:
        """The vector of `lanes` such lanes (a scalar for 1)."""
        return _known(self.kind, self.bits, lanes)

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        if self.kind == "p":
            return "ptr"
        one = {("f", 16): "half", ("f", 32): "float", ("f", 64): "double"}.get(
            (self.kind, self.bits), f"i{self.bits}"
        )
        return one if self.lanes == 1 else f"<{self.lanes} x {one}>"

    @property
    def suffix(self) -> str:
        """As intrinsics are mangled: f32, v8f32, i64, p0."""
        if self.kind == "p":
            return "p0"
        one = f"{self.kind}{self.bits}"
        return one if self.lanes == 1 else f"v{self.lanes}{one}"


@cache
def _known(kind: str, bits: int, lanes: int) -> Type:
    """One object for each type, which then keeps its text."""
    return Type(kind, bits, lanes)


I1, I8, I16, I32, I64 = (Type("i", n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = (Type("f", n) for n in (16, 32, 64))
PTR = Type("p", 64)


def of_dtype(dtype: np.dtype) -> Type:
    """The lane type that holds a numpy dtype in memory (bool is a byte; signedness belongs to operations)."""
    dtype = np.dtype(dtype)
    return Type("f" if dtype.kind == "f" else "i", dtype.itemsize * 8)
