"""What becomes of integer sums before they are stored: scales, activation, residual, rounding to bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Function, Value
from coresident.codegen.math import Typed, to_memory, to_register, typed_constant
from coresident.codegen.types import I8, I32, of_dtype
from coresident.graph.expression import Expression
from coresident.graph.graph import Node
from coresident.kernels.integer_expression import Ranged, evaluate, known
from coresident.kernels.lowering import Operand, Plan, Tensor
from coresident.kernels.spread import SEGMENT, Segments, spread_over
from coresident.kernels.vectors import of_phases, store_first


@dataclass(frozen=True)
class IntegerEpilogue:
    """The element-wise tail of an integer product.

    Args:
        expression: its input 0 is the int32 sum; None if there is nothing to do.
        kinds: of each further input: ("full", i) the i-th tensor of the output's shape, ("channel", i) the
            i-th array of one number a channel, ("scalar", (number, dtype)).
        tensors: of the output's shape.
        channels: [C] arrays.
        quantised: (scale, zero point, dtype) where the expression ends by quantising with constants.
        most: that a sum's magnitude can be.
    """

    expression: Expression | None
    kinds: tuple[tuple[str, Any], ...]
    tensors: tuple[Tensor, ...]
    channels: tuple[np.ndarray[Any, Any], ...]
    quantised: tuple[float, int, str] | None
    most: float

    @staticmethod
    def of(
        node: Node, plan: Plan, first_extra: int, most: float, axis: int = 1, planar: bool = True
    ) -> IntegerEpilogue:
        """Read it from the node; the inputs from `first_extra` on belong to it.

        Args:
            most: as `IntegerEpilogue` takes it.
            axis: of the output, along which channels lie.
            planar: whether tensors are wanted planar.
        """
        expression = node.get("epilogue")
        if expression is None:
            return IntegerEpilogue(None, (), (), (), None, most)
        out = plan.graph.facts[node.outputs[0]].sizes
        kinds: list[tuple[str, Any]] = []
        tensors: list[Tensor] = []
        channels: list[np.ndarray[Any, Any]] = []
        for name in node.inputs[first_extra:]:
            array = plan.graph.constant(name)
            if array is None:
                kinds.append(("full", len(tensors)))
                tensors.append(plan.planar(name) if planar else plan.contiguous(name))
            elif array.size == 1:
                kinds.append(("scalar", (array.reshape(()).item(), array.dtype.name)))
            else:
                kinds.append(("channel", len(channels)))
                full = array.reshape((1,) * (len(out) - array.ndim) + array.shape)
                wide = np.broadcast_to(full, tuple(out[d] if d == axis else 1 for d in range(len(out))))
                channels.append(np.ascontiguousarray(wide.reshape(-1)))
        return IntegerEpilogue(
            expression, tuple(kinds), tuple(tensors), tuple(channels), _quantised(expression, kinds), most
        )

    def operands(self, plan: Plan) -> list[Operand]:
        """Argument words: the tensors, then the channel arrays."""
        return [*(t.address for t in self.tensors), *(plan.constant(c) for c in self.channels)]

    @property
    def words(self) -> int:
        return len(self.tensors) + len(self.channels)

    @property
    def name(self) -> str:
        return str(self.expression) if self.expression is not None else ""

    def apply(self, f: Function, total: Value, tensors: Sequence[Typed], channels: Sequence[Typed]) -> Typed:
        """The result for one vector of sums, or where it is quantised, the int32 quotient without the zero
        point.

        Args:
            tensors: what was loaded of each.
            channels: vectors or scalars of each array.
        """
        sums = Typed(total, "int32")
        if self.expression is None:
            return sums
        lanes = total.type.lanes
        values = [Ranged(sums, self.most)]
        for kind, which in self.kinds:
            if kind == "full":
                values.append(known(tensors[which]))
            elif kind == "channel":
                one, array = channels[which], self.channels[which]
                spread = (
                    f.splat(one.value, one.value.type.by(lanes)) if one.value.type.lanes == 1 else one.value
                )
                largest = float(np.abs(array.astype(np.float64)).max())
                bound = largest if np.isfinite(largest) else np.inf
                values.append(Ranged(Typed(spread, one.dtype), bound))
            else:
                values.append(known(typed_constant(f, which[0], which[1], lanes)))
        result = evaluate(f, self.expression, values, self.quantised is not None)
        if self.quantised is None or result.rounded is not None:
            return result.typed
        # Too large for the shorter way.
        return Typed(
            f.convert(result.typed.value, I32, signed=result.typed.is_signed) - self.quantised[1], "int32"
        )


def _quantised(expression: Expression, kinds: Sequence[tuple[str, Any]]) -> tuple[float, int, str] | None:
    if not expression.steps or expression.steps[-1].op != "QuantizeLinear":
        return None
    x, *parameters = expression.steps[-1].arguments
    known = [kinds[p - 1] for p in parameters if 0 < p < expression.inputs]
    if len(known) != 2 or any(kind != "scalar" for kind, _ in known):
        return None
    if x >= expression.inputs and x != expression.inputs + len(expression.steps) - 2:
        return None
    (_, (scale, _)), (_, (point, dtype)) = known
    return (float(scale), int(point), dtype) if np.dtype(dtype).itemsize == 1 else None


def _padded(order: list[int], size: int) -> list[int]:
    return order + order[:1] * (size - len(order))


@dataclass(frozen=True)
class IntegerOutput:
    """Stores rows of sums.

    Args:
        epilogue: applied first.
        dtypes: of y and of the epilogue's tensors.
        pointers: of y, then of the epilogue's tensors.
        channel_pointers: of the epilogue's channel arrays.
        channel_strides: elements between channels, of y and of the tensors.
        mask: pointer to the border mask (one element of y's size a pixel of the flat run), or None.
        fill: what masked pixels become.
        lanes: of a vector of sums.
        merged: where channels are phases of pixels (`transposed.py`): of each spatial dimension but the last,
            how many phases, and elements of y between them. The last dimension's two phases turn up in pairs.
    """

    epilogue: IntegerEpilogue
    dtypes: tuple[np.dtype[Any], ...]
    pointers: tuple[Value, ...]
    channel_pointers: tuple[Value, ...]
    channel_strides: tuple[int, ...]
    mask: Value | None
    fill: int
    lanes: int
    merged: tuple[tuple[int, int], ...] | None = None

    def prefetch(self, f: Function, channel: Value, vectors: int, offsets: Sequence[Value]) -> None:
        """Ask for the lines that `store` will write and read."""
        for i, dtype in enumerate(self.dtypes):
            at = (channel * self.channel_strides[i] + offsets[i]) * dtype.itemsize
            row = f.offset(self.pointers[i], at)
            for line in range(0, vectors * self.lanes * dtype.itemsize, 64):
                f.prefetch(row, line, write=i == 0)

    def store(
        self, f: Function, channel: Value, totals: Sequence[Value], offsets: Sequence[Value], last: int
    ) -> None:
        """Finish one output channel's vectors of a tile and store them.

        Args:
            channel: I64 index.
            totals: the sums, vector by vector.
            offsets: elements from pixel 0 to the tile's first, in y and in each tensor.
            last: pixels of the last vector to be written.
        """
        lanes = self.lanes
        scalars, rows = self._channel(f, channel, offsets)
        at = 0
        while at < len(totals):
            size = 4 if len(totals) - at >= 4 else 2 if len(totals) - at >= 2 else 1
            results = [
                self.epilogue.apply(f, totals[v], self._loaded(f, rows, v), scalars)
                for v in range(at, at + size)
            ]
            count = size * lanes if at + size < len(totals) else (size - 1) * lanes + last
            if self.epilogue.quantised is not None:
                self._put(f, self._in_memory(f, results), rows[0], at, count, offsets)
            else:
                for i, result in enumerate(results):
                    part = min(lanes, count - i * lanes)
                    self._put(f, to_memory(f, result), rows[0], at + i, part, offsets)
            at += size

    def prefetch_segments(
        self, f: Function, channel: Value, segments: Segments, offsets: Sequence[Value]
    ) -> None:
        """Ask for the lines that `store_segment` will write and read of each segment."""
        rows = [row for segment in segments.writes for row in segment if row is not None]
        for i, dtype in enumerate(self.dtypes):
            plane = (channel * self.channel_strides[i] + offsets[i]) * dtype.itemsize
            start = f.offset(self.pointers[i], plane)
            for row in rows:
                for line in range(0, segments.pixels * dtype.itemsize, 64):
                    f.prefetch(start, row[i] * dtype.itemsize + line, write=i == 0)

    def store_segment(
        self,
        f: Function,
        channel: Value,
        totals: Sequence[Value],
        segments: Segments,
        number: int,
        offsets: Sequence[Value],
    ) -> None:
        """Finish one output channel's sums of a segment, whose lanes are spread out, and store its pixels.

        Args:
            channel, totals, offsets: as `store` takes them.
            number: of the segment in the tile.
        """
        scalars, starts = self._channel(f, channel, offsets)
        spread, rows = segments.spread, segments.writes[number]
        tensors = [self._spread_out(f, i, start, segments, number) for i, start in enumerate(starts[1:], 1)]
        results = [
            self.epilogue.apply(f, total, [parts[v] for parts in tensors], scalars)
            for v, total in enumerate(totals)
        ]
        # As many as a vector of bytes holds, the last ones repeated to a power of two.
        size = SEGMENT // self.lanes
        parts = [results[at : at + size] for at in range(0, len(results), size)]
        whole = [self._in_memory(f, part + part[-1:] * (size - len(part))) for part in parts]
        width = 1 << (spread.pixels - 1).bit_length()
        together = max(SEGMENT // width, 1)
        for first in range(0, spread.rows, together):
            numbers = range(first, min(first + together, spread.rows))
            order = [at for row in numbers for at in _padded(spread.row(row), width)]
            vector = f.shuffle(whole[0], whole[1] if len(whole) > 1 else None, order)
            for i, row in enumerate(rows[first : first + together]):
                if row is not None:
                    one = f.shuffle(vector, None, range(i * width, (i + 1) * width))
                    store_first(f, one, starts[0], row[0], segments.pixels)

    def _spread_out(
        self, f: Function, index: int, start: Value, segments: Segments, number: int
    ) -> list[Typed]:
        """What a tensor has for each vector of a segment."""
        dtype, spread = self.dtypes[index], segments.spread
        kind, pitch = of_dtype(dtype), 1 << (spread.pixels - 1).bit_length()
        first = segments.writes[number][0]
        assert first is not None
        rows = [
            f.load(kind.by(pitch), start, (row if row is not None else first)[index])
            for row in segments.writes[number]
        ]
        found = []
        many = self.lanes // spread.group
        for at in range(0, spread.width, many):
            order = spread.lanes(range(at, at + many), pitch)
            found.append(to_register(f, spread_over(f, rows, order), dtype))
        return found

    def _merged_row(self, f: Function, row: Value, at: Value) -> tuple[Value, Value]:
        """The output channel that a pair of phases from row `row` on belongs to, and where it is written."""
        assert self.merged is not None
        channel, at = of_phases(row, at, self.merged)
        place = (channel * self.channel_strides[0] + at) * self.dtypes[0].itemsize
        return channel, f.offset(self.pointers[0], place)

    def prefetch_merged(self, f: Function, row: Value, vectors: int, offsets: Sequence[Value]) -> None:
        """Ask for the lines that `store_merged` will write."""
        _, target = self._merged_row(f, row, offsets[0])
        for line in range(0, 2 * vectors * self.lanes * self.dtypes[0].itemsize, 64):
            f.prefetch(target, line, write=True)

    def store_merged(
        self, f: Function, row: Value, pair: Sequence[Sequence[Value]], offsets: Sequence[Value], last: int
    ) -> None:
        """Finish two rows that are the two phases of the last dimension, whose pixels take turns.

        Args:
            row: index of the first of them; rows count phases fastest.
            pair: the sums of both, vector by vector.
            offsets: elements from pixel 0 to the first that the tile makes, in y.
            last: pixels of each phase's last vector to be written.
        """
        lanes = self.lanes
        channel, target = self._merged_row(f, row, offsets[0])
        scalars = self._scalars(f, channel)
        totals = [total for both in zip(*pair) for total in both]
        for at in range(0, len(totals), 4):
            results = [self.epilogue.apply(f, total, (), scalars) for total in totals[at : at + 4]]
            count = len(results) * lanes
            turns = [
                v + phase * lanes + lane
                for v in range(0, count, 2 * lanes)
                for lane in range(lanes)
                for phase in (0, 1)
            ]
            mixed = f.shuffle(self._in_memory(f, results), None, turns)
            written = count if at + 4 < len(totals) else count - 2 * (lanes - last)
            store_first(f, mixed, target, at * lanes, written)

    def _in_memory(self, f: Function, results: Sequence[Typed]) -> Value:
        """A power of two of results of `apply` as one vector of y's."""
        if self.epilogue.quantised is None:
            return integers.joined(f, [to_memory(f, result) for result in results])
        _, point, kind = self.epilogue.quantised
        return integers.saturated(f, [r.value for r in results], point, kind == "int8")

    def _scalars(self, f: Function, channel: Value) -> list[Typed]:
        """The epilogue's numbers for a channel."""
        return [
            to_register(f, f.load(of_dtype(array.dtype), pointer, channel), array.dtype)
            for pointer, array in zip(self.channel_pointers, self.epilogue.channels)
        ]

    def _channel(
        self, f: Function, channel: Value, offsets: Sequence[Value]
    ) -> tuple[list[Typed], list[Value]]:
        """The epilogue's numbers for a channel, and its addresses in y and in each tensor."""
        scalars = self._scalars(f, channel)
        rows = [
            f.offset(pointer, (channel * stride + at) * dtype.itemsize)
            for pointer, stride, at, dtype in zip(self.pointers, self.channel_strides, offsets, self.dtypes)
        ]
        return scalars, rows

    def _loaded(self, f: Function, rows: Sequence[Value], v: int) -> list[Typed]:
        return [
            to_register(f, f.load(of_dtype(dtype).by(self.lanes), row, v * self.lanes), dtype)
            for row, dtype in zip(rows[1:], self.dtypes[1:])
        ]

    def _put(
        self, f: Function, vector: Value, row: Value, v: int, count: int, offsets: Sequence[Value]
    ) -> None:
        if self.mask is not None:
            bits = (I8 if vector.type.bits == 8 else I32).by(vector.type.lanes)
            real = f.load(bits, self.mask, offsets[0] + v * self.lanes)
            value = f.bitcast(vector, bits)
            value = ((value ^ self.fill) & real) ^ self.fill if self.fill else value & real
            vector = f.bitcast(value, vector.type)
        store_first(f, vector, row, v * self.lanes, count)
