"""How the work of a convolution is cut into tasks, and how a task finds its part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I32, I64

MOST_TILES = 16
"""For each thread, beyond which one more or less makes no difference."""

FEW_TASKS = 4
"""For each thread: no more are made by cutting the rows of a tile."""


@dataclass(frozen=True)
class Cut:
    """Tasks = pictures x parts of the tiles x parts of the rows, rows fastest; parts differ by one at most.

    A thread starts with neighbouring tasks, so it gets its own pixels, which mostly are those that it made
    in the layer before: fetching a line that another core has written takes as long as a hundred
    multiply-adds, and writing one that another core has read a third of that, asked for in advance or not.

    Args:
        tiles: runs of pixels in all.
        tile_parts: parts they are cut into.
        rows: output rows (or groups of rows) in all.
        row_parts: parts they are cut into.
        row_unit: a part is a multiple of it, the last one excepted.
        batch: pictures (times groups of the convolution).
        pieces: (first tile and end, first part of the rows and end) of each task of a picture, where they are
            not each tile part with each row part.
        channels_first: tiles are fastest, so that threads get rows of their own: where planes are read one by
            one.
    """

    tiles: int
    tile_parts: int
    rows: int
    row_parts: int
    row_unit: int
    batch: int
    pieces: tuple[tuple[int, int, int, int], ...] = ()
    channels_first: bool = False

    @property
    def tasks(self) -> int:
        return self.batch * (len(self.pieces) or self.row_parts * self.tile_parts)

    @property
    def begun(self) -> int:
        """Tiles of a picture, each counted as often as a task begins it."""
        return sum(end - first for first, end, _, _ in self.pieces) or self.tiles * self.row_parts

    def row_range(self, part: int) -> tuple[int, int]:
        """First row and end of a part of the rows."""
        units = -(-self.rows // self.row_unit)
        first, end = (p * units // self.row_parts * self.row_unit for p in (part, part + 1))
        return first, min(end, self.rows)

    @property
    def row_spans(self) -> tuple[tuple[int, int], ...]:
        """(first row, end) of what tasks have of the rows; all where they may have several parts."""
        if self.pieces:
            return ((0, self.rows),)
        return tuple(map(self.row_range, range(self.row_parts)))

    @property
    def most_rows(self) -> int:
        """Rows of the task that has most."""
        parts = [(first, end) for _, _, first, end in self.pieces] or [
            (p, p + 1) for p in range(self.row_parts)
        ]
        return max(self.row_range(end - 1)[1] - self.row_range(first)[0] for first, end in parts)

    def first_row(self, part: Value) -> Value:
        """The first row of a part, which may be the end."""
        units = -(-self.rows // self.row_unit)
        return part.function.minimum(part * units / self.row_parts * self.row_unit, self.rows)

    def part(self, f: Function, pieces: Value | None = None) -> Part:
        """What the task is to do.

        Args:
            pieces: address of their table, int32, if there are any.
        """
        task = f["task"]
        if self.pieces:
            assert pieces is not None
            picture, number = task / len(self.pieces), task % len(self.pieces)
            first_tile, end_tile, first_part, end_part = (
                f.convert(f.load(I32, pieces, number * 4 + i), I64) for i in range(4)
            )
            rows = self.first_row(first_part), self.first_row(end_part)
            return Part(picture, first_part, end_part, *rows, first_tile, end_tile)
        inner, outer = self.row_parts, self.tile_parts
        if self.channels_first:
            inner, outer = outer, inner
        row_part, rest = task % inner, task / inner
        tile_part, picture = rest % outer, rest / outer
        if self.channels_first:
            row_part, tile_part = tile_part, row_part
        first_tile, end_tile = (p * self.tiles / self.tile_parts for p in (tile_part, tile_part + 1))
        rows = self.first_row(row_part), self.first_row(row_part + 1)
        return Part(picture, row_part, row_part + 1, *rows, first_tile, end_tile)


@dataclass(frozen=True)
class Part:
    """One task's part of the work, as I64 values; ends are exclusive.

    Args:
        picture: picture times groups, plus group.
        row_part, end_part: parts of the rows.
    """

    picture: Value
    row_part: Value
    end_part: Value
    first_row: Value
    end_row: Value
    first_tile: Value
    end_tile: Value


def cut(
    tiles: int,
    rows: int,
    batch: int,
    threads: int,
    cycles: float,
    row_unit: int = 1,
    channels_first: bool = False,
    few: int = FEW_TASKS,
) -> Cut:
    """Cut so that every thread gets several tasks, none much under 5 us, splitting pixels before channels.

    Args:
        tiles, rows, batch: in all.
        threads: that will share the work.
        cycles: of all the work on one core, as estimated.
        row_unit: rows are split at multiples of it.
        channels_first: give each thread channels of its own, if there are enough.
        few: tasks for each thread at most that are made by cutting rows.
    """
    if threads == 1:
        return Cut(tiles, 1, rows, 1, row_unit, batch)
    wanted = min(threads * 6, int(cycles // 15000))
    wanted = max(wanted, threads if cycles > 6000 else 1)
    row_units = -(-rows // row_unit)
    if channels_first and batch == 1 and min(wanted, row_units) >= threads:
        each = wanted // threads
        tile_parts = min(tiles, each, FEW_TASKS)
        row_parts = threads * max(1, min(row_units // threads, FEW_TASKS // tile_parts, each // tile_parts))
        return Cut(tiles, tile_parts, rows, row_parts, row_unit, batch, channels_first=True)
    tile_parts = min(tiles, max(1, -(-wanted // batch)))
    # Each part of the rows brings the tile into L1 anew, so a few tasks must do.
    row_parts = min(row_units, max(1, -(-min(wanted, threads * few) // (batch * tile_parts))))
    if batch * tile_parts * row_parts % threads and tile_parts * row_parts < 4 * threads:
        # Few large tasks: make their number one that the threads share evenly.
        row_parts = min(row_units, row_parts * threads)
    return Cut(tiles, tile_parts, rows, row_parts, row_unit, batch)


def divided(
    strips: int,
    batch: int,
    rows: int,
    threads: int,
    cycles: float,
    channels_first: bool = False,
    row_unit: int = 1,
) -> Cut:
    """The tasks: strips if there are enough of them, since parts of the rows pack the same strip each.

    Args:
        strips, rows: in all.
        batch: pictures times groups.
        cycles: of all the work on one core, as estimated.
        channels_first: give each thread rows of its own, if there are enough.
        row_unit: rows are split at multiples of it.
    """
    row_units = -(-rows // row_unit)
    if threads == 1 or cycles < 6000:
        return Cut(strips, 1, rows, 1, row_unit, batch)
    if channels_first and batch == 1 and row_units >= threads:
        return Cut(strips, 1, rows, threads, row_unit, batch, channels_first=True)
    wanted = max(threads, min(threads * 6, int(cycles // 15000)))
    # Parts of one size, or single strips: of 16 strips in 12 parts a thread of two would get 9.
    size = -(-strips * batch // (2 * wanted))
    tile_parts = -(-strips // size)
    have = tile_parts * batch
    enough = have >= 4 * threads or (have >= threads and have % threads == 0)
    row_parts = 1 if enough else min(row_units, -(-threads // have) if have < threads else 2)
    return Cut(strips, tile_parts, rows, row_parts, row_unit, batch)


def evened(work: Cut, threads: int) -> Cut:
    """The same work where tiles are few and not a multiple of the threads: each thread gets whole tiles, and
    the tiles at which two of them meet are cut by rows.

    Kernels that know of parts of the rows (`Part.row_part`) have to read all that a task has.
    """
    tiles, left = work.tiles, work.tiles % threads
    if left == 0 or not 2 * threads < tiles <= MOST_TILES * threads:
        return work
    if work.batch > 1 or work.tasks < threads or work.channels_first:
        return work
    parts = threads // math.gcd(left, threads)
    if work.rows < parts * work.row_unit:
        return work
    # In parts of the rows of one tile: where each thread begins.
    bounds = [tiles * parts * thread // threads for thread in range(threads + 1)]
    pieces: list[tuple[int, int, int, int]] = []
    for first, end in itertools.pairwise(bounds):
        begins = [first, *range(-(-(first + 1) // parts) * parts, end, parts), end]
        own = [
            (at // parts, at // parts + 1, at % parts, (to - 1) % parts + 1)
            for at, to in itertools.pairwise(begins)
        ]
        # Whole tiles first: they hide what a thread's first code and weights take to come (convolutions of
        # one pixel at 28 x 28 with 80 % zeros became 1.05 to 1.2 times as fast).
        pieces += sorted(own, key=lambda piece: piece[3] - piece[2] < parts)
    even = replace(work, tile_parts=tiles, row_parts=parts, pieces=tuple(pieces))
    # Threads start with equal numbers of tasks, which may be of unequal size where there are many threads.
    return min(work, even, key=lambda way: (unevenness(way, [1] * tiles, threads), way.begun))


def unevenness(work: Cut, tiles: Sequence[int], threads: int, rows: Sequence[int] = ()) -> float:
    """What threads take that wait for the last one, relative to what they would take together.

    Args:
        tiles: the work of each.
        rows: the work of each part of the rows; how many it has, if not told.
    """
    if threads == 1:
        return 1.0
    if work.tasks > 32 * threads:
        return -(-work.tasks // threads) * threads / work.tasks
    before = [0, *itertools.accumulate(tiles)]
    ends = [before[part * work.tiles // work.tile_parts] for part in range(work.tile_parts + 1)]
    rows = rows or [end - first for first, end in map(work.row_range, range(work.row_parts))]
    parts = [end - first for first, end in itertools.pairwise(ends)]
    pairs = itertools.product(*((rows, parts) if work.channels_first else (parts, rows)))
    tasks: list[int] = [one * other for one, other in pairs] * work.batch
    if work.pieces:
        tasks = [
            (before[end] - before[first]) * sum(rows[first_part:end_part])
            for first, end, first_part, end_part in work.pieces
        ] * work.batch
    # Each starts with its share of the tasks, and takes those that others have not begun.
    bounds = [-(-len(tasks) * thread // threads) for thread in range(threads + 1)]
    begun, busy = bounds[:-1], [0] * threads
    for _ in tasks:
        first = busy.index(min(busy))
        owner = next(
            one % threads
            for one in range(first, first + threads)
            if begun[one % threads] < bounds[one % threads + 1]
        )
        busy[first] += tasks[begun[owner]]
        begun[owner] += 1
    return max(busy) * threads / max(sum(busy), 1)
