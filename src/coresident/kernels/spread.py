"""Segments: runs of pixels spread over lanes so that whichever tap reads a vector, it lies in one cache line.

A vector in two lines takes half as long again to load, and of a 3 x 3 kernel's taps on rows of pixels seven
or eight of nine read such vectors. Hence neighbouring lanes hold pixels that are some way apart. A *segment*
of a row is packed in *groups* of `GROUP` lanes, and pixels that are neighbours lie in neighbouring groups,

    pixel of lane l in group i  =  l * GROUP + i        i = left ... GROUP - 1 + right

so that the next pixel's vector lies one group further on: half a line, which loads take as well as a whole
one. The groups before the first and after the last hold what a kernel reads beyond the segment. Without these
a segment is a square matrix that is transposed: as pixels are packed, and again before results are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value

GROUP = 8
"""Lanes of a group: half a cache line of elements of 32 bits."""

SEGMENT = GROUP * GROUP
"""Pixels of a segment."""

ORDER = tuple(lane % GROUP * GROUP + lane // GROUP for lane in range(SEGMENT))
"""Of each lane of a segment, group after group, which pixel it holds; and of each pixel, which lane."""


@dataclass(frozen=True)
class Segments:
    """Tiles that consist of segments below each other.

    Args:
        groups: that a segment is packed in.
        reads: packed pixels from a tile's first to each of its vectors.
        writes: of each segment, elements from a tile's first pixel to the segment's, in the output and in
            each further operand of its shape.
    """

    groups: int
    reads: tuple[int, ...]
    writes: tuple[tuple[int, ...], ...]


def starts_of(length: int, width: int) -> list[int]:
    """Where tiles of a width begin in a run; the last one overlaps the one before rather than the end."""
    return [min(at, max(length - width, 0)) for at in range(0, max(length, 1), width)]


def transposed(f: Function, vectors: Sequence[Value]) -> list[Value]:
    """A segment as four vectors of 16 elements, pixel by pixel, as groups, two a vector; or back.

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
