"""Where the elements of a tensor lie in its buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

Pixels = TypeVar("Pixels", int, np.ndarray[Any, Any])


L1_SETS, APART = 64, 25
"""Lines of a page, each of which goes to a set of L1 of its own; and how many of them the beginnings of
striped planes are apart, whole pages left out. The golden section of the sets (Knuth, "The art of computer
programming", 6.4) spreads those of any number of successive planes evenly. Where a tile's lines met in few
sets, layers of a U-Net took 1.02 to 1.1 times as long on Zen 5."""


@dataclass(frozen=True)
class Layout:
    """A strided arrangement of a tensor inside a buffer.

    Args:
        shape: sizes.
        strides: in elements, one a dimension.
        origin: elements from the start of the buffer to element 0.
        extent: elements of the buffer (for a view: of what it is a view of).
        halo: (before, after) elements around each dimension that are readable and hold `fill`.
        slack: elements after the last of every innermost run that may be read and overwritten with anything.
        fill: value of the halo: zero, or the zero point of a quantised tensor.
        block: pixels that lie side by side, where all channels of so many pixels follow each other before the
            next pixels do (`blocked`); 0 where the strides say all.
        stripes: that each row is cut into (`striped`); 0 where neighbouring pixels lie side by side.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    origin: int
    extent: int
    halo: tuple[tuple[int, int], ...]
    slack: int = 0
    fill: int = 0
    block: int = 0
    stripes: int = 0

    @staticmethod
    def contiguous(shape: Sequence[int]) -> Layout:
        """C order, no halo."""
        strides: list[int] = []
        step = 1
        for size in reversed(shape):
            strides.append(step)
            step *= max(size, 1)
        return Layout(tuple(shape), tuple(reversed(strides)), 0, math.prod(shape), ((0, 0),) * len(shape))

    @staticmethod
    def planar(
        shape: Sequence[int],
        gaps: Sequence[int],
        halo: Sequence[tuple[int, int]],
        lanes: int,
        itemsize: int = 4,
        fill: int = 0,
    ) -> Layout:
        """[N][C][planes of (depth,) rows (with gaps between their ends and starts)].

        Args:
            shape: (N, C, spatial...).
            gaps: for each spatial dimension, unused elements between one line and the next: the border
                after one row is the border before the next, so a run of pixels may cross row ends.
            halo: for each spatial dimension, (before, after) of the value `fill`; at most the gap, except in
                the outermost.
            lanes: of a vector: what a run may overshoot.
            itemsize: bytes of an element.
        """
        spatial = list(shape[2:])
        strides = [1] * len(spatial)
        for d in range(len(spatial) - 2, -1, -1):
            strides[d] = strides[d + 1] * (spatial[d + 1] + gaps[d + 1])
        before = sum(h[0] * s for h, s in zip(halo, strides))
        after = sum(h[1] * s for h, s in zip(halo, strides))
        span = sum((size - 1) * s for size, s in zip(spatial, strides)) + 1
        # Cache lines per plane odd: planes that all start in the same cache set would throw each other out
        # of L1.
        line = 64 // itemsize
        origin = -(-before // line) * line
        plane = -(-(origin + span + after + lanes) // line)
        plane = (plane | 1) * line
        n, c = shape[0], shape[1]
        return Layout(
            tuple(shape),
            (plane * c, plane, *strides),
            origin,
            plane * c * n + lanes,
            ((0, 0), (0, 0), *halo),
            slack=lanes,
            fill=fill,
        )

    @staticmethod
    def phased(shape: Sequence[int], rows: Sequence[int], slack: int, itemsize: int = 4) -> Layout:
        """[N][C][phases][planes], all of each plane written: no halo.

        Args:
            shape: (N, C, phases, spatial...).
            rows: strides of the spatial dimensions.
            slack: elements that a run may overshoot.
            itemsize: bytes of an element.
        """
        n, c, phases, *spatial = shape
        line = 64 // itemsize
        span = sum((size - 1) * s for size, s in zip(spatial, rows)) + 1
        # An odd number of lines, as for `planar`.
        plane = (-(-(span + slack) // line) | 1) * line
        strides = (c * phases * plane, phases * plane, plane, *rows)
        return Layout(tuple(shape), strides, 0, n * c * phases * plane + slack, ((0, 0),) * len(shape), slack)

    def blocked(self, lanes: int, channels: int | None = None) -> Layout:
        """[N][blocks][C][lanes] of the pixels that these planes have: those between their rows, too.

        The strides of the spatial dimensions still count pixels of a plane: `place` says where these lie.

        Args:
            lanes: pixels of a block.
            channels: C, if another than here.
        """
        n, c, *spatial = self.shape
        c = channels or c
        span = sum((size - 1) * s for size, s in zip(spatial, self.strides[2:])) + 1
        picture = -(-span // lanes) * lanes * c
        return Layout(
            (n, c, *spatial),
            (picture, lanes, *self.strides[2:]),
            0,
            picture * n,
            ((0, 0),) * len(self.shape),
            slack=lanes,
            block=lanes,
        )

    @staticmethod
    def striped(shape: Sequence[int], halo: Sequence[tuple[int, int]], stripes: int) -> Layout:
        """[N][C][planes of rows][columns][stripes]: each row is cut into stripes of equal length, and pixels
        at the same place of all stripes lie side by side, a *column* (Farrar, "Striped Smith-Waterman",
        2007).

        The next pixel of a lane lies one column further on, so where stripes are as many as a vector has
        lanes, whatever a kernel reads beside a pixel is a whole vector that crosses no cache line. Columns
        before the first and after the last hold what lies beside the stripes: their neighbours' pixels, and
        zero beyond the row. Who writes a row writes them, too.

        The strides count elements of rows as they lie; the halo of the last dimension is the elements of
        those columns.

        Args:
            shape: (N, C, spatial...), whose rows are multiples of `stripes` long.
            halo: for each spatial dimension, (before, after) pixels that are read around the planes.
        """
        before, after = (width * stripes for width in halo[-1])
        gaps = (*(max(pair) for pair in halo[:-1]), before + after)
        planes = Layout.planar(shape, gaps, (*halo[:-1], (before, after)), stripes)
        line = 64 // 4
        plane = planes.strides[1] + (APART - planes.strides[1] // line) % L1_SETS * line
        n, c = shape[:2]
        strides = (plane * c, plane, *planes.strides[2:])
        return replace(planes, strides=strides, extent=plane * c * n + planes.slack, stripes=stripes)

    @property
    def outer_columns(self) -> tuple[int, int]:
        """Columns before the first and after the last one of a striped row, that its readers read."""
        before, after = self.halo[-1] if self.stripes else (0, 0)
        return before // max(self.stripes, 1), after // max(self.stripes, 1)

    def place(self, pixels: Pixels) -> Pixels:
        """Elements from pixel 0 of a channel to others, counted along its plane."""
        if not self.block:
            return pixels
        place: Pixels = pixels // self.block * (self.block * self.shape[1]) + pixels % self.block
        return place

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps (dimensions of size 1 do not matter)."""
        step = 1
        if self.block or self.stripes:
            return False
        for size, stride in zip(reversed(self.shape), reversed(self.strides)):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def view(
        self, shape: Sequence[int], strides: Sequence[int], shift: int, halo: Sequence[tuple[int, int]] = ()
    ) -> Layout:
        """Another look at the same buffer: `shift` is added to the origin."""
        kept = tuple(halo) or ((0, 0),) * len(shape)
        return replace(
            self, shape=tuple(shape), strides=tuple(strides), origin=self.origin + shift, halo=kept, slack=0
        )

    def narrow(self, axis: int, start: int, size: int) -> Layout:
        """The part [start, start + size) of one dimension; its halo there is gone."""
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        halo = tuple((0, 0) if d == axis else h for d, h in enumerate(self.halo))
        whole = replace(self, shape=shape, origin=self.origin + start * self.strides[axis], halo=halo)
        return whole if axis < 2 else replace(whole, slack=0)
