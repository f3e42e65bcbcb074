"""Strips of tiles whose lanes are spread over segments of rows (`spread.py`): bytes are spread as they are
packed, by one instruction, and results brought together by the one that orders them in any case."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from coresident.kernels.integer_strips import Places, Strips, evenly, odd_lines
from coresident.kernels.spread import GROUP, WIDTH, Spread, segments, spreads, starts_of
from coresident.kernels.strides import Phases

MOST_ROWS = 4
"""Of lanes in the larger groups, of which each is read by itself."""

SIDE_BY_SIDE = 4
"""Tiles of a strip beside each other at most: what is packed of a row is then long enough for prefetchers."""

STACKED = (1, 2, 4, 8)
"""Tiles of a strip below each other worth trying: they share rows, so that fewer are packed. Layers of a
U-Net are 1.03 to 1.08 times as fast so, the larger their planes."""


def segment_strips(p: Places, vectors: int, elements: int, group: int = GROUP) -> list[Strips]:
    """Ways to cut into tiles of so many vectors that consist of segments; none where pixels are further apart
    than every other one. What a convolution with strides reads is packed phase by phase.

    Args:
        elements: of the input channels.
        group: lanes of the larger groups.
    """
    side_by_side = all(strides[-1] == 1 for strides in (p.source.strides, *p.columns))
    if len(p.out.shape) < 4 or p.lanes % GROUP or not side_by_side:
        return []
    if p.steps[-1] > 2 or (len(p.steps) > 2 and any(step != 1 for step in p.steps)):
        return []
    down, across = (Phases.of((a[d] for a in p.positions), p.steps[d]) for d in (-2, -1))
    found = []
    ways = spreads(p.out.shape[-1], max(across.extents))
    if group > GROUP:
        larger = spreads(p.out.shape[-1], max(across.extents), group)
        ways += [way for way in larger if way.width == WIDTH and way.rows <= MOST_ROWS]
    for spread in ways:
        below, rest = divmod(vectors * p.lanes, spread.width * spread.group)
        if not rest and below and spread.fits(below, p.out.shape[-2]):
            for stacked in STACKED:
                if stacked == 1 or spread.rows * below * stacked <= p.out.shape[-2]:
                    found.append(_strips(p, spread, below, stacked, down, across, elements))
    return found


def _strips(
    p: Places, spread: Spread, below: int, stacked: int, down: Phases, across: Phases, elements: int
) -> Strips:
    """Tiles of `below` segments below each other, and strips of tiles side by side, so many below each other
    between two lanes' rows. What a tile reads lies together, so that its lines spread over all cache sets."""
    spatial, strides = p.out.shape[2:], p.source.strides[2:]
    height, columns = spatial[-2:]
    groups = spread.width + max(across.extents)
    lefts = starts_of(columns, spread.pixels)
    pieces = evenly(len(lefts), SIDE_BY_SIDE)
    pitch = across.count * groups * spread.group
    # Packed: outer taps, phases of rows, rows, phases of columns, groups.
    lane_rows = below * stacked
    rows = [lane_rows + extent for extent in down.extents]
    before = [sum(rows[:i]) for i in range(len(rows) + 1)]
    outer = sorted({a[:-2] for a in p.positions})
    span = odd_lines(len(outer) * before[-1] * pitch)
    taps = []
    for a in p.positions:
        (row_phase, row), (column_phase, column) = down.place(a[-2]), across.place(a[-1])
        line = outer.index(a[:-2]) * before[-1] + before[row_phase] + row
        taps.append(line * pitch + (column_phase * groups + column) * spread.group)

    def lines(tap: tuple[int, ...], phase: int, row: int) -> list[int]:
        """Elements from a strip's first pixel to a packed row's, in each of its rows of lanes: those below
        the picture's last read what the last one does, and are not written."""
        start = sum(t * s for t, s in zip(tap, strides)) + down.firsts[phase] * strides[-2]
        last = height - 1 + down.extents[phase]
        return [start + min(lane + row, last) * p.steps[-2] * strides[-2] for lane in spread.tops(lane_rows)]

    runs: list[tuple[int, ...]] = []
    of_pieces: dict[tuple[int, ...], tuple[int, int]] = {}
    strips: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    packed = 0
    for index in itertools.product(*map(range, spatial[:-2])):
        plane = sum(i * s for i, s in zip(index, strides))
        places = [sum(a * b for a, b in zip(index, c)) for c in p.columns]
        tops = starts_of(height, spread.rows * lane_rows)
        for above, first in itertools.product(tops, range(0, len(lefts), pieces)):
            here = lefts[first : first + pieces]
            # Relative to the strip's first pixel, so that strips alike share them.
            apart = tuple(one - here[0] for one in here)
            if apart not in of_pieces:
                begin = len(runs)
                for (i, tap), phase in itertools.product(enumerate(outer), range(down.count)):
                    for row, number in itertools.product(range(rows[phase]), range(len(apart))):
                        line = (i * before[-1] + before[phase] + row) * pitch
                        for column, left in enumerate(across.firsts):
                            moved = left + apart[number] * p.steps[-1]
                            read = [at + moved for at in lines(tap, phase, row)]
                            place = number * elements * span + line + column * groups * spread.group
                            runs.append((read[0], place, spread.pixels + max(across.extents), *read[1:]))
                of_pieces[apart] = begin, len(runs)
            begin = len(tiles)
            for (number, one), row in itertools.product(enumerate(here), range(0, lane_rows, below)):
                written = (q + (above + row) * c[-2] + one for q, c in zip(places, p.columns))
                tiles.append((number * elements * span + row * pitch, *written))
            first_run, end_run = of_pieces[apart]
            offset = plane + above * p.steps[-2] * strides[-2] + here[0] * p.steps[-1]
            strips.append((first_run, end_run, begin, len(tiles), offset))
            packed += (end_run - first_run) * groups * spread.group
    moves = [c[-2] for c in p.columns]
    of_tile = segments(spread, below, across.count * groups, p.lanes, spatial[-2:], moves, lane_rows)
    return Strips(
        np.array(runs, np.int32),
        np.array(strips, np.int32),
        np.array(tiles, np.int32),
        tuple(taps),
        span,
        p.steps[-1],
        len(of_tile.reads),
        p.lanes,
        False,
        packed,
        replace(of_tile, groups=groups),
        pieces,
        len(outer) * sum(below + extent for extent in down.extents) * pitch,
    )
