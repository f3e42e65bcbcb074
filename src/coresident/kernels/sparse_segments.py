"""Tiles of a sparse convolution that consist of segments (`spread.py`).

A block of input channels is packed before the rows of weights pass over it: from the planes, where no vector
of a tap but the middle one's would lie in one cache line, into the worker's scratch, where all do. What a
convolution with strides reads is packed phase by phase, within which its stride is 1.

Neighbouring tiles of a volume read much of the same. So a tile may go on in *steps* along the depth, while
what it has packed stays in the scratch: each step packs only the planes that the one before did not read.
(Down a picture, where steps share two rows, they gained nothing.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import F32, Type
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.layout import Layout
from coresident.kernels.spread import (
    GROUP,
    Segments,
    Spread,
    apart,
    group_of,
    row_apart,
    segments,
    spreads,
    starts_of,
    transposed,
)
from coresident.kernels.strides import Phases
from coresident.kernels.wired import asked

STEPS = (1, 2, 4, 8, 16)
"""Steps of a tile worth trying."""

PACKING, STORING = 36.0, {True: 10.0, False: 28.0}
"""Cycles to pack a channel's row of segments of groups of 8 lanes, most of them for lines from L2 and L3
(shuffles alone take 14); and to bring together what is stored of one in one row, and in several."""

GROUP_PACKING, GROUP_MOVED, GROUP_STORING, GROUP_KEPT = 7.8, 3.9, {True: 111.0, False: 118.0}, 3.5
"""The same of a group of 16 lanes, where its row goes on from another, and of what is stored of a segment
(writing it included); and to read a packed line again in the next step."""


@dataclass(frozen=True)
class Packing:
    """How the input of a tile is packed.

    Args:
        segments: of the tile.
        rows: elements from the tile's first pixel to where each packed row of the first plane begins in the
            input, in each of its rows of lanes: phase by phase of them.
        columns: of each phase of the columns, elements of a row before its first pixel, and groups.
        step: elements between the pixels of such a phase.
        planes: that a step reads; a picture is one.
        plane_stride: elements of the input from one to the next.
        steps: of a tile, each one plane further on.
        moves: elements from a step's first pixel to the next one's, in the output and each further operand
            of its shape.
        taps: packed elements from an output pixel to what each tap reads.
    """

    segments: Segments
    rows: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, int], ...]
    step: int
    planes: int
    plane_stride: int
    steps: int
    moves: tuple[int, ...]
    taps: tuple[int, ...]

    @property
    def pitch(self) -> int:
        """Packed elements of a row."""
        return self.segments.groups * self.segments.spread.group

    @property
    def plane_span(self) -> int:
        """Packed elements of a plane."""
        return len(self.rows) * self.pitch

    @property
    def packed_planes(self) -> int:
        """Planes of a channel that all steps read."""
        return self.planes + self.steps - 1

    @property
    def span(self) -> int:
        """Packed elements of a channel."""
        return self.packed_planes * self.plane_span

    @property
    def is_whole(self) -> bool:
        """Whether a group fills a vector."""
        return self.segments.spread.group > GROUP

    @property
    def in_one_row(self) -> bool:
        """Whether all lanes of a segment lie in one row."""
        return self.segments.spread.rows == 1

    @property
    def cycles(self) -> float:
        """To pack a channel, for all steps."""
        if not self.is_whole:
            return PACKING * len(self.columns) * len(self.rows) * self.packed_planes
        above = [self._above(number) is not None for number in range(len(self.rows))]
        rows = sum(GROUP_MOVED if moved else GROUP_PACKING for moved in above)
        return rows * self.segments.groups * self.packed_planes

    @property
    def storing_cycles(self) -> float:
        """To bring together what an output channel stores in a step."""
        each = GROUP_STORING if self.is_whole else STORING
        return each[self.in_one_row] * len(self.segments.writes)

    def kept_cycles(self, bytes_a_cycle: float) -> float:
        """To read what is packed of a channel already, in a step: all planes but the last come from L2."""
        kept = 4 * (self.planes - 1) * self.plane_span if self.steps > 1 else 0
        return kept / 64 * GROUP_KEPT if self.is_whole else 0.5 * kept / bytes_a_cycle

    def pack(
        self, f: Function, vector: Type, source: Value, target: Value, following: int, step: Value | int = 0
    ) -> None:
        """Emit the packing of one channel for a step.

        Args:
            source: address of the tile's first pixel.
            target: where it is packed to.
            following: elements to the channel that is packed next, which L1 is asked for.
            step: of the tile.
        """
        first: Value | int = 0
        if not isinstance(step, int):
            first = f.select(step.equals(0), 0, step + (self.planes - 1))
        with f.loop(first, step + self.planes) as plane:
            here = f.offset(source, plane * self.plane_stride, F32)
            there = f.offset(target, plane * self.plane_span, F32)
            packed: list[list[Value]] = []
            for number, row in enumerate(self.rows):
                above = self._above(number)
                self._ask(f, f.offset(here, following, F32), row if above is None else row[-1:])
                if above is None:
                    packed.append(self._groups(f, vector, here, row))
                else:
                    packed.append(self._moved_on(f, vector, here, row, packed[above]))
                for i, pair in enumerate(packed[-1]):
                    f.store(pair, there, number * self.pitch + i * vector.lanes)

    def _above(self, number: int) -> int | None:
        """The packed row before a given one from which it goes on: that has all its rows of lanes but the
        last."""
        row = self.rows[number]
        if not self.is_whole or self.in_one_row:
            return None
        return next((i for i, other in enumerate(self.rows[:number]) if other[1:] == row[:-1]), None)

    def _moved_on(
        self, f: Function, vector: Type, source: Value, row: Sequence[int], before: Sequence[Value]
    ) -> list[Value]:
        """A packed row that goes on from another, vector by vector of its groups: one shuffle each, where to
        take pixels apart needs four."""
        columns, many = self.segments.spread.columns, vector.lanes // self.segments.spread.columns
        kept, found = range(columns, vector.lanes), []
        rest = iter(before)
        for (_, groups), lanes in zip(self.columns, zip(*self._lanes(f, vector, source, row[-1:]))):
            last = apart(f, lanes)
            for group in range(groups):
                at = vector.lanes + group % many * columns
                found.append(f.shuffle(next(rest), last[group // many], [*kept, *range(at, at + columns)]))
        return found

    def _lanes(self, f: Function, vector: Type, source: Value, row: Sequence[int]) -> list[list[Value]]:
        """Of each lane of rows of lanes, a vector of each phase's pixels."""
        spread, wanted = self.segments.spread, max(groups for _, groups in self.columns)
        begins = [self.step * spread.width * column for column in range(spread.columns)]
        return [self._pixels(f, vector, source, line + begin, wanted) for line in row for begin in begins]

    def _groups(self, f: Function, vector: Type, source: Value, row: Sequence[int]) -> list[Value]:
        """A packed row, vector by vector of its groups."""
        spread = self.segments.spread
        if not self.in_one_row:
            found: list[Value] = []
            for (_, groups), lanes in zip(self.columns, zip(*self._lanes(f, vector, source, row))):
                found += apart(f, lanes)[: groups * spread.group // vector.lanes]
            return found
        # Each lane's pixels of the smaller groups, whole rows of the larger ones.
        apart_by = GROUP if spread.group == GROUP else vector.lanes
        end = spread.pixels + (0 if spread.group == GROUP else 1)
        starts = [row[0] + self.step * at for at in range(0, end, apart_by)]
        pixels = [self._pixels(f, vector, source, start, vector.lanes) for start in starts]
        found = []
        for (_, groups), lanes in zip(self.columns, zip(*pixels)):
            if spread.group == GROUP:
                both = [transposed(f, lanes[half::2]) for half in (0, 1)]
                found += [*both[0], *both[1]][: groups // 2]
            else:
                found += row_apart(f, lanes[:-1], lanes[-1], groups)
        return found

    def _pixels(self, f: Function, vector: Type, source: Value, start: int, count: int) -> list[Value]:
        """A vector of each phase's pixels from some element on, `count` of which are wanted."""
        if self.step == 1:
            return [f.load(vector, source, start + first) for first, _ in self.columns]
        lanes, found = vector.lanes, []
        loaded: dict[int, tuple[Value, Value]] = {}
        # No further than the last pixel wanted: the second half then overlaps the first.
        far = max(0, min(2 * count - lanes, lanes))
        for first, _ in self.columns:
            odd = first - 1 in loaded
            at = first - odd
            if at not in loaded:
                here = start + at
                loaded[at] = f.load(vector, source, here), f.load(vector, source, here + far)
            order = [e if e < lanes else lanes + min(e - far, lanes - 1) for e in range(odd, 2 * lanes, 2)]
            found.append(f.shuffle(loaded[at][0], loaded[at][1], order))
        return found

    def _ask(self, f: Function, plane: Value, starts: Sequence[int]) -> None:
        """Ask L1 for rows of lanes."""
        for start in dict.fromkeys(starts):
            for at in range(0, self._row_lines * 16, 16):
                f.prefetch(plane, 4 * (start + at))

    @property
    def _row_pixels(self) -> int:
        """Elements of the input that a row of lanes reads."""
        spread = self.segments.spread
        beyond = max(first + self.step * (groups - spread.width) for first, groups in self.columns)
        return self.step * spread.pixels + beyond

    @property
    def _row_lines(self) -> int:
        """Cache lines that a row of lanes may touch."""
        return -(-(self._row_pixels + 15) // 16)

    @property
    def _rows_read(self) -> list[int]:
        """Where the rows begin that are read of a channel: in the first step, or in a later one."""
        planes = range(self.planes if self.steps == 1 else 1)
        rows = sorted({start for row in self.rows for start in row})
        return [plane * self.plane_stride + row for plane in planes for row in rows]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """What `pack` reads of a channel: in the first step, or in a later one of the plane at an address."""
        return [(row, row + self._row_pixels) for row in self._rows_read]

    def asked(self, passes: int) -> tuple[list[int], list[int]]:
        """How to ask for that in some passes: elements from the plane where each pass begins, and from there
        to what it asks for."""
        return asked([(row, self._row_lines) for row in self._rows_read], passes)


def cuts(
    g: Geometry, out: Layout, extras: Sequence[Layout], target: Target, most: int
) -> list[tuple[Tiles, Packing]]:
    """Ways to cut into tiles of `most` vectors at most that consist of segments below each other, and how
    their input is packed; none where output pixels are further apart than every other one of the input."""
    lanes = target.lanes(F32)
    columns = [tuple(g.strides), out.strides[2:], *(e.strides[2:] for e in extras)]
    rank = len(out.shape) - 2
    if lanes != 16 or rank not in (2, 3) or any(c[-1] != 1 for c in columns[1:]):
        return []
    if not g.positions or g.planes or g.pixels[-1] != 1 or not (g.is_unstrided or rank == 2) or g.step > 2:
        return []
    down, across = (Phases.of((a[d] for a in g.positions), g.strides[d] // g.pixels[d]) for d in (-2, -1))
    group = group_of(target)
    # Whole vectors.
    reach = -(-max(across.extents) * group // lanes) * lanes // group
    if not reach:
        # Of single columns no vector crosses a line, and a copy split by phase costs less than to pack them.
        return []
    height, found = out.shape[-2], []
    for spread in spreads(out.shape[-1], reach, group):
        for below in range(1, most * lanes // (spread.width * group) + 1):
            if spread.fits(below, height):
                ways = (_cut(g, out, columns, spread, below, steps, down, across, lanes) for steps in STEPS)
                found += [way for way in ways if way is not None]
    return found


def _cut(
    g: Geometry,
    out: Layout,
    columns: Sequence[Sequence[int]],
    spread: Spread,
    below: int,
    steps: int,
    down: Phases,
    across: Phases,
    lanes: int,
) -> tuple[Tiles, Packing] | None:
    """Tiles of `below` segments below each other that go on in steps; None where they can't."""
    spatial, places = out.shape[2:], np.array(g.positions)
    in_volume, height = len(spatial) == 3, spatial[-2]
    depths = sorted(set(places[:, 0].tolist())) if in_volume else [0]
    apart = depths[1] - depths[0] if len(depths) > 1 else 1
    if steps > 1 and not (in_volume and apart == 1 and steps <= spatial[0]):
        return None
    plane = depths[0] * g.strides[0] if in_volume else 0
    left = min(across.firsts)
    lines: list[tuple[int, ...]] = []
    row_bases: list[int] = []
    for first, extent in zip(down.firsts, down.extents):
        row_bases.append(len(lines))
        start = plane + first * g.pixels[-2] + left
        # Rows of lanes below the picture's last read what the last one does, and are not written.
        lines += [
            tuple(start + min(lane + row, height - 1 + extent) * g.strides[-2] for lane in spread.tops(below))
            for row in range(below + extent)
        ]
    # Whole vectors.
    whole = lanes // spread.group
    groups = [spread.width + -(-extent // whole) * whole for extent in across.extents]
    group_bases = [sum(groups[:i]) for i in range(len(groups))]
    pitch = sum(groups) * spread.group
    taps = []
    for a in g.positions:
        (row_phase, row), (column_phase, column) = down.place(a[-2]), across.place(a[-1])
        row += row_bases[row_phase] + (depths.index(a[0]) * len(lines) if in_volume else 0)
        taps.append(row * pitch + (group_bases[column_phase] + column) * spread.group)
    extents = [*([steps] if in_volume else []), spread.rows * below, spread.pixels]
    starts = [starts_of(*each) for each in zip(spatial, extents, strict=True)]
    begins = np.array(list(itertools.product(*starts)), np.int64)
    table = np.stack([begins @ np.array(c, np.int64) for c in columns], axis=1)
    tiles = segments(spread, below, sum(groups), lanes, spatial[-2:], [c[-2] for c in columns[1:]])
    cutting = Tiles(
        table.astype(np.int32), len(table), len(tiles.reads), 0, lanes, lanes, False, int(np.prod(spatial))
    )
    moves = tuple(c[0] for c in columns[1:])
    packing = Packing(
        tiles,
        tuple(lines),
        tuple((first - left, count) for first, count in zip(across.firsts, groups)),
        g.step,
        len(depths),
        g.strides[0] * apart,
        steps,
        moves,
        tuple(taps),
    )
    return cutting, packing
