"""What all direct convolutions share around their inner loops: finding the task's part, its tiles, its
output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from coresident.codegen.builder import Function, Value, word
from coresident.codegen.target import Target
from coresident.codegen.types import F32, I32, I64, Type
from coresident.kernels.epilogue import Epilogue, Output
from coresident.kernels.geometry import Geometry, Tiles, border_mask, segments
from coresident.kernels.lowering import Operand, Plan, Tensor
from coresident.kernels.spread import GROUP, WIDTH, Segments, group_of, row_together, together, transposed
from coresident.kernels.striped_pooling import PoolStore, StripedPool
from coresident.kernels.stripes import Columns
from coresident.kernels.tiling import Cut, Part

STREAMED_BYTES = 16 << 20
"""Of an output, from which on it is stored past the caches. A line that is written in a cache is read from
memory first, and throws out another that has to be written: first layers of U-Nets at 512 x 512 are 2.4 times
as fast so, their other layers of this size 1.1 times."""

ROWS_AHEAD, LINES_AHEAD = 8, 32
"""Rows whose lines are asked for before they are written, at most, and lines in all. Stores leave a core in
order, and a line that another core holds takes as long to get as several rows take, many times that where
cores have no cache in common."""

STREAM_AHEAD = 4096
"""Bytes of a stream of weights that L2 is asked for before they are read. Hardware prefetchers stop at the
end of each page, and the other layers have thrown the stream out of L2 since the last call: sparse layers of
7x7 pixels, which read a line for few products, are 1.1-1.2 times as fast so (512 and 1024 ahead: slower than
without)."""


@dataclass(frozen=True)
class Shape:
    """What a convolution multiplies.

    Args:
        batch: pictures.
        groups: of channels.
        inputs, outputs: channels of one group.
        taps: kernel positions.
        pixels: of one output plane.
    """

    batch: int
    groups: int
    inputs: int
    outputs: int
    taps: int
    pixels: int

    @property
    def macs(self) -> int:
        return self.batch * self.groups * self.inputs * self.outputs * self.taps * self.pixels


@dataclass(frozen=True)
class Here:
    """One tile while its code is emitted.

    Args:
        x: address that the taps are relative to.
        ahead: the same of the next tile, to prefetch from.
        offsets: elements from pixel 0 to the tile's first, in y and in each tensor of the epilogue.
        vectors: of the tile.
        last: pixels of its last vector to be written.
        segments: that the tile consists of; its lanes are neighbouring pixels, or stripes, otherwise.
        rows: of each of the tile's runs, elements from the first: in y and in each tensor of the epilogue;
            none where it is one.
        ends: of a row that the tile has (`Tiles.ends`).
    """

    x: Value
    ahead: Value
    offsets: Sequence[Value]
    vectors: int
    last: int
    segments: Segments | None = None
    rows: Sequence[Sequence[int]] = ()
    ends: Value | None = None

    @property
    def below(self) -> int:
        """How many runs it has."""
        return len(self.rows[0]) if self.rows else 1

    def pieces(self, lanes: int) -> list[Piece]:
        """What of the tile lies side by side."""
        if self.segments is None and self.below > 1:
            return [
                Piece(
                    self.vectors // self.below,
                    [offset + place for offset, place in zip(self.offsets, places)],
                    self.last,
                    row,
                    0,
                )
                for row, places in enumerate(zip(*self.rows))
            ]
        if self.segments is None:
            return [Piece(self.vectors, self.offsets, self.last, 0, 0)]
        spread, found = self.segments.spread, []
        for number, segment in enumerate(self.segments.writes):
            if spread.rows == 1:
                assert segment[0] is not None
                offsets = [o + by for o, by in zip(self.offsets, segment[0])]
                found.append(Piece(spread.pixels // lanes, offsets, lanes, number, 0))
                continue
            for row, column in itertools.product(range(spread.rows), range(spread.columns)):
                moved, first = segment[row], column * spread.width
                if moved is not None and first < self.segments.pixels:
                    offsets = [o + (by + first) for o, by in zip(self.offsets, moved)]
                    last = min(spread.width, self.segments.pixels - first)
                    found.append(Piece(1, offsets, last, number, row * spread.columns + column))
        return found


@dataclass(frozen=True)
class Piece:
    """Part of a tile whose pixels are neighbours.

    Args:
        vectors: of pixels.
        offsets: elements from pixel 0 to its first, in y and in each tensor of the epilogue.
        last: pixels of its last vector to be written.
        segment: it belongs to.
        index: of its vectors among those that the segment's become when they are brought together.
    """

    vectors: int
    offsets: Sequence[Value]
    last: int
    segment: int
    index: int


@dataclass(frozen=True)
class Frame:
    """The arguments of a convolution kernel, read, and the part of the work that its task is.

    Words of the kernel: input, output, bias, tile table, the epilogue's, the border mask if there is one; the
    kernel's own follow from `words` on.

    Args:
        function: under construction.
        vector: type of a register.
        tiles, work: how the pixels are cut into tiles, and tiles and channels into tasks.
        x: of the picture and the group.
        bias: of the group.
        table: address of the tile table.
        output: stores results; its channels count from the picture's first.
        group: of the convolution, I64.
        channel_base: first output channel of the group.
        part: of the work that is the task's.
        words: how many words are taken.
        far: whether the output is more than a core's caches hold.
        pool: made of results as well, if one is.
    """

    function: Function
    vector: Type
    tiles: Tiles
    work: Cut
    x: Value
    bias: Value
    table: Value
    output: Output
    group: Value
    channel_base: Value
    part: Part
    words: int
    far: bool
    pool: PoolStore | None = None

    @property
    def writes_gaps(self) -> bool:
        """Whether what lies between the output's rows is written with them."""
        return self.output.mask is not None and self.output.merged is None

    @staticmethod
    def open(
        f: Function,
        g: Geometry,
        shape: Shape,
        tiles: Tiles,
        work: Cut,
        out: Tensor,
        epilogue: Epilogue,
        merged: tuple[tuple[int, int], ...] | None = None,
        pool: StripedPool | None = None,
    ) -> Frame:
        """Begin a kernel; `merged` as in `Output`. The address of a pool's output is the last word."""
        vector = F32.by(f.target.lanes(F32))
        x, y, bias, table = (word(f, i) for i in range(4))
        extra = [word(f, 4 + i) for i in range(epilogue.words)]
        masked = _masked(tiles, out)
        mask = word(f, 4 + epilogue.words) if masked else None
        part = work.part(f, f.offset(table, tiles.table.size, I32))
        picture, group = part.picture / shape.groups, part.picture % shape.groups
        channel_base = group * shape.outputs
        shares = epilogue.tensors
        words, made = 4 + epilogue.words + masked, None
        if pool is not None:
            made = PoolStore(pool, f.offset(word(f, words), picture * pool.y.layout.strides[0], F32), tiles)
        streams = _streams(f.target, tiles, out, len(shares) + (pool is not None))
        output = Output(
            epilogue,
            tuple(
                f.offset(pointer, picture * t.layout.strides[0], F32)
                for pointer, t in zip((y, *extra), (out, *shares))
            ),
            tuple(extra[len(shares) :]),
            tuple(t.layout.strides[1] for t in (out, *shares)),
            tuple(t.layout.place(vector.lanes) for t in (out, *shares)),
            mask,
            vector,
            merged,
            streams,
            out.layout.stripes > 0,
            Columns.of(out.layout, 1 if merged is None else 2, streams),
        )
        return Frame(
            function=f,
            vector=vector,
            tiles=tiles,
            work=work,
            x=f.offset(x, picture * g.batch_stride + group * (shape.inputs * g.channel_stride), F32),
            bias=bias,
            table=table,
            output=output,
            group=group,
            channel_base=channel_base,
            part=part,
            words=words + (pool is not None),
            far=out.layout.elements * out.dtype.itemsize > f.target.l2_bytes,
            pool=made,
        )

    def each_tile(self, body: Callable[[Here], None]) -> None:
        """Emit the loop over the task's tiles; the body is emitted for full tiles and for those of the
        rest."""
        f, t = self.function, self.tiles
        with f.loop(self.part.first_tile, self.part.end_tile) as tile:
            full = self.at(tile)
            if t.full == t.count:
                body(full)
                return
            rest = replace(full, vectors=t.rest_vectors, last=t.rest_last)
            if t.full == 0:
                body(rest)
                return
            columns = t.table.shape[1]
            with f.either(f.load(I32, self.table, tile * columns + columns - 1).differs(0)) as otherwise:
                body(full)
                with otherwise():
                    body(rest)

    def at(self, tile: Value) -> Here:
        """A full tile of the table."""
        f, t = self.function, self.tiles
        columns = t.table.shape[1]

        def entry(tile: Value, column: int) -> Value:
            return f.convert(f.load(I32, self.table, tile * columns + column), I64)

        offsets = [entry(tile, c) for c in range(t.operands)]
        x = f.offset(self.x, offsets[0], F32)
        ahead = f.offset(self.x, entry(f.minimum(tile + 1, t.count - 1), 0), F32)
        ends = entry(tile, t.operands) if t.ends else None
        return Here(x, ahead, offsets[1:], t.vectors, t.full_last, None, t.rows[1:], ends)

    def prefetch_channels(self, g: Geometry, here: Here, plane: Value, first: Value, end: Value) -> None:
        """Ask L2 for what the tile reads of the channels first..end of the planes at an address.

        Tiles are short pieces of many planes: no hardware prefetcher sees what comes next.
        """
        f = self.function
        with f.loop(first, end) as c:
            channel = f.offset(plane, c * g.channel_stride, F32)
            for start, stop in segments(g, here.vectors * self.vector.lanes):
                for at in range(4 * start, 4 * stop + 60, 64):
                    f.prefetch(channel, at, near=False)

    def biases(self, channel: Value, vectors: int) -> list[Value]:
        """What the sums of an output channel start with."""
        start = self.function.splat(self.function.load(F32, self.bias, channel), self.vector)
        return [start] * vectors


