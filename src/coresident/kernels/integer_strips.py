"""How the output of an integer convolution is cut, and what of its input a task packs.

A *strip* is a part of the output whose input is packed at once: four channels interleaved, phases of a stride
apart, so that a tap is a constant distance from the output pixel. It is worked on in *tiles* of some vectors
of pixels. Runs of pixels cross row ends where input and output have the same gaps between rows (flat);
otherwise each row has tiles of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from coresident.graph.operators.windows import Window
from coresident.kernels.layout import Layout
from coresident.kernels.spread import Segments, starts_of
from coresident.kernels.strides import Phases

ALIGNMENT = 16
"""Pixels of a cache line of quads."""


@dataclass(frozen=True)
class Strips:
    """The cut, as tables that a kernel reads.

    Args:
        runs: [.., 3] int32: what is packed of a channel: elements from the strip's first to the run's first,
            the packed pixel that becomes, pixels. Of segments with several rows of lanes, elements from the
            strip's first to each row's follow.
        strips: [strips, 5] int32: first run and end, first tile and end, elements from the picture's first to
            the strip's first.
        tiles: [tiles, 2 + extras] int32: packed pixels from the strip's first to the tile's, elements from
            pixel 0 to the tile's first in the output and in each further operand of its shape.
        taps: packed pixels from an output pixel to what each tap reads.
        span: packed pixels of one quad of channels.
        step: elements between the pixels of a run.
        vectors: of a tile.
        last: pixels that a tile's last vector writes.
        flat: whether tiles cross row ends.
        packed: pixels packed of a channel, over all strips.
        segments: of tiles that consist of such; lanes are neighbouring pixels otherwise.
        pieces: tiles side by side that are packed one after another, each with all its channels; tiles that
            lie below each other share what is packed.
        tile_pixels: packed pixels of one quad of channels that a tile of segments reads.
    """

    runs: np.ndarray
    strips: np.ndarray
    tiles: np.ndarray
    taps: tuple[int, ...]
    span: int
    step: int
    vectors: int
    last: int
    flat: bool
    packed: int
    segments: Segments | None = None
    pieces: int = 1
    tile_pixels: int = 0

    @cached_property
    def sizes(self) -> list[int]:
        """Tiles of each strip."""
        return [int(size) for size in self.strips[:, 3] - self.strips[:, 2]]

    @cached_property
    def runs_packed(self) -> int:
        """Runs that all strips pack."""
        return int((self.strips[:, 1] - self.strips[:, 0]).sum())

    @property
    def reads(self) -> list[tuple[int, int]]:
        """What the first strip packs of a channel: elements from its first, start and end of each run."""
        first, end = self.strips[0, :2]
        return [
            (int(start), int(start) + (int(length) - 1) * self.step + 1)
            for source, _, length, *below in self.runs[first:end]
            for start in (source, *below)
        ]

    @property
    def longest(self) -> int:
        """Pixels of the longest run."""
        return int(self.runs[:, 2].max())


@dataclass(frozen=True)
class Places:
    """Where a convolution reads and writes.

    Args:
        positions: of each tap, relative to the output pixel times the stride.
        steps: input pixels from one output pixel to the next, one a spatial dimension.
        source: layout of the input, with as much halo as the taps reach.
        out, extras: layouts of the output and of further operands of its shape.
        lanes: pixels of a vector.
    """

    positions: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    source: Layout
    out: Layout
    extras: tuple[Layout, ...]
    lanes: int

    @property
    def columns(self) -> list[tuple[int, ...]]:
        """Spatial strides of the output and the further operands."""
        return [self.out.strides[2:], *(e.strides[2:] for e in self.extras)]

    @property
    def flat_length(self) -> int:
        """Pixels of a run over all rows of the output with the gaps of the input, in whole vectors."""
        pairs = zip(self.out.shape[2:], self.source.strides[2:])
        return -(-(sum((size - 1) * stride for size, stride in pairs) + 1) // self.lanes) * self.lanes

    @property
    def pitched_length(self) -> int:
        """The same of the rows of a plane, with the gaps of the output; 0 where there are no planes."""
        if len(self.out.shape) < 4:
            return 0
        height, width = self.out.shape[-2:]
        return -(-((height - 1) * self.out.strides[-2] + width) // self.lanes) * self.lanes

    @property
    def flat(self) -> bool:
        """Whether tiles may cross row ends."""
        spatial = self.out.shape[2:]

        def same(layout: Layout) -> bool:
            pairs = zip(layout.strides[2:], self.source.strides[2:], spatial)
            return layout.slack >= self.lanes and all(a == b for a, b, size in pairs if size > 1)

        return (
            all(s == 1 for s in self.steps)
            and self.source.strides[-1] == 1
            and all(map(same, (self.out, *self.extras)))
        )

    @staticmethod
    def of(w: Window, source: Layout, out: Layout, extras: tuple[Layout, ...], lanes: int) -> Places:
        """Of a convolution with this window."""
        positions = tuple(
            tuple(i * d - b for i, d, b in zip(p, w.dilations, w.pads_begin))
            for p in itertools.product(*map(range, w.kernel))
        )
        return Places(positions, w.strides, source, out, extras, lanes)


def odd_lines(pixels: int) -> int:
    """Planes of quads that do not all begin in the same cache set."""
    return (-(-pixels // ALIGNMENT) | 1) * ALIGNMENT


def evenly(count: int, most: int) -> int:
    """How many go together so that all parts but the last are of one size, of `most` at most, and few."""
    return -(-count // -(-count // most))


def flat_strips(p: Places, vectors: int, together: int) -> Strips:
    """Tiles that cross row ends, `together` of them a strip."""
    strides = p.source.strides[2:]
    length = p.flat_length
    vectors = min(vectors, length // p.lanes)
    width = vectors * p.lanes
    starts = np.minimum(np.arange(0, length, width), length - width)
    taps = [sum(a * s for a, s in zip(position, strides)) for position in p.positions]
    together = evenly(len(starts), together)
    clusters: list[list[int]] = []
    for tap in sorted(set(taps)):
        if clusters and tap <= clusters[-1][-1] + together * width:
            clusters[-1].append(tap)
        else:
            clusters.append([tap])
    bases, at = [], 0
    for cluster in clusters:
        bases.append(at)
        at += -(-(cluster[-1] - cluster[0] + together * width) // p.lanes) * p.lanes
    offsets = {tap: base + tap - c[0] for base, c in zip(bases, clusters) for tap in c}
    firsts = np.arange(0, len(starts), together)
    ends = np.minimum(firsts + together, len(starts))
    covered = starts[ends - 1] + width - starts[firsts]
    lengths, which = _in_order(covered)
    runs = [(c[0], base, c[-1] - c[0] + length) for length in lengths for base, c in zip(bases, clusters)]
    count = len(clusters)
    within = starts - starts[np.arange(len(starts)) // together * together]
    return Strips(
        np.array(runs, np.int32),
        np.stack([which * count, which * count + count, firsts, ends, starts[firsts]], 1).astype(np.int32),
        np.stack([within, *[starts] * (1 + len(p.extras))], 1).astype(np.int32),
        tuple(offsets[tap] for tap in taps),
        odd_lines(at),
        1,
        vectors,
        p.lanes,
        True,
        sum(c[-1] - c[0] for c in clusters) * len(firsts) + count * int(covered.sum()),
    )


def _in_order(values: np.ndarray[Any, Any]) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The distinct values as they first occur, and of each value which one it is."""
    distinct, index, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(index)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return [int(value) for value in distinct[order]], rank[inverse]


