"""The code of an integer convolution: packs a strip, then goes through the stream for each tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Value, Variable, kernel
from coresident.codegen.integers import Dot
from coresident.codegen.types import I8, I32, I64, Type, of_dtype
from coresident.kernels import integer_frame
from coresident.kernels.frame import Shape, in_last, prefetch_stream, row_lines, rows_ahead
from coresident.kernels.integer_epilogue import IntegerEpilogue, IntegerOutput
from coresident.kernels.integer_frame import NO_COLUMNS, Columns, IntegerFrame
from coresident.kernels.integer_stream import UNROLL, Offsets, pack
from coresident.kernels.integer_strips import Strips
from coresident.kernels.lowering import Plan, Tensor
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
    """

    strips: Strips
    dot: Dot
    shared: int
    rows_first: bool
    elements: int
    block: int
    cycles: float
    channels_first: bool = False

    def work(self, shape: Shape, threads: int) -> Cut:
        """The tasks."""
        rows, batch = -(-shape.outputs // self.shared), shape.batch * shape.groups
        return divided(len(self.strips.strips), batch, rows, threads, self.cycles, self.channels_first)

    def __str__(self) -> str:
        flat = ", flat" if self.strips.flat else ""
        channels = f" x {self.shared} channels" if self.shared > 1 else ""
        tiles = int(np.max(self.strips.strips[:, 3] - self.strips.strips[:, 2]))
        segments = self.strips.segments
        spread = " of segments" if segments is not None else ""
        if segments is not None and segments.spread.rows > 1:
            spread += f" of {segments.spread.rows} rows"
        blocks = f", blocks of {self.block}" if self.block < self.elements else ""
        return f"{self.strips.vectors} vectors{spread}{channels}, {tiles} tiles a strip{blocks}{flat}"


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work.
        stream: of all weights.
        rows, starts: of the group's part of the rows, block after block.
        blocks: of the input channels.
        offsets: how the stream says what to read.
        counts: of the numbers in `rows`, the type.
        row_lines: cache lines that a row takes in the stream, on average.
    """

    frame: IntegerFrame
    choice: Choice
    stream: Value
    rows: Value
    starts: Value
    blocks: int
    offsets: Offsets
    counts: Type
    row_lines: int

    @property
    def dot(self) -> Dot:
        return self.choice.dot

    @property
    def output(self) -> IntegerOutput:
        return self.frame.output

    @property
    def sums(self) -> int:
        """Vectors of sums of an output channel."""
        vectors = self.choice.strips.vectors
        return -(-vectors // 4) * 4 if self.dot.gathers else vectors

    @property
    def packed_bytes(self) -> int:
        """Of scratch that a packed strip takes; what waits follows."""
        return -(-self.frame.packed_bytes // 64) * 64

    @property
    def row_bytes(self) -> int:
        """Of scratch that the sums of a row take which wait for the next block."""
        return self.choice.shared * self.sums * 4 * self.output.lanes if self.blocks > 1 else 0

    def tiles(self, first: Value, end: Value) -> None:
        """The task's rows over the tiles first..end of a strip."""
        f, part = self.frame.function, self.frame.part
        count = part.end_row - part.first_row
        if self.choice.rows_first:
            position = f.var(f.offset(self.stream, f.load(I64, self.starts)))
            with f.loop(0, count) as r:
                self._row(first, end, r, r, position, f.constant(0, I64))
            return
        asked = f.minimum(count, self._rows_ahead)
        with f.loop(first, end) as tile, f.loop(0, self.blocks) as block:
            position = f.var(f.offset(self.stream, f.load(I64, self.starts, block)))
            with in_last(f, block, self.blocks), f.loop(0, asked) as r:
                self._prefetch(self._channels(block * count + r), self._place(tile)[1])
            with f.loop(0, count) as r:
                later = f.minimum(r + asked, count - 1)
                self._row(tile, tile + 1, block * count + r, block * count + later, position, block)

    @property
    def _rows_ahead(self) -> int:
        """Rows whose lines are asked for before they are written. None where pieces of rows are so short that
        most of them share a line with the next, which is another thread's: it would go to and fro."""
        strips, choice = self.choice.strips, self.choice
        lines = strips.vectors * self.output.lanes * self.output.dtypes[0].itemsize // 64
        if lines < SHORT_LINES and len(strips.strips) > 1 and strips.segments is None:
            return 0
        return rows_ahead(choice.shared * (lines + 1))

    def _numbers(self, r: Value) -> list[Value]:
        """Of row `r` of the task: its first channel in the group, steps and singles."""
        f, described = self.frame.function, self.frame.function.offset(self.rows, r * 3, self.counts)
        return [f.convert(f.load(self.counts, described, i), I64, signed=False) for i in range(3)]

    def _channels(self, r: Value) -> list[Value]:
        """The output channels of row `r` of the task."""
        first = self.frame.channel_base + self._numbers(r)[0]
        return [first + s for s in range(self.choice.shared)]

    def _row(
        self, first: Value, end: Value, r: Value, later: Value, position: Variable, block: Value
    ) -> None:
        """The channels of row `r` of the task, over the tiles first..end of the strip: one block.

        Args:
            later: the row whose lines are asked for meanwhile.
        """
        f, choice = self.frame.function, self.choice
        channel, steps, singles = self._numbers(r)
        place = (channel - self.frame.part.first_row * choice.shared) * (self.sums * self.output.lanes)
        waiting = f.offset(f.offset(f["scratch"], self.packed_bytes), place, I32)
        channels = self._channels(r)
        begin = position.get()
        prefetch_stream(f, begin, self.row_lines)
        with f.loop(first, end) as tile:
            x, offsets = self._place(tile)
            position.set(begin)
            totals = self._start(channels, block, waiting)
            with in_last(f, block, self.blocks):
                self._prefetch(self._channels(later), offsets)
            self._steps(x, position, steps, totals)
            if self.dot.held and not self.dot.gathers:
                with f.loop(0, singles):
                    self._single(x, position, totals)
            self._finish(
                channels, [[total.get() for total in row] for row in totals], offsets, block, waiting
            )

    def _start(self, channels: Sequence[Value], block: Value, waiting: Value) -> list[list[Variable]]:
        """The sums of some channels: the bias, or what the blocks before have added."""
        f, kind = self.frame.function, I32.by(self.output.lanes)
        totals = [
            [f.var(f.splat(f.load(I32, self.frame.bias, c), kind)) for _ in range(self.sums)]
            for c in channels
        ]
        if self.blocks > 1:
            with f.when(block > 0):
                for i, total in enumerate(total for row in totals for total in row):
                    total.set(f.load(kind, waiting, i * kind.lanes))
        return totals

    def _finish(
        self,
        channels: Sequence[Value],
        sums: Sequence[Sequence[Value]],
        offsets: Sequence[Value],
        block: Value,
        waiting: Value,
    ) -> None:
        """Store the results, or let the sums wait for the next block."""
        f = self.frame.function
        if self.blocks == 1:
            self._store(channels, sums, offsets)
            return
        with f.either(block.equals(self.blocks - 1)) as otherwise:
            self._store(channels, sums, offsets)
            with otherwise():
                for i, total in enumerate(total for row in sums for total in row):
                    f.store(total, waiting, i * self.output.lanes)

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

    def _steps(
        self, x: Value, position: Variable, count: Value, totals: Sequence[Sequence[Variable]]
    ) -> None:
        """Add `count` steps of the stream to the totals, and move the position past them."""
        f = self.frame.function
        size = self.offsets.step_bytes(self.dot, self.choice.shared)
        unroll = UNROLL // (2 if self.dot.gathers else self.dot.depth)

        step = self._gathered if self.dot.gathers else self._step

        def some(number: int) -> None:
            at = position.get()
            for index in range(number):
                step(x, f.offset(at, index * size), totals)
            position.set(f.offset(at, number * size))

        with f.loop(0, count >> (unroll.bit_length() - 1)):
            some(unroll)
        part = unroll // 2
        while part:
            with f.when((count & part).differs(0)):
                some(part)
            part //= 2

    def _step(self, x: Value, at: Value, totals: Sequence[Sequence[Variable]]) -> None:
        f, dot, shared = self.frame.function, self.dot, self.choice.shared
        lanes = self.output.lanes
        kind = I32.by(lanes)
        pixels = [self._read(x, at, d) for d in range(dot.depth)]
        words = f.offset(at, dot.depth * self.offsets.size)

        def weight(s: int) -> list[Value]:
            return [f.splat(f.load(I32, words, d * shared + s, align=1), kind) for d in range(dot.depth)]

        def pixel(v: int) -> list[Value]:
            return [f.load(kind, p, self._at(v)) for p in pixels]

        def multiply(s: int, v: int, x: Sequence[Value], w: Sequence[Value]) -> None:
            totals[s][v].set(dot.add(f, totals[s][v].get(), x, w))

        # The fewer of activations and weights are held in registers, the others pass through.
        vectors = range(len(totals[0]))
        if len(vectors) < shared:
            near = [pixel(v) for v in vectors]
            for s in range(shared):
                w = weight(s)
                for v in vectors:
                    multiply(s, v, near[v], w)
            return
        held = [weight(s) for s in range(shared)]
        for v in vectors:
            x_v = pixel(v)
            for s in range(shared):
                multiply(s, v, x_v, held[s])

    def _at(self, vector: int) -> int:
        """Packed pixels from a tile's first to those of a vector."""
        segments = self.choice.strips.segments
        return vector * self.output.lanes if segments is None else segments.reads[vector]

    def _read(self, x: Value, at: Value, index: int) -> Value:
        """The address that the offset numbered `index` from `at` on stands for."""
        f = self.frame.function
        number = f.convert(f.load(Type("i", 8 * self.offsets.size), at, index), I64, signed=False)
        return f.offset(x, number * self.offsets.unit, self.dot.element_bytes)

    def _gathered(self, x: Value, at: Value, totals: Sequence[Sequence[Variable]]) -> None:
        """A step of four bytes that lie anywhere."""
        f, dot = self.frame.function, self.dot
        kind = I32.by(self.output.lanes)
        pixels = [self._read(x, at, i) for i in range(4)]
        weights = f.splat(f.load(I32, f.offset(at, 4 * self.offsets.size), align=1), kind)
        bytes_ = I8.by(4 * kind.lanes)
        for first in range(0, len(totals[0]), 4):
            rows = [f.load(bytes_, p, first * kind.lanes) for p in pixels]
            for quads, total in zip(integers.gathered(f, rows), totals[0][first : first + 4]):
                total.set(dot.add(f, total.get(), [quads], [weights]))

    def _single(self, x: Value, position: Variable, totals: Sequence[Sequence[Variable]]) -> None:
        """Add one entry of any weights to the totals, and move the position past it."""
        f, dot, shared = self.frame.function, self.dot, self.choice.shared
        kind, at = I32.by(self.output.lanes), position.get()
        pixels = self._read(x, at, 0)
        words = f.offset(at, self.offsets.size)
        weights = [dot.any_weights(f, f.splat(f.load(I32, words, s, align=1), kind)) for s in range(shared)]
        for v in range(len(totals[0])):
            quads = f.load(kind, pixels, self._at(v))
            for row, weight in zip(totals, weights):
                row[v].set(dot.add_any(f, row[v].get(), quads, weight))
        position.set(f.offset(at, self.offsets.single_bytes(shared)))


def emit(
    plan: Plan,
    source: Tensor,
    shape: Shape,
    choice: Choice,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: IntegerEpilogue,
    info: dict[str, Any],
    barrier: bool = True,
    merged: tuple[tuple[int, int], ...] | None = None,
    columns: Columns = NO_COLUMNS,
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps], less their zero points.
        bias: [groups * outputs] int32, with the correction for the input's zero point.
        barrier: False if the next step does not depend on it.
        merged: as `IntegerOutput` takes it.
        columns: of the kernel, that are among the input channels already.
    """
    f = kernel(plan.target, "conv_integer")
    s, dot = choice.strips, choice.dot
    row_count = -(-shape.outputs // choice.shared)
    work = choice.work(shape, plan.threads)
    offsets = Offsets.of(-(-shape.inputs // dot.channels), s.taps, s.span)
    packed = pack(weights, offsets, dot, choice.shared, work, choice.block)
    _, parts, blocks = packed.starts.shape
    frame = IntegerFrame.open(
        f, source, shape, s, dot, work, out, epilogue, own=3, merged=merged, columns=columns
    )
    stream, rows, starts = frame.own
    counts = of_dtype(packed.rows.dtype)
    code = _Code(
        frame,
        choice,
        stream,
        f.offset(rows, (frame.group * row_count + frame.part.first_row) * (3 * blocks), counts),
        f.offset(starts, (frame.group * parts + frame.part.row_part) * blocks, I64),
        blocks,
        offsets,
        counts,
        row_lines(packed.stream, packed.rows),
    )
    plan.scratch(code.packed_bytes + work.most_rows * code.row_bytes)
    frame.each_strip(code.tiles)
    own = (packed.stream, packed.rows, packed.starts)
    dense = math.isclose(info["sparsity"], 0, abs_tol=0.02)
    details = {
        **info,
        "kernel": f"integer {'dense' if dense else 'sparse'}, {'gathered, ' * dot.gathers}{dot.name}",
        "tile": str(choice),
        "entries": packed.entries,
        "estimated_cycles": choice.cycles,
    }
    if not dense:
        details["pattern"] = "single weights" if dot.gathers else f"blocks of {dot.channels} input channels"
    start = (bias + packed.lacking.reshape(-1)).astype(np.int32)
    words = integer_frame.operands(plan, source, s, out, epilogue, start, own)
    reads = [source, *epilogue.tensors]
    plan.step(f, words, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
