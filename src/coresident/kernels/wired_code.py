"""The code of a sparse convolution whose nonzeros are instructions: the loops around its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import x86
from coresident.codegen.builder import Value, word
from coresident.codegen.types import F32, I64
from coresident.kernels import frame as frames
from coresident.kernels import wired, wired_writer
from coresident.kernels.asking import is_near
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.head import Head
from coresident.kernels.lowering import Operand, Plan
from coresident.kernels.sparse import MOST_BYTES, Choice
from coresident.kernels.sparse_loops import Loops


@dataclass(frozen=True)
class _Wired(Loops):
    """The kernel under construction.

    Args:
        wiring: how the weights are cut into chunks.
        code, starts: addresses of the chunks, and of where those of the group begin.
        asked: bytes that chunks ask for of the one behind them, in one pass.
        begins: elements from a plane to where each pass begins to ask for pixels.
    """

    wiring: wired.Wiring
    code: Value
    starts: Value
    asked: int
    begins: tuple[int, ...]

    @property
    def waiting(self) -> int:
        if self.wiring.ends is not None and self.blocks == 1:
            return 0
        rows = -(-self.frame.work.most_rows // self.wiring.rows) * self.wiring.rows
        return rows * self._tile_bytes

    def _rows(
        self, here: Here, packed: Value, block: Value, part: Value, ahead: Value, ahead_channels: Value | int
    ) -> None:
        f, work, rows = self.frame.function, self.frame.work, self.wiring.rows
        first_row, end_row = work.first_row(part), work.first_row(part + 1)
        first, end = first_row / rows, (end_row + (rows - 1)) / rows
        before = self.frame.part.first_row / rows
        with f.loop(first, end) as number:
            sums = self._sums_of(here, number - before)
            self._pass(here, packed, block, number, sums, ahead)
            if self.wiring.ends is None:
                with frames.in_last(f, block, self.blocks):
                    self._finish(here, block, number * rows, f.minimum((number + 1) * rows, end_row), sums)

    def _sums_of(self, here: Here, number: Value) -> Value:
        """Address of a chunk's sums, vector after vector."""
        f = self.frame.function
        size = self.wiring.rows * here.vectors * self.frame.vector.lanes
        return f.offset(f["scratch"], number * size + self.packed, F32)

    def _pass(
        self, here: Here, packed: Value, block: Value, number: Value, sums: Value, ahead: Value
    ) -> None:
        """Pass a chunk over the vectors of a tile."""
        f, frame, lanes = self.frame.function, self.frame, self.frame.vector.lanes
        code, weights, following = wired.place(f, self.code, self.starts, number * self.blocks + block)
        channel = frame.channel_base + number * self.wiring.rows
        output = frame.output
        results = [
            f.offset(pointer, channel * stride + at, F32)
            for pointer, stride, at in zip(output.pointers, output.channel_strides, here.offsets)
        ]
        size = self.wiring.rows * lanes

        def run(v: Value | int, pixels: Value) -> None:
            out, residual = (f.offset(results[i], v * output.vector_strides[i], F32) for i in (0, -1))
            begin = f.value(self.begins[v], I64) if isinstance(v, int) else v * self._apart
            asked = f.offset(ahead, begin, F32), f.offset(following, v * self.asked)
            held = f.offset(sums, v * size, F32)
            wired.run(f, code, pixels, weights, held, out, residual, *asked, *self._next(results, v, here))

        if self.choice.packing is not None or self.g.is_striped:
            source = here.x if self.choice.packing is None else packed
            for vector in range(here.vectors):
                run(vector, f.offset(source, self._reads(vector), F32))
            return
        with f.loop(0, here.vectors) as v:
            run(v, f.offset(here.x, v * self._apart, F32))

    def _next(self, results: Sequence[Value], v: Value | int, here: Here) -> list[Value]:
        """Addresses of what the next pass writes and of its residuals: of the next vector, or of the next
        chunk's first one."""
        f, output = self.frame.function, self.frame.output
        if isinstance(v, int):
            return [results[0], results[-1]]
        last = v.equals(here.vectors - 1)
        strides = zip(output.channel_strides, output.vector_strides)
        steps = [f.select(last, self.choice.chunk_rows * row, (v + 1) * vector) for row, vector in strides]
        return [f.offset(results[i], steps[i], F32) for i in (0, -1)]

    def _finish(self, here: Here, block: Value, first: Value, end: Value, sums: Value) -> None:
        """Store the results of a chunk's rows."""
        f, vector = self.frame.function, self.frame.vector
        ahead = frames.rows_ahead(here.vectors)
        with f.loop(first, f.minimum(first + ahead, end)) as row:
            self._sums(here, block, row).prefetch()
        with f.loop(first, end) as row:
            self._sums(here, block, f.minimum(row + ahead, end - 1)).prefetch()
            size = self.wiring.rows * vector.lanes
            at = f.offset(sums, (row - first) * vector.lanes, F32)
            totals = [f.load(vector, at, v * size) for v in range(here.vectors)]
            self._sums(here, block, row).store([totals])


