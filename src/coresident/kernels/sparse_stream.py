"""The nonzeros of a sparse convolution as a stream: in the order in which loops meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.kernels.geometry import Geometry
from coresident.kernels.sparse import Choice
from coresident.kernels.tiling import Cut

UNROLL = 4
"""Nonzeros in one round of the inner loop, a power of two."""


def _in_rounds(words: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The stream of rows by themselves, with the (offset, weight) of each round of a row turned into all its
    offsets, then all its weights; what is left of a row is a shorter round."""
    ends = np.cumsum(counts)
    rest = counts % UNROLL
    turned = words.copy().reshape(-1)

    def turn(firsts: np.ndarray[Any, Any], size: int) -> None:
        held = words[firsts[:, None] + np.arange(size)]
        places = 2 * firsts[:, None] + np.arange(2 * size)
        turned[places] = held.transpose(0, 2, 1).reshape(len(firsts), 2 * size)

    place = np.arange(len(words)) - np.repeat(ends - counts, counts)
    whole = place < np.repeat(counts - rest, counts)
    turn(np.flatnonzero(whole & (place % UNROLL == 0)), UNROLL)
    for size in range(1, UNROLL):
        turn((ends - rest)[rest == size], size)
    return turned


@dataclass(frozen=True)
class Packed:
    """The nonzeros in the order in which the kernel meets them.

    Args:
        stream: int32 words, for each nonzero its offset in bytes, then `shared` float32 weights; where one
            channel stands by itself, rounds of `UNROLL`, and what is left of a row, have their offsets first,
            then their weights.
        rows: [.., 2] int32: the first output channel of a row and its number of nonzeros, in order of that
            number within each (part of the rows, block).
        starts: [groups, parts of the rows, blocks] int64: where each begins in `stream`, in words.
    """

    stream: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]


def pack(weights: np.ndarray[Any, Any], g: Geometry, choice: Choice, work: Cut) -> Packed:
    """Order and compress the weights [groups, outputs, inputs, taps]."""
    groups, _, inputs, taps = weights.shape
    shared, block = choice.shared, choice.block
    offsets = choice.offsets(inputs, g)
    streams: list[np.ndarray[Any, Any]] = []
    rows: list[np.ndarray[Any, Any]] = []
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
                words[:, 0] = offsets[c + channel, tap]
                words[:, 1:] = part[order][row, :, channel, tap].astype(np.float32).view(np.int32)
                streams.append(_in_rounds(words, counts[order]) if shared == 1 else words.reshape(-1))
                rows.append(np.stack([(first + order) * shared, counts[order]], axis=1).astype(np.int32))
                starts.append(at)
                at += words.size
    blocks = -(-inputs // block)
    stream = np.concatenate([*streams, np.zeros(UNROLL * (1 + shared), np.int32)])
    return Packed(stream, np.concatenate(rows), np.array(starts, np.int64).reshape(groups, -1, blocks))
