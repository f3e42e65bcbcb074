"""Segments: pixels spread over lanes so that whichever tap reads a vector, it lies in one cache line.

A vector in two lines takes half as long again to load, or twice as long, and of a 3 x 3 kernel's taps on rows
of pixels seven or eight of nine read such vectors. Hence neighbouring lanes hold pixels that are some way
apart. A *segment* of a row is packed in *groups* of lanes, as many as a core loads at once: 16, or 8 where it
loads half of a vector at a time. Pixels that are neighbours lie in neighbouring groups,

    pixel of lane l in group i  =  l * WIDTH + i        i = left ... WIDTH - 1 + right

so that the next pixel's vector lies one group further on. The groups before the first and after the last hold
what a kernel reads beyond the segment. Without these a segment is a matrix that is transposed: as pixels are
packed, and again before results are stored.

Where rows are shorter, the lanes of a group are spread over several of them (`Spread`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen import integers
from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target

GROUP = 8
"""Lanes of the smaller groups: half a cache line of elements of 32 bits."""

WIDTH = 8
"""Pixels beside each other that a lane goes through, of a segment of one row."""

SEGMENT = GROUP * WIDTH
"""Pixels of the smaller segments of one row."""

_REACHED = 16
"""Pixels that a lane reads at most: two vectors of bytes then hold what a channel's rows of lanes read."""


def group_of(target: Target) -> int:
    """Lanes of a group of elements of 32 bits that no load of a vector crosses a line for."""
    return target.load_bits // 32


@dataclass(frozen=True)
class Spread:
    """Where the lanes of a group lie.

    Args:
        rows, columns: of lanes.
        width: pixels beside each other that a lane goes through from group to group, an even number.
    """

    rows: int
    columns: int
    width: int

    @property
    def group(self) -> int:
        """Lanes of a group."""
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        """Of a row of lanes."""
        return self.columns * self.width

    def tops(self, down: int) -> list[int]:
        """The first row of each row of lanes, in tiles of `down` segments below each other."""
        return [lane * down for lane in range(self.rows)]

    def fits(self, down: int, height: int) -> bool:
        """Whether a picture is so high that more than half of the lanes of such a tile have pixels."""
        return down <= height and self.rows // 2 * down < height

    def row(self, number: int) -> list[int]:
        """Of the pixels of a row of lanes, their places in the segment, which lies group after group."""
        return [
            group * self.group + number * self.columns + column
            for column in range(self.columns)
            for group in range(self.width)
        ]

    def lanes(self, groups: range, pitch: int) -> list[int]:
        """Of the lanes of some groups, the pixels that they hold, from where rows lie `pitch` apart."""
        return [
            row * pitch + column * self.width + group
            for group in groups
            for row in range(self.rows)
            for column in range(self.columns)
        ]


