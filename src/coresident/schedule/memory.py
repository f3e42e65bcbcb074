"""Buffers share memory where their lifetimes do not meet."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 4096


@dataclass(frozen=True)
class Lifetime:
    """A buffer of so many bytes that is needed from one group of steps to another, both included."""

    size: int
    first: int
    last: int


def place(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets for the buffers, and the bytes of the arena: largest first, each at the lowest free place.

    (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020: greedy by size.)
    """
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, i)):
        size, first, last = buffers[i].size, buffers[i].first, buffers[i].last
        at = 0
        for start, end, from_, to in placed:  # in the order of their places
            if from_ > last or first > to:
                continue
            if at + size <= start:
                break
            at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[i] = at
        bisect.insort(placed, (at, at + size, first, last))
    return offsets, max((o + b.size for o, b in zip(offsets, buffers)), default=0)
