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
from coresident.kernels.spread import (
    GROUP,
    ONE_ROW,
    SEGMENT,
    Segments,
    Spread,
    apart,
    segments,
    spreads,
    starts_of,
    transposed,
)

PACKING, STORING = {True: 36.0, False: 45.0}, {True: 10.0, False: 28.0}
"""Cycles to pack a channel's segment of one row, and of several, most of them for lines from L2 and L3
(shuffles alone take 14 of the first); and to bring together what is stored of one."""


@dataclass(frozen=True)
class Packing:
    """How the input of a tile is packed.

    Args:
        segments: of the tile.
        rows: elements from the tile's first pixel to where each packed row begins in the input, in each of
            its rows of lanes.
        taps: packed elements from an output pixel to what each tap reads.
    """

    segments: Segments
    rows: tuple[tuple[int, ...], ...]
    taps: tuple[int, ...]

    @property
    def pitch(self) -> int:
        """Packed elements of a row."""
        return self.segments.groups * GROUP

    @property
    def span(self) -> int:
        """Packed elements of a channel."""
        return len(self.rows) * self.pitch

    @property
    def in_one_row(self) -> bool:
        """Whether all lanes of a segment lie in one row."""
        return self.segments.spread == ONE_ROW

    @property
    def cycles(self) -> float:
        """To pack a channel."""
        return PACKING[self.in_one_row] * len(self.rows)

    @property
    def storing_cycles(self) -> float:
        """To bring together what an output channel stores."""
        return STORING[self.in_one_row] * len(self.segments.writes)

    def pack(self, f: Function, vector: Type, source: Value, target: Value) -> None:
        """Emit the packing of one channel, from the tile's first pixel at `source`."""
        for number, row in enumerate(self.rows):
            for i, pair in enumerate(self._groups(f, vector, source, row)):
                f.store(pair, target, number * self.pitch + i * vector.lanes)

    def _groups(self, f: Function, vector: Type, source: Value, row: Sequence[int]) -> list[Value]:
        """A packed row, two groups a vector."""
        spread, count = self.segments.spread, self.segments.groups // 2
        if self.in_one_row:
            found = []
            for first in (0, GROUP):
                pixels = [
                    f.load(vector, source, row[0] + first + at) for at in range(0, SEGMENT, vector.lanes)
                ]
                found += transposed(f, pixels)
            return found[:count]
        lanes = [
            f.load(vector, source, line + column * spread.width)
            for line in row
            for column in range(spread.columns)
        ]
        return apart(f, lanes)[:count]

    def prefetch(self, f: Function, source: Value) -> None:
        """Ask L2 for what `pack` will read of a channel."""
        width = self.segments.spread.pixels + self.segments.groups - self.segments.spread.width
        for line in dict.fromkeys(line for row in self.rows for line in row):
            for at in range(0, width + 15, 16):
                f.prefetch(source, 4 * (line + at), near=False)


def cuts(
    g: Geometry, out: Layout, extras: Sequence[Layout], lanes: int, most: int
) -> list[tuple[Tiles, Packing]]:
    """Ways to cut into tiles of `most` vectors at most that consist of segments below each other, and how
    their input is packed; none where output pixels are not as far apart as those of the input."""
    columns = [tuple(g.strides), out.strides[2:], *(e.strides[2:] for e in extras)]
    if lanes != 2 * GROUP or len(out.shape) < 4 or any(c[-1] != 1 for c in columns):
        return []
    if g.taps != tuple(sum(a * s for a, s in zip(position, g.strides)) for position in g.positions):
        return []
    across = [a[-1] for a in g.positions]
    # Whole vectors of two groups.
    reach = -(-(max(across) - min(across)) // 2) * 2
    if not reach:
        return []
    height, found = out.shape[-2], []
    for spread in spreads(out.shape[-1], reach):
        for down in range(1, most * lanes // (spread.width * GROUP) + 1):
            if spread.fits(down, height):
                found.append(_cut(g, out, columns, spread, down, reach, lanes))
    return found


def _cut(
    g: Geometry,
    out: Layout,
    columns: Sequence[Sequence[int]],
    spread: Spread,
    down: int,
    reach: int,
    lanes: int,
) -> tuple[Tiles, Packing]:
    spatial = out.shape[2:]
    height, width = spatial[-2:]
    left, groups = min(a[-1] for a in g.positions), spread.width + reach
    top, bottom = min(a[-2] for a in g.positions), max(a[-2] for a in g.positions)
    outer = sorted({a[:-2] for a in g.positions})
    rows = down + bottom - top
    # Rows of lanes below the picture's last read what the last one does, and are not written.
    last = height - 1 + bottom
    lines = tuple(
        tuple(
            sum(a * s for a, s in zip((*tap, min(lane + row, last), left), g.strides, strict=True))
            for lane in spread.tops(down)
        )
        for tap, row in itertools.product(outer, range(top, top + rows))
    )
    pitch = groups * GROUP
    taps = tuple(
        (outer.index(a[:-2]) * rows + a[-2] - top) * pitch + (a[-1] - left) * GROUP for a in g.positions
    )
    starts = [
        *map(range, spatial[:-2]),
        starts_of(height, spread.rows * down),
        starts_of(width, spread.pixels),
    ]
    places = np.array(list(itertools.product(*starts)), np.int64)
    table = np.stack([places @ np.array(c, np.int64) for c in columns], axis=1)
    tiles = segments(spread, down, groups, lanes, spatial[-2:], [c[-2] for c in columns[1:]])
    whole = Tiles(
        table.astype(np.int32), len(table), len(tiles.reads), 0, lanes, lanes, False, int(np.prod(spatial))
    )
    return whole, Packing(tiles, lines, taps)
