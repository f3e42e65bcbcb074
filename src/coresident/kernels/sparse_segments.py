"""Tiles of a sparse convolution that consist of segments (`spread.py`).

A block of input channels is packed before the rows of weights pass over it: from the planes, where no vector
of a tap but the middle one's would lie in one cache line, into the worker's scratch, where all do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import Type
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.layout import Layout
from coresident.kernels.spread import GROUP, ONE_ROW, SEGMENT, Segments, starts_of, transposed

PACKING = 36.0
"""Cycles to pack a channel's segment of one row, most of them for lines from L2 and L3 (shuffles alone take
14)."""


@dataclass(frozen=True)
class Packing:
    """How the input of a tile is packed.

    Args:
        segments: of the tile.
        rows: elements from the tile's first pixel to where each packed row begins in the input.
        taps: packed elements from an output pixel to what each tap reads.
    """

    segments: Segments
    rows: tuple[int, ...]
    taps: tuple[int, ...]

    @property
    def pitch(self) -> int:
        """Packed elements of a row."""
        return self.segments.groups * GROUP

    @property
    def span(self) -> int:
        """Packed elements of a channel."""
        return len(self.rows) * self.pitch

    def pack(self, f: Function, vector: Type, source: Value, target: Value) -> None:
        """Emit the packing of one channel, from the tile's first pixel at `source`."""
        for number, row in enumerate(self.rows):
            for first in range(0, self.segments.groups, GROUP):
                pixels = [f.load(vector, source, row + first + at) for at in range(0, SEGMENT, vector.lanes)]
                groups = transposed(f, pixels)[: (self.segments.groups - first) // 2]
                for i, pair in enumerate(groups):
                    f.store(pair, target, number * self.pitch + first * GROUP + i * vector.lanes)

    def prefetch(self, f: Function, source: Value) -> None:
        """Ask L2 for what `pack` will read of a channel."""
        for row in self.rows:
            for at in range(0, SEGMENT + self.segments.groups - GROUP + 15, 16):
                f.prefetch(source, 4 * (row + at), near=False)


def cut(
    g: Geometry, out: Layout, extras: Sequence[Layout], lanes: int, down: int
) -> tuple[Tiles, Packing] | None:
    """Tiles of `down` segments below each other, and how their input is packed.

    Returns:
        None where rows are shorter or fewer than a tile's, or output pixels are not as far apart as those of
        the input.
    """
    spatial, columns = out.shape[2:], [tuple(g.strides), out.strides[2:], *(e.strides[2:] for e in extras)]
    if lanes != 2 * GROUP or len(spatial) < 2 or any(c[-1] != 1 for c in columns):
        return None
    if g.taps != tuple(sum(a * s for a, s in zip(position, g.strides)) for position in g.positions):
        return None
    height, width = spatial[-2:]
    if height < down or width < SEGMENT:
        return None
    left, right = min(a[-1] for a in g.positions), max(a[-1] for a in g.positions)
    top, bottom = min(a[-2] for a in g.positions), max(a[-2] for a in g.positions)
    # Whole vectors of two groups.
    groups = GROUP + -(-(right - left) // 2) * 2
    if groups > 2 * GROUP or right == left:
        return None
    outer = sorted({a[:-2] for a in g.positions})
    reach = down + bottom - top
    lines = list(itertools.product(outer, range(top, top + reach)))
    rows = tuple(sum(a * s for a, s in zip((*tap, row, left), g.strides, strict=True)) for tap, row in lines)
    pitch = groups * GROUP
    taps = tuple(
        (outer.index(a[:-2]) * reach + a[-2] - top) * pitch + (a[-1] - left) * GROUP for a in g.positions
    )
    starts = [*map(range, spatial[:-2]), starts_of(height, down), starts_of(width, SEGMENT)]
    places = np.array(list(itertools.product(*starts)), np.int64)
    table = np.stack([places @ np.array(c, np.int64) for c in columns], axis=1)
    reads = tuple(row * pitch + at for row in range(down) for at in range(0, SEGMENT, lanes))
    writes = tuple((tuple(row * c[-2] for c in columns[1:]),) for row in range(down))
    whole = Tiles(
        table.astype(np.int32), len(table), len(reads), 0, lanes, lanes, False, int(np.prod(spatial))
    )
    return whole, Packing(Segments(ONE_ROW, groups, reads, writes, SEGMENT), rows, taps)