def pitched_strips(p: Places, vectors: int, together: int) -> Strips | None:
    """Tiles that cross row ends where the input is packed with the gaps of the output, phase by phase.

    Args:
        together: tiles of a strip.

    Returns:
        None where the output's rows have too small gaps for that, or operands differ in them.
    """
    rank, spatial = len(p.out.shape) - 2, p.out.shape[2:]
    if rank < 2 or p.out.strides[-1] != 1 or not all(e.slack >= p.lanes for e in (p.out, *p.extras)):
        return None
    pitch = p.out.strides[-2]
    if any(c[-2:] != p.out.strides[-2:] for c in p.columns):
        return None
    strides, positions = p.source.strides[2:], p.positions
    across, down = (Phases.of([a[d] for a in positions], p.steps[d]) for d in (-1, -2))
    if any(spatial[-1] + across.extent(phase) > pitch for phase in across.spans):
        return None
    length = p.pitched_length
    if rank > 2 and length > p.out.strides[-3]:
        # The last vector would reach into the next plane, which may be another task's.
        return None
    vectors = min(vectors, length // p.lanes)
    width = vectors * p.lanes
    starts = starts_of(length, width)
    together = evenly(len(starts), together)
    spans = []
    for first in range(0, len(starts), together):
        end = min(first + together, len(starts))
        top = starts[first] // pitch
        bottom = min((starts[end - 1] + width - 1) // pitch, spatial[-2] - 1) + 1
        spans.append((first, end, top, bottom))
    most = max(bottom - top for _, _, top, bottom in spans)
    outer = sorted({a[:-2] for a in positions})
    base: dict[tuple[tuple[int, ...], int, int], int] = {}
    at = 0
    for key in itertools.product(outer, down.spans, across.spans):
        base[key] = at
        # The last row is followed by what a tile reads beyond it, the first one by what aligns the tile.
        at += -(-((most + down.extent(key[1])) * pitch + width + p.lanes - 1) // p.lanes) * p.lanes
    taps = tuple(
        base[a[:-2], a[-2] % p.steps[-2], a[-1] % p.steps[-1]]
        + down.place(a[-2])[1] * pitch
        + across.place(a[-1])[1]
        for a in positions
    )
    runs: list[tuple[int, int, int]] = []
    known: dict[tuple[int, int], tuple[int, int]] = {}
    strips: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    packed = 0
    for index in itertools.product(*map(range, spatial[:-2])):
        plane = sum(i * s * t for i, s, t in zip(index, p.steps, strides))
        places = [sum(a * b for a, b in zip(index, c)) for c in p.columns]
        for first, end, top, bottom in spans:
            count = bottom - top
            # A strip begins within a row. Packed from there on, its vectors would each cross two lines: a
            # third of the time of a layer of single taps.
            shift = (top * pitch - starts[first]) % p.lanes
            kind = count, shift
            if kind not in known:
                begin = len(runs)
                for (tap, phase, column), place in base.items():
                    line = sum(t * s for t, s in zip(tap, strides))
                    left = across.first(column) * strides[-1]
                    for row in range(count + down.extent(phase)):
                        above = (row * p.steps[-2] + down.first(phase)) * strides[-2]
                        runs.append(
                            (
                                line + above + left,
                                place + shift + row * pitch,
                                spatial[-1] + across.extent(column),
                            )
                        )
                known[kind] = (begin, len(runs))
            begin = len(tiles)
            before = top * pitch - shift
            tiles += [(start - before, *(q + start for q in places)) for start in starts[first:end]]
            strips.append((*known[kind], begin, len(tiles), plane + top * p.steps[-2] * strides[-2]))
            packed += sum(run[2] for run in runs[slice(*known[kind])])
    return Strips(
        np.array(runs, np.int32),
        np.array(strips, np.int32),
        np.array(tiles, np.int32),
        taps,
        odd_lines(at),
        p.steps[-1] * strides[-1],
        vectors,
        p.lanes,
        True,
        packed,
    )


def row_strips(p: Places, vectors: int, rows: int, pieces: int) -> Strips:
    """Tiles within rows.

    Args:
        rows: output rows of a strip.
        pieces: tiles of a row that are one strip's; all, if a strip has several rows.
    """
    rank = len(p.out.shape) - 2
    spatial = p.out.shape[2:]
    height, columns = (spatial[-2] if rank > 1 else 1), spatial[-1]
    outer_sizes = spatial[:-2]
    strides = p.source.strides[2:]
    row_stride, row_step = (strides[-2], p.steps[-2]) if rank > 1 else (0, 1)
    vectors = min(vectors, -(-columns // p.lanes))
    width = vectors * p.lanes
    starts = starts_of(columns, width)
    pieces = len(starts) if rows > 1 else min(pieces, len(starts))
    rows = evenly(height, rows)
    positions = p.positions
    across = Phases.of([a[-1] for a in positions], p.steps[-1])
    down = Phases.of([a[-2] if rank > 1 else 0 for a in positions], row_step)
    outer = sorted({a[:-2] for a in positions})
    widest = max(
        starts[min(first + pieces, len(starts)) - 1] + width - starts[first]
        for first in range(0, len(starts), pieces)
    )
    # Packed: outer taps, phases of rows, rows, phases of columns, columns.
    at, column_base = 0, {}
    for phase in across.spans:
        column_base[phase] = at
        at += -(-(widest + across.extent(phase)) // p.lanes) * p.lanes
    pitch, at = at, 0
    row_base: dict[tuple[tuple[int, ...], int], int] = {}
    for tap in outer:
        for phase in down.spans:
            row_base[tap, phase] = at
            at += (rows + down.extent(phase)) * pitch
    taps = tuple(
        row_base[a[:-2], (a[-2] if rank > 1 else 0) % row_step]
        + down.place(a[-2] if rank > 1 else 0)[1] * pitch
        + column_base[a[-1] % p.steps[-1]]
        + across.place(a[-1])[1]
        for a in positions
    )

    def listed(count: int, covered: int) -> list[tuple[int, int, int]]:
        found = []
        for (tap, phase), base in row_base.items():
            plane = sum(t * s for t, s in zip(tap, strides))
            for row in range(count + down.extent(phase)):
                line = plane + (row * row_step + down.first(phase)) * row_stride
                for column in across.spans:
                    first = across.first(column) * strides[-1]
                    place = base + row * pitch + column_base[column]
                    found.append((line + first, place, covered + across.extent(column)))
        return found

    # Of one picture's first plane: blocks of rows, then of pieces, in each block its rows, then its tiles.
    at_row, at_tile = np.divmod(np.arange(height * len(starts)), len(starts))
    order = np.lexsort((at_tile, at_row, at_tile // pieces, at_row // rows))
    at_row, at_tile = at_row[order], at_tile[order]
    begins = np.array(starts)
    within = (at_row % rows) * pitch + begins[at_tile] - begins[at_tile // pieces * pieces]
    places = [begins[at_tile] * c[-1] + (at_row * c[-2] if rank > 1 else 0) for c in p.columns]
    tops, lefts = np.arange(0, height, rows), np.arange(0, len(starts), pieces)
    counts = np.repeat(np.minimum(rows, height - tops), len(lefts))
    ends = np.minimum(lefts + pieces, len(starts))
    covered = np.tile(begins[ends - 1] + width - begins[lefts], len(tops))
    bases = tops[:, None] * (row_step * row_stride) + begins[lefts] * (p.steps[-1] * strides[-1])
    tile_ends = np.cumsum(counts * np.tile(ends - lefts, len(tops)))
    tile_begins = tile_ends - counts * np.tile(ends - lefts, len(tops))
    kinds, which = _in_order(counts * (int(covered.max()) + 1) + covered)
    runs: list[tuple[int, int, int]] = []
    bounds = [0]
    for kind in kinds:
        runs += listed(*divmod(kind, int(covered.max()) + 1))
        bounds.append(len(runs))
    sizes = np.array([sum(run[2] for run in runs[a:b]) for a, b in itertools.pairwise(bounds)])
    limits = np.array(bounds)
    strips, tiles = [], []
    for number, index in enumerate(itertools.product(*map(range, outer_sizes))):
        plane = sum(i * s * t for i, s, t in zip(index, p.steps, strides))
        shifts = [sum(a * b for a, b in zip(index, c)) for c in p.columns]
        before = number * len(at_row)
        of_plane = [limits[which], limits[which + 1], tile_begins + before, tile_ends + before]
        strips.append(np.stack([*of_plane, bases.ravel() + plane], 1))
        tiles.append(np.stack([within, *(place + shift for place, shift in zip(places, shifts))], 1))
    rest = columns - (vectors - 1) * p.lanes
    return Strips(
        np.array(runs, np.int32),
        np.concatenate(strips).astype(np.int32),
        np.concatenate(tiles).astype(np.int32),
        taps,
        odd_lines(at),
        p.steps[-1] * strides[-1],
        vectors,
        min(rest, p.lanes),
        False,
        int(sizes[which].sum()) * len(strips),
    )


def _stores_runs(p: Places) -> bool:
    """Whether rows of the output and of further operands lie alike, with gaps that take no more than vectors
    which end with each row."""
    pitch, width = p.out.strides[-2], p.out.shape[-1]
    return (
        len(p.out.shape) == 4
        and all(e.slack >= p.lanes and e.strides[-1] == 1 for e in (p.out, *p.extras))
        and all(c[-2] == pitch for c in p.columns)
        and width <= pitch <= -(-width // p.lanes) * p.lanes
    )


def row_chunks(p: Places, rows: int) -> Strips:
    """Strips of whole rows, each row one tile; where that is possible the input keeps its gaps as it is
    packed. Flat, if what is stored of a strip may cross row ends."""
    vectors = -(-p.out.shape[-1] // p.lanes)
    flat = _stores_runs(p)
    if len(p.out.shape) != 4 or any(s != 1 for s in p.steps) or p.source.strides[-1] != 1:
        return replace(row_strips(p, vectors, rows, 1 << 30), flat=flat)
    height, width = p.out.shape[2:]
    pitch = p.source.strides[-2]
    rows = evenly(height, rows)
    taps = [a * pitch + b for a, b in p.positions]
    low = min(taps)
    reach = max(taps) - low
    tops = range(0, height, rows)
    counts = [min(rows, height - top) for top in tops]
    lengths = [(count - 1) * pitch + width + reach for count in counts]
    runs = [(low, 0, length) for length in sorted(set(lengths))]
    index = {length: i for i, (_, _, length) in enumerate(runs)}
    strips = [
        (index[length], index[length] + 1, top, top + count, top * pitch)
        for top, count, length in zip(tops, counts, lengths)
    ]
    tiles = [(row % rows * pitch, *(row * c[0] for c in p.columns)) for row in range(height)]
    return Strips(
        np.array(runs, np.int32),
        np.array(strips, np.int32),
        np.array(tiles, np.int32),
        tuple(tap - low for tap in taps),
        odd_lines(max(lengths)),
        1,
        vectors,
        min(width - (vectors - 1) * p.lanes, p.lanes),
        flat,
        sum(lengths),
    )
