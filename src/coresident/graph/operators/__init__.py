"""The operators, a family a file; importing this package enters all of them in the table."""

from coresident.graph.operators import (
    attention,
    columns,
    convolution,
    einsum,
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
    scatter,
    selection,
)

__all__ = [
    "attention",
    "columns",
    "convolution",
    "einsum",
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
    "scatter",
    "selection",
]
