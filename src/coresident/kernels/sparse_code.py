"""The code of a sparse convolution: the loops around a stream of nonzeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, Variable, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import cost, wired_code
from coresident.kernels import frame as frames
from coresident.kernels.asking import Asking, Shares, is_near
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape, Sums
from coresident.kernels.geometry import Geometry
from coresident.kernels.head import Head
from coresident.kernels.lowering import Operand, Plan, Tensor
from coresident.kernels.sparse import Choice
from coresident.kernels.sparse_loops import Loops
from coresident.kernels.sparse_rounds import Rounds, chains_of
from coresident.kernels.sparse_stream import UNROLL, Offsets, pack
from coresident.kernels.striped_pooling import StripedPool

MOST_NEAR = 0.15
"""Share of nonzeros up to which L1 is asked for what is read next from where it lies: layers of a U-Net at
512 x 512 are 1.01-1.04 times as fast so at 90 % zeros, and take 1.02-1.05 times as long at 80 %."""


@dataclass(frozen=True)
class _Streams(Loops):
    """The kernel under construction, of a stream of nonzeros.

    Args:
        stream: the nonzeros of all rows.
        offsets: that it has.
        starts: address of where in the stream each block of each part of the group's rows begins (int64).
        rows: address of the group's rows, part after part and in it block after block: (first output channel,
            nonzeros) as int32.
        row_lines: cache lines that a row takes in the stream, on average.
        fmas: multiply-adds that a core begins in a cycle.
        asking: for what is read next, if it is far.
    """

    stream: Value
    offsets: Offsets
    starts: Value
    rows: Value
    row_lines: int
    fmas: float
    asking: Asking | None

    @property
    def waiting(self) -> int:
        if self.blocks == 1:
            return 0
        return self.frame.work.most_rows * self.choice.shared * self._tile_bytes

    def _rows(
        self, here: Here, packed: Value, block: Value, part: Value, ahead: Value, ahead_channels: Value | int
    ) -> None:
        f, work = self.frame.function, self.frame.work
        first_row = work.first_row(part)
        count = work.first_row(part + 1) - first_row
        start = f.load(I64, self.starts, part * self.blocks + block)
        position = f.var(f.offset(self.stream, start, I32))
        table = f.offset(self.rows, (first_row * self.blocks + block * count) * 2, I32)
        before = first_row - self.frame.part.first_row

        def sums(r: Value) -> Sums:
            return self._sums(here, block, f.convert(f.load(I32, table, r * 2), I64))

        asked = f.minimum(count, frames.rows_ahead(here.vectors * self.choice.shared))
        with f.loop(0, asked) as r:
            sums(r).prefetch()
        with f.loop(0, count) as r:
            if self.asking is not None:
                self.asking.ask(ahead, before + r, ahead_channels)
            frames.prefetch_stream(f, position.get(), self.row_lines)
            sums(f.minimum(r + asked, count - 1)).prefetch()
            nonzeros = f.convert(f.load(I32, table, r * 2 + 1), I64)
            self._row(here, sums(r), nonzeros, position, packed)

    def _row(self, here: Here, sums: Sums, nonzeros: Value, position: Variable, packed: Value) -> None:
        """The channels of one row, one block of input channels."""
        f, vector = self.frame.function, self.frame.vector
        source = here.x if self.choice.packing is None else packed
        source = f.offset(source, sums.block * self.offsets.step + self.offsets.first)
        if self.choice.shared == 1:
            reads = [self._reads(v) for v in range(here.vectors)]
            chains = chains_of(here.vectors, self.fmas)
            rounds = Rounds.begin(f, vector, source, self.offsets, reads, position, chains)
            sums.finish([rounds.add(sums.start()[0], nonzeros)])
            return
        totals = [[f.var(value) for value in row] for row in sums.start()]
        self._nonzeros(source, position, nonzeros, totals)
        sums.finish([[total.get() for total in row] for row in totals])

    def _nonzeros(
        self, x: Value, position: Variable, count: Value, totals: Sequence[Sequence[Variable]]
    ) -> None:
        """Add `count` nonzeros from the stream, which several channels share, to the totals, and move the
        position past them."""
        f = self.frame.function

        def some(number: int) -> None:
            at = position.get()
            for index in range(number):
                self._one(x, at, index, totals)
            position.set(f.offset(at, number * 4 * (1 + self.choice.shared)))

        with f.loop(0, count >> (UNROLL.bit_length() - 1)):
            some(UNROLL)
        # What is left by its binary digits: rows of like length follow each other, so these branches are
        # predicted, as an indirect jump into the sequence is not.
        part = UNROLL // 2
        while part:
            with f.when((count & part).differs(0)):
                some(part)
            part //= 2

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
    pool: StripedPool | None = None,
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        barrier: False if the next step does not depend on it.
        head: whose output `out` is, and whose the epilogue; a task then has all rows.
        pool: that is made of the results as well, which the tiles suit.
    """
    f = kernel(plan.target, "conv_sparse", flushes=True)
    if pool is not None:
        tiles = pool.pooled(choice.tiles, out)
        assert tiles is not None
        choice = replace(choice, tiles=tiles)
    work = choice.work(shape, plan.threads)
    frame = Frame.open(f, g, shape, choice.tiles, work, out, epilogue, pool=pool)
    make = wired_code.wire if choice.chunk_rows else _stream
    adding = None
    if head is not None:
        adding = head, word(f, frame.words), word(f, frame.words + 1)
        frame = replace(frame, words=frame.words + 2)
    code, constants = make(plan, frame, g, shape, choice, weights, bias.astype(np.float32), adding)
    plan.scratch(4 * code.packed + code.waiting + code.head_bytes)
    frame.each_tile(code.tile)
    operands = [
        *frames.operands(
            plan, g, choice.tiles, out, epilogue, plan.constant(bias.astype(np.float32)), work, pool
        ),
        *(plan.constant(array) for array in ((head.weights, head.bias) if head is not None else ())),
        *constants,
    ]
    shared = choice.shared
    details = {
        **info,
        "kernel": "sparse, nonzeros in code" if choice.chunk_rows else "sparse",
        "pattern": "unstructured" if shared == 1 else f"shared by {shared} output channels",
        "shared": 0 if choice.chunk_rows else shared,
        "tile": str(choice),
        "estimated_cycles": choice.cycles,
    }
    reads = [g.source, *epilogue.tensors]
    over = epilogue.tensors if choice.packing is None and not choice.tiles.overlap else ()
    made = [out] if pool is None else [out, pool.y]
    plan.step(
        f,
        operands,
        work.tasks,
        reads=reads,
        writes=made,
        over=over,
        barrier=barrier,
        gaps=frame.writes_gaps,
        info=details,
    )


