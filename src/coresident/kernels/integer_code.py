"""The code of an integer convolution: packs a strip, then goes through the stream for each tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Function, Value, Variable, kernel, word
from coresident.codegen.integers import Dot
from coresident.codegen.types import I8, I16, I32, I64
from coresident.kernels import geometry
from coresident.kernels.frame import Shape
from coresident.kernels.integer_epilogue import IntegerEpilogue, IntegerOutput
from coresident.kernels.integer_stream import UNROLL, pack, step_bytes
from coresident.kernels.integer_strips import Strips
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import Cut, Part


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        strips: the cut of the pixels.
        shared: output channels that have their entries together.
        dot: how they are multiplied.
        rows_first: whether a row goes through all tiles of a strip; all rows for one tile otherwise.
        cycles: as the cost model says.
    """

    strips: Strips
    dot: Dot
    shared: int
    rows_first: bool
    cycles: float

    def __str__(self) -> str:
        flat = ", flat" if self.strips.flat else ""
        channels = f" x {self.shared} channels" if self.shared > 1 else ""
        tiles = int(np.max(self.strips.strips[:, 3] - self.strips.strips[:, 2]))
        return f"{self.strips.vectors} vectors{channels}, {tiles} tiles a strip{flat}"


def divided(strips: int, batch: int, rows: int, threads: int, cycles: float) -> Cut:
    """The tasks: strips if there are enough of them, since parts of the rows pack the same strip each.

    Args:
        strips, rows: in all.
        batch: pictures times groups.
        cycles: of all the work on one core, as estimated.
    """
    if threads == 1 or cycles < 6000:
        return Cut(strips, 1, rows, 1, 1, batch)
    wanted = max(threads, min(threads * 6, int(cycles // 15000)))
    tile_parts = min(strips, -(-wanted // batch))
    have = tile_parts * batch
    enough = have >= 4 * threads or (have >= threads and have % threads == 0)
    row_parts = 1 if enough else min(rows, -(-2 * threads // have) if have < threads else 2)
    return Cut(strips, tile_parts, rows, row_parts, 1, batch)


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        function: it.
        x: address of the picture's and group's pixel 0.
        words: addresses of the tables: strips, tiles, runs; and of the bias.
        stream, rows: of the group's part of the rows.
        output: stores results; its channels count from the picture's first.
        channel_base: first output channel of the group.
        flip: whether bytes of the input change their sign bit as they are packed.
    """

    function: Function
    shape: Shape
    choice: Choice
    channel_stride: int
    x: Value
    strips: Value
    tiles: Value
    runs: Value
    bias: Value
    stream: Value
    rows: Value
    output: IntegerOutput
    channel_base: Value
    part: Part
    flip: bool
    wide: bool

    @property
    def dot(self) -> Dot:
        return self.choice.dot

    @property
    def elements(self) -> int:
        return -(-self.shape.inputs // self.dot.channels)

    def all(self) -> None:
        """The task's strips."""
        f = self.function
        with f.loop(self.part.first_tile, self.part.end_tile) as strip:
            first_run, end_run, first, end, base = (
                f.convert(f.load(I32, self.strips, strip * 5 + i), I64) for i in range(5)
            )
            self._pack(first_run, end_run, base)
            count = self.part.end_row - self.part.first_row
            if self.choice.rows_first:
                position = f.var(self.stream)
                with f.loop(0, count) as r:
                    self._row(first, end, r, position)
            else:
                with f.loop(first, end) as tile:
                    position = f.var(self.stream)
                    with f.loop(0, count) as r:
                        self._row(tile, tile + 1, r, position)

    def _pack(self, first: Value, end: Value, base: Value) -> None:
        """Interleave the strip's input, an element's channels at a time."""
        f, s, size = self.function, self.choice.strips, self.dot.channels
        width = f.target.lanes(I8)
        while width > 8 and width // 2 >= s.longest:
            width //= 2
        if s.step > 2:
            width = 8
        with f.loop(0, self.elements) as quad:
            channels = [
                f.offset(
                    self.x, f.minimum(quad * size + k, self.shape.inputs - 1) * self.channel_stride + base
                )
                for k in range(size)
            ]
            target = f.offset(f["scratch"], quad * s.span, 4)
            with f.loop(first, end) as run:
                source, place, length = (
                    f.convert(f.load(I32, self.runs, run * 3 + i), I64) for i in range(3)
                )
                begin = f.offset(target, place, 4)
                with f.loop(0, length, width) as at:
                    rows = [self._pixels(channel, source + at * s.step, width) for channel in channels]
                    vectors = integers.interleaved(f, rows)
                    for i, vector in enumerate(vectors):
                        f.store(vector, begin, at + i * vector.type.lanes)

    def _pixels(self, channel: Value, at: Value, width: int) -> Value:
        f, step = self.function, self.choice.strips.step
        kind = I8.by(width)
        if step == 1:
            pixels = f.load(kind, channel, at)
        elif step == 2:
            pair = [f.load(kind, channel, at + half * width) for half in (0, 1)]
            pixels = f.shuffle(pair[0], pair[1], range(0, 2 * width, 2))
        else:
            pixels = f.constant(0, kind)
            for lane in range(width):
                pixels = f.insert(pixels, f.load(I8, channel, at + lane * step), lane)
        return pixels ^ -128 if self.flip else pixels

    def _row(self, first: Value, end: Value, r: Value, position: Variable) -> None:
        """The channels of row `r` of the task, over the tiles first..end of the strip."""
        f, choice = self.function, self.choice
        vectors, kind = choice.strips.vectors, I32.by(self.output.lanes)
        described = f.offset(self.rows, r * 2, I32)
        channel = self.channel_base + f.convert(f.load(I32, described), I64)
        steps = f.convert(f.load(I32, described, 1), I64)
        channels = [channel + s for s in range(choice.shared)]
        begin = position.get()
        with f.loop(first, end) as tile:
            x, offsets = self._place(tile)
            position.set(begin)
            totals = [
                [f.var(f.splat(f.load(I32, self.bias, c), kind)) for _ in range(vectors)] for c in channels
            ]
            for c in channels:
                self.output.prefetch(f, c, vectors, offsets)
            self._steps(x, position, steps, totals)
            for c, row in zip(channels, totals):
                values = [total.get() for total in row]
                self.output.store(f, c, values, offsets, choice.strips.last)

    def _place(self, tile: Value) -> tuple[Value, list[Value]]:
        """Where a tile's packed input is, and its offsets in the output and in other tensors."""
        f, columns = self.function, 2 + len(self.output.epilogue.tensors)
        found = [f.convert(f.load(I32, self.tiles, tile * columns + i), I64) for i in range(columns)]
        return f.offset(f["scratch"], found[0], 4), found[1:]

    def _steps(
        self, x: Value, position: Variable, count: Value, totals: Sequence[Sequence[Variable]]
    ) -> None:
        """Add `count` steps of the stream to the totals, and move the position past them."""
        f = self.function
        size = step_bytes(self.dot.depth, self.choice.shared, self.wide)
        unroll = UNROLL // self.dot.depth

        def some(number: int) -> None:
            at = position.get()
            for index in range(number):
                self._step(x, f.offset(at, index * size), totals)
            position.set(f.offset(at, number * size))

        with f.loop(0, count >> (unroll.bit_length() - 1)):
            some(unroll)
        part = unroll // 2
        while part:
            with f.when((count & part).differs(0)):
                some(part)
            part //= 2

    def _step(self, x: Value, at: Value, totals: Sequence[Sequence[Variable]]) -> None:
        f, dot, shared = self.function, self.dot, self.choice.shared
        lanes = self.output.lanes
        kind = I32.by(lanes)
        offset = I32 if self.wide else I16
        pixels = [
            f.offset(x, f.convert(f.load(offset, at, d), I64, signed=False), 4) for d in range(dot.depth)
        ]
        words = f.offset(at, dot.depth * offset.bytes)

        def weight(s: int) -> list[Value]:
            return [f.splat(f.load(I32, words, d * shared + s, align=1), kind) for d in range(dot.depth)]

        def pixel(v: int) -> list[Value]:
            return [f.load(kind, p, v * lanes) for p in pixels]

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
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps], less their zero points.
        bias: [groups * outputs] int32, with the correction for the input's zero point.
        barrier: False if the next step does not depend on it.
    """
    f = kernel(plan.target, "conv_integer")
    s, dot = choice.strips, choice.dot
    lanes = plan.target.lanes(I32)
    row_count = -(-shape.outputs // choice.shared)
    work = divided(len(s.strips), shape.batch * shape.groups, row_count, plan.threads, choice.cycles)
    total = -(-shape.inputs // dot.channels)
    wide = total * s.span > 1 << 16
    packed = pack(weights, s.taps, s.span, dot, choice.shared, work, wide)
    parts = packed.starts.shape[1]
    x, y, bias_at, strips, tiles, runs, stream, rows, starts = (word(f, i) for i in range(9))
    extra = [word(f, 9 + i) for i in range(epilogue.words)]
    masked = s.flat and any(map(any, out.layout.halo))
    mask = word(f, 9 + epilogue.words) if masked else None
    part = work.part(f)
    picture, group = part.picture / shape.groups, part.picture % shape.groups
    tensors = (out, *epilogue.tensors)
    strides = source.layout.strides
    output = IntegerOutput(
        epilogue,
        tuple(t.dtype for t in tensors),
        tuple(
            f.offset(pointer, picture * (t.layout.strides[0] * t.dtype.itemsize))
            for pointer, t in zip((y, *extra), tensors)
        ),
        tuple(extra[len(epilogue.tensors) :]),
        tuple(t.layout.strides[1] for t in tensors),
        mask,
        out.layout.fill,
        lanes,
    )
    code = _Code(
        function=f,
        shape=shape,
        choice=choice,
        channel_stride=strides[1],
        x=f.offset(x, picture * strides[0] + group * (shape.inputs * strides[1])),
        strips=strips,
        tiles=tiles,
        runs=runs,
        bias=bias_at,
        stream=f.offset(stream, f.load(I64, starts, group * parts + part.row_part)),
        rows=f.offset(rows, (group * row_count + part.first_row) * 2, I32),
        output=output,
        channel_base=group * shape.outputs,
        part=part,
        flip=(source.dtype == np.int8) != dot.signed,
        wide=wide,
    )
    plan.scratch(4 * (total * s.span + 2 * plan.target.lanes(I8)))
    code.all()
    operands = [
        source.address,
        out.address,
        plan.constant(bias),
        plan.constant(s.strips),
        plan.constant(s.tiles),
        plan.constant(s.runs),
        plan.constant(packed.stream),
        plan.constant(packed.rows),
        plan.constant(packed.starts),
        *epilogue.operands(plan),
    ]
    if masked:
        length = int(s.tiles[:, 1].max()) + s.vectors * lanes
        real = geometry.border_mask(out.layout.strides[2:], out.shape[2:], length)
        operands.append(plan.constant(real.astype(np.dtype(f"int{8 * out.dtype.itemsize}"))))
    dense = math.isclose(info["sparsity"], 0, abs_tol=0.02)
    details = {
        **info,
        "kernel": f"integer {'dense' if dense else 'sparse'}, {dot.name}",
        "tile": str(choice),
        "entries": packed.steps * dot.depth,
        "estimated_cycles": choice.cycles,
    }
    if not dense:
        details["pattern"] = "blocks of 4 input channels"
    reads = [source, *epilogue.tensors]
    plan.step(f, operands, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
