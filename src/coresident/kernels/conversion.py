"""Bytes read and written by kernels that compute in floats: `graph.operators.conversion` as code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import CodeMath, Typed, typed_constant
from coresident.graph.graph import Node

SINGLE = np.dtype(np.float32)


@dataclass(frozen=True)
class Conversion:
    """What an operator does to elements as it loads and stores them.

    Args:
        source: type of the elements in memory.
        zero_point: of the bytes read; None where the elements are computed with as they are.
        scale: by which results are to be multiplied, since what is read is not: 1 for floats.
        target: (scale, zero point, type) of the bytes written; None where results are stored as they are.
    """

    source: np.dtype[Any]
    zero_point: int | None = None
    scale: float = 1.0
    target: tuple[float, int, str] | None = None

    @staticmethod
    def of(node: Node, source: np.dtype[Any]) -> Conversion:
        """As the node's attributes say."""
        scale, point = node.get("from_bytes", (1.0, None))
        return Conversion(source, point, scale, node.get("to_bytes"))

    @property
    def computed(self) -> np.dtype[Any]:
        """Type of the elements in registers."""
        return self.source if self.zero_point is None else SINGLE

    def entered(self, f: Function, loaded: Value) -> Value:
        """What is computed with: of bytes, their differences from the zero point as floats."""
        if self.zero_point is None:
            return loaded
        math, byte = CodeMath(f), Typed(loaded, self.source.name)
        whole = math.cast(byte, "int32")
        if self.zero_point:
            whole = whole - self.zero_point
        return math.cast(whole, "float32").value

    def left(self, f: Function, result: Value) -> Value:
        """A result, scaled as it must be, as it is stored."""
        if self.target is None:
            return result
        scale, point, dtype = self.target
        lanes = result.type.lanes
        constants = typed_constant(f, scale, SINGLE, lanes), typed_constant(f, point, dtype, lanes)
        return CodeMath(f).quantize(Typed(result, "float32"), *constants).value
