"""The code of an integer convolution whose entries are instructions (`wired.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import x86
from coresident.codegen.builder import Value
from coresident.codegen.integers import Dot
from coresident.codegen.target import Target
from coresident.codegen.types import I32
from coresident.kernels import wired, wired_writer
from coresident.kernels.frame import Shape, in_last
from coresident.kernels.integer_frame import IntegerFrame
from coresident.kernels.integer_stream import elements
from coresident.kernels.integer_tiles import Choice, Made, Tiles
from coresident.kernels.lowering import Plan
from coresident.kernels.tiling import Cut


def is_possible(target: Target, dot: Dot, weights: np.ndarray[Any, Any]) -> bool:
    """Whether weights can be multiplied so: each by one instruction."""
    fits = dot.low <= weights.min(initial=0) and weights.max(initial=0) <= dot.high
    return wired.is_possible(target) and dot.name == "vpdpbusd" and not dot.gathers and bool(fits)


def quads(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[groups, outputs, inputs, taps] as int32 [groups, outputs, elements times taps] of four bytes each."""
    fours = np.stack([elements(group, 4) for group in weights]).astype(np.int8)
    return np.ascontiguousarray(fours).view(np.int32)[..., 0]


@dataclass(frozen=True)
class _Wired(Tiles):
    """The kernel under construction.

    Args:
        code, starts: addresses of the chunks, and of where those of the group begin.
        asked: bytes that chunks ask for of the one behind them, in one pass.
    """

    code: Value
    starts: Value
    asked: int

    @property
    def _chunk_bytes(self) -> int:
        """Of scratch that the sums of a chunk take."""
        return self.choice.chunk_rows * self.choice.strips.vectors * 4 * self.output.lanes

    @property
    def waiting_bytes(self) -> int:
        chunks = 1 if self.blocks == 1 else -(-self.work.most_rows // self.choice.chunk_rows)
        return chunks * self._chunk_bytes

    def tiles(self, first: Value, end: Value, ahead: Value) -> None:
        f, part, rows = self.frame.function, self.frame.part, self.choice.chunk_rows
        first_chunk, end_chunk = part.first_row / rows, (part.end_row + (rows - 1)) / rows
        scratch = f.offset(f["scratch"], self.packed_bytes)
        with f.loop(first, end) as tile, f.loop(0, self.blocks) as block:
            x, offsets = self._place(tile)
            with f.loop(first_chunk, end_chunk) as chunk:
                place = 0 if self.blocks == 1 else chunk - first_chunk
                sums = f.offset(scratch, place * self._chunk_bytes)
                self._pass(x, chunk * self.blocks + block, sums)
                with in_last(f, block, self.blocks):
                    self._finish(chunk * rows, f.minimum((chunk + 1) * rows, part.end_row), sums, offsets)

    def _pass(self, x: Value, chunk: Value, sums: Value) -> None:
        """Pass a chunk over the vectors of a tile."""
        f, lanes = self.frame.function, self.output.lanes
        code, weights, following = wired.place(f, self.code, self.starts, chunk)
        for v in range(self.choice.strips.vectors):
            pixels = f.offset(x, self._at(v), self.dot.element_bytes)
            held = f.offset(sums, v * self.choice.chunk_rows * lanes, I32)
            asked = held, f.offset(following, v * self.asked), held, held
            wired.run(f, code, pixels, weights, held, held, held, *asked)

    def _finish(self, first: Value, end: Value, sums: Value, offsets: list[Value]) -> None:
        """Store the results of a chunk's rows."""
        f, kind, base = self.frame.function, I32.by(self.output.lanes), self.frame.channel_base
        asked = f.minimum(end - first, self._rows_ahead)
        with f.loop(first, first + asked) as row:
            self._prefetch([base + row], offsets)
        with f.loop(first, end) as row:
            self._prefetch([base + f.minimum(row + asked, end - 1)], offsets)
            at = f.offset(sums, (row - first) * kind.lanes, I32)
            size = self.choice.chunk_rows * kind.lanes
            totals = [f.load(kind, at, v * size) for v in range(self.choice.strips.vectors)]
            self._store([base + row], [totals], offsets)


def wire(
    plan: Plan,
    frame: IntegerFrame,
    shape: Shape,
    choice: Choice,
    work: Cut,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
) -> Made:
    """Entries as instructions."""
    f, strips, taps = frame.function, choice.strips, weights.shape[3]
    places = np.arange(choice.elements)[:, None] * strips.span + np.array(strips.taps)[None, :]
    wiring = wired.Wiring(
        choice.chunk_rows,
        choice.block * taps,
        strips.vectors,
        (4 * places).astype(np.int32),
        x86.DOT,
        None,
        (0, 0),
        np.zeros((choice.block, 0), np.int32),
        1,
        work.row_spans,
    )
    whole = quads(weights)
    made = wired.Wired.of(whole, bias.reshape(shape.groups, -1).astype(np.int32), wiring)
    code, starts = frame.own
    tiles = _Wired(
        frame,
        choice,
        work,
        -(-choice.elements // choice.block),
        code,
        made.of_group(f, starts, frame.group, shape.groups),
        made.ahead,
    )
    wired.fetch(f, code, tiles.starts, frame.part.first_row / choice.chunk_rows * tiles.blocks)
    own = [wired_writer.write(plan, made, wiring), plan.constant(made.starts)]
    return Made(tiles, own, bias, int(np.count_nonzero(whole)))
