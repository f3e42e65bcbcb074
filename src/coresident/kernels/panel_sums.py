"""The sums of a panel of output channels: the loops that convolutions of floats and of bytes share.

A panel is some vectors whose lanes hold neighbouring output channels; a *strip* is a few pixels of an output
row, each an element of four bytes (a float, or bytes of neighbouring channels) that is broadcast from where
it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value, Variable
from coresident.codegen.types import I32, I64, Type
from coresident.kernels.dense_code import rounds
from coresident.kernels.tiling import Part

ELEMENT = 4
"""Bytes of an element."""

MOST_ASKED = 16
"""Lines of weights that are asked for at once."""

Product = Callable[[Value, Value, Value], Value]
"""(sums, broadcast element, weights) -> the sums with their products."""


def shares(part: Part, wide: int, narrow: int) -> list[tuple[Value, Value]]:
    """First and end of a part's wide panels, and of its narrow ones: as many of each as it has of all."""
    bounds = (part.first_row, part.end_row)
    first, end = (bound * wide // (wide + narrow) for bound in bounds)
    return [(first, end), (part.first_row - first, part.end_row - end)]


@dataclass(frozen=True)
class PanelSums:
    """How the sums of any panel of a kernel are made.

    Args:
        function: under construction.
        vector: type of a register.
        product: multiplies and adds.
        strips: pixels of each strip of a row, in order: short ones first.
        rows: most rows that a panel passes over at once.
        channels: of the input, or elements of them.
        block: of these that are multiplied before the next row.
        channel_stride, step: elements between channels, and between the pixels of a row.
        outer_taps: address of the outer taps' offsets (int32); None where all taps are unrolled.
        inner_taps: offsets of the taps unrolled.
        taps: of the kernel in all.
        widest: vectors of the widest panel.
        waiting: bytes of scratch before those where sums wait between blocks.
        reach: elements from one output channel's complete sums to the next one's.
    """

    function: Function
    vector: Type
    product: Product
    strips: tuple[int, ...]
    rows: int
    channels: int
    block: int
    channel_stride: int
    step: int
    outer_taps: Value | None
    inner_taps: tuple[int, ...]
    taps: int
    widest: int
    waiting: int
    reach: int

    @property
    def lanes(self) -> int:
        return self.vector.lanes

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def strip_bytes(self) -> int:
        """That the sums of a strip take while they wait."""
        return ELEMENT * max(self.strips) * self.widest * self.lanes

    @property
    def waiting_bytes(self) -> int:
        """Of scratch for sums that wait."""
        return 0 if self.blocks == 1 else self.rows * len(self.strips) * self.strip_bytes

    @property
    def complete(self) -> int:
        """Bytes of scratch before those where sums are complete, channel after channel."""
        return self.waiting + self.waiting_bytes

    def emit(
        self,
        vectors: int,
        bias: Value,
        weights: Value,
        first: Value,
        end: Value,
        place: Callable[[Value], tuple[Value, Value]],
    ) -> None:
        """Emit the sums of one panel of `vectors` vectors over the rows first..end.

        Args:
            bias, weights: addresses of the panel's.
            place: of a row, addresses of its first pixel in the input, and in the panel's first channel's
                complete sums.
        """
        f = self.function
        panel = _Panel(self, vectors, bias)
        with f.loop(0, self.blocks) as block:
            start = block * self.block
            stop = f.minimum(start + self.block, self.channels)
            here = f.offset(weights, start * panel.channel_bytes)
            with f.loop(first, end) as row:
                source, sums = place(row)
                panel.row(block, stop - start, here, (row - first) * len(self.strips), start, source, sums)


@dataclass(frozen=True)
class _Panel:
    """One panel while its code is emitted."""

    loops: PanelSums
    vectors: int
    bias: Value

    @property
    def channel_bytes(self) -> int:
        """Of the weights of one input channel."""
        return ELEMENT * self.vectors * self.loops.lanes * self.loops.taps

    def row(
        self, block: Value, count: Value, weights: Value, strip: Value, start: Value, x: Value, y: Value
    ) -> None:
        """The strips of a row, one block of `count` input channels: short strips first, so that what they
        write too much is overwritten."""
        loops = self.loops
        f, done = loops.function, 0
        source = f.offset(x, start * loops.channel_stride, ELEMENT)
        for pixels in sorted(set(loops.strips)):
            strips = loops.strips.count(pixels)
            with f.loop(0, strips) as s:
                at = s * pixels + done
                pixel = f.offset(source, at * loops.step, ELEMENT)
                self._strip(block, count, weights, strip + s, pixel, f.offset(y, at, ELEMENT), pixels)
            done += strips * pixels
            strip = strip + strips

    def _strip(
        self, block: Value, count: Value, weights: Value, strip: Value, x: Value, y: Value, pixels: int
    ) -> None:
        """`pixels` pixels of a row from address x on, one block of input channels."""
        f, loops = self.loops.function, self.loops
        vector, lanes = loops.vector, loops.lanes
        sums = [
            [f.var(f.load(vector, self.bias, v * lanes)) for v in range(self.vectors)] for _ in range(pixels)
        ]
        flat = [variable for one in sums for variable in one]
        share = -(-self.channel_bytes * loops.block // (64 * loops.rows * len(loops.strips)))
        ahead = f.offset(weights, count * self.channel_bytes + strip * (64 * share))
        if loops.blocks == 1:
            self._multiply(sums, count, weights, x, ahead, share)
            self._transpose(y, sums)
            return
        waiting = f.offset(f["scratch"], strip * loops.strip_bytes + loops.waiting)
        with f.when(block > 0):
            for i, variable in enumerate(flat):
                variable.set(f.load(vector, waiting, i * lanes))
        self._multiply(sums, count, weights, x, ahead, share)
        with f.either(block.equals(loops.blocks - 1)) as otherwise:
            self._transpose(y, sums)
            with otherwise():
                for i, variable in enumerate(flat):
                    f.store(variable.get(), waiting, i * lanes)

    def _multiply(
        self,
        sums: Sequence[Sequence[Variable]],
        count: Value,
        weights: Value,
        x: Value,
        ahead: Value,
        share: int,
    ) -> None:
        """Every pixel of the strip with every vector of the panel, for all taps of the input channels.

        Args:
            ahead, share: address of this strip's share of the next block's weights, and its lines. They are
                asked for one by one: a core waits for so many lines at once, and all loads behind more.
        """
        f, loops = self.loops.function, self.loops
        inner = loops.inner_taps
        unroll = rounds(loops.channels, loops.block, loops.taps)
        lines = min(-(-share * unroll // loops.block), MOST_ASKED)
        with f.loop(0, count, unroll) as c:
            for line in range(lines):
                f.prefetch(ahead, c / unroll * (64 * lines) + 64 * line, near=False)
            for u in range(unroll):
                at_x = f.offset(x, c * loops.channel_stride + u * loops.channel_stride, ELEMENT)
                at_w = f.offset(weights, (c + u) * self.channel_bytes)
                if loops.outer_taps is None:
                    self._taps(sums, at_x, at_w)
                    continue
                with f.loop(0, loops.taps // len(inner)) as o:
                    near = f.offset(at_x, f.convert(f.load(I32, loops.outer_taps, o), I64), ELEMENT)
                    skipped = o * (ELEMENT * self.vectors * loops.lanes * len(inner))
                    self._taps(sums, near, f.offset(at_w, skipped))

    def _taps(self, sums: Sequence[Sequence[Variable]], x: Value, weights: Value) -> None:
        """The unrolled taps of one input channel."""
        f, loops = self.loops.function, self.loops
        chosen = _colours(loops.inner_taps, len(sums), loops.step)
        sources = [x, *(f.opaque(x) for _ in range(max(chosen)))]
        for k, (tap, colour) in enumerate(zip(loops.inner_taps, chosen)):
            loaded = [
                f.load(loops.vector, weights, (k * self.vectors + v) * loops.lanes)
                for v in range(self.vectors)
            ]
            for p, one in enumerate(sums):
                element = f.load(loops.vector.scalar, sources[colour], tap + p * loops.step)
                pixel = f.splat(element, loops.vector)
                for total, weight in zip(one, loaded):
                    total.set(loops.product(total.get(), pixel, weight))

    def _transpose(self, y: Value, sums: Sequence[Sequence[Variable]]) -> None:
        """Write the strip into the runs of its channels."""
        f, lanes = self.loops.function, self.loops.lanes
        for v in range(self.vectors):
            vectors = _transposed(f, [one[v].get() for one in sums])
            across = len(vectors)
            for i, vector in enumerate(vectors):
                for c in range(lanes // across):
                    channel = v * lanes + i * (lanes // across) + c
                    own = range(c * across, (c + 1) * across)
                    part = f.shuffle(vector, None, own) if across > 1 else f.extract(vector, c)
                    f.store(part, y, channel * self.loops.reach)


def _colours(taps: Sequence[int], pixels: int, step: int) -> list[int]:
    """For each tap the address to load from, so that none loads the same pixel from the same address."""
    used: list[set[int]] = []
    chosen = []
    for tap in taps:
        read = {tap + p * step for p in range(pixels)}
        colour = next((i for i, before in enumerate(used) if not before & read), len(used))
        if colour == len(used):
            used.append(set())
        used[colour] |= read
        chosen.append(colour)
    return chosen


def _transposed(f: Function, vectors: Sequence[Value]) -> list[Value]:
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
