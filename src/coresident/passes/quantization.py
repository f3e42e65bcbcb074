"""What the passes on quantised networks share: what quantised values mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.numpy_math import NumpyMath
from coresident.graph.operator import Array
from coresident.passes.patch import View

BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True, eq=False)
class Quantised:
    """A value that is quantised with constant parameters, float32 outside.

    Args:
        source: the name of the integers.
        scale, zero_point: arrays that broadcast onto them.
        dtype: of the integers.
    """

    source: str
    scale: Array
    zero_point: Array
    dtype: np.dtype[Any]

    @property
    def per_tensor(self) -> bool:
        return self.scale.ndim == 0 and self.zero_point.ndim == 0 and 0 < float(self.scale) < np.inf

    def same_as(self, other: Quantised) -> bool:
        """Whether integers mean the same in both."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def quantized(self, number: float) -> int:
        """What a float becomes; per tensor."""
        return int(NumpyMath().quantize(np.array(number, np.float32), self.scale, self.zero_point))

    def value(self, integer: int) -> float:
        """What an integer stands for; per tensor."""
        whole = np.array(integer, self.dtype)
        return float(NumpyMath().dequantize(whole, self.scale, self.zero_point))


def parameters(view: View, node: Node | None, op: str) -> Quantised | None:
    """What a QuantizeLinear (its output) or DequantizeLinear (its input) says of integers.

    Returns:
        None for another node than `op`, or where scale or zero point are computed or not float32.
    """
    if node is None or node.op != op or len(node.inputs) != 3:
        return None
    scale, point = view.constant(node.inputs[1]), view.constant(node.inputs[2])
    if scale is None or point is None or scale.dtype != np.float32:
        return None
    return Quantised(
        node.inputs[0] if op == "DequantizeLinear" else node.outputs[0], scale, point, point.dtype
    )


def dequantised(view: View, name: str) -> Quantised | None:
    """The integers that a value is dequantised from, with constant parameters; None for any other value."""
    return parameters(view, view.maker(name), "DequantizeLinear")


def byte_tensor(view: View, name: str) -> Quantised | None:
    """The bytes that a value is dequantised from with one scale and one zero point."""
    found = dequantised(view, name)
    return found if found is not None and found.per_tensor and found.dtype in BYTES else None


def not_bytes(view: View, name: str) -> str:
    """Why a value is not `byte_tensor`, as what it is."""
    maker = view.maker(name)
    if maker is None or maker.op != "DequantizeLinear":
        return "not quantised"
    found = dequantised(view, name)
    if found is None:
        return "quantised with parameters that the network computes, or that are not float32"
    if found.dtype not in BYTES:
        return f"quantised to {found.dtype}"
    return "not quantised with one scale and one zero point"


def along(constant: Array, rank: int, axis: int, size: int) -> Array | None:
    """A constant that varies along one axis at most, as [] or [size]; None where it varies otherwise."""
    if constant.size == 1:
        return constant.reshape(())
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(length != 1 for d, length in enumerate(shape) if d != axis):
        return None
    return constant.reshape(size)


def spread_behind(constant: Array, dimensions: int) -> Array:
    """[C] as [C, 1, ...] with so many dimensions behind; [] as it is."""
    return constant.reshape(*constant.shape, *(1,) * dimensions) if constant.ndim else constant
