"""The code of a dense convolution whose lanes hold output channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, Variable, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import frame as frames
from coresident.kernels.dense_code import factor_taps, rounds
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.panel import WIDTH, Choice, pack
from coresident.kernels.tiling import cut


@dataclass(frozen=True)
class _Panel:
    """One panel while its code is emitted.

    Args:
        vectors: of output channels.
        channel: the first of them, in the group.
        weights: address of its first block.
    """

    vectors: int
    channel: Value
    weights: Value


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work; its tiles are the output's rows, in chunks.
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
    def lanes(self) -> int:
        return self.frame.vector.lanes

    @property
    def blocks(self) -> int:
        return -(-self.shape.inputs // self.choice.block)

    @property
    def waiting_floats(self) -> int:
        """Of scratch that the sums of a chunk take while they wait."""
        if self.blocks == 1:
            return 0
        most = max(self.choice.strips) * WIDTH * self.lanes
        return self.choice.chunk * len(self.choice.strips) * most

    @property
    def scratch_floats(self) -> int:
        """Of scratch in all: the complete sums of a chunk are a run of pixels for each channel."""
        return self.waiting_floats + self.choice.reach * WIDTH * self.lanes

    def emit(self) -> None:
        """The task: chunk by chunk, all its panels."""
        f, part, choice = self.frame.function, self.frame.part, self.choice
        depth = self.shape.inputs * self.shape.taps
        with f.loop(part.first_tile, part.end_tile) as chunk:
            first = chunk * choice.chunk
            end = f.minimum(first + choice.chunk, choice.rows.count)
            split = f.constant(choice.wide, I64)
            for vectors, start, stop in (
                (WIDTH, part.first_row, f.minimum(part.end_row, split)),
                (WIDTH - 1, f.maximum(part.first_row, split), part.end_row),
            ):
                if not (choice.wide if vectors == WIDTH else choice.narrow):
                    continue
                before = 0 if vectors == WIDTH else choice.wide
                lanes = vectors * self.lanes
                skipped = before * WIDTH * self.lanes
                with f.loop(start, stop) as panel:
                    own = panel - before
                    at = f.offset(self.weights, own * (lanes * depth) + skipped * depth, F32)
                    self._panel(_Panel(vectors, own * lanes + skipped, at), first, end)

    def _panel(self, panel: _Panel, first: Value, end: Value) -> None:
        """One panel of output channels over the rows first..end."""
        f, choice = self.frame.function, self.choice
        floats = panel.vectors * self.lanes * self.shape.taps
        with f.loop(0, self.blocks) as block:
            start = block * choice.block
            stop = f.minimum(start + choice.block, self.shape.inputs)
            weights = f.offset(panel.weights, start * floats, F32)
            with f.loop(first, end) as row:
                here = self.frame.at(row)
                strip = (row - first) * len(choice.strips)
                at = here.offsets[0] - self.frame.at(first).offsets[0]
                self._row(panel, here, block, (start, stop), weights, at, strip)
        channels = f.minimum(-panel.channel + self.shape.outputs, panel.vectors * self.lanes)
        offsets = self.frame.at(first).offsets
        pixels = self.frame.at(end - 1).offsets[0] - offsets[0] + self.choice.width
        with f.loop(0, channels) as c:
            sums = f.offset(f["scratch"], c * self.choice.reach + self.waiting_floats, F32)
            channel = self.frame.channel_base + panel.channel + c
            self.frame.output.store_run(f, channel, sums, offsets, pixels)

    def _row(
        self,
        panel: _Panel,
        here: Here,
        block: Value,
        inputs: tuple[Value, Value],
        weights: Value,
        at: Value,
        strip: Value,
    ) -> None:
        """The strips of a row, one block of input channels: short strips first, so that what they write
        too much is overwritten."""
        f, strips = self.frame.function, self.choice.strips
        done = 0
        for pixels in sorted(set(strips)):
            count = strips.count(pixels)
            with f.loop(0, count) as s:
                x = s * pixels + done
                self._prefetch(panel, weights, inputs, strip + s)
                self._strip(panel, here, block, inputs, weights, at + x, x, strip + s, pixels)
            done += count * pixels
            strip = strip + count

    def _prefetch(self, panel: _Panel, weights: Value, inputs: tuple[Value, Value], strip: Value) -> None:
        """Ask for this strip's share of the next block's weights."""
        f = self.frame.function
        size = panel.vectors * self.lanes * self.shape.taps * self.choice.block * 4
        share = -(-size // (64 * self.choice.chunk * len(self.choice.strips)))
        start, stop = inputs
        following = f.offset(weights, (stop - start) * (panel.vectors * self.lanes * self.shape.taps), F32)
        for line in range(min(share, 16)):
            f.prefetch(following, (strip * share + line) * 64, near=False)

    def _strip(
        self,
        panel: _Panel,
        here: Here,
        block: Value,
        inputs: tuple[Value, Value],
        weights: Value,
        place: Value,
        x: Value,
        strip: Value,
        pixels: int,
    ) -> None:
        """`pixels` pixels of a row from pixel x on, one block of input channels; their sums go to a place in
        the chunk's run."""
        f, vector = self.frame.function, self.frame.vector
        bias = f.offset(self.frame.bias, self.frame.channel_base + panel.channel, F32)
        sums = [
            [f.var(f.load(vector, bias, v * self.lanes)) for v in range(panel.vectors)] for _ in range(pixels)
        ]
        flat = [variable for one in sums for variable in one]
        most = max(self.choice.strips) * WIDTH * self.lanes
        waiting = f.offset(f["scratch"], strip * most, F32)
        if self.blocks > 1:
            with f.when(block > 0):
                for i, variable in enumerate(flat):
                    variable.set(f.load(vector, waiting, i * self.lanes))
        source = f.offset(here.x, x * self.g.step, F32)
        self._multiply(panel, sums, source, inputs, weights)
        rows = f.offset(f["scratch"], place + self.waiting_floats, F32)
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
        panel: _Panel,
        sums: Sequence[Sequence[Variable]],
        source: Value,
        inputs: tuple[Value, Value],
        weights: Value,
    ) -> None:
        """Every pixel of the strip with every vector of the panel, for all taps of the input channels."""
        f, taps, lanes = self.frame.function, self.shape.taps, panel.vectors * self.lanes
        start, stop = inputs
        unroll = rounds(self.shape, self.choice.block)
        with f.loop(start, stop, unroll) as c:
            for u in range(unroll):
                at_x = f.offset(source, c * self.g.channel_stride + u * self.g.channel_stride, F32)
                at_w = f.offset(weights, (c - start + u) * (taps * lanes), F32)
                if self.outer_taps is None:
                    self._taps(panel, sums, at_x, at_w)
                    continue
                with f.loop(0, taps // len(self.inner_taps)) as o:
                    near = f.offset(at_x, f.convert(f.load(I32, self.outer_taps, o), I64), F32)
                    self._taps(panel, sums, near, f.offset(at_w, o * (len(self.inner_taps) * lanes), F32))

    def _taps(self, panel: _Panel, sums: Sequence[Sequence[Variable]], x: Value, weights: Value) -> None:
        f, vector = self.frame.function, self.frame.vector
        colours = _colours(self.inner_taps, len(sums), self.g.step)
        sources = [x, *(f.opaque(x) for _ in range(max(colours)))]
        for k, (tap, colour) in enumerate(zip(self.inner_taps, colours)):
            loaded = [
                f.load(vector, weights, (k * panel.vectors + v) * self.lanes) for v in range(panel.vectors)
            ]
            for p, one in enumerate(sums):
                pixel = f.splat(f.load(F32, sources[colour], tap + p * self.g.step), vector)
                for total, weight in zip(one, loaded):
                    total.set(f.fma(pixel, weight, total.get()))

    def _transpose(self, rows: Value, sums: Sequence[Sequence[Variable]]) -> None:
        """Write the strip into the rows of its channels."""
        f = self.frame.function
        for v in range(len(sums[0])):
            vectors = transposed(f, [one[v].get() for one in sums])
            across = len(vectors)
            for i, vector in enumerate(vectors):
                for c in range(self.lanes // across):
                    channel = v * self.lanes + i * (self.lanes // across) + c
                    lanes = range(c * across, (c + 1) * across)
                    part = f.shuffle(vector, None, lanes) if across > 1 else f.extract(vector, c)
                    f.store(part, rows, channel * self.choice.reach)


def _colours(taps: Sequence[int], pixels: int, step: int) -> list[int]:
    """For each tap the address to load from, so that none loads the same pixel from the same address."""
    used: list[set[int]] = []
    colours = []
    for tap in taps:
        read = {tap + p * step for p in range(pixels)}
        colour = next((i for i, before in enumerate(used) if not before & read), len(used))
        if colour == len(used):
            used.append(set())
        used[colour] |= read
        colours.append(colour)
    return colours


def transposed(f: Function, vectors: Sequence[Value]) -> list[Value]:
    """The lanes of all vectors in turn, lane 0 of each first; as many vectors as the next power of two."""
    count = 1 << (len(vectors) - 1).bit_length()
    known = list(vectors) + [vectors[-1]] * (count - len(vectors))
    lanes = known[0].type.lanes
    assert lanes >= count
    zipped = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]

    def merge(parts: list[Value]) -> list[Value]:
        if len(parts) == 1:
            return parts
        result: list[Value] = []
        for even, odd in zip(merge(parts[0::2]), merge(parts[1::2])):
            result += [f.shuffle(even, odd, zipped[:lanes]), f.shuffle(even, odd, zipped[lanes:])]
        return result

    return merge(known)


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
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        barrier: False if the next step does not depend on it.
    """
    f = kernel(plan.target, "conv_panel")
    lanes = plan.target.lanes(F32)
    batch = shape.batch * shape.groups
    work = cut(choice.chunks, choice.panels, batch, plan.threads, choice.cycles)
    frame = Frame.open(f, g, shape, choice.rows, work, out, epilogue)
    padded = (WIDTH * choice.wide + (WIDTH - 1) * choice.narrow) * lanes
    outer, inner = factor_taps(g.taps)
    packed = f.offset(word(f, frame.words), frame.group * (padded * shape.inputs * shape.taps), F32)
    outer_taps = word(f, frame.words + 1) if len(outer) > 1 else None
    code = _Code(frame, g, shape, choice, packed, outer_taps, inner)
    plan.scratch(4 * code.scratch_floats)
    code.emit()
    # The last panel's lanes may be more than there are channels.
    readable = np.concatenate([bias.astype(np.float32), np.zeros(WIDTH * lanes, np.float32)])
    operands = [
        *frames.operands(plan, g, choice.rows, out, epilogue, plan.constant(readable)),
        plan.constant(pack(weights, choice, lanes)),
        plan.constant(np.array(outer, np.int32)),
    ]
    details = {**info, "kernel": "dense", "tile": str(choice), "estimated_cycles": choice.cycles}
    reads = [g.source, *epilogue.tensors]
    plan.step(f, operands, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
