"""What happens to a sum of products before it is stored: bias is in it already; residual, activation,
border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import evaluate
from coresident.codegen.types import F32, Type
from coresident.graph.expression import Expression
from coresident.graph.graph import Node
from coresident.kernels.lowering import Operand, Plan, Tensor
from coresident.kernels.stripes import Columns
from coresident.kernels.vectors import of_phases


@dataclass(frozen=True)
class Epilogue:
    """The element-wise tail that fusion attached to a node.

    Args:
        expression: its input 0 is the sum; None if there is nothing to do.
        kinds: of each further input: ("full", i) the i-th tensor of the output's shape, ("channel", i) the
            i-th array of one number a channel, ("scalar", number).
        tensors: of the output's shape (residuals).
        channels: [C] float32 arrays.
    """

    expression: Expression | None
    kinds: tuple[tuple[str, Any], ...]
    tensors: tuple[Tensor, ...]
    channels: tuple[np.ndarray[Any, Any], ...]

    @staticmethod
    def of(node: Node, plan: Plan, first_extra: int) -> Epilogue:
        """Read it from the node; the inputs from `first_extra` on belong to it."""
        expression = node.get("epilogue")
        if expression is None:
            return Epilogue(None, (), (), ())
        out = plan.graph.facts[node.outputs[0]].sizes
        kinds: list[tuple[str, Any]] = []
        tensors: list[Tensor] = []
        channels: list[np.ndarray[Any, Any]] = []
        for name in node.inputs[first_extra:]:
            array = plan.graph.constant(name)
            if array is None:
                kinds.append(("full", len(tensors)))
                tensors.append(plan.planar(name))
            elif array.size == 1:
                kinds.append(("scalar", float(array.reshape(()))))
            else:
                kinds.append(("channel", len(channels)))
                full = np.broadcast_to(array, (1, *out[1:])) if array.ndim != len(out) else array
                channels.append(np.ascontiguousarray(full.reshape(out[1], -1)[:, 0], np.float32))
        return Epilogue(expression, tuple(kinds), tuple(tensors), tuple(channels))

    def operands(self, plan: Plan) -> list[Operand]:
        """Argument words: the tensors, then the channel arrays."""
        return [*(t.address for t in self.tensors), *(plan.constant(c) for c in self.channels)]

    @property
    def words(self) -> int:
        return len(self.tensors) + len(self.channels)

    @property
    def name(self) -> str:
        return str(self.expression) if self.expression is not None else ""

    def apply(self, f: Function, total: Value, tensors: Sequence[Value], channels: Sequence[Value]) -> Value:
        """The result for one vector: `tensors` are the loaded vectors, `channels` the scalars of this
        channel."""
        if self.expression is None:
            return total
        values = [total]
        for kind, which in self.kinds:
            if kind == "full":
                values.append(tensors[which])
            elif kind == "channel":
                values.append(f.splat(channels[which], total.type))
            else:
                values.append(f.constant(which, total.type))
        return evaluate(f, self.expression, values)


@dataclass(frozen=True)
class Output:
    """Stores rows of a convolution's output: epilogue, border, masked ends.

    Args:
        epilogue: applied first.
        pointers: of y, then of the epilogue's tensors.
        channel_pointers: of the epilogue's channel arrays.
        channel_strides: elements between channels, of y and of the tensors.
        vector_strides: elements from one vector of a tile to the next, likewise.
        mask: pointer to the border mask (int32, one a pixel of the flat run), or None.
        vector: type of a register.
        merged: for a transposed convolution that computes all phases of its output as channels: (phases,
            elements from one to the next) of each dimension but the last, which has two phases. None
            otherwise.
        streams: whether results are stored past the caches.
        striped: whether rows are cut into stripes.
        columns: their outer columns, if there are any.
    """

    epilogue: Epilogue
    pointers: tuple[Value, ...]
    channel_pointers: tuple[Value, ...]
    channel_strides: tuple[int, ...]
    vector_strides: tuple[int, ...]
    mask: Value | None
    vector: Type
    merged: tuple[tuple[int, int], ...] | None = None
    streams: bool = False
    striped: bool = False
    columns: Columns | None = None

    def prefetch(
        self, f: Function, channel: Value, vectors: int, offsets: Sequence[Value], near: bool = True
    ) -> None:
        """Ask for the lines that `store` will write and read, or ask L2 for them.

        Stores leave the core in order: each that misses L1 would hold up those after it for the time of an L2
        access, which for a short row is longer than its sum.
        """
        for i, (pointer, stride, at) in enumerate(zip(self.pointers, self.channel_strides, offsets)):
            if i == 0 and self.streams:
                continue
            row = f.offset(pointer, channel * stride + at, F32)
            for vector in range(vectors):
                first = 4 * vector * self.vector_strides[i]
                for line in range(first + -first % 64, first + self.vector.bytes, 64):
                    f.prefetch(row, line, write=i == 0 and near, near=near)

    def prefetch_run(self, f: Function, channel: Value, offsets: Sequence[Value], pixels: Value) -> None:
        """Ask for the lines that `store_run` will write and read."""
        for i, (pointer, stride, at) in enumerate(zip(self.pointers, self.channel_strides, offsets)):
            if i == 0 and self.streams:
                continue
            row = f.offset(pointer, channel * stride + at, F32)
            with f.loop(0, pixels, 16) as pixel:
                f.prefetch(row, pixel * 4, write=i == 0)

    def store(
        self, f: Function, channel: Value, totals: Sequence[Value], offsets: Sequence[Value], last: int
    ) -> list[Value]:
        """Finish one output channel's vectors of a tile and store them.

        Args:
            channel: I64 index.
            totals: the sums, vector by vector.
            offsets: elements from pixel 0 to the tile's first, in y and in each tensor.
            last: pixels of the last vector to be written.

        Returns:
            What is stored, vector by vector.
        """
        lanes = self.vector.lanes
        scalars, rows = self._channel(f, channel, offsets)
        stored = []
        for v, total in enumerate(totals):
            partial = v == len(totals) - 1 and last < lanes
            first = f.first(last, lanes) if partial else None
            places = [v * stride for stride in self.vector_strides]
            pixel = offsets[0] + v * lanes
            stored.append(self._finish(f, total, scalars, rows, places, pixel, first))
        return stored

    def store_outer(
        self, f: Function, channel: Value, parts: Sequence[tuple[Value, Sequence[Value]]], ends: Value | None
    ) -> None:
        """Store the outer columns of striped rows, if they have any, given what is stored of some parts.

        Args:
            parts: elements from pixel 0 to each in y, and its columns.
            ends: of a row that the parts have (`Tiles.ends`).
        """
        if self.columns is None:
            return
        assert ends is not None
        plane = f.offset(self.pointers[0], channel * self.channel_strides[0], F32)
        self.columns.store(f, ends, [(f.offset(plane, at, F32), columns) for at, columns in parts])

    def store_run(
        self, f: Function, channel: Value, sums: Value, offsets: Sequence[Value], pixels: Value
    ) -> None:
        """Finish one output channel's run of `pixels` (I64) pixels, whose sums lie at an address, and store
        it."""
        lanes = self.vector.lanes
        scalars, rows = self._channel(f, channel, offsets)
        whole = pixels / lanes * lanes
        with f.loop(0, whole, lanes) as at:
            places = [at] * len(rows)
            self._finish(f, f.load(self.vector, sums, at), scalars, rows, places, offsets[0] + at, None)
        with f.when(whole < pixels):
            total = f.load(self.vector, sums, whole)
            places, first = [whole] * len(rows), f.first(pixels - whole, lanes)
            self._finish(f, total, scalars, rows, places, offsets[0] + whole, first)

    def _channel(
        self, f: Function, channel: Value, offsets: Sequence[Value]
    ) -> tuple[list[Value], list[Value]]:
        """The epilogue's numbers for a channel, and its addresses in y and in each tensor."""
        scalars = [f.load(F32, pointer, channel) for pointer in self.channel_pointers]
        rows = [
            f.offset(pointer, channel * stride + at, F32)
            for pointer, stride, at in zip(self.pointers, self.channel_strides, offsets)
        ]
        return scalars, rows

    def _finish(
        self,
        f: Function,
        total: Value,
        scalars: Sequence[Value],
        rows: Sequence[Value],
        places: Sequence[Value | int],
        pixel: Value,
        first: Value | None,
    ) -> Value:
        """Store one vector; only its lanes in `first` if told.

        Args:
            places: elements from each row to it.
            pixel: elements from pixel 0 to it in y.

        Returns:
            What is stored.
        """
        loaded = [
            f.load_masked(self.vector, row, at, first) if first is not None else f.load(self.vector, row, at)
            for row, at in zip(rows[1:], places[1:])
        ]
        result = self.epilogue.apply(f, total, loaded, scalars)
        if self.mask is not None:
            bits = Type("i", 32, self.vector.lanes)
            result = f.bitcast(f.bitcast(result, bits) & f.load(bits, self.mask, pixel), self.vector)
        if first is None:
            self._put(f, result, rows[0], places[0])
        else:
            f.store_masked(result, rows[0], places[0], first)
        return result

    def _put(self, f: Function, vector: Value, row: Value, at: Value | int) -> None:
        """Store a whole vector."""
        if self.streams:
            f.store(vector, row, at, align=self.vector.bytes, streaming=True)
        else:
            f.store(vector, row, at)

    def _merged_row(self, f: Function, row: Value, at: Value) -> tuple[Value, Value]:
        """The output channel that a pair of phases from row `row` on belongs to, and where it is written."""
        assert self.merged is not None
        channel, at = of_phases(row, at, self.merged)
        return channel, f.offset(self.pointers[0], channel * self.channel_strides[0] + at, F32)

    def prefetch_merged(
        self, f: Function, row: Value, vectors: int, offsets: Sequence[Value], near: bool = True
    ) -> None:
        """Ask for the lines that `store_merged` will write, or ask L2 for them."""
        if self.streams:
            return
        _, target = self._merged_row(f, row, offsets[0])
        for line in range(0, 2 * vectors * self.vector.bytes, 64):
            f.prefetch(target, line, write=near, near=near)

    def store_merged(
        self,
        f: Function,
        row: Value,
        pair: Sequence[Sequence[Value]],
        offsets: Sequence[Value],
        last: int,
        ends: Value | None = None,
    ) -> None:
        """Store two rows that are the two phases of the last dimension: their pixels take turns, or their
        columns in striped rows.

        Args:
            row: index of the first of them; rows count phases fastest.
            pair: the sums of both, vector by vector.
            offsets: elements from pixel 0 to the first that the tile makes, in y.
            last: pixels of each phase's last vector to be written.
            ends: of a row that they have (`Tiles.ends`).
        """
        lanes = self.vector.lanes
        channel, target = self._merged_row(f, row, offsets[0])
        scalars = [f.load(F32, pointer, channel) for pointer in self.channel_pointers]
        if self.striped:
            columns = [self.epilogue.apply(f, total, (), scalars) for both in zip(*pair) for total in both]
            for i, column in enumerate(columns):
                self._put(f, column, target, i * lanes)
            if self.columns is not None:
                assert ends is not None
                self.columns.store(f, ends, [(target, columns)])
            return
        turns = [lane // 2 + lane % 2 * lanes for lane in range(2 * lanes)]
        for v, (even, odd) in enumerate(zip(*pair)):
            results = [self.epilogue.apply(f, total, (), scalars) for total in (even, odd)]
            written = 2 * (last if v == len(pair[0]) - 1 else lanes)
            for half in range(-(-written // lanes)):
                mixed = f.shuffle(results[0], results[1], turns[half * lanes : (half + 1) * lanes])
                place = (2 * v + half) * lanes
                if written - half * lanes >= lanes:
                    self._put(f, mixed, target, place)
                else:
                    f.store_masked(mixed, target, place, f.first(written - half * lanes, lanes))
