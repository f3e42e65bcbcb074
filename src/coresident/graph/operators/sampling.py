"""Operators that sample a picture at places that are computed.

Source: ONNX AffineGrid-20, GridSample-22, RoiAlign-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import floating, integers, ranked, required, values

Array = np.ndarray[Any, Any]


@composite("AffineGrid", operands=[1])
def _affine_grid(body: Body) -> list[str]:
    """The matrices times the places of all pixels, column by column: x, y and perhaps z, and 1."""
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
    matrix = body.reshape(theta, batch, *[1] * rank, rank, rank + 1)
    grid = body.add("Gather", matrix, body.constant(rank, np.int64), axis=-1)
    for d, (edge, count) in enumerate(zip(inner, spatial)):
        line = np.linspace(-edge, edge, count).reshape(-1, *[1] * (rank - d))
        column = body.add("Gather", matrix, body.constant(rank - 1 - d, np.int64), axis=-1)
        grid = body.add("Add", grid, body.add("Mul", column, body.constant(line, body.dtype(theta))))
    return [grid]


GRID_MODES = {
    "linear": "linear",
    "bilinear": "linear",
    "nearest": "nearest",
    "cubic": "cubic",
    "bicubic": "cubic",
}
"""Names of the modes of GridSample, those before opset 20 among them."""
GRID_PADDINGS = ("zeros", "border", "reflection")
CUBIC = -0.75
"""The coefficient of GridSample's cubic interpolation."""


def grid_mode(node: Node) -> str:
    """How GridSample interpolates: linear, nearest or cubic.

    Raises:
        InvalidModel: a mode or padding_mode that does not exist.
    """
    mode, padding = node.get("mode", "linear"), node.get("padding_mode", "zeros")
    if mode not in GRID_MODES:
        raise InvalidModel(f"mode {mode!r} is none of {', '.join(GRID_MODES)}")
    if padding not in GRID_PADDINGS:
        raise InvalidModel(f"padding_mode {padding!r} is none of {', '.join(GRID_PADDINGS)}")
    return GRID_MODES[mode]


def _grid_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, grid = required(facts, 0, "X"), required(facts, 1, "grid")
    n, channels, *spatial = ranked(x, (3, 4, 5), "X")
    rank = len(spatial)
    if len(grid.shape) != rank + 2 or grid.sizes[0] != n or grid.sizes[-1] != rank:
        raise InvalidModel(f"grid must be [{n}, places..., {rank}] for this X", shape=(x.shape, grid.shape))
    floating(grid)
    grid_mode(node)
    if 0 in spatial:
        raise InvalidModel("X without elements can't be sampled", shape=x.shape)
    return [Fact(floating(x), (n, channels, *grid.sizes[1:-1]))]


def _reflected(x: Array, low: float, high: float) -> Array:
    """Places mirrored at the borders until they lie between them."""
    span = high - low
    if span <= 0:
        return np.full_like(x, low)
    distance = np.abs(x - low)
    rest, turns = np.fmod(distance, span), np.floor(distance / span)
    return np.where(turns % 2 == 0, low + rest, high - rest)


def _grid_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, grid = required(arrays, 0, "X"), required(arrays, 1, "grid")
    mode, padding = grid_mode(node), node.get("padding_mode", "zeros")
    corners, spatial = bool(node.get("align_corners", 0)), x.shape[2:]
    taps = []
    for d, size in enumerate(spatial):
        # The last number of a place is that of the last dimension of X.
        g = grid[..., len(spatial) - 1 - d].astype(np.float64)
        at = (g + 1) / 2 * (size - 1) if corners else ((g + 1) * size - 1) / 2
        edges = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        taps.append(_axis_taps(at, size, edges, mode, padding))
    result = np.zeros((x.shape[0], *grid.shape[1:-1], x.shape[1]), np.float64)
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * len(spatial))
    for combination in product(*taps):
        weight = np.ones(grid.shape[:-1])
        for _, share in combination:
            weight = weight * share
        where: tuple[Any, ...] = (batch, slice(None), *(place for place, _ in combination))
        result += x[where] * weight[..., None]
    return [np.moveaxis(result, -1, 1).astype(x.dtype)]


