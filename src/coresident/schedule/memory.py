"""Buffers share memory where their lifetimes do not meet."""

from __future__ import annotations

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
    placed: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, i)):
        mine = buffers[i]
        taken = sorted(
            (offsets[j], offsets[j] + buffers[j].size)
            for j in placed
            if buffers[j].first <= mine.last and mine.first <= buffers[j].last
        )
        at = 0
        for start, end in taken:
            if at + mine.size <= start:
                break
            at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[i] = at
        placed.append(i)
    return offsets, max((o + b.size for o, b in zip(offsets, buffers)), default=0)
