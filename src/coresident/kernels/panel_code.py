"""The code of a dense convolution whose lanes hold output channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, kernel, word
from coresident.codegen.types import F32
from coresident.kernels import frame as frames
from coresident.kernels.dense_code import factor_taps
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.panel import WIDTH, Choice, pack
from coresident.kernels.panel_sums import ELEMENT, PanelSums, shares
from coresident.kernels.tiling import cut


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work; its tiles are the output's rows, in chunks.
        weights: of the group of the convolution, packed.
        sums: how those of a panel are made; of a chunk they are a run of pixels for each channel.
    """

    frame: Frame
    shape: Shape
    choice: Choice
    weights: Value
    sums: PanelSums

    def emit(self) -> None:
        """The task: chunk by chunk, all its panels."""
        f, part, choice = self.frame.function, self.frame.part, self.choice
        depth = self.shape.inputs * self.shape.taps
        with f.loop(part.first_tile, part.end_tile) as chunk:
            first = chunk * choice.chunk
            end = f.minimum(first + choice.chunk, choice.rows.count)
            kinds = zip((WIDTH, WIDTH - 1), shares(part, choice.wide, choice.narrow))
            for vectors, (start, stop) in kinds:
                if not (choice.wide if vectors == WIDTH else choice.narrow):
                    continue
                lanes = vectors * self.sums.lanes
                skipped = 0 if vectors == WIDTH else choice.wide * WIDTH * self.sums.lanes
                with f.loop(start, stop) as panel:
                    weights = f.offset(self.weights, panel * (lanes * depth) + skipped * depth, F32)
                    self._panel(vectors, panel * lanes + skipped, weights, first, end)

    def _panel(self, vectors: int, channel: Value, weights: Value, first: Value, end: Value) -> None:
        """The panel from an output channel of the group on, over the rows first..end."""
        f, frame = self.frame.function, self.frame
        offsets = frame.at(first).offsets
        complete = f.offset(f["scratch"], self.sums.complete)

        merged = frame.output.merged is not None

        def place(row: Value) -> tuple[Value, Value]:
            here = frame.at(row)
            moved = (row - first) * self.choice.width if merged else here.offsets[0] - offsets[0]
            return here.x, f.offset(complete, moved, F32)

        bias = f.offset(frame.bias, frame.channel_base + channel, F32)
        self.sums.emit(vectors, bias, weights, first, end, place)
        channels = f.minimum(-channel + self.shape.outputs, vectors * self.sums.lanes)
        if merged:
            self._store_merged(channel, channels, first, end, complete)
            return
        pixels = frame.at(end - 1).offsets[0] - offsets[0] + self.choice.width
        with f.loop(0, channels) as c:
            following = frame.channel_base + channel + f.minimum(c + 4, channels - 1)
            frame.output.prefetch_run(f, following, offsets, pixels)
            run = f.offset(complete, c * self.sums.reach, F32)
            frame.output.store_run(f, frame.channel_base + channel + c, run, offsets, pixels)

    def _store_merged(
        self, channel: Value, channels: Value, first: Value, end: Value, complete: Value
    ) -> None:
        """Store the sums of some channels from `channel` of the group on, pair by pair.

        Args:
            complete: their address.
        """
        f, frame, lanes = self.frame.function, self.frame, self.sums.lanes
        vectors = range(-(-self.choice.width // lanes))
        last = self.choice.width - (len(vectors) - 1) * lanes
        with f.loop(first, end) as row:
            offsets = frame.at(row).offsets
            sums = f.offset(complete, (row - first) * self.choice.width, F32)
            with f.loop(0, channels, 2) as c:
                pair = [
                    [f.load(frame.vector, sums, (c + p) * self.sums.reach + v * lanes) for v in vectors]
                    for p in (0, 1)
                ]
                number = frame.channel_base + channel + c
                frame.output.store_merged(f, number, pair, offsets, last)


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
    f = kernel(plan.target, "conv_panel", flushes=True)
    lanes = plan.target.lanes(F32)
    batch = shape.batch * shape.groups
    work = cut(choice.chunks, choice.panels, batch, plan.threads, choice.cycles)
    frame = Frame.open(f, g, shape, choice.rows, work, out, epilogue, merged)
    padded = (WIDTH * choice.wide + (WIDTH - 1) * choice.narrow) * lanes
    outer, inner = factor_taps(g.taps)
    packed = f.offset(word(f, frame.words), frame.group * (padded * shape.inputs * shape.taps), F32)
    outer_taps = word(f, frame.words + 1) if len(outer) > 1 else None
    sums = PanelSums(
        function=f,
        vector=frame.vector,
        product=lambda total, pixel, weight: f.fma(pixel, weight, total),
        strips=choice.strips,
        rows=choice.chunk,
        channels=shape.inputs,
        block=choice.block,
        channel_stride=g.channel_stride,
        step=g.step,
        outer_taps=outer_taps,
        inner_taps=inner,
        taps=shape.taps,
        widest=WIDTH,
        waiting=0,
        reach=choice.reach,
    )
    plan.scratch(sums.complete + ELEMENT * WIDTH * lanes * choice.reach)
    _Code(frame, shape, choice, packed, sums).emit()
    # The last panel's lanes may be more than there are channels.
    readable = np.concatenate([bias.astype(np.float32), np.zeros(WIDTH * lanes, np.float32)])
    operands = [
        *frames.operands(plan, g, choice.rows, out, epilogue, plan.constant(readable)),
        plan.constant(pack(weights, choice, lanes)),
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
        info=details,
    )