def _stream(
    plan: Plan,
    frame: Frame,
    g: Geometry,
    shape: Shape,
    choice: Choice,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    head: tuple[Head, Value, Value] | None,
) -> tuple[Loops, list[Operand]]:
    """Nonzeros as a stream, and the operands that hold it."""
    f, row_count, machine = frame.function, shape.outputs // choice.shared, cost.Machine.of(plan.target)
    offsets = Offsets.of(choice, g, shape.inputs)
    packed = pack(weights, g, choice, frame.work, offsets)
    _, parts, blocks = packed.starts.shape
    stream, rows, starts = (word(f, frame.words + i) for i in range(3))
    arrays = [packed.stream, packed.rows, packed.starts]
    asking: Asking | None = None
    if choice.meets or not is_near(plan.target, 4 * g.source.layout.elements, not g.is_striped):
        lines = choice.lines(g, frame.vector.lanes)
        shares = Shares.of(lines, g.channel_stride, choice.block, frame.work.most_rows)
        near = g.is_striped and int(np.count_nonzero(weights)) < MOST_NEAR * weights.size
        asking = Asking(f, shares, word(f, frame.words + 3), 4 * g.channel_stride, 4, near)
        arrays.append(shares.lines)
    code = _Streams(
        frame,
        g,
        shape,
        choice,
        blocks,
        head,
        stream,
        offsets,
        f.offset(starts, frame.group * (parts * blocks), I64),
        f.offset(rows, frame.group * (row_count * 2 * blocks), I32),
        frames.row_lines(packed.stream, packed.rows),
        machine.fmas * machine.pace,
        asking,
    )
    return code, [plan.constant(array) for array in arrays]
