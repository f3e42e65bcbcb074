"""The code of an integer convolution: packs a strip, then goes through the stream for each tile.

What finishes a row's sums does not overlap with products: it waits for the last of them, and fills the queues
in which the next ones should wait (dense layers of 64 channels: 101 us of products, 30 of the rest, 147 of
both). Measured with little gain on Zen 5: a row finished behind the next one's products, with sums of both in
registers, 4 to 8 vectors of each (layers that add residuals 1.05 to 1.09 times as fast, networks 0.98 to
1.012 times: tiles of more sums need fewer loads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Value, Variable, kernel
from coresident.codegen.types import I8, I32, I64, Type, of_dtype
from coresident.kernels import integer_frame, integer_wired
from coresident.kernels.asking import Asking, Shares, is_far, lines_of
from coresident.kernels.frame import Shape, in_last, prefetch_stream, row_lines
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_frame import NO_COLUMNS, Columns, IntegerFrame
from coresident.kernels.integer_stream import UNROLL, Offsets, pack
from coresident.kernels.integer_tiles import Choice, Made, Tiles
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import Cut


@dataclass(frozen=True)
class _Streams(Tiles):
    """The kernel under construction, of a stream of entries.

    Args:
        stream: of all weights.
        rows, starts: of the group's part of the rows, block after block.
        offsets: how the stream says what to read.
        counts: of the numbers in `rows`, the type.
        row_lines: cache lines that a row takes in the stream, on average.
        asking: for the next strip's input, if it is far.
    """

    stream: Value
    rows: Value
    starts: Value
    offsets: Offsets
    counts: Type
    row_lines: int
    asking: Asking | None

    @property
    def sums(self) -> int:
        """Vectors of sums of an output channel."""
        vectors = self.choice.strips.vectors
        return -(-vectors // 4) * 4 if self.dot.gathers else vectors

    @property
    def waiting_bytes(self) -> int:
        if self.blocks == 1:
            return 0
        return self.work.most_rows * self.choice.shared * self.sums * 4 * self.output.lanes

    def tiles(self, first: Value, end: Value, ahead: Value) -> None:
        f, part = self.frame.function, self.frame.part
        count = part.end_row - part.first_row

        def ask(number: Value) -> None:
            if self.asking is not None:
                self.asking.ask(ahead, number, self.frame.shape.inputs)

        if self.choice.rows_first:
            position = f.var(f.offset(self.stream, f.load(I64, self.starts)))
            with f.loop(0, count) as r:
                ask(r)
                self._row(first, end, r, r, position, f.constant(0, I64))
            return
        asked = f.minimum(count, self._rows_ahead)
        with f.loop(first, end) as tile, f.loop(0, self.blocks) as block:
            position = f.var(f.offset(self.stream, f.load(I64, self.starts, block)))
            with in_last(f, block, self.blocks), f.loop(0, asked) as r:
                self._prefetch(self._channels(block * count + r), self._place(tile)[1])
            with f.loop(0, count) as r:
                ask(((tile - first) * self.blocks + block) * count + r)
                later = f.minimum(r + asked, count - 1)
                self._row(tile, tile + 1, block * count + r, block * count + later, position, block)

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
            ahead = self._first_offsets(begin)
            totals = self._start(channels, block, waiting)
            with in_last(f, block, self.blocks):
                self._prefetch(self._channels(later), offsets)
            self._steps(x, position, steps, ahead, totals)
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

    def _first_offsets(self, at: Value) -> list[Variable]:
        """The first two offsets of a row, where steps have one each: they are loaded two steps ahead
        (`Rounds.begin` says why)."""
        f = self.frame.function
        if self.dot.gathers or self.dot.depth > 1:
            return []
        size = self.offsets.step_bytes(self.dot, self.choice.shared)
        return [f.var(f.opaque(self._offset(f.offset(at, i * size), 0))) for i in range(2)]

    def _steps(
        self,
        x: Value,
        position: Variable,
        count: Value,
        ahead: Sequence[Variable],
        totals: Sequence[Sequence[Variable]],
    ) -> None:
        """Add `count` steps of the stream to the totals, and move the position past them.

        Args:
            ahead: the first offsets, if they are loaded ahead.
        """
        f = self.frame.function
        size = self.offsets.step_bytes(self.dot, self.choice.shared)
        unroll = UNROLL // (2 if self.dot.gathers else self.dot.depth)

        def some(number: int) -> None:
            at = position.get()
            for index in range(number):
                here = f.offset(at, index * size)
                if self.dot.gathers:
                    self._gathered(x, here, totals)
                    continue
                if ahead:
                    following = f.offset(here, len(ahead) * size)
                    numbers = [self._held(ahead[index % len(ahead)], following)]
                else:
                    numbers = [self._offset(here, d) for d in range(self.dot.depth)]
                self._step([self._pixels(x, number) for number in numbers], here, totals)
            position.set(f.offset(at, number * size))

        with f.loop(0, count >> (unroll.bit_length() - 1)):
            some(unroll)
        part = unroll // 2
        while part:
            with f.when((count & part).differs(0)):
                some(part)
            part //= 2

    def _step(self, pixels: Sequence[Value], at: Value, totals: Sequence[Sequence[Variable]]) -> None:
        """Add one step of the stream, that reads at some addresses."""
        f, dot, shared = self.frame.function, self.dot, self.choice.shared
        lanes = self.output.lanes
        kind = I32.by(lanes)
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

    def _held(self, variable: Variable, at: Value) -> Value:
        """The offset that a variable holds, which from now on holds the one at an address: that is loaded
        before anything that the first is needed for."""
        f = self.frame.function
        following = f.opaque(self._offset(at, 0))
        held = f.opaque(variable.get(), following)
        variable.set(following)
        return held

    def _offset(self, at: Value, index: int) -> Value:
        """The offset numbered `index` from an address on."""
        f = self.frame.function
        return f.convert(f.load(Type("i", 8 * self.offsets.size), at, index), I64, signed=False)

    def _pixels(self, x: Value, number: Value) -> Value:
        """The address that an offset stands for."""
        return self.frame.function.offset(x, number * self.offsets.unit, self.dot.element_bytes)

    def _gathered(self, x: Value, at: Value, totals: Sequence[Sequence[Variable]]) -> None:
        """A step of four bytes that lie anywhere."""
        f, dot = self.frame.function, self.dot
        kind = I32.by(self.output.lanes)
        pixels = [self._pixels(x, self._offset(at, i)) for i in range(4)]
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
        pixels = self._pixels(x, self._offset(at, 0))
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
    work = choice.work(shape, plan.threads)
    own = 2 if choice.chunk_rows else 3 + _asks(plan, source, work, columns)
    frame = IntegerFrame.open(
        f, source, shape, s, dot, work, out, epilogue, own=own, merged=merged, columns=columns
    )
    make = integer_wired.wire if choice.chunk_rows else _stream
    made = make(plan, frame, shape, choice, work, weights, bias)
    plan.scratch(made.code.packed_bytes + made.code.waiting_bytes)
    frame.each_strip(made.code.tiles)
    dense = math.isclose(info["sparsity"], 0, abs_tol=0.02)
    wired = ", nonzeros in code" if choice.chunk_rows else ""
    details = {
        **info,
        "kernel": f"integer {'dense' if dense else 'sparse'}, {'gathered, ' * dot.gathers}{dot.name}{wired}",
        "tile": str(choice),
        "entries": made.entries,
        "estimated_cycles": choice.cycles,
    }
    if not dense:
        details["pattern"] = "single weights" if dot.gathers else f"blocks of {dot.channels} input channels"
    words = integer_frame.operands(plan, source, s, out, epilogue, made.bias, made.operands)
    reads = [source, *epilogue.tensors]
    plan.step(f, words, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)


def _asks(plan: Plan, source: Tensor, work: Cut, columns: Columns) -> bool:
    """Whether tasks ask for the input of their next strip: hardware sees short runs of many planes only."""
    return is_far(plan.target, source.layout.elements) and work.tiles > work.tile_parts and columns.count == 1


def _stream(
    plan: Plan,
    frame: IntegerFrame,
    shape: Shape,
    choice: Choice,
    work: Cut,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
) -> Made:
    """Entries as a stream."""
    f, dot, s = frame.function, choice.dot, choice.strips
    row_count = -(-shape.outputs // choice.shared)
    offsets = Offsets.of(-(-shape.inputs // dot.channels), s.taps, s.span)
    packed = pack(weights, offsets, dot, choice.shared, work, choice.block)
    _, parts, blocks = packed.starts.shape
    stream, rows, starts, *table = frame.own
    arrays = [packed.stream, packed.rows, packed.starts]
    asking: Asking | None = None
    if table:
        turns = 1 if choice.rows_first else max(s.sizes) * blocks
        shares = Shares.of(lines_of(s.reads, 1), frame.channel_stride, shape.inputs, turns * work.most_rows)
        asking = Asking(f, shares, table[0], frame.channel_stride, 1)
        arrays.append(shares.lines)
    counts = of_dtype(packed.rows.dtype)
    code = _Streams(
        frame,
        choice,
        work,
        blocks,
        stream,
        f.offset(rows, (frame.group * row_count + frame.part.first_row) * (3 * blocks), counts),
        f.offset(starts, (frame.group * parts + frame.part.row_part) * blocks, I64),
        offsets,
        counts,
        row_lines(packed.stream, packed.rows),
        asking,
    )
    own = [plan.constant(array) for array in arrays]
    return Made(code, own, (bias + packed.lacking.reshape(-1)).astype(np.int32), packed.entries)
