"""The operators, a family a file; importing this package enters all of them in the table."""

from coresident.graph.operators import (
    convolution,
    elementwise,
    gather,
    generation,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
    resize,
)

__all__ = [
    "convolution",
    "elementwise",
    "gather",
    "generation",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "resize",
]
