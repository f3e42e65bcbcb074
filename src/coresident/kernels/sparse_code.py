"""The code of a sparse convolution: the loops around a stream of nonzeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, Variable, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import frame as frames
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape, Sums
from coresident.kernels.geometry import Geometry
from coresident.kernels.head import Head, HeadSums
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.sparse import UNROLL, Choice, pack
from coresident.kernels.sparse_segments import Packing


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work.
        blocks: of input channels.
        stream: the nonzeros of all rows.
        starts: address of where in the stream each block of each part of the group's rows begins (int64).
        rows: address of the group's rows, part after part and in it block after block: (first output channel,
            nonzeros) as int32.
        row_lines: cache lines that a row takes in the stream, on average.
        head: that adds the results up instead of having them stored, with addresses of its weights and bias.
    """

    frame: Frame
    g: Geometry
    shape: Shape
    choice: Choice
    blocks: int
    stream: Value
    starts: Value
    rows: Value
    row_lines: int
    head: tuple[Head, Value, Value] | None

    @property
    def packed(self) -> int:
        """Elements of scratch that the packed channels take."""
        packing = self.choice.packing
        return 0 if packing is None else self.choice.packed_channels(self.shape.inputs) * packing.span

    def _reads(self, vector: int) -> int:
        """Elements from a tile's first to a vector."""
        packing = self.choice.packing
        return vector * self.frame.vector.lanes if packing is None else packing.segments.reads[vector]

    def tile(self, here: Here) -> None:
        """All steps of a tile."""
        f, packing = self.frame.function, self.choice.packing
        if packing is None:
            self._step(here, f["scratch"], 0)
            return
        here = replace(here, segments=packing.segments)
        if packing.steps == 1:
            self._step(here, f["scratch"], 0)
            return
        with f.loop(0, packing.steps) as step:
            offsets = [at + step * move for at, move in zip(here.offsets, packing.moves, strict=True)]
            packed = f.offset(f["scratch"], step * packing.plane_span, F32)
            self._step(replace(here, offsets=offsets), packed, step)

    def _step(self, here: Here, packed: Value, step: Value | int) -> None:
        """All rows of the task, block of input channels by block.

        Args:
            packed: address of what the step reads of the first channel, where it is packed.
            step: of the tile.
        """
        f, part = self.frame.function, self.frame.part
        self._begin_head(here)
        with f.loop(0, self.blocks) as block:
            first_channel = block * self.choice.block
            channels = f.minimum(-first_channel + self.shape.inputs, self.choice.block)
            if self.choice.packing is not None:
                self._pack(self.choice.packing, here, first_channel, channels, step)
            ahead, ahead_channels = self._ahead(here, block, channels, step)
            if self.frame.work.pieces:
                with f.loop(part.row_part, part.end_part) as rows:
                    self._rows(here, packed, block, rows, ahead, ahead_channels)
            else:
                self._rows(here, packed, block, part.row_part, ahead, ahead_channels)
        self._end_head(here)

    @property
    def waiting(self) -> int:
        """Bytes of scratch for sums that wait between blocks."""
        if self.blocks == 1:
            return 0
        return self.frame.work.most_rows * self.choice.shared * self._tile_bytes

    @property
    def head_bytes(self) -> int:
        """Of scratch for what a head adds up."""
        return 0 if self.head is None else len(self.head[0].bias) * self._tile_bytes

    @property
    def _tile_bytes(self) -> int:
        tiles = self.choice.tiles
        return max(tiles.vectors, tiles.rest_vectors) * self.frame.vector.bytes

    @property
    def _added(self) -> Value:
        return self.frame.function.offset(self.frame.function["scratch"], 4 * self.packed + self.waiting)

    def _begin_head(self, here: Here) -> None:
        """What a head has added is its bias at first."""
        if self.head is None:
            return
        f, vector, (head, _, bias) = self.frame.function, self.frame.vector, self.head
        for output in range(len(head.bias)):
            start = f.splat(f.load(F32, bias, output), vector)
            for v in range(here.vectors):
                f.store(start, self._added, (output * here.vectors + v) * vector.lanes)

    def _end_head(self, here: Here) -> None:
        """Store what a head has added."""
        if self.head is None:
            return
        f, vector, added = self.frame.function, self.frame.vector, self._added
        for output in range(len(self.head[0].bias)):
            first = output * here.vectors
            row = [f.load(vector, added, (first + v) * vector.lanes) for v in range(here.vectors)]
            Sums(self.frame, here, [f.constant(output, I64)], f.constant(0, I64), 1, added).finish([row])

    def _rows(
        self, here: Here, packed: Value, block: Value, part: Value, ahead: Value, ahead_channels: Value | int
    ) -> None:
        """The rows of a part, one block of input channels.

        Args:
            ahead, ahead_channels: of `_ahead`; a share of them is asked for with each row.
        """
        f, work = self.frame.function, self.frame.work
        first_row = work.first_row(part)
        count = work.first_row(part + 1) - first_row
        start = f.load(I64, self.starts, part * self.blocks + block)
        position = f.var(f.offset(self.stream, start, I32))
        table = f.offset(self.rows, (first_row * self.blocks + block * count) * 2, I32)
        share = -(-self.choice.block // work.most_rows)
        before = first_row - self.frame.part.first_row

        def sums(r: Value) -> Sums:
            return self._sums(here, block, f.convert(f.load(I32, table, r * 2), I64))

        asked = f.minimum(count, frames.rows_ahead(here.vectors * self.choice.shared))
        with f.loop(0, asked) as r:
            sums(r).prefetch()
        with f.loop(0, count) as r:
            first = (before + r) * share
            self._prefetch(here, ahead, first, f.minimum(first + share, ahead_channels))
            frames.prefetch_stream(f, position.get(), self.row_lines)
            sums(f.minimum(r + asked, count - 1)).prefetch()
            nonzeros = f.convert(f.load(I32, table, r * 2 + 1), I64)
            self._row(here, sums(r), nonzeros, position, packed)

    def _ahead(
        self, here: Here, block: Value, channels: Value, step: Value | int
    ) -> tuple[Value, Value | int]:
        """Where the channels begin that are read next, and how many they are: those of the next block, or of
        the next tile; while a tile goes on, those of this block in the next step."""
        f, packing, stride = self.frame.function, self.choice.packing, self.g.channel_stride
        following = (block + 1) * self.choice.block
        if packing is not None and not isinstance(step, int):
            planes = (step + packing.planes) * packing.plane_stride
            return f.offset(here.x, block * (self.choice.block * stride) + planes, F32), channels
        last = block.equals(self.blocks - 1)
        left = f.minimum(-following + self.shape.inputs, self.choice.block)
        plane = f.offset(here.x, following * stride, F32)
        return f.select(last, here.ahead, plane), f.select(last, self.choice.block, left)

    def _pack(self, packing: Packing, here: Here, first: Value, channels: Value, step: Value | int) -> None:
        """Pack the channels of a block for a step."""
        f, vector = self.frame.function, self.frame.vector
        with f.loop(0, channels) as c:
            source = f.offset(here.x, (first + c) * self.g.channel_stride, F32)
            place = c if isinstance(step, int) else first + c
            target = f.offset(f["scratch"], place * packing.span, F32)
            packing.pack(f, vector, source, target, self.g.channel_stride, step)

    def _prefetch(self, here: Here, plane: Value, first: Value, end: Value) -> None:
        """Ask for what comes next of the channels first..end of the planes at an address."""
        f, packing = self.frame.function, self.choice.packing
        if packing is None:
            self.frame.prefetch_channels(self.g, here, plane, first, end)
            return
        with f.loop(first, end) as c:
            packing.prefetch(f, f.offset(plane, c * self.g.channel_stride, F32))

    def _sums(self, here: Here, block: Value, channel: Value) -> Sums:
        """Those of the row from output channel `channel` of the group on, in a block of input channels."""
        f, frame, shared = self.frame.function, self.frame, self.choice.shared
        place = (channel - frame.part.first_row * shared) * (here.vectors * frame.vector.lanes)
        waiting = f.offset(f["scratch"], place + self.packed, F32)
        channels = [frame.channel_base + channel + s for s in range(shared)]
        if self.head is None:
            return Sums(frame, here, channels, block, self.blocks, waiting)
        head, weights, _ = self.head
        return HeadSums(frame, here, channels, block, self.blocks, waiting, head, weights, self._added)

    def _row(self, here: Here, sums: Sums, nonzeros: Value, position: Variable, packed: Value) -> None:
        """The channels of one row, one block of input channels."""
        totals = [[self.frame.function.var(value) for value in row] for row in sums.start()]
        source = here.x if self.choice.packing is None else packed
        self._nonzeros(source, position, nonzeros, totals)
        sums.finish([[total.get() for total in row] for row in totals])

    def _nonzeros(
        self, x: Value, position: Variable, count: Value, totals: Sequence[Sequence[Variable]]
    ) -> None:
        """Add `count` nonzeros from the stream to the totals, and move the position past them."""
        f = self.frame.function
        size = 4 * (1 + self.choice.shared)

        def some(number: int) -> None:
            at = position.get()
            for index in range(number):
                self._one(x, at, index, totals)
            position.set(f.offset(at, number * size))

        with f.loop(0, count >> (UNROLL.bit_length() - 1)):
            if self.choice.shared == 1:
                at = position.get()
                self._round(x, at, totals[0])
                position.set(f.offset(at, UNROLL * size))
            else:
                some(UNROLL)
        # What is left by its binary digits: rows of like length follow each other, so these branches are
        # predicted
        # as an indirect jump into the sequence is not.
        part = UNROLL // 2
        while part:
            with f.when((count & part).differs(0)):
                some(part)
            part //= 2

    def _round(self, x: Value, at: Value, totals: Sequence[Variable]) -> None:
        """The `UNROLL` nonzeros at an address in the stream, of a row by itself: their offsets, then their
        weights.

        What binds are loads: two offsets are one, and four weights, which shuffles spread.
        """
        f, vector = self.frame.function, self.frame.vector
        first = f.load(F32.by(UNROLL), at, UNROLL)
        held = min(vector.bytes, f.target.register_bits // 8) // 4
        weights = f.opaque(f.shuffle(first, None, [i % UNROLL for i in range(held)]))
        for pair in range(UNROLL // 2):
            offsets = f.opaque(f.load(I64, at, pair))
            for half, offset in enumerate((f.convert(f.convert(offsets, I32), I64), offsets >> 32)):
                index = 2 * pair + half
                lanes = [i // UNROLL * UNROLL % held + index for i in range(vector.lanes)]
                weight = f.shuffle(weights, None, lanes)
                pixels = f.offset(x, offset)
                for v, total in enumerate(totals):
                    total.set(f.fma(f.load(vector, pixels, self._reads(v)), weight, total.get()))

    def _one(self, x: Value, at: Value, index: int, totals: Sequence[Sequence[Variable]]) -> None:
        """The nonzero `index` places from an address in the stream: one weight for each channel that shares
        it."""
        f, vector = self.frame.function, self.frame.vector
        first = index * (1 + self.choice.shared)
        pixels = f.offset(x, f.convert(f.load(I32, at, first), I64))

        def weight(channel: int) -> Value:
            return f.splat(f.load(F32, at, first + 1 + channel), vector)

        if self.choice.shared <= len(totals[0]):
            weights = [weight(s) for s in range(self.choice.shared)]
            for v in range(len(totals[0])):
                loaded = f.load(vector, pixels, self._reads(v))
                for s, one in enumerate(weights):
                    totals[s][v].set(f.fma(loaded, one, totals[s][v].get()))
            return
        # The fewer stay in registers, of which the sums leave hardly any.
        held = [f.load(vector, pixels, self._reads(v)) for v in range(len(totals[0]))]
        for s, row in enumerate(totals):
            one = weight(s)
            for loaded, total in zip(held, row):
                total.set(f.fma(loaded, one, total.get()))


def emit(
    plan: Plan,
    g: Geometry,
    shape: Shape,
    choice: Choice,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
    barrier: bool = True,
    head: Head | None = None,
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        barrier: False if the next step does not depend on it.
        head: whose output `out` is, and whose the epilogue; a task then has all rows.
    """
    f = kernel(plan.target, "conv_sparse")
    t, shared = choice.tiles, choice.shared
    row_count = shape.outputs // shared
    work = choice.work(shape, plan.threads)
    packed = pack(weights, g, choice, work)
    _, parts, blocks = packed.starts.shape
    frame = Frame.open(f, g, shape, t, work, out, epilogue)
    stream, rows, starts = (word(f, frame.words + i) for i in range(3))
    adding = None if head is None else (head, word(f, frame.words + 3), word(f, frame.words + 4))
    code = _Code(
        frame,
        g,
        shape,
        choice,
        blocks,
        stream,
        f.offset(starts, frame.group * (parts * blocks), I64),
        f.offset(rows, frame.group * (row_count * 2 * blocks), I32),
        frames.row_lines(packed.stream, packed.rows),
        adding,
    )
    plan.scratch(4 * code.packed + code.waiting + code.head_bytes)
    frame.each_tile(code.tile)
    operands = [
        *frames.operands(plan, g, t, out, epilogue, plan.constant(bias.astype(np.float32)), work),
        plan.constant(packed.stream),
        plan.constant(packed.rows),
        plan.constant(packed.starts),
        *(plan.constant(array) for array in ((head.weights, head.bias) if head is not None else ())),
    ]
    details = {
        **info,
        "kernel": "sparse",
        "pattern": "unstructured" if shared == 1 else f"shared by {shared} output channels",
        "shared": shared,
        "tile": str(choice),
        "estimated_cycles": choice.cycles,
    }
    reads = [g.source, *epilogue.tensors]
    over = epilogue.tensors if choice.packing is None else ()
    plan.step(f, operands, work.tasks, reads=reads, writes=[out], over=over, barrier=barrier, info=details)
