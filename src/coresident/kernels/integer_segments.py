"""Strips of tiles whose lanes are spread over segments of rows (`spread.py`): bytes are spread as they are
packed, by one instruction, and results brought together by the one that orders them in any case."""

from __future__ import annotations

import itertools

import numpy as np

from coresident.kernels.integer_strips import Places, Strips, evenly, odd_lines
from coresident.kernels.spread import GROUP, SEGMENT, Segments, starts_of

SIDE_BY_SIDE = 4
"""Tiles of a strip at most: what is packed of a row is then long enough for prefetchers."""


def segment_strips(p: Places, down: int, elements: int) -> Strips | None:
    """Tiles of segments below each other, and strips of tiles side by side. What a tile reads lies together,
    so that its lines spread over all cache sets.

    Args:
        down: segments of a tile.
        elements: of the input channels.

    Returns:
        None where rows are shorter or fewer than a tile's, or pixels are not side by side.
    """
    rank, spatial = len(p.out.shape) - 2, p.out.shape[2:]
    side_by_side = all(strides[-1] == 1 for strides in (p.source.strides, *p.columns))
    if rank < 2 or p.lanes % GROUP or not side_by_side or any(step != 1 for step in p.steps):
        return None
    height, columns = spatial[-2:]
    if columns < SEGMENT or height < down:
        return None
    strides = p.source.strides[2:]
    left, right = min(a[-1] for a in p.positions), max(a[-1] for a in p.positions)
    top, bottom = min(a[-2] for a in p.positions), max(a[-2] for a in p.positions)
    groups = GROUP + right - left
    if groups > 2 * GROUP:
        return None
    lefts = starts_of(columns, SEGMENT)
    pieces = evenly(len(lefts), SIDE_BY_SIDE)
    rows, pitch = down + bottom - top, groups * GROUP
    outer = sorted({a[:-2] for a in p.positions})
    base = {tap: i * rows * pitch for i, tap in enumerate(outer)}
    span = odd_lines(len(outer) * rows * pitch)
    taps = tuple(base[a[:-2]] + (a[-2] - top) * pitch + (a[-1] - left) * GROUP for a in p.positions)

    runs: list[tuple[int, int, int]] = []
    of_pieces: dict[tuple[int, ...], tuple[int, int]] = {}
    strips: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    packed = 0
    for index in itertools.product(*map(range, spatial[:-2])):
        plane = sum(i * s for i, s in zip(index, strides))
        places = [sum(a * b for a, b in zip(index, c)) for c in p.columns]
        for above, first in itertools.product(starts_of(height, down), range(0, len(lefts), pieces)):
            here = lefts[first : first + pieces]
            # Relative to the strip's first pixel, so that strips alike share them.
            apart = tuple(one - here[0] for one in here)
            if apart not in of_pieces:
                begin = len(runs)
                for tap, row in itertools.product(outer, range(rows)):
                    line = sum(t * s for t, s in zip(tap, strides)) + (top + row) * strides[-2] + left
                    for number, one in enumerate(apart):
                        place = number * elements * span + base[tap] + row * pitch
                        runs.append((line + one, place, SEGMENT + right - left))
                of_pieces[apart] = begin, len(runs)
            begin = len(tiles)
            for number, one in enumerate(here):
                written = (q + above * c[-2] + one for q, c in zip(places, p.columns))
                tiles.append((number * elements * span, *written))
            first_run, end_run = of_pieces[apart]
            offset = plane + above * strides[-2] + here[0]
            strips.append((first_run, end_run, begin, len(tiles), offset))
            packed += (end_run - first_run) * groups * GROUP
    reads = tuple(row * pitch + at for row in range(down) for at in range(0, SEGMENT, p.lanes))
    writes = tuple(tuple(row * c[-2] for c in p.columns) for row in range(down))
    return Strips(
        np.array(runs, np.int32),
        np.array(strips, np.int32),
        np.array(tiles, np.int32),
        taps,
        span,
        1,
        len(reads),
        p.lanes,
        False,
        packed,
        Segments(groups, reads, writes),
        pieces,
    )
