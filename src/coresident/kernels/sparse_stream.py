"""The nonzeros of a sparse convolution as a stream: in the order in which loops meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.kernels.geometry import Geometry
from coresident.kernels.sparse import Choice
from coresident.kernels.tiling import Cut

Array = np.ndarray[Any, Any]

UNROLL = 4
"""Nonzeros in one round of the inner loop, a power of two."""

UNITS = (8, 4)
"""Bytes that an offset of 16 bits may count: those by which x86 multiplies as it adds addresses."""


@dataclass(frozen=True)
class Offsets:
    """How a stream says where pixels lie: from where a block of input channels begins.

    Args:
        bits: of an offset, 16 or 32: the fewer, the less to load.
        unit: bytes that it counts.
        first: bytes from the tile, or from what is packed of it, to where its first block begins.
        step: bytes from a block to the next.
    """

    bits: int
    unit: int
    first: int
    step: int

    @staticmethod
    def of(choice: Choice, g: Geometry, inputs: int) -> Offsets:
        """Of 16 bits where these suffice and rows stand by themselves, otherwise of 32."""
        step = 0 if choice.packing is not None else 4 * choice.block * g.channel_stride
        places = choice.offsets(inputs, g) - _before(inputs, choice.block, step)
        first = int(places.min())
        if choice.shared == 1:
            for unit in UNITS:
                counts, rest = np.divmod(places - first, unit)
                if counts.max() < 1 << 16 and not rest.any():
                    return Offsets(16, unit, first, step)
        return Offsets(32, 1, first, step)

    @property
    def together(self) -> int:
        """Offsets that one load of 64 bits has."""
        return 64 // self.bits

    @property
    def words(self) -> int:
        """Of 32 bits, that the offsets of a round take."""
        return UNROLL * self.bits // 32

    def counted(self, choice: Choice, g: Geometry, inputs: int) -> Array:
        """[inputs, taps] int32: the offset of each position."""
        places = choice.offsets(inputs, g) - _before(inputs, choice.block, self.step)
        return ((places - self.first) // self.unit).astype(np.int32)


def _before(inputs: int, block: int, step: int) -> Array:
    """[inputs, 1]: bytes from the first block to the channel's."""
    return np.arange(inputs, dtype=np.int64)[:, None] // block * step


def _in_rounds(words: Array, counts: Array, offsets: Offsets) -> Array:
    """The stream of rows by themselves: the offsets of each round of a row, then its weights; what is left of
    a row is a shorter round, its offsets as many as are loaded together.

    Args:
        words: [nonzeros, 2] int32, of each its offset and its weight.
        counts: nonzeros of each row.
    """
    rest = counts % UNROLL
    of_rest = 2 * -(-rest // offsets.together)
    sizes = counts // UNROLL * (offsets.words + UNROLL) + of_rest + rest
    stream = np.zeros(int(sizes.sum()), np.int32)
    place = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    turn, index = np.divmod(place, UNROLL)
    begin = np.repeat(np.cumsum(sizes) - sizes, counts) + turn * (offsets.words + UNROLL)
    whole = turn < np.repeat(counts // UNROLL, counts)
    stream.view(f"u{offsets.bits // 8}")[begin * (32 // offsets.bits) + index] = words[:, 0]
    stream[begin + np.where(whole, offsets.words, np.repeat(of_rest, counts)) + index] = words[:, 1]
    return stream


@dataclass(frozen=True)
class Packed:
    """The nonzeros in the order in which the kernel meets them.

    Args:
        stream: int32 words, for each nonzero its offset, then `shared` float32 weights; where one channel
            stands by itself, rounds of `UNROLL`, and what is left of a row, have their offsets first, then
            their weights.
        rows: [.., 2] int32: the first output channel of a row and its number of nonzeros, in order of that
            number within each (part of the rows, block).
        starts: [groups, parts of the rows, blocks] int64: where each begins in `stream`, in words.
    """

    stream: Array
    rows: Array
    starts: Array


def pack(weights: Array, g: Geometry, choice: Choice, work: Cut, offsets: Offsets) -> Packed:
    """Order and compress the weights [groups, outputs, inputs, taps]."""
    groups, _, inputs, taps = weights.shape
    shared, block = choice.shared, choice.block
    counted = offsets.counted(choice, g, inputs)
    streams: list[Array] = []
    rows: list[Array] = []
    starts: list[int] = []
    at = 0
    for group in weights:
        by_row = group.reshape(-1, shared, inputs, taps)
        for first, end in map(work.row_range, range(work.row_parts)):
            chunk = by_row[first:end]
            for c in range(0, inputs, block):
                part = chunk[:, :, c : c + block]
                used = (part != 0).any(axis=1)
                counts = used.sum(axis=(1, 2))
                order = np.argsort(-counts, kind="stable")
                row, channel, tap = np.nonzero(used[order])
                words = np.empty((len(row), 1 + shared), np.int32)
                words[:, 0] = counted[c + channel, tap]
                words[:, 1:] = part[order][row, :, channel, tap].astype(np.float32).view(np.int32)
                alone = shared == 1
                made = _in_rounds(words, counts[order], offsets) if alone else words.reshape(-1)
                streams.append(made)
                rows.append(np.stack([(first + order) * shared, counts[order]], axis=1).astype(np.int32))
                starts.append(at)
                at += made.size
    blocks = -(-inputs // block)
    stream = np.concatenate([*streams, np.zeros(UNROLL * (1 + shared), np.int32)])
    return Packed(stream, np.concatenate(rows), np.array(starts, np.int64).reshape(groups, -1, blocks))
