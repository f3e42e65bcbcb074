"""The code of a dense integer convolution whose lanes hold output channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, kernel
from coresident.codegen.types import I32, I64
from coresident.kernels import integer_frame
from coresident.kernels.dense_code import factor_taps
from coresident.kernels.frame import Shape
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_frame import NO_COLUMNS, Columns, IntegerFrame
from coresident.kernels.integer_panel import Choice, pack
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.panel_sums import ELEMENT, PanelSums, shares


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work, whose rows are panels.
        weights: of the group, packed.
        sums: how those of a panel are made; complete, they are runs or rows of pixels for each channel.
        rest: addresses of the starts, offsets and weights of what the products leave out; None if nothing.
        in_runs: whether complete sums are a run of pixels for each channel, with the output's gaps; otherwise
            each row has whole vectors, since what is added to them is.
    """

    frame: IntegerFrame
    choice: Choice
    weights: Value
    sums: PanelSums
    rest: tuple[Value, Value, Value] | None
    in_runs: bool

    @property
    def wide(self) -> int:
        """Lanes of the widest panel."""
        return self.choice.widest * self.sums.lanes

    def strip(self, first: Value, end: Value) -> None:
        """All panels of the task over the rows first..end, whose input is packed."""
        f, choice, part = self.frame.function, self.choice, self.frame.part
        width = choice.width
        for vectors, (start, stop) in zip((width, width - 1), shares(part, choice.wide, choice.narrow)):
            if not (choice.wide if vectors == width else choice.narrow):
                continue
            skipped = 0 if vectors == width else choice.wide * width
            with f.loop(start, stop) as panel:
                self._panel(vectors, (panel * vectors + skipped) * self.sums.lanes, first, end)

    def _panel(self, vectors: int, channel: Value, first: Value, end: Value) -> None:
        """The panel from an output channel of the group on, over the rows first..end."""
        f, frame = self.frame.function, self.frame
        number = frame.channel_base + channel
        bias = f.offset(frame.bias, number, I32)
        weights = f.offset(self.weights, channel * (frame.elements * frame.shape.taps), ELEMENT)
        self.sums.emit(
            vectors,
            bias,
            weights,
            first,
            end,
            lambda tile: (self._packed(f["scratch"], tile), self._complete(first, tile)),
        )
        channels = f.minimum(-channel + frame.shape.outputs, vectors * self.sums.lanes)
        if self.rest is not None:
            with f.loop(0, channels) as c:
                self._add_rest(self.rest, number + c, c, first, end)
        if self.in_runs:
            self._store_runs(number, channels, first, end)
        else:
            self._store_rows(number, channels, first, end)

    def _packed(self, base: Value, tile: Value) -> Value:
        """The address of a row's first pixel in a packed strip whose first is at `base`."""
        f, columns = self.frame.function, 2 + len(self.frame.output.epilogue.tensors)
        at = f.load(I32, self.frame.tiles, tile * columns)
        return f.offset(base, f.convert(at, I64), ELEMENT)

    def _complete(self, first: Value, tile: Value, channel: Value | int = 0) -> Value:
        """Where the complete sums of a row of a channel of the panel lie, in a strip with a first row."""
        f, reach = self.frame.function, ELEMENT * self.sums.reach
        base = f.offset(f["scratch"], self.sums.complete)
        if not self.in_runs:
            return f.offset(base, ((tile - first) * self.wide + channel) * reach)
        moved = self._offsets(tile)[0] - self._offsets(first)[0]
        return f.offset(f.offset(base, moved, ELEMENT), channel * reach)

    def _offsets(self, tile: Value) -> list[Value]:
        """Elements from pixel 0 to a row's first, in the output and in each further operand."""
        f, columns = self.frame.function, 2 + len(self.frame.output.epilogue.tensors)
        at = [f.load(I32, self.frame.tiles, tile * columns + i) for i in range(1, columns)]
        return [f.convert(offset, I64) for offset in at]

    def _store_rows(self, number: Value, channels: Value, first: Value, end: Value) -> None:
        """Finish and store the sums of some channels from `number` on, row by row."""
        f, kind = self.frame.function, self.sums.vector
        with f.loop(first, end) as tile, f.loop(0, channels) as c:
            sums = self._complete(first, tile, c)
            vectors = range(self.choice.row_vectors(kind.lanes))
            totals = [f.load(kind, sums, v * kind.lanes) for v in vectors]
            self.frame.output.store(f, number + c, totals, self._offsets(tile), self.choice.strips.last)

    def _store_runs(self, number: Value, channels: Value, first: Value, end: Value) -> None:
        """Finish and store the sums of some channels from `number` on, together as many vectors as one of
        bytes holds."""
        f, kind, output = self.frame.function, self.sums.vector, self.frame.output
        offsets, together = self._offsets(first), 4 * kind.lanes
        pixels = self._offsets(end - 1)[0] - offsets[0] + sum(self.choice.pixels)
        whole = pixels / together * together

        def store(c: Value, at: Value, count: int) -> None:
            sums, vectors = self._complete(first, first, c), range(-(-count // kind.lanes))
            totals = [f.load(kind, sums, at + v * kind.lanes) for v in vectors]
            last = count - (len(vectors) - 1) * kind.lanes
            output.store(f, number + c, totals, [offset + at for offset in offsets], last)

        with f.loop(0, channels) as c:
            with f.loop(0, whole, together) as at:
                store(c, at, together)
            for left in sorted({run % together for run in self.choice.runs} - {0}):
                with f.when((pixels - whole).equals(left)):
                    store(c, whole, left)

    def _add_rest(
        self, rest: tuple[Value, Value, Value], number: Value, channel: Value, first: Value, end: Value
    ) -> None:
        """Add what the products have left out of a channel to its sums."""
        f, kind = self.frame.function, self.sums.vector
        starts, offsets, weights = rest
        begin, stop = (f.convert(f.load(I32, starts, number + i), I64) for i in (0, 1))
        with f.loop(begin, stop) as entry:
            source = f.offset(f["scratch"], f.convert(f.load(I32, offsets, entry), I64), ELEMENT)
            weight = f.splat(f.load(I32, weights, entry, align=1), kind)
            with f.loop(first, end) as tile:
                x = self._packed(source, tile)
                sums = self._complete(first, tile, channel)
                for v in range(self.choice.row_vectors(kind.lanes)):
                    total, pixels = (f.load(kind, at, v * kind.lanes) for at in (sums, x))
                    f.store(self.sums.product(total, pixels, weight), sums, v * kind.lanes)


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
    columns: Columns = NO_COLUMNS,
) -> None:
    """Add the convolution's step; arguments as those of `integer_code.emit`."""
    f = kernel(plan.target, "conv_integer_panel")
    s, dot = choice.strips, choice.dot
    work = choice.work(shape, plan.threads)
    frame = IntegerFrame.open(f, source, shape, s, dot, work, out, epilogue, own=5, columns=columns)
    weights_at, outer_at, *rest_at = frame.own
    outer, inner = factor_taps(s.taps)
    packed = pack(weights, choice, frame.output.lanes)
    own_weights = f.offset(weights_at, frame.group * (packed.weights.nbytes // shape.groups))
    rest = (rest_at[0], rest_at[1], rest_at[2]) if len(packed.offsets) else None
    lanes = frame.output.lanes
    in_runs = s.flat and rest is None
    rows, length = (1, max(choice.runs)) if in_runs else (choice.most_tiles, sum(choice.pixels))
    sums = PanelSums(
        function=f,
        vector=I32.by(lanes),
        product=lambda total, pixel, weight: dot.add(f, total, [pixel], [weight]),
        strips=choice.pixels,
        rows=choice.most_tiles,
        channels=frame.elements,
        block=choice.block,
        channel_stride=s.span,
        step=1,
        outer_taps=outer_at if len(outer) > 1 else None,
        inner_taps=inner,
        taps=shape.taps,
        widest=choice.widest,
        waiting=frame.packed_bytes,
        # A strip is written a power of two wide.
        reach=-(-length // lanes) * lanes + 8,
    )
    code = _Code(frame, choice, own_weights, sums, rest, in_runs)
    plan.scratch(sums.complete + ELEMENT * rows * code.wide * sums.reach)
    frame.each_strip(lambda first, end, _: code.strip(first, end))
    # The last panel's lanes may be more than there are channels.
    readable = np.concatenate([bias, np.zeros(code.wide, np.int32)])
    tables = (packed.weights, np.array(outer, np.int32), packed.starts, packed.offsets, packed.rest)
    own = [plan.constant(table) for table in tables]
    details = {
        **info,
        "kernel": f"integer dense, {dot.name}",
        "tile": str(choice),
        "estimated_cycles": choice.cycles,
    }
    words = integer_frame.operands(plan, source, s, out, epilogue, readable, own)
    reads = [source, *epilogue.tensors]
    plan.step(f, words, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
