"""The code of a dense integer convolution whose lanes hold output channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, Variable, kernel
from coresident.codegen.types import I32, I64
from coresident.kernels import integer_frame
from coresident.kernels.dense_code import factor_taps
from coresident.kernels.frame import Shape
from coresident.kernels.integer_code import divided
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_frame import IntegerFrame
from coresident.kernels.integer_panel import Choice, pack
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.panel_code import colours, transposed


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work, whose rows are panels.
        weights: of the group, packed.
        outer_taps: address of the outer taps' offsets (int32); None where all taps are unrolled.
        inner_taps: offsets of the taps unrolled.
        rest: addresses of the starts, offsets and weights of what the products leave out; None if nothing.
    """

    frame: IntegerFrame
    choice: Choice
    weights: Value
    outer_taps: Value | None
    inner_taps: tuple[int, ...]
    rest: tuple[Value, Value, Value] | None

    @property
    def lanes(self) -> int:
        return self.frame.output.lanes

    @property
    def wide(self) -> int:
        """Lanes of a panel."""
        return self.choice.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.frame.elements // self.choice.block)

    @property
    def row_vectors(self) -> int:
        """Of an output row."""
        return -(-sum(self.choice.pixels) // self.lanes)

    @property
    def row_lanes(self) -> int:
        # A piece is written a power of two wide.
        return self.row_vectors * self.lanes + 8

    @property
    def piece(self) -> int:
        """Bytes that the sums of a piece take while they wait."""
        return 4 * max(self.choice.pixels) * self.wide

    @property
    def waiting(self) -> int:
        """Bytes of scratch for sums that wait between blocks."""
        if self.blocks == 1:
            return 0
        return self.choice.most_tiles * len(self.choice.pixels) * self.piece

    @property
    def scratch(self) -> int:
        """Bytes in all."""
        return (
            self.frame.packed_bytes + self.waiting + 4 * self.choice.most_tiles * self.wide * self.row_lanes
        )

    def strip(self, first: Value, end: Value) -> None:
        """All panels of the task over the rows first..end, whose input is packed."""
        f = self.frame.function
        with f.loop(self.frame.part.first_row, self.frame.part.end_row) as panel:
            channel = panel * self.wide
            weights = f.offset(
                self.weights, panel * (4 * self.wide * self.frame.elements * self.frame.shape.taps)
            )
            with f.loop(0, self.blocks) as block:
                start = block * self.choice.block
                stop = f.minimum(start + self.choice.block, self.frame.elements)
                with f.loop(first, end) as tile:
                    self._row(channel, weights, block, (start, stop), tile, tile - first)
            channels = f.minimum(-channel + self.frame.shape.outputs, self.wide)
            if self.rest is not None:
                with f.loop(0, channels) as c:
                    self._add_rest(self.rest, self.frame.channel_base + channel + c, c, first, end)
            columns = 2 + len(self.frame.output.epilogue.tensors)
            kind = I32.by(self.lanes)
            with f.loop(first, end) as tile:
                offsets = [
                    f.convert(f.load(I32, self.frame.tiles, tile * columns + i), I64)
                    for i in range(1, columns)
                ]
                with f.loop(0, channels) as c:
                    sums = self._sums(tile - first, c)
                    totals = [f.load(kind, sums, v * self.lanes) for v in range(self.row_vectors)]
                    number = self.frame.channel_base + channel + c
                    self.frame.output.store(f, number, totals, offsets, self.choice.strips.last)

    def _sums(self, row: Value, channel: Value) -> Value:
        """Where the complete sums of a row of a channel of the panel lie."""
        place = (row * self.wide + channel) * (4 * self.row_lanes)
        return self.frame.function.offset(
            self.frame.function["scratch"], place + (self.frame.packed_bytes + self.waiting)
        )

    def _add_rest(
        self, rest: tuple[Value, Value, Value], number: Value, channel: Value, first: Value, end: Value
    ) -> None:
        """Add what the products have left out of a channel to its sums."""
        f, kind = self.frame.function, I32.by(self.lanes)
        starts, offsets, weights = rest
        columns = 2 + len(self.frame.output.epilogue.tensors)
        begin, stop = (f.convert(f.load(I32, starts, number + i), I64) for i in (0, 1))
        with f.loop(begin, stop) as entry:
            source = f.offset(f["scratch"], f.convert(f.load(I32, offsets, entry), I64), 4)
            weight = f.splat(f.load(I32, weights, entry, align=1), kind)
            with f.loop(first, end) as tile:
                x = f.offset(source, f.convert(f.load(I32, self.frame.tiles, tile * columns), I64), 4)
                sums = self._sums(tile - first, channel)
                for v in range(self.row_vectors):
                    total = f.load(kind, sums, v * self.lanes)
                    pixels = f.load(kind, x, v * self.lanes)
                    f.store(self.choice.dot.add(f, total, [pixels], [weight]), sums, v * self.lanes)

    def _row(
        self,
        channel: Value,
        weights: Value,
        block: Value,
        elements: tuple[Value, Value],
        tile: Value,
        row: Value,
    ) -> None:
        """The pieces of a row, one block of elements: short pieces first, so that what they write too much
        is overwritten."""
        f, pieces = self.frame.function, self.choice.pixels
        columns = 2 + len(self.frame.output.epilogue.tensors)
        source = f.offset(f["scratch"], f.convert(f.load(I32, self.frame.tiles, tile * columns), I64), 4)
        before = done = 0
        for pixels in sorted(set(pieces)):
            count = pieces.count(pixels)
            with f.loop(0, count) as s:
                x = s * pixels + done
                piece = row * len(pieces) + s + before
                self._prefetch(weights, elements, piece)
                self._piece(
                    channel, weights, block, elements, f.offset(source, x, 4), (row, x), piece, pixels
                )
            done += count * pixels
            before += count

    def _prefetch(self, weights: Value, elements: tuple[Value, Value], piece: Value) -> None:
        """Ask for this piece's share of the next block's weights."""
        f = self.frame.function
        size = 4 * self.wide * self.frame.shape.taps
        share = -(-size * self.choice.block // (64 * self.choice.most_tiles * len(self.choice.pixels)))
        following = f.offset(weights, elements[1] * size)
        for line in range(min(share, 16)):
            f.prefetch(following, (piece * share + line) * 64, near=False)

    def _piece(
        self,
        channel: Value,
        weights: Value,
        block: Value,
        elements: tuple[Value, Value],
        source: Value,
        place: tuple[Value, Value],
        piece: Value,
        pixels: int,
    ) -> None:
        """Some pixels of a row, one block of elements."""
        f, kind = self.frame.function, I32.by(self.lanes)
        bias = f.offset(self.frame.bias, self.frame.channel_base + channel, I32)
        sums = [
            [f.var(f.load(kind, bias, v * self.lanes)) for v in range(self.choice.vectors)]
            for _ in range(pixels)
        ]
        flat = [variable for one in sums for variable in one]
        waiting = f.offset(f["scratch"], piece * self.piece + self.frame.packed_bytes)
        if self.blocks > 1:
            with f.when(block > 0):
                for i, variable in enumerate(flat):
                    variable.set(f.load(kind, waiting, i * self.lanes))
        self._multiply(sums, source, elements, weights)
        row, x = place
        rows = f.offset(self._sums(row, f.constant(0, I64)), x, 4)
        if self.blocks == 1:
            self._transpose(rows, sums)
            return
        with f.either(block.equals(self.blocks - 1)) as otherwise:
            self._transpose(rows, sums)
            with otherwise():
                for i, variable in enumerate(flat):
                    f.store(variable.get(), waiting, i * self.lanes)

    def _multiply(
        self,
        sums: Sequence[Sequence[Variable]],
        source: Value,
        elements: tuple[Value, Value],
        weights: Value,
    ) -> None:
        """Every pixel of the piece with every vector of the panel, for all taps of the elements."""
        f, taps, span = self.frame.function, self.frame.shape.taps, self.choice.strips.span
        inner = self.inner_taps
        start, stop = elements
        unroll = 2 if taps == 1 and self.choice.block % 2 == 0 and self.frame.elements % 2 == 0 else 1
        with f.loop(start, stop, unroll) as e:
            for u in range(unroll):
                x = f.offset(source, (e + u) * span, 4)
                w = f.offset(weights, (e + u) * (4 * self.wide * taps))
                if self.outer_taps is None:
                    self._taps(sums, x, w, inner)
                    continue
                with f.loop(0, taps // len(inner)) as o:
                    near = f.offset(x, f.convert(f.load(I32, self.outer_taps, o), I64), 4)
                    self._taps(sums, near, f.offset(w, o * (4 * self.wide * len(inner))), inner)

    def _taps(
        self, sums: Sequence[Sequence[Variable]], x: Value, weights: Value, taps: Sequence[int]
    ) -> None:
        f, kind = self.frame.function, I32.by(self.lanes)
        chosen = colours(taps, len(sums), 1)
        sources = [x, *(f.opaque(x) for _ in range(max(chosen)))]
        for k, (tap, colour) in enumerate(zip(taps, chosen)):
            loaded = [
                f.load(kind, weights, (k * self.choice.vectors + v) * self.lanes)
                for v in range(self.choice.vectors)
            ]
            for p, one in enumerate(sums):
                pixel = f.splat(f.load(I32, sources[colour], tap + p), kind)
                for total, weight in zip(one, loaded):
                    total.set(self.choice.dot.add(f, total.get(), [pixel], [weight]))

    def _transpose(self, rows: Value, sums: Sequence[Sequence[Variable]]) -> None:
        """Write the piece into the rows of its channels."""
        f = self.frame.function
        for v in range(len(sums[0])):
            vectors = transposed(f, [one[v].get() for one in sums])
            across = len(vectors)
            for i, vector in enumerate(vectors):
                for c in range(self.lanes // across):
                    channel = v * self.lanes + i * (self.lanes // across) + c
                    lanes = range(c * across, (c + 1) * across)
                    part = f.shuffle(vector, None, lanes) if across > 1 else f.extract(vector, c)
                    f.store(part, rows, channel * self.row_lanes)


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
    """Add the convolution's step; arguments as those of `integer_code.emit`."""
    f = kernel(plan.target, "conv_integer_panel")
    s, dot = choice.strips, choice.dot
    batch = shape.batch * shape.groups
    work = divided(len(s.strips), batch, choice.panels, plan.threads, choice.cycles)
    frame = IntegerFrame.open(f, source, shape, s, dot, work, out, epilogue, own=5)
    weights_at, outer_at, *rest_at = frame.own
    outer, inner = factor_taps(s.taps)
    packed = pack(weights, choice, frame.output.lanes)
    own_weights = f.offset(weights_at, frame.group * (packed.weights.nbytes // shape.groups))
    rest = (rest_at[0], rest_at[1], rest_at[2]) if len(packed.offsets) else None
    code = _Code(frame, choice, own_weights, outer_at if len(outer) > 1 else None, inner, rest)
    plan.scratch(code.scratch)
    frame.each_strip(code.strip)
    # The last panel's lanes may be more than there are channels.
    readable = np.concatenate([bias, np.zeros(code.wide, np.int32)])
    own = (packed.weights, np.array(outer, np.int32), packed.starts, packed.offsets, packed.rest)
    details = {
        **info,
        "kernel": f"integer dense, {dot.name}",
        "tile": str(choice),
        "estimated_cycles": choice.cycles,
    }
    words = integer_frame.operands(plan, source, s, out, epilogue, readable, own)
    reads = [source, *epilogue.tensors]
    plan.step(f, words, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
