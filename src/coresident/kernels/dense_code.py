"""The code of a dense convolution: the loops around a micro-kernel of vectors of pixels by output
channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import frame as frames
from coresident.kernels.dense import Choice, pack
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape, Sums
from coresident.kernels.geometry import Geometry, read_by_plane
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import cut, evened

WEIGHTS_AHEAD = 1024
"""Bytes of weights asked for in advance: hardware prefetchers stop at the end of each page of 4 KiB."""

UNROLLED_TAPS = 12
"""Taps unrolled at most: with 27 or 49 LLVM takes seconds, and the loop costs nothing beside 12 sums."""


def factor_taps(taps: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(outer, inner) offsets whose sums are the taps, in order; as many inner ones as may be unrolled."""
    if len(taps) <= UNROLLED_TAPS:
        return (0,), taps
    for n in range(UNROLLED_TAPS, 0, -1):
        if len(taps) % n:
            continue
        rows = np.array(taps).reshape(-1, n)
        if (rows - rows[:, :1] == rows[0] - rows[0, 0]).all():
            return tuple(int(r) for r in rows[:, 0]), tuple(int(i) for i in rows[0] - rows[0, 0])
    raise AssertionError("one inner tap always fits")


def rounds(channels: int, block: int, taps: int) -> int:
    """Channels in one round of the inner loop: more where there are few taps, so that the loop itself costs
    little."""
    sizes = {block, channels % block or block}
    fits = [u for u in (4, 2) if all(n % u == 0 for n in sizes) and u * taps <= 16]
    return fits[0] if fits else 1


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work.
        weights: of the group of the convolution, packed.
        outer_taps: address of the outer taps' offsets (int32); None where all taps are unrolled.
        inner_taps: offsets of the taps unrolled.
    """

    frame: Frame
    g: Geometry
    shape: Shape
    choice: Choice
    weights: Value
    outer_taps: Value | None
    inner_taps: tuple[int, ...]

    @property
    def blocks(self) -> int:
        return -(-self.shape.inputs // self.choice.block)

    def tile(self, here: Here) -> None:
        """All output channels of the task, block of input channels by block."""
        f, frame, choice = self.frame.function, self.frame, self.choice
        whole, rest = divmod(self.shape.outputs, choice.group)
        together = choice.row_groups if here.vectors == choice.tiles.vectors else choice.rest_groups
        with f.loop(0, self.blocks) as block:
            end = f.minimum(frame.part.end_row, whole)
            next_unit = f.var(frame.part.first_row)
            if together > 1:
                with f.loop(frame.part.first_row, end - (together - 1), together) as unit:
                    self._rows(here, block, unit, choice.group * together)
                    next_unit.set(unit + together)
            if whole:
                with f.loop(next_unit.get(), end) as unit:
                    self._rows(here, block, unit, choice.group)
            if rest:
                with f.when(frame.part.end_row > whole):
                    self._rows(here, block, f.constant(whole, I64), rest)

    def _rows(self, here: Here, block: Value, unit: Value, rows: int) -> None:
        """`rows` output channels from group `unit` on, one block of input channels."""
        f, frame, group = self.frame.function, self.frame, self.choice.group
        taps, inputs = self.shape.taps, self.shape.inputs
        first = frame.channel_base + unit * group
        place = (unit - frame.part.first_row) * (group * here.vectors * frame.vector.lanes)
        waiting = f.offset(f["scratch"], place, F32)
        sums = Sums(frame, here, [first + r for r in range(rows)], block, self.blocks, waiting)
        totals = [[f.var(value) for value in row] for row in sums.start()]
        sums.prefetch()
        packed = min(rows, group)
        start = block * self.choice.block
        stop = f.minimum(start + self.choice.block, inputs)
        before = f.offset(self.weights, start * (self.shape.outputs * taps), F32)
        size = (stop - start) * (group * taps)
        streams = [f.offset(before, (unit + s) * size, F32) for s in range(-(-rows // group))]
        self._prefetch(here, unit, start, stop)
        unroll = rounds(inputs, self.choice.block, taps)
        with f.loop(start, stop, unroll) as c:
            round_bytes = 4 * unroll * taps * packed
            for stream in streams:
                for line in range(0, round_bytes, 64):
                    f.prefetch(stream, (c - start) * (4 * taps * packed) + WEIGHTS_AHEAD + line)
            for u in range(unroll):
                at_x = f.offset(here.x, c * self.g.channel_stride + u * self.g.channel_stride, F32)
                at_w = [f.offset(s, (c - start + u) * (taps * packed), F32) for s in streams]
                if self.outer_taps is None:
                    self._multiply(here, totals, at_x, at_w, packed)
                    continue
                with f.loop(0, taps // len(self.inner_taps)) as o:
                    near = f.offset(at_x, f.convert(f.load(I32, self.outer_taps, o), I64), F32)
                    far = [f.offset(a, o * (len(self.inner_taps) * packed), F32) for a in at_w]
                    self._multiply(here, totals, near, far, packed)
        sums.finish([[total.get() for total in row] for row in totals])

    def _multiply(
        self, here: Here, totals: Sequence[Sequence[Any]], x: Value, streams: Sequence[Value], packed: int
    ) -> None:
        """One input channel's inner taps: every vector of pixels with every weight.

        The fewer of the two are held in registers, the others pass through one.
        """
        f, vector = self.frame.function, self.frame.vector
        rows = len(totals)
        for k, tap in enumerate(self.inner_taps):

            def pixel(v: int, tap: int = tap) -> Value:
                return f.load(vector, x, tap + v * vector.lanes)

            def weight(r: int, k: int = k) -> Value:
                return f.splat(f.load(F32, streams[r // packed], k * packed + r % packed), vector)

            if here.vectors <= rows:
                pixels = [pixel(v) for v in range(here.vectors)]
                for r in range(rows):
                    one = weight(r)
                    for v in range(here.vectors):
                        totals[r][v].set(f.fma(pixels[v], one, totals[r][v].get()))
                continue
            weights = [weight(r) for r in range(rows)]
            for v in range(here.vectors):
                one = pixel(v)
                for r in range(rows):
                    totals[r][v].set(f.fma(one, weights[r], totals[r][v].get()))

    def _prefetch(self, here: Here, unit: Value, start: Value, stop: Value) -> None:
        """Ask for this unit's share of the next tile's channels."""
        f = self.frame.function
        units = self.frame.work.most_rows
        share = -(-self.choice.block // units)
        first = start + (unit - self.frame.part.first_row) * share
        self.frame.prefetch_channels(self.g, here, here.ahead, first, f.minimum(first + share, stop))


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
    merged: tuple[tuple[int, int], ...] | None = None,
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        barrier: False if the next step does not depend on it.
        merged: as in `Output`; `out` then has the input's pixels, two elements apart in a row.
    """
    f = kernel(plan.target, "conv_dense", flushes=True)
    t = choice.tiles
    units = -(-shape.outputs // choice.group)
    batch = shape.batch * shape.groups
    by_plane = read_by_plane(plan, out)
    work = cut(t.count, units, batch, plan.threads, choice.cycles, choice.row_groups, by_plane)
    work = evened(work, plan.threads)
    frame = Frame.open(f, g, shape, t, work, out, epilogue, merged)
    outer, inner = factor_taps(g.taps)
    packed = f.offset(word(f, frame.words), frame.group * (shape.outputs * shape.inputs * shape.taps), F32)
    outer_taps = word(f, frame.words + 1) if len(outer) > 1 else None
    code = _Code(frame, g, shape, choice, packed, outer_taps, inner)
    if code.blocks > 1:
        plan.scratch(work.most_rows * choice.group * max(t.vectors, t.rest_vectors) * frame.vector.bytes)
    frame.each_tile(code.tile)
    operands = [
        *frames.operands(plan, g, t, out, epilogue, plan.constant(bias.astype(np.float32)), work),
        plan.constant(pack(weights, choice)),
        plan.constant(np.array(outer, np.int32)),
    ]
    details = {**info, "kernel": "dense", "tile": str(choice), "estimated_cycles": choice.cycles}
    reads = [g.source, *epilogue.tensors]
    plan.step(
        f,
        operands,
        work.tasks,
        reads=reads,
        writes=[out],
        over=epilogue.tensors,
        barrier=barrier,
        gaps=frame.writes_gaps,
        info=details,
    )
