"""The loops around the rows of a sparse convolution: tiles, their steps, blocks of input channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from coresident.codegen.builder import Value
from coresident.codegen.types import F32, I64
from coresident.kernels.frame import Frame, Here, Shape, Sums
from coresident.kernels.geometry import Geometry
from coresident.kernels.head import Head, HeadSums
from coresident.kernels.sparse import Choice
from coresident.kernels.sparse_segments import Packing


@dataclass(frozen=True)
class Loops(ABC):
    """The kernel under construction, but for what it does with a block of its rows.

    Args:
        frame: its arguments and its part of the work.
        blocks: of input channels.
        head: that adds the results up instead of having them stored, with addresses of its weights and bias.
    """

    frame: Frame
    g: Geometry
    shape: Shape
    choice: Choice
    blocks: int
    head: tuple[Head, Value, Value] | None

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Bytes of scratch for sums that wait."""

    @abstractmethod
    def _rows(
        self, here: Here, packed: Value, block: Value, part: Value, ahead: Value, ahead_channels: Value | int
    ) -> None:
        """The rows of a part, one block of input channels.

        Args:
            ahead, ahead_channels: of `_ahead`; a share of them is asked for with each row.
        """

    @property
    def packed(self) -> int:
        """Elements of scratch that the packed channels take."""
        packing = self.choice.packing
        return 0 if packing is None else self.choice.packed_channels(self.shape.inputs) * packing.span

    @property
    def _apart(self) -> int:
        """Elements from a vector of neighbouring pixels to the next."""
        return self.g.source.layout.place(self.frame.vector.lanes)

    def _reads(self, vector: int) -> int:
        """Elements from a tile's first to a vector."""
        packing, tiles = self.choice.packing, self.choice.tiles
        if packing is not None:
            return packing.segments.reads[vector]
        if tiles.below == 1:
            return vector * self._apart * self.g.step
        row, column = divmod(vector, tiles.across)
        return tiles.rows[0][row] + column * self._apart * self.g.step

    def tile(self, here: Here) -> None:
        """All steps of a tile."""
        f, packing = self.frame.function, self.choice.packing
        if packing is None:
            self._step(here, f["scratch"], 0)
            return
        here = replace(here, segments=packing.segments)
        if packing.steps == 1:
            self._step(here, f["scratch"], 0)
            return
        with f.loop(0, packing.steps) as step:
            offsets = [at + step * move for at, move in zip(here.offsets, packing.moves, strict=True)]
            packed = f.offset(f["scratch"], step * packing.plane_span, F32)
            self._step(replace(here, offsets=offsets), packed, step)

    def _step(self, here: Here, packed: Value, step: Value | int) -> None:
        """All rows of the task, block of input channels by block.

        Args:
            packed: address of what the step reads of the first channel, where it is packed.
            step: of the tile.
        """
        f, part = self.frame.function, self.frame.part
        self._begin_head(here)
        with f.loop(0, self.blocks) as block:
            first_channel = block * self.choice.block
            channels = f.minimum(-first_channel + self.shape.inputs, self.choice.block)
            if self.choice.packing is not None:
                self._pack(self.choice.packing, here, first_channel, channels, step)
            ahead, ahead_channels = self._ahead(here, block, channels, step)
            if self.frame.work.pieces:
                with f.loop(part.row_part, part.end_part) as rows:
                    self._rows(here, packed, block, rows, ahead, ahead_channels)
            else:
                self._rows(here, packed, block, part.row_part, ahead, ahead_channels)
        self._end_head(here)

    @property
    def head_bytes(self) -> int:
        """Of scratch for what a head adds up."""
        return 0 if self.head is None else len(self.head[0].bias) * self._tile_bytes

    @property
    def _most_vectors(self) -> int:
        return max(self.choice.tiles.vectors, self.choice.tiles.rest_vectors)

    @property
    def _tile_bytes(self) -> int:
        return self._most_vectors * self.frame.vector.bytes

    @property
    def _added(self) -> Value:
        return self.frame.function.offset(self.frame.function["scratch"], 4 * self.packed + self.waiting)

    def _begin_head(self, here: Here) -> None:
        """What a head has added is its bias at first."""
        if self.head is None:
            return
        f, vector, (head, _, bias) = self.frame.function, self.frame.vector, self.head
        for output in range(len(head.bias)):
            start = f.splat(f.load(F32, bias, output), vector)
            for v in range(here.vectors):
                f.store(start, self._added, (output * here.vectors + v) * vector.lanes)

    def _end_head(self, here: Here) -> None:
        """Store what a head has added."""
        if self.head is None:
            return
        f, vector, added = self.frame.function, self.frame.vector, self._added
        for output in range(len(self.head[0].bias)):
            first = output * here.vectors
            row = [f.load(vector, added, (first + v) * vector.lanes) for v in range(here.vectors)]
            Sums(self.frame, here, [f.constant(output, I64)], f.constant(0, I64), 1, added).finish([row])

    def _ahead(
        self, here: Here, block: Value, channels: Value, step: Value | int
    ) -> tuple[Value, Value | int]:
        """Where the channels begin that are read next, and how many they are: those of the next block, or of
        the next tile; while a tile goes on, those of this block in the next step."""
        f, packing, stride = self.frame.function, self.choice.packing, self.g.channel_stride
        following = (block + 1) * self.choice.block
        if packing is not None and not isinstance(step, int):
            planes = (step + packing.planes) * packing.plane_stride
            return f.offset(here.x, block * (self.choice.block * stride) + planes, F32), channels
        last = block.equals(self.blocks - 1)
        left = f.minimum(-following + self.shape.inputs, self.choice.block)
        plane = f.offset(here.x, following * stride, F32)
        return f.select(last, here.ahead, plane), f.select(last, self.choice.block, left)

    def _pack(self, packing: Packing, here: Here, first: Value, channels: Value, step: Value | int) -> None:
        """Pack the channels of a block for a step."""
        f, vector = self.frame.function, self.frame.vector
        with f.loop(0, channels) as c:
            source = f.offset(here.x, (first + c) * self.g.channel_stride, F32)
            place = c if isinstance(step, int) else first + c
            target = f.offset(f["scratch"], place * packing.span, F32)
            packing.pack(f, vector, source, target, self.g.channel_stride, step)

    def _sums(self, here: Here, block: Value, channel: Value) -> Sums:
        """Those of the row from output channel `channel` of the group on, in a block of input channels."""
        f, frame, shared = self.frame.function, self.frame, self.choice.shared
        place = (channel - frame.part.first_row * shared) * (here.vectors * frame.vector.lanes)
        waiting = f.offset(f["scratch"], place + self.packed, F32)
        channels = [frame.channel_base + channel + s for s in range(shared)]
        if self.head is None:
            return Sums(frame, here, channels, block, self.blocks, waiting)
        head, weights, _ = self.head
        return HeadSums(frame, here, channels, block, self.blocks, waiting, head, weights, self._added)
