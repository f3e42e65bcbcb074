"""The operators, a family a file; importing this package enters all of them in the table."""

from coresident.graph.operators import (
    attention,
    convolution,
    elementwise,
    gather,
    generation,
    matmul,
    movement,
    normalization,
    pooling,
    reduction,
    resize,
    sampling,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "gather",
    "generation",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "sampling",
]