def spreads(width: int, reach: int, group: int = GROUP) -> list[Spread]:
    """Ways to spread groups of lanes over rows of a width, for kernels that read `reach` pixels beyond."""
    found = [Spread(1, group, WIDTH)] if width >= group * WIDTH and WIDTH + reach <= _REACHED else []
    columns = 1
    while columns < group:
        each = -(-width // columns)
        each += each % 2
        if SEGMENT // group <= each + reach <= _REACHED:
            found.append(Spread(group // columns, columns, each))
        columns *= 2
    return found


@dataclass(frozen=True)
class Segments:
    """Tiles that consist of segments below each other.

    Args:
        spread: of each.
        groups: that a segment is packed in.
        reads: packed pixels from a tile's first to each of its vectors.
        writes: of each segment, and each of its rows of lanes, elements from a tile's first pixel to the
            row's, in the output and in each further operand of its shape; None for rows that are not there.
        pixels: of a row that are there.
    """

    spread: Spread
    groups: int
    reads: tuple[int, ...]
    writes: tuple[tuple[tuple[int, ...] | None, ...], ...]
    pixels: int


def spread_over(f: Function, rows: Sequence[Value], order: Sequence[int]) -> Value:
    """Of what two vectors can hold, row after row, the elements in an order."""
    if len(rows) == 1:
        return f.shuffle(rows[0], None, order)
    half = len(rows) // 2
    return f.shuffle(integers.joined(f, rows[:half]), integers.joined(f, rows[half:]), order)


def segments(
    spread: Spread,
    down: int,
    groups: int,
    lanes: int,
    shape: Sequence[int],
    strides: Sequence[int],
    lane_rows: int = 0,
) -> Segments:
    """Of tiles of `down` segments below each other.

    Args:
        groups: that a segment is packed in.
        lanes: of a vector.
        shape: of the picture, height and width.
        strides: elements between rows, of the output and each further operand of its shape.
        lane_rows: rows from one row of lanes to the next, `down` if not told.
    """
    height, width = shape
    pitch = groups * spread.group
    vectors = range(0, spread.width * spread.group, lanes)
    reads = tuple(row * pitch + at for row in range(down) for at in vectors)
    writes = tuple(
        tuple(
            tuple((lane + row) * stride for stride in strides) if lane + row < height else None
            for lane in spread.tops(lane_rows or down)
        )
        for row in range(down)
    )
    return Segments(spread, groups, reads, writes, min(width, spread.pixels))


def starts_of(length: int, width: int) -> list[int]:
    """Where tiles of a width begin in a run; the last one overlaps the one before rather than the end."""
    return [min(at, max(length - width, 0)) for at in range(0, max(length, 1), width)]


def apart(f: Function, lanes: Sequence[Value]) -> list[Value]:
    """What each lane of a group goes through, 16 pixels a vector, as groups, vector by vector."""
    return _rearranged(f, lanes, *_orders(len(lanes)))


def together(f: Function, groups: Sequence[Value], group: int) -> list[Value]:
    """What `apart` took apart, of so many lanes a group; of fewer than 16 groups, the last pixels of a lane
    may be anything."""
    pixels, held = _orders(group)
    missing = [groups[-1]] * (len(held) - len(groups))
    return _rearranged(f, [*groups, *missing], held, pixels)


def _orders(group: int) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """(lane, pixel) of the elements of 16 pixels of each lane of a group, and of the vectors of their
    groups."""
    pixels = [[(lane, pixel) for pixel in range(_REACHED)] for lane in range(group)]
    many = _REACHED // group
    starts = range(0, _REACHED, many)
    return pixels, [[(lane, at + i) for i in range(many) for lane in range(group)] for at in starts]


def row_apart(f: Function, pixels: Sequence[Value], beyond: Value, groups: int) -> list[Value]:
    """A segment of one row as groups of 16 lanes.

    Args:
        pixels: of the segment, vector by vector.
        beyond: those after them.
        groups: wanted; those after the first `WIDTH` read beyond.
    """
    found = _rearranged(f, pixels, *_row_orders())
    for i in range(groups - WIDTH):
        # What the next lane has in an earlier group, and after the last one what lies beyond.
        found.append(f.shuffle(found[i], beyond, [*range(1, 16), 16 + i]))
    return found


def row_together(f: Function, groups: Sequence[Value]) -> list[Value]:
    """The pixels of a segment of one row that groups of 16 lanes hold."""
    pixels, held = _row_orders()
    return _rearranged(f, groups, held, pixels)


def _row_orders() -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """(lane, pixel) of the elements of a segment of one row with 16 lanes, and of its groups."""
    pixels = [[divmod(at, WIDTH) for at in range(first, first + 16)] for first in range(0, 16 * WIDTH, 16)]
    return pixels, [[(lane, pixel) for lane in range(16)] for pixel in range(WIDTH)]


def _rearranged(
    f: Function,
    vectors: Sequence[Value],
    held: Sequence[Sequence[tuple[int, int]]],
    wanted: Sequence[Sequence[tuple[int, int]]],
) -> list[Value]:
    """The elements of some vectors in another order, a power of two of them in as many steps as that has
    digits.

    Args:
        held: the names of each vector's elements. Of each two neighbours, half are in either half of what is
            wanted, and so on.
        wanted: those of each result's.
    """
    if len(vectors) == 1:
        return [f.shuffle(vectors[0], None, [held[0].index(name) for name in wanted[0]])]
    results, half = [], len(wanted) // 2
    for some in (wanted[:half], wanted[half:]):
        names = {name for one in some for name in one}
        parts, of_parts = [], []
        for i in range(0, len(vectors), 2):
            both = [*held[i], *held[i + 1]]
            order = [at for at, name in enumerate(both) if name in names]
            parts.append(f.shuffle(vectors[i], vectors[i + 1], order))
            of_parts.append([both[at] for at in order])
        results += _rearranged(f, parts, of_parts, some)
    return results


def transposed(f: Function, vectors: Sequence[Value]) -> list[Value]:
    """A segment of 64 pixels as four vectors, pixel by pixel, as groups of 8 lanes, two a vector; or back.

    Two shuffles a vector: the first brings together what two vectors have of four groups.
    """
    halves = [
        [
            f.shuffle(a, b, [low // 2 * 16 + low % 2 * 8 + group for group in groups for low in range(4)])
            for groups in (range(4), range(4, 8))
        ]
        for a, b in (vectors[:2], vectors[2:])
    ]
    return [
        f.shuffle(
            halves[0][group // 4],
            halves[1][group // 4],
            [
                16 * half + one % 4 * 4 + low
                for one in (group, group + 1)
                for half in (0, 1)
                for low in range(4)
            ],
        )
        for group in range(0, GROUP, 2)
    ]