def row_lines(stream: np.ndarray, rows: np.ndarray) -> int:
    """Cache lines that a row takes in a stream of weights, on average.

    Args:
        rows: one entry a row.
    """
    return -(-stream.nbytes // (64 * len(rows)))


def prefetch_stream(f: Function, position: Value, lines: int) -> None:
    """Ask L2 for what a row of weights that begins at a position in a stream comes before.

    Args:
        lines: that a row takes, on average.
    """
    for line in range(lines):
        f.prefetch(position, STREAM_AHEAD + 64 * line, near=False)


def _streams(target: Target, tiles: Tiles, out: Tensor, extras: int) -> bool:
    """Whether results are to be stored past the caches: there are more than these hold, and all are stored in
    whole vectors (as rows of a segment and more are; of shorter ones, parts)."""
    layout, lanes = out.layout, target.lanes(F32)
    starts = tiles.table[:, : tiles.operands].reshape(-1, 2 + extras)[:, 1]
    return bool(
        target.arch == "x86_64"
        and out.storage.kind == "arena"
        and not layout.block
        and layout.elements * out.dtype.itemsize >= STREAMED_BYTES
        and layout.shape[-1] >= group_of(target) * WIDTH
        and not any(place % lanes for place in (layout.origin, *layout.strides[:-1]))
        and not (starts % lanes).any()
    )


def _masked(tiles: Tiles, out: Tensor) -> bool:
    return tiles.flat and any(map(any, out.layout.halo))


def operands(
    plan: Plan,
    g: Geometry,
    tiles: Tiles,
    out: Tensor,
    epilogue: Epilogue,
    bias: Operand,
    work: Cut | None = None,
    pool: StripedPool | None = None,
) -> list[Operand]:
    """The words that `Frame.open` reads; the pieces of the work, if it has any, follow the tiles."""
    pieces = np.array(work.pieces if work is not None else (), np.int32)
    words: list[Operand] = [
        g.source.address,
        out.address,
        bias,
        plan.constant(np.concatenate([tiles.table.reshape(-1), pieces.reshape(-1)])),
        *epilogue.operands(plan),
    ]
    if _masked(tiles, out):
        strides, lanes = out.layout.strides[2:], plan.target.lanes(F32)
        span = sum((size - 1) * s for size, s in zip(out.shape[2:], strides)) + 1
        pixels = max(tiles.vector_steps * lanes, span + lanes)
        words.append(plan.constant(border_mask(strides, out.shape[2:], pixels)))
    if pool is not None:
        words.append(pool.y.address)
    return words


def rows_ahead(lines: int) -> int:
    """How many rows ahead lines are asked for that are to be written, where a row writes so many."""
    return max(1, min(ROWS_AHEAD, LINES_AHEAD // lines))


def in_last(f: Function, block: Value, blocks: int) -> AbstractContextManager[object]:
    """Around the code for the last of some blocks alone."""
    return nullcontext() if blocks == 1 else f.when(block.equals(blocks - 1))


@dataclass(frozen=True)
class Sums:
    """The sums of some output channels over one tile: they start, wait between blocks of input channels,
    are stored.

    Args:
        frame: of the kernel.
        here: the tile.
        channels: output channels, counted over all groups, I64.
        block: index of the block of input channels, I64.
        blocks: how many there are.
        waiting: where the sums wait between blocks, channel after channel.
    """

    frame: Frame
    here: Here
    channels: Sequence[Value]
    block: Value
    blocks: int
    waiting: Value

    def start(self) -> list[list[Value]]:
        """The bias, or what the blocks before have added."""
        f, frame = self.frame.function, self.frame
        totals = [frame.biases(channel, self.here.vectors) for channel in self.channels]
        if self.blocks == 1:
            return totals
        variables = [[f.var(value) for value in row] for row in totals]
        with f.when(self.block > 0):
            for i, variable in enumerate(v for row in variables for v in row):
                variable.set(f.load(frame.vector, self.waiting, i * frame.vector.lanes))
        return [[variable.get() for variable in row] for row in variables]

    def prefetch(self) -> None:
        """In the last block, ask for what `finish` will write and read; in the one before, ask L2 for it.

        The latter only where no cache holds it: a line that another core has would come to be shared, and
        asking for it again, to write it, has no effect then, as was measured.
        """
        with in_last(self.frame.function, self.block, self.blocks):
            self._prefetch(True)
        if self.blocks > 1 and self.frame.far:
            with self.frame.function.when(self.block.equals(self.blocks - 2)):
                self._prefetch(False)

    def _prefetch(self, near: bool) -> None:
        output, f, here = self.frame.output, self.frame.function, self.here
        if output.merged is not None:
            for row in self.channels[::2]:
                output.prefetch_merged(f, row, here.vectors, here.offsets, near)
            return
        for channel in self.channels:
            for piece in here.pieces(self.frame.vector.lanes):
                output.prefetch(f, channel, piece.vectors, piece.offsets, near)
            if self.frame.pool is not None and near:
                self.frame.pool.prefetch(f, channel, here.offsets[-1])

    def finish(self, totals: Sequence[Sequence[Value]]) -> None:
        """Store the results, or let the sums wait for the next block."""
        f = self.frame.function
        if self.blocks == 1:
            self.store(totals)
            return
        with f.either(self.block.equals(self.blocks - 1)) as otherwise:
            self.store(totals)
            with otherwise():
                for i, total in enumerate(v for row in totals for v in row):
                    f.store(total, self.waiting, i * self.frame.vector.lanes)

    def store(self, totals: Sequence[Sequence[Value]]) -> None:
        """Store the results."""
        f, here, output = self.frame.function, self.here, self.frame.output
        if output.merged is not None:
            for r in range(0, len(totals), 2):
                output.store_merged(
                    f, self.channels[r], totals[r : r + 2], here.offsets, here.last, here.ends
                )
            return
        for channel, row in zip(self.channels, totals):
            segments = self._brought_together(row)
            rows = []
            for piece in here.pieces(self.frame.vector.lanes):
                held = segments[piece.segment][piece.index : piece.index + piece.vectors]
                rows.append((piece.offsets[0], output.store(f, channel, held, piece.offsets, piece.last)))
            output.store_outer(f, channel, rows, here.ends)
            if self.frame.pool is not None:
                columns = [stored for _, stored in rows]
                self.frame.pool.store(f, channel, columns, here.offsets[-1], here.ends)

    def _brought_together(self, row: Sequence[Value]) -> list[list[Value]]:
        """The sums of each segment, neighbouring pixels in neighbouring lanes; as they are without any."""
        f, segments = self.frame.function, self.here.segments
        if segments is None:
            size = len(row) // self.here.below
            return [list(row[at : at + size]) for at in range(0, len(row), size)]
        size, spread = len(row) // len(segments.writes), segments.spread

        def turn(groups: Sequence[Value]) -> list[Value]:
            if spread.rows > 1:
                return together(f, groups, spread.group)
            return transposed(f, groups) if spread.group == GROUP else row_together(f, groups)

        return [turn(row[at : at + size]) for at in range(0, len(row), size)]