def _ends(epilogue: Epilogue, tiles: Tiles, lanes: int) -> tuple[wired.End, ...] | None:
    """What an epilogue does, if chunks can do it: they add a residual and take maxima and minima with
    numbers, of whole vectors."""
    whole = all(
        last == lanes
        for last, count in ((tiles.full_last, tiles.full), (tiles.rest_last, tiles.count - tiles.full))
        if count
    )
    if not whole or len(epilogue.tensors) > 1:
        return None
    if epilogue.expression is None:
        return ()
    found: list[wired.End] = []
    inputs = epilogue.expression.inputs
    total = 0
    for index, step in enumerate(epilogue.expression.steps):
        others = [argument for argument in step.arguments if argument != total]
        kinds = [epilogue.kinds[other - 1] for other in others if 0 < other < inputs]
        match step.op, len(step.arguments), kinds:
            case "Relu", 1, []:
                found.append(wired.End("Max"))
            case "Add", 2, [("full", _)]:
                found.append(wired.End("Add"))
            case "Clip", 3, [("scalar", low), ("scalar", high)] if step.arguments[0] == total:
                found += [wired.End("Max", low), wired.End("Min", high)]
            case _:
                return None
        total = inputs + index
    return tuple(found)


def wire(
    plan: Plan,
    frame: Frame,
    g: Geometry,
    shape: Shape,
    choice: Choice,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    head: tuple[Head, Value, Value] | None,
) -> tuple[Loops, list[Operand]]:
    """Nonzeros as instructions, and the operands that hold them."""
    f, (groups, outputs, inputs, taps) = frame.function, weights.shape
    lanes, output, tiles = frame.vector.lanes, frame.output, choice.tiles
    blocks = -(-inputs // choice.block)
    direct = choice.packing is None and head is None and not output.streams and output.mask is None
    direct = direct and not output.striped
    direct = direct and 4 * choice.chunk_rows * max(output.channel_strides) < MOST_BYTES
    passes = max(tiles.vectors if tiles.full else 0, tiles.rest_vectors)
    begins, lines = choice.asked(g, lanes, passes)
    if taps == 1 and is_near(plan.target, 4 * g.source.layout.elements):
        lines = []
    asks = 4 * (g.channel_stride * np.arange(choice.block)[:, None] + np.array(lines)[None, :])
    wiring = wired.Wiring(
        choice.chunk_rows,
        choice.block * taps,
        passes,
        choice.offsets(inputs, g),
        x86.MULTIPLY_ADD,
        _ends(output.epilogue, tiles, lanes) if direct else None,
        (4 * output.channel_strides[0], 4 * output.channel_strides[-1]),
        asks.astype(np.int32),
        -(-frame.work.most_rows // choice.chunk_rows),
        frame.work.row_spans,
    )
    split = weights.astype(np.float32, copy=False).reshape(groups, outputs, inputs * taps)
    packed = wired.Wired.of(split, bias.reshape(groups, outputs), wiring)
    code, starts = (word(f, frame.words + i) for i in range(2))
    starts = packed.of_group(f, starts, frame.group, groups)
    loops = _Wired(frame, g, shape, choice, blocks, head, wiring, code, starts, packed.ahead, tuple(begins))
    wired.fetch(f, code, starts, frame.part.first_row / choice.chunk_rows * blocks)
    return loops, [wired_writer.write(plan, packed, wiring), plan.constant(packed.starts)]
