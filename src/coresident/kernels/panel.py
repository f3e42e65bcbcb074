"""Dense direct convolution, register-tiled the other way: lanes hold output channels, pixels are broadcast.

Where a plane is small, vectors of pixels are partly empty: 7 of 8 lanes for a row of 7, whichever way rows
follow each other. Here a vector holds neighbouring output channels (a *panel* is one to three vectors) and
meets a *strip* of a few pixels of a row, each broadcast from where it lies: no load is unaligned either. The
weights of a panel and a block of input channels stay in L1 while the strips of many rows pass; sums wait in
scratch between blocks, and are transposed into rows of pixels when they are complete (Goto and van de Geijn,
"Anatomy of high-performance matrix multiplication", 2008, for the blocking).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.types import F32
from coresident.kernels import cost
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry, Tiles, can_run_flat, tiles
from coresident.kernels.lowering import Plan, Tensor

WIDTH = 3
"""Vectors of output channels in a wide panel; narrow ones have one less."""

_FAR_PIXEL = 1.4
"""Cycles for each pixel of another tensor from L3."""

_SUMS_BYTES = 40_000
"""Of scratch for the sums of a panel: rows are taken in chunks of this size."""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        rows: the output's rows, each a tile.
        width: pixels of a row.
        chunk: rows that one panel passes over at once.
        reach: elements from a chunk's first pixel to beyond its last, where sums are complete.
        strips: pixels of each strip of a row, in order: short ones first.
        wide, narrow: panels of `WIDTH` and of one vector less; the wide ones come first.
        block: input channels in a block.
        cycles: as the cost model says.
    """

    rows: Tiles
    width: int
    chunk: int
    reach: int
    strips: tuple[int, ...]
    wide: int
    narrow: int
    block: int
    cycles: float

    @property
    def chunks(self) -> int:
        return -(-self.rows.count // self.chunk)

    @property
    def panels(self) -> int:
        return self.wide + self.narrow

    def __str__(self) -> str:
        vectors = WIDTH if self.wide else WIDTH - 1
        return f"{max(self.strips)} pixels x {vectors} vectors of channels, blocks of {self.block}"


def divide(length: int, most: int) -> tuple[int, ...]:
    """Strips of at most `most` pixels that make up a row, alike but for one pixel, short ones first."""
    count = -(-length // most)
    short, long = length // count, -(-length // count)
    longs = length - short * count if long > short else count
    return (short,) * (count - longs) + (long,) * longs


def panels(vectors: int, width: int = WIDTH, parts: int = 1) -> tuple[int, int]:
    """How many panels of `width` vectors and of one less hold so many vectors of channels, as few lanes empty
    as can be.

    Args:
        parts: that should have equally many of each, where the vectors can be shared out so.
    """
    if parts > 1 and vectors % parts == 0:
        wide, narrow = panels(vectors // parts, width)
        if wide:
            return wide * parts, narrow * parts
    if vectors < width:
        return 0, 1
    narrow = -vectors % width
    return (vectors - narrow * (width - 1)) // width, narrow


def sharing(chunks: int, threads: int) -> int:
    """How many threads have parts of the same chunk's panels."""
    return threads // math.gcd(chunks, threads)


def choose(
    plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue, merged: bool = False
) -> Choice | None:
    """Strips, panels and blocks, and how long that should take; None where the output can't be stored as runs
    of pixels across row ends.

    Args:
        merged: pairs of output channels are stored row by row, their pixels in turns.
    """
    machine = cost.Machine.of(plan.target)
    lanes = plan.target.lanes(F32)
    width = out.shape[-1]
    extras = [t.layout for t in epilogue.tensors]
    if not merged and not can_run_flat(out.layout.strides[2:], out.layout, extras, lanes):
        return None
    rows = tiles(g.strides, out.layout, extras, lanes, -(-width // lanes), flat=False)
    # Rows are made one by one, but stored as runs across their ends.
    rows = replace(rows, flat=not merged)
    vectors = -(-shape.outputs // lanes)
    widest = WIDTH if panels(vectors)[0] else WIDTH - 1
    # No more pixels than lanes: the sums are transposed in registers.
    strips = divide(width, min(lanes, (plan.target.registers - 4) // widest))
    chunk = max(1, min(rows.count, _SUMS_BYTES // (4 * width * widest * lanes)))
    if shape.batch * shape.groups % plan.threads and rows.count % plan.threads == 0:
        # Either each thread reads all weights, or each reads all of the input, whose lines take longer to be
        # written again then.
        again = 4 * shape.outputs * shape.inputs * shape.taps * (plan.threads - 1) / machine.l3_bytes
        if again < 4 * shape.inputs * g.channel_stride / 64 * cost.SHARED_LINE:
            chunk = min(chunk, rows.count // plan.threads)
    chunks = shape.batch * shape.groups * -(-rows.count // chunk)
    wide, narrow = panels(vectors, parts=sharing(chunks, plan.threads))
    block = max(1, min(shape.inputs, machine.panel_l1_bytes // (4 * widest * lanes * shape.taps)))
    block = -(-shape.inputs // -(-shape.inputs // block))
    block = min(shape.inputs, -(-block // 4) * 4) if shape.taps == 1 else block
    blocks = -(-shape.inputs // block)
    depth = shape.inputs * shape.taps
    total = 0.0
    for vectors, count in ((WIDTH, wide), (WIDTH - 1, narrow)):
        for pixels in strips:
            one = cost.panel_strip(machine, vectors, pixels, depth, blocks)
            total += count * rows.count * one
    starts = np.arange(rows.count) * width if merged else rows.table[:, 1].astype(np.int64)
    ends = np.minimum(np.arange(0, rows.count, chunk) + chunk, rows.count) - 1
    # A strip is written a power of two wide.
    reach = int((starts[ends] - starts[::chunk]).max()) + width + 2 * lanes
    # Pairs of rows are brought together pixel by pixel.
    row, vector = (12, 16) if merged else (2, 4)
    total += shape.outputs * rows.count * (row + vector * width / lanes)
    if 4 * shape.outputs * shape.pixels > plan.target.l2_bytes:
        # What is added to runs of pixels comes from L3, and no sums are made meanwhile.
        total += shape.outputs * rows.count * len(extras) * width * _FAR_PIXEL
    total *= shape.batch * shape.groups
    return Choice(rows, width, chunk, reach, strips, wide, narrow, block, total)


def pack(weights: np.ndarray[Any, Any], choice: Choice, lanes: int) -> np.ndarray[Any, Any]:
    """[groups, outputs, inputs, taps] float32 as [groups][panels][inputs][taps][lanes of the panel]."""
    vectors = WIDTH * choice.wide + (WIDTH - 1) * choice.narrow
    groups, outputs, inputs, taps = weights.shape
    padded = np.zeros((groups, vectors * lanes, inputs, taps), np.float32)
    padded[:, :outputs] = weights
    split = choice.wide * WIDTH * lanes
    parts = []
    for group in padded:
        for part, width in ((group[:split], WIDTH), (group[split:], WIDTH - 1)):
            parts.append(part.reshape(-1, width * lanes, inputs, taps).transpose(0, 2, 3, 1).reshape(-1))
    return np.concatenate(parts)
