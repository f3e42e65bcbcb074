"""Imports every kernel family, so that all stand in the table."""

from __future__ import annotations

from coresident.kernels import (
    boxes,
    columns,
    convolution,
    depthwise,
    elementwise,
    extremes,
    gather,
    integer,
    integer_matmul,
    matmul,
    movement,
    normalization,
    pooling,
    reduction,
    resize,
    running,
    sampling,
    scatter,
    selection,
    softmax,
    transposed,
)
from coresident.kernels.lowering import FAMILIES

__all__ = [
    "FAMILIES",
    "boxes",
    "columns",
    "convolution",
    "depthwise",
    "elementwise",
    "extremes",
    "gather",
    "integer",
    "integer_matmul",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "running",
    "sampling",
    "scatter",
    "selection",
    "softmax",
    "transposed",
]
