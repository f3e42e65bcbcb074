"""Operators that sample a picture at places that are computed. Source: ONNX AffineGrid-20."""

from __future__ import annotations

from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite
from coresident.graph.operators.operands import integers, required, values

Array = np.ndarray[Any, Any]


@composite("AffineGrid", operands=[1])
def _affine_grid(body: Body) -> list[str]:
    """The places of all pixels, homogeneous, times the matrices."""
    theta = body.inputs[0]
    (size,) = values([body.fact(name) for name in body.inputs], 1, ["size"])
    spatial = integers(required([size], 0, "size"), "size")[2:]
    batch, rank = body.shape(theta)[0], len(spatial)
    if rank not in (2, 3) or body.shape(theta) != (batch, rank, rank + 1) or min(spatial) < 1:
        raise InvalidModel(
            f"theta must be [N, {rank}, {rank + 1}] for a size of {spatial}", shape=body.shape(theta)
        )
    # Pixel centres from -1 to 1; with align_corners the outermost lie there, else their outer edges.
    inner = [1 if body.node.get("align_corners", 0) else (n - 1) / n for n in spatial]
    lines = [np.linspace(-edge, edge, n) for edge, n in zip(inner, spatial)]
    places = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(spatial)], axis=-1)
    points = body.constant(places.reshape(-1, rank + 1), body.dtype(theta))
    grid = body.add("MatMul", points, body.transpose(theta, 0, 2, 1))
    return [body.reshape(grid, batch, *spatial, rank)]