def _axis_taps(
    at: Array, size: int, edges: tuple[float, float], mode: str, padding: str
) -> list[tuple[Array, Array]]:
    """Indices and weights along one axis."""

    def inside(place: Array) -> Array:
        if padding == "reflection":
            place = _reflected(place, *edges)
        return place if padding == "zeros" else np.clip(place, 0, size - 1)

    if mode == "cubic":
        base = np.floor(at)
        share = at - base
        a = CUBIC
        distances = (share + 1, share, 1 - share, 2 - share)
        weights = [
            ((a + 2) * d - (a + 3)) * d * d + 1 if i in (1, 2) else ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            for i, d in enumerate(distances)
        ]
        found = [(inside(base + i - 1), weight) for i, weight in enumerate(weights)]
    elif mode == "linear":
        at = inside(at)
        base = np.floor(at)
        found = [(base, 1 - (at - base)), (base + 1, at - base)]
    else:
        found = [(np.rint(inside(at)), np.ones_like(at))]
    return [
        (
            np.clip(np.nan_to_num(np.rint(place)), 0, size - 1).astype(np.int64),
            np.where((place >= -0.5) & (place <= size - 0.5), weight, 0),
        )
        for place, weight in found
    ]


MOST_SAMPLES = 1024
"""Samples across a bin of RoiAlign, where their number follows from the region's size: a region that needs
more lies outside the picture almost everywhere."""


def _roi_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, rois, batch = (required(facts, i, what) for i, what in enumerate(("X", "rois", "batch_indices")))
    _, channels, *spatial = ranked(x, (4,), "X")
    count = ranked(rois, (2,), "rois")[0]
    if rois.sizes[1] != 4 or batch.sizes != (count,) or 0 in spatial:
        raise InvalidModel("rois must be [R, 4] and batch_indices [R]", shape=(rois.shape, batch.shape))
    if node.get("mode", "avg") not in ("avg", "max"):
        raise InvalidModel(f"mode {node.get('mode')!r} is neither avg nor max")
    if node.get("coordinate_transformation_mode", "half_pixel") not in ("half_pixel", "output_half_pixel"):
        raise InvalidModel("coordinate_transformation_mode is neither half_pixel nor output_half_pixel")
    size = tuple(int(node.get(name, 1)) for name in ("output_height", "output_width"))
    if min(size) < 1 or int(node.get("sampling_ratio", 0)) < 0:
        raise InvalidModel("output_height and output_width must be at least 1, sampling_ratio at least 0")
    if batch.dtype.kind != "i" or floating(x) != rois.dtype:
        raise InvalidModel("rois must have the type of X, batch_indices be integers")
    return [Fact(x.dtype, (count, channels, *size))]


def _roi_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, rois, batch = (required(arrays, i, "an input") for i in range(3))
    half = node.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    outputs = [int(node.get(name, 1)) for name in ("output_height", "output_width")]
    result = np.zeros((len(rois), x.shape[1], *outputs), x.dtype)
    for r, roi in enumerate(rois.astype(np.float64)):
        start = roi[[1, 0]] * node.get("spatial_scale", 1.0) - 0.5 * half
        length = roi[[3, 2]] * node.get("spatial_scale", 1.0) - 0.5 * half - start
        if not half:
            length = np.maximum(length, 1)
        bins = length / outputs
        ratio = int(node.get("sampling_ratio", 0))
        counts = [ratio or int(np.clip(np.ceil(b), 0, MOST_SAMPLES)) for b in bins]
        picture = x[int(np.clip(batch[r] + (batch[r] < 0) * len(x), 0, len(x) - 1))]
        for oy, ox in product(*map(range, outputs)):
            samples = []
            for iy, ix in product(*map(range, counts)):
                y = start[0] + oy * bins[0] + (iy + 0.5) * bins[0] / counts[0]
                z = start[1] + ox * bins[1] + (ix + 0.5) * bins[1] / counts[1]
                samples.append(_roi_sample(picture, y, z))
            if not samples:
                continue
            if node.get("mode", "avg") == "avg":
                result[r, :, oy, ox] = np.sum([v.sum(0) for v in samples], 0) / len(samples)
            else:
                result[r, :, oy, ox] = np.max([v.max(0) for v in samples], 0)
    return [result]


def _roi_sample(picture: Array, y: float, x: float) -> Array:
    """The four weighted neighbours of a place, [4, channels]; 0 outside."""
    height, width = picture.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros((4, picture.shape[0]))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    low, left = int(y), int(x)
    high, right = min(low + 1, height - 1), min(left + 1, width - 1)
    v, u = y - low, x - left
    return np.stack(
        [
            picture[:, low, left] * (1 - v) * (1 - u),
            picture[:, low, right] * (1 - v) * u,
            picture[:, high, left] * v * (1 - u),
            picture[:, high, right] * v * u,
        ]
    )


register("GridSample", _grid_infer, _grid_reference)
register("RoiAlign", _roi_infer, _roi_reference)
