"""Imports every kernel family, so that all stand in the table."""

from __future__ import annotations

from coresident.kernels import (
    convolution,
    depthwise,
    elementwise,
    extremes,
    gather,
    integer,
    integer_matmul,
    integer_transposed,
    matmul,
    movement,
    normalization,
    pooling,
    reduction,
    resize,
    softmax,
    transposed,
)
from coresident.kernels.lowering import FAMILIES

__all__ = [
    "FAMILIES",
    "convolution",
    "depthwise",
    "elementwise",
    "extremes",
    "gather",
    "integer",
    "integer_matmul",
    "integer_transposed",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "softmax",
    "transposed",
]
