"""What an integer convolution does around the products of a tile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Value
from coresident.codegen.integers import Dot
from coresident.codegen.types import I32, I64
from coresident.kernels.frame import Shape, rows_ahead
from coresident.kernels.integer_epilogue import IntegerOutput
from coresident.kernels.integer_frame import IntegerFrame
from coresident.kernels.integer_strips import Strips
from coresident.kernels.lowering import Operand
from coresident.kernels.tiling import Cut, divided

SHORT_LINES = 3
"""Whole lines of a tile's row of bytes, below which the lines at its ends count."""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        strips: the cut of the pixels.
        shared: output channels that have their entries together.
        dot: how they are multiplied.
        rows_first: whether a row goes through all tiles of a strip; all rows for one tile otherwise.
        elements: of the input channels.
        block: elements that are added to all sums of a tile before the next ones are;
            sums wait in scratch meanwhile. All of them, if rows come first.
        cycles: as the cost model says.
        channels_first: as `Cut` has it.
        chunk_rows: output channels of a chunk of code (`wired.py`); 0 where entries are a stream.
    """

    strips: Strips
    dot: Dot
    shared: int
    rows_first: bool
    elements: int
    block: int
    cycles: float
    channels_first: bool = False
    chunk_rows: int = 0

    def work(self, shape: Shape, threads: int) -> Cut:
        """The tasks."""
        rows, batch = -(-shape.outputs // self.shared), shape.batch * shape.groups
        strips, unit = len(self.strips.strips), max(self.chunk_rows, 1)
        return divided(strips, batch, rows, threads, self.cycles, self.channels_first, unit)

    def __str__(self) -> str:
        flat = ", flat" if self.strips.flat else ""
        together = self.chunk_rows or self.shared
        channels = f" x {together} channels" if together > 1 else ""
        tiles = int(np.max(self.strips.strips[:, 3] - self.strips.strips[:, 2]))
        segments = self.strips.segments
        spread = " of segments" if segments is not None else ""
        if segments is not None and segments.spread.rows > 1:
            spread += f" of {segments.spread.rows} rows"
        blocks = f", blocks of {self.block}" if self.block < self.elements else ""
        return f"{self.strips.vectors} vectors{spread}{channels}, {tiles} tiles a strip{blocks}{flat}"


@dataclass(frozen=True)
class Tiles(ABC):
    """The kernel under construction, but for its products.

    Args:
        frame: its arguments and its part of the work.
        choice: the way to compute it.
        work: all tasks.
        blocks: of the input channels.
    """

    frame: IntegerFrame
    choice: Choice
    work: Cut
    blocks: int

    @abstractmethod
    def tiles(self, first: Value, end: Value, ahead: Value) -> None:
        """The task's rows over the tiles first..end of a strip; `ahead` is where the next one begins."""

    @property
    @abstractmethod
    def waiting_bytes(self) -> int:
        """Of scratch, for sums that wait."""

    @property
    def dot(self) -> Dot:
        return self.choice.dot

    @property
    def output(self) -> IntegerOutput:
        return self.frame.output

    @property
    def packed_bytes(self) -> int:
        """Of scratch that a packed strip takes; what waits follows."""
        return -(-self.frame.packed_bytes // 64) * 64

    @property
    def _rows_ahead(self) -> int:
        """Rows whose lines are asked for before they are written. None where pieces of rows are so short that
        most of them share a line with the next, which is another thread's: it would go to and fro."""
        strips, choice = self.choice.strips, self.choice
        lines = strips.vectors * self.output.lanes * self.output.dtypes[0].itemsize // 64
        if lines < SHORT_LINES and len(strips.strips) > 1 and strips.segments is None:
            return 0
        return rows_ahead(choice.shared * (lines + 1))

    def _prefetch(self, channels: Sequence[Value], offsets: Sequence[Value]) -> None:
        """Ask for what `_store` will write and read."""
        f, vectors = self.frame.function, self.choice.strips.vectors
        if self.output.merged is not None:
            for c in channels[::2]:
                self.output.prefetch_merged(f, c, vectors, offsets)
            return
        for c in channels:
            if self.choice.strips.segments is not None:
                self.output.prefetch_segments(f, c, self.choice.strips.segments, offsets)
            else:
                self.output.prefetch(f, c, vectors, offsets)

    def _store(
        self, channels: Sequence[Value], sums: Sequence[Sequence[Value]], offsets: Sequence[Value]
    ) -> None:
        """Finish and store the sums of a row's channels."""
        f, strips = self.frame.function, self.choice.strips
        if self.output.merged is not None:
            for c, even, odd in zip(channels[::2], sums[::2], sums[1::2]):
                self.output.store_merged(f, c, (even, odd), offsets, strips.last)
            return
        for c, row in zip(channels, sums):
            values = list(row)
            if self.dot.gathers:
                fours = [integers.in_order(f, values[at : at + 4]) for at in range(0, len(values), 4)]
                values = [value for four in fours for value in four][: strips.vectors]
            if strips.segments is None:
                self.output.store(f, c, values, offsets, strips.last)
                continue
            size = len(values) // len(strips.segments.writes)
            for i in range(len(strips.segments.writes)):
                piece = values[i * size : (i + 1) * size]
                self.output.store_segment(f, c, piece, strips.segments, i, offsets)

    def _place(self, tile: Value) -> tuple[Value, list[Value]]:
        """Where a tile's packed input is, and its offsets in the output and in other tensors."""
        f, columns = self.frame.function, 2 + len(self.output.epilogue.tensors)
        found = [f.convert(f.load(I32, self.frame.tiles, tile * columns + i), I64) for i in range(columns)]
        return f.offset(f["scratch"], found[0], self.dot.element_bytes), found[1:]

    def _at(self, vector: int) -> int:
        """Packed pixels from a tile's first to those of a vector."""
        segments = self.choice.strips.segments
        return vector * self.output.lanes if segments is None else segments.reads[vector]


@dataclass(frozen=True)
class Made:
    """A kernel's tiles, and what they need.

    Args:
        code: emits them.
        operands: the kernel's own.
        bias: int32, of all output channels.
        entries: that are multiplied.
    """

    code: Tiles
    operands: Sequence[Operand]
    bias: np.ndarray[Any, Any]
    entries: int
