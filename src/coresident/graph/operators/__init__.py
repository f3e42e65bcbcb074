"""The operators, a family a file; importing this package enters all of them in the table."""

from coresident.graph.operators import (
    attention,
    columns,
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
    sampling,
    scatter,
    selection,
)

__all__ = [
    "attention",
    "columns",
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
    "sampling",
    "scatter",
    "selection",
]
