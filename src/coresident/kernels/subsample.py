"""Takes the pixels that a strided convolution of single pixels reads, where they lie in blocks.

A vector of the copy has pixels of a few blocks, the same ones in all channels: so where they lie is a small
table for each vector, and the loop over channels loads and permutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from coresident.codegen.builder import Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Address, Plan, Tensor
from coresident.kernels.phases import Split
from coresident.kernels.vectors import pieces, share


def subsample(plan: Plan, x: Tensor, strides: Sequence[int], target: Layout, blocked: bool) -> Split:
    """Every `strides`-th pixel of `x` [N, C, spatial...], for an output with the layout `target`.

    Between rows, where nothing is read, lies anything.

    Args:
        blocked: whether pixels are to lie in blocks, or in planes.
    """
    lanes, channels = x.layout.block, x.shape[1]
    layout = target.blocked(lanes, channels) if blocked else _planes(target, lanes, channels)
    y = plan.temporary(layout, x.dtype)
    return Split(y, {(0,) * len(strides): 0}, partial(_emit, plan, x, y, strides))


def _span(layout: Layout) -> int:
    """Pixels from the first of a plane to the last."""
    return sum((size - 1) * stride for size, stride in zip(layout.shape[2:], layout.strides[2:])) + 1


def _planes(target: Layout, lanes: int, channels: int) -> Layout:
    """Planes with the rows of a layout, without a border."""
    n, spatial, strides = target.shape[0], target.shape[2:], target.strides[2:]
    gaps = (0, *(outer // inner - size for outer, inner, size in zip(strides, strides[1:], spatial[1:])))
    return Layout.planar((n, channels, *spatial), gaps, ((0, 0),) * len(spatial), lanes)


def _pixels(x: Layout, y: Layout, strides: Sequence[int]) -> np.ndarray:
    """[vectors of a plane of y, lanes] int64: which pixel of a plane of x each is."""
    lanes = x.block
    pixels = np.zeros(-(-_span(y) // lanes) * lanes, np.int64)
    grid = np.indices(y.shape[2:]).reshape(len(strides), -1)
    pixels[np.array(y.strides[2:]) @ grid] = (np.array(strides) * x.strides[2:]) @ grid
    return pixels.reshape(-1, lanes)


def _table(x: Layout, y: Layout, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where each vector's pixels come from.

    Returns:
        [vectors, sources] int64, elements from pixel 0 to some blocks of x, and [vectors, pairs of these,
        lanes] int32: which of a pair's elements each lane takes, or -1.
    """
    pixels = _pixels(x, y, strides)
    count, lanes = pixels.shape
    blocks = [np.unique(row // lanes) for row in pixels]
    most = max(map(len, blocks))
    most += most % 2
    held = np.array([np.pad(some, (0, most - len(some)), "edge") for some in blocks])
    index = (held[:, :, None] == pixels[:, None, :] // lanes).argmax(axis=1)
    taken = np.full((count, most // 2, lanes), -1, np.int32)
    rows, columns = np.indices(pixels.shape)
    taken[rows, index // 2, columns] = index % 2 * lanes + pixels % lanes
    return x.place(held * lanes).astype(np.int64), taken


def _emit(plan: Plan, x: Tensor, y: Tensor, strides: Sequence[int]) -> None:
    """Vector by vector of a plane, and of each channel by channel."""
    lanes = x.layout.block
    vector, lane = F32.by(lanes), I32.by(lanes)
    n, c = y.shape[:2]
    sources, taken = _table(x.layout, y.layout, strides)
    count, pairs, _ = taken.shape
    f = kernel(plan.target, "subsample")
    x_0, y_0, places, permutations = (word(f, i) for i in range(4))
    tasks = pieces(plan.threads, n * count, 8.0 * n * count * c)
    first, end = share(f, n * count, tasks) if tasks else (f.constant(0, I64),) * 2
    with f.loop(first, end) as unit:
        number, picture = unit % count, unit / count
        begin = f.offset(x_0, picture * x.layout.strides[0], F32)
        out = f.offset(y_0, picture * y.layout.strides[0] + number * y.layout.place(lanes), F32)
        offsets = [f.load(I64, places, number * (2 * pairs) + i) for i in range(2 * pairs)]
        from_ = [f.offset(begin, offset, F32) for offset in offsets]
        wanted = [f.load(lane, permutations, (number * pairs + i) * lanes) for i in range(pairs)]
        with f.loop(0, c) as channel:
            loaded = [f.load(vector, address, channel * lanes) for address in from_]
            found: Value | None = None
            for i, index in enumerate(wanted):
                name = "llvm.x86.avx512.vpermi2var.ps.512"
                permuted = f.call(name, vector, loaded[2 * i], index, loaded[2 * i + 1], needs=["avx512f"])
                found = permuted if found is None else f.select(index >= 0, permuted, found)
            assert found is not None
            f.store(found, out, channel * y.layout.strides[1])
    operands: list[Address] = [x.address, y.address, plan.constant(sources), plan.constant(taken)]
    info = {"op": "Copy", "kernel": f"pixels {'x'.join(map(str, strides))} apart"}
    plan.step(f, operands, tasks, reads=[x], writes=[y], info=info)
