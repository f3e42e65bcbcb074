"""Strips of tiles whose lanes are spread over segments of rows (`spread.py`): bytes are spread as they are
packed, by one instruction, and results brought together by the one that orders them in any case."""

from __future__ import annotations

import itertools

import numpy as np

from coresident.kernels.integer_strips import Places, Strips, evenly, odd_lines
from coresident.kernels.spread import GROUP, Spread, segments, spreads, starts_of

SIDE_BY_SIDE = 4
"""Tiles of a strip at most: what is packed of a row is then long enough for prefetchers."""


def segment_strips(p: Places, vectors: int, elements: int) -> list[Strips]:
    """Ways to cut into tiles of so many vectors that consist of segments; none where pixels are not side by
    side.

    Args:
        elements: of the input channels.
    """
    side_by_side = all(strides[-1] == 1 for strides in (p.source.strides, *p.columns))
    if len(p.out.shape) < 4 or p.lanes % GROUP or not side_by_side or any(step != 1 for step in p.steps):
        return []
    found = []
    for spread in spreads(p.out.shape[-1], _span([a[-1] for a in p.positions])):
        down, rest = divmod(vectors * p.lanes, spread.width * GROUP)
        if not rest and down and spread.fits(down, p.out.shape[-2]):
            found.append(_strips(p, spread, down, elements))
    return found


def _span(positions: list[int]) -> int:
    return max(positions) - min(positions)


def _strips(p: Places, spread: Spread, down: int, elements: int) -> Strips:
    """Tiles of `down` segments below each other, and strips of tiles side by side. What a tile reads lies
    together, so that its lines spread over all cache sets."""
    spatial, strides = p.out.shape[2:], p.source.strides[2:]
    height, columns = spatial[-2:]
    left, right = min(a[-1] for a in p.positions), max(a[-1] for a in p.positions)
    top, bottom = min(a[-2] for a in p.positions), max(a[-2] for a in p.positions)
    groups = spread.width + right - left
    lefts = starts_of(columns, spread.pixels)
    pieces = evenly(len(lefts), SIDE_BY_SIDE)
    rows, pitch = down + bottom - top, groups * GROUP
    outer = sorted({a[:-2] for a in p.positions})
    base = {tap: i * rows * pitch for i, tap in enumerate(outer)}
    span = odd_lines(len(outer) * rows * pitch)
    taps = tuple(base[a[:-2]] + (a[-2] - top) * pitch + (a[-1] - left) * GROUP for a in p.positions)
    # Rows of lanes below the picture's last read what the last one does, and are not written.
    last = height - 1 + bottom

    runs: list[tuple[int, ...]] = []
    of_pieces: dict[tuple[int, ...], tuple[int, int]] = {}
    strips: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    packed = 0
    for index in itertools.product(*map(range, spatial[:-2])):
        plane = sum(i * s for i, s in zip(index, strides))
        places = [sum(a * b for a, b in zip(index, c)) for c in p.columns]
        tops = starts_of(height, spread.rows * down)
        for above, first in itertools.product(tops, range(0, len(lefts), pieces)):
            here = lefts[first : first + pieces]
            # Relative to the strip's first pixel, so that strips alike share them.
            apart = tuple(one - here[0] for one in here)
            if apart not in of_pieces:
                begin = len(runs)
                for tap, row in itertools.product(outer, range(rows)):
                    at = sum(t * s for t, s in zip(tap, strides)) + left
                    lines = [at + min(lane + row + top, last) * strides[-2] for lane in spread.tops(down)]
                    for number, one in enumerate(apart):
                        place = number * elements * span + base[tap] + row * pitch
                        read = [line + one for line in lines]
                        runs.append((read[0], place, spread.pixels + right - left, *read[1:]))
                of_pieces[apart] = begin, len(runs)
            begin = len(tiles)
            for number, one in enumerate(here):
                written = (q + above * c[-2] + one for q, c in zip(places, p.columns))
                tiles.append((number * elements * span, *written))
            first_run, end_run = of_pieces[apart]
            offset = plane + above * strides[-2] + here[0]
            strips.append((first_run, end_run, begin, len(tiles), offset))
            packed += (end_run - first_run) * groups * GROUP
    of_tile = segments(spread, down, groups, p.lanes, spatial[-2:], [c[-2] for c in p.columns])
    return Strips(
        np.array(runs, np.int32),
        np.array(strips, np.int32),
        np.array(tiles, np.int32),
        taps,
        span,
        1,
        len(of_tile.reads),
        p.lanes,
        False,
        packed,
        of_tile,
        pieces,
    )
