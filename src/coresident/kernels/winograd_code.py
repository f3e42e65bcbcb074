"""The code of a convolution by Winograd's filtering (`winograd.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import frame as frames
from coresident.kernels.dense_code import WEIGHTS_AHEAD
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.filtering import TILE
from coresident.kernels.frame import Frame, Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import divided
from coresident.kernels.winograd import Choice, pack

AHEAD = 2
"""Input channels whose pixels are asked for in advance."""


@dataclass(frozen=True)
class _Code:
    """The kernel under construction.

    Args:
        frame: its arguments and its part of the work; its tiles are units of strips, its rows chunks of
            channels.
        weights: of the group of the convolution, packed.
        outer: address of the planes' offsets (int32).
        units: address of the units' first strips (int32).
        rows: elements between rows, of the input, the output and each further operand.
    """

    frame: Frame
    g: Geometry
    shape: Shape
    choice: Choice
    weights: Value
    outer: Value
    units: Value
    rows: tuple[int, ...]

    @property
    def lanes(self) -> int:
        return self.frame.vector.lanes

    @property
    def window(self) -> int:
        return self.choice.filter.window

    @property
    def positions(self) -> int:
        return self.choice.filter.positions

    @property
    def channels(self) -> int:
        """Of the input, once for each plane that is read."""
        return self.shape.inputs * len(self.choice.outer)

    @property
    def span(self) -> int:
        """Elements of scratch from one position's transformed input to the next: not a multiple of a page."""
        return (self.channels | 1) * self.lanes

    @property
    def products(self) -> int:
        """Elements of scratch before the products of a chunk."""
        return self.positions * self.span

    @property
    def halfway(self) -> int:
        """Elements of scratch before what is transformed in one direction."""
        return self.products + self.choice.group * self.positions * self.lanes

    @property
    def scratch_bytes(self) -> int:
        return 4 * (self.halfway + self.positions * self.lanes)

    def emit(self) -> None:
        """The task: strip by strip, all its chunks."""
        f, part, choice = self.frame.function, self.frame.part, self.choice
        columns = len(self.rows)
        first_strip, end_strip = (
            f.convert(f.load(I32, self.units, unit), I64) for unit in (part.first_tile, part.end_tile)
        )
        with f.loop(first_strip, end_strip) as strip:
            table = f.offset(self.frame.table, strip * (columns * choice.parts), I32)
            places = [
                [f.convert(f.load(I32, table, p * columns + i), I64) for i in range(columns)]
                for p in range(choice.parts)
            ]
            self._inputs([f.offset(self.frame.x, place[0] + choice.first, F32) for place in places])
            with f.loop(part.first_row, part.end_row) as chunk:
                self._multiply(chunk)
                first = chunk * choice.group
                with f.loop(0, f.minimum(-first + self.shape.outputs, choice.group)) as r:
                    self._output(self.frame.channel_base + first + r, r, [place[1:] for place in places])

    def _inputs(self, parts: Sequence[Value]) -> None:
        """Transform all input channels of a strip, whose parts' windows begin at the addresses."""
        f = self.frame.function
        with f.loop(0, len(self.choice.outer)) as o:
            plane = f.convert(f.load(I32, self.outer, o), I64)
            with f.loop(0, self.shape.inputs) as c:
                at = c * self.g.channel_stride + plane
                target = f.offset(f["scratch"], (o * self.shape.inputs + c) * self.lanes, F32)
                self._input([f.offset(part, at, F32) for part in parts], target)

    def _input(self, parts: Sequence[Value], target: Value) -> None:
        """Transform one channel: along rows, then, from scratch since it is too much for registers, down."""
        f, lanes, vector = self.frame.function, self.lanes, self.frame.vector
        halfway = f.offset(f["scratch"], self.halfway, F32)
        for i in range(self.window):
            row = [f.offset(part, i * self.rows[0], F32) for part in parts]
            for part in row:
                # No prefetcher sees what comes next: short pieces of many planes.
                for at in range(0, self.choice.width + self.window - TILE + 15, 16):
                    f.prefetch(part, 4 * (AHEAD * self.g.channel_stride + at))
            beyond = self.window - TILE
            phases = [*_phases(f, self._pixels(row, 0)), *_phases(f, self._pixels(row, beyond))[-beyond:]]
            for j, value in enumerate(_transformed(f, self.choice.filter.inputs, phases)):
                f.store(value, halfway, (i * self.window + j) * lanes)
        for j in range(self.window):
            column = [f.load(vector, halfway, (i * self.window + j) * lanes) for i in range(self.window)]
            for i, value in enumerate(_transformed(f, self.choice.filter.inputs, column)):
                f.store(value, target, (i * self.window + j) * self.span)

    def _pixels(self, parts: Sequence[Value], skipped: int) -> list[Value]:
        """Four vectors of a row's pixels, part after part, from some pixel of each on; zeros for what no
        output pixel depends on, which may be anything."""
        f, vector, lanes = self.frame.function, self.frame.vector, self.lanes
        found = []
        for part in parts:
            for at in range(0, TILE * lanes // len(parts), lanes):
                count = min(self.choice.width + self.window - TILE - skipped - at, lanes)
                if count == lanes:
                    found.append(f.load(vector, part, skipped + at))
                elif count > 0:
                    found.append(f.load_masked(vector, part, skipped + at, f.first(count, lanes)))
                else:
                    found.append(f.constant(0.0, vector))
        return found

    def _multiply(self, chunk: Value) -> None:
        """The products of a chunk at each position, into scratch."""
        f, group, lanes = self.frame.function, self.choice.group, self.lanes
        unroll = 2 if self.channels % 2 == 0 else 1
        products = f.offset(f["scratch"], self.products, F32)
        with f.loop(0, self.positions) as position:
            x = f.offset(f["scratch"], position * self.span, F32)
            w = f.offset(self.weights, (chunk * self.positions + position) * (self.channels * group), F32)
            sums = [f.var(0.0, self.frame.vector) for _ in range(group)]
            with f.loop(0, self.channels, unroll) as c:
                for line in range(0, 4 * unroll * group, 64):
                    f.prefetch(w, c * (4 * group) + WEIGHTS_AHEAD + line)
                for u in range(unroll):
                    pixels = f.load(self.frame.vector, x, (c + u) * lanes)
                    for r, total in enumerate(sums):
                        weight = f.splat(f.load(F32, w, (c + u) * group + r), self.frame.vector)
                        total.set(f.fma(pixels, weight, total.get()))
            for r, total in enumerate(sums):
                f.store(total.get(), products, (position + r * self.positions) * lanes)

    def _output(self, channel: Value, row: Value, places: Sequence[Sequence[Value]]) -> None:
        """Transform one output channel of a chunk back, finish it, and store it."""
        f, frame, lanes, width = self.frame.function, self.frame, self.lanes, self.choice.width
        vectors = -(-width // lanes)
        moved = [
            [[o + a * stride for o, stride in zip(place, self.rows[1:])] for place in places]
            for a in range(TILE)
        ]
        for line in moved:
            for offsets in line:
                frame.output.prefetch(f, channel, vectors, offsets)
        products = f.offset(f["scratch"], row * (self.positions * lanes) + self.products, F32)
        columns = [
            _transformed(
                f,
                self.choice.filter.outputs,
                [f.load(frame.vector, products, (i * self.window + j) * lanes) for i in range(self.window)],
            )
            for j in range(self.window)
        ]
        bias = frame.biases(channel, 1)[0]
        per_part = TILE // len(places)
        for a, line in enumerate(moved):
            phases = _transformed(f, self.choice.filter.outputs, [column[a] for column in columns])
            pixels = _joined(f, [phase + bias for phase in phases])
            for part, offsets in enumerate(line):
                held = pixels[part * per_part : part * per_part + vectors]
                frame.output.store(f, channel, held, offsets, width - (vectors - 1) * lanes)


def _transformed(f: Function, matrix: np.ndarray, values: Sequence[Value]) -> list[Value]:
    """The matrix times the vectors."""
    return [_combined(f, [(float(c), v) for c, v in zip(row, values) if c]) for row in matrix]


def _combined(f: Function, terms: Sequence[tuple[float, Value]]) -> Value:
    """A sum of multiples, one of which is taken once."""
    ordered = sorted(terms, key=lambda term: term[0] != 1.0)
    coefficient, total = ordered[0]
    assert coefficient == 1.0
    for coefficient, value in ordered[1:]:
        if coefficient == 1.0:
            total = total + value
        elif coefficient == -1.0:
            total = total - value
        else:
            total = f.fma(value, coefficient, total)
    return total


def _phases(f: Function, pixels: Sequence[Value]) -> list[Value]:
    """Four vectors of neighbouring pixels as four of every fourth pixel."""
    lanes = pixels[0].type.lanes
    half = lanes // 2
    found = []
    for phase in (0, 2):
        some = [TILE * c + phase + more for more in (0, 1) for c in range(half)]
        low, high = f.shuffle(pixels[0], pixels[1], some), f.shuffle(pixels[2], pixels[3], some)
        for first in (0, half):
            own = range(first, first + half)
            found.append(f.shuffle(low, high, [*own, *(lanes + i for i in own)]))
    return found


def _joined(f: Function, phases: Sequence[Value]) -> list[Value]:
    """What `_phases` took apart."""
    lanes = phases[0].type.lanes
    found = []
    for half in (range(lanes // 2), range(lanes // 2, lanes)):
        zipped = [side * lanes + c for c in half for side in (0, 1)]
        even, odd = f.shuffle(phases[0], phases[1], zipped), f.shuffle(phases[2], phases[3], zipped)
        for quarter in (range(lanes // 4), range(lanes // 4, lanes // 2)):
            order = [side * lanes + 2 * c + i for c in quarter for side in (0, 1) for i in (0, 1)]
            found.append(f.shuffle(even, odd, order))
    return found


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
    f = kernel(plan.target, "conv_winograd", flushes=True)
    strips = choice.strips
    # Each part of the channels transforms the same input.
    work = divided(
        len(choice.units) - 1, shape.batch * shape.groups, choice.chunks, plan.threads, choice.cycles
    )
    frame = Frame.open(f, g, shape, strips, work, out, epilogue)
    packed = pack(weights, choice)
    own = f.offset(word(f, frame.words), frame.group * (packed.size // shape.groups), F32)
    strides = (g.strides, out.layout.strides[2:], *(t.layout.strides[2:] for t in epilogue.tensors))
    outer, units = (word(f, frame.words + i) for i in (1, 2))
    code = _Code(frame, g, shape, choice, own, outer, units, tuple(s[-2] for s in strides))
    plan.scratch(code.scratch_bytes)
    code.emit()
    operands = [
        *frames.operands(plan, g, strips, out, epilogue, plan.constant(bias.astype(np.float32))),
        plan.constant(packed),
        plan.constant(np.array(choice.outer, np.int32)),
        plan.constant(np.array(choice.units, np.int32)),
    ]
    products = code.positions * strips.count * code.lanes * code.channels * shape.outputs
    details = {
        **info,
        "kernel": "winograd",
        "tile": str(choice),
        "products": products * shape.batch * shape.groups,
        "estimated_cycles": choice.cycles,
    }
    reads = [g.source, *epilogue.tensors]
    plan.step(f, operands, work.tasks, reads=reads, writes=[out], barrier=barrier, info=details)
