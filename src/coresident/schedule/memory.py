"""Buffers share memory where their lifetimes do not meet."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ALIGNMENT = 4096


@dataclass(frozen=True)
class Lifetime:
    """A buffer of so many bytes that is needed from one group of steps to another, both included.

    Args:
        kind: buffers that have one share memory with those of the same kind alone, so that what is written
            around their contents stays from call to call.
    """

    size: int
    first: int
    last: int
    kind: Hashable = None


def place(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets for the buffers, and the bytes of the arena: largest first, each at the lowest free place.

    (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020: greedy by size.)
    """
    end = max((b.last for b in buffers), default=0)
    slots = _slots(buffers)
    # One buffer for each slot, which is there all the time.
    shared = [Lifetime(buffers[slot[0]].size, 0, end) for slot in slots]
    own = [i for i, b in enumerate(buffers) if b.kind is None]
    places, size = _place([*shared, *(buffers[i] for i in own)])
    offsets = dict(zip(own, places[len(slots) :]))
    offsets |= {i: at for slot, at in zip(slots, places) for i in slot}
    return [offsets[i] for i in range(len(buffers))], size


def _slots(buffers: Sequence[Lifetime]) -> list[list[int]]:
    """Buffers of one kind that follow each other in time, as few lists as can be."""
    slots: list[list[int]] = []
    for i in sorted((i for i, b in enumerate(buffers) if b.kind is not None), key=lambda i: buffers[i].first):
        mine = buffers[i]
        for slot in slots:
            before = buffers[slot[-1]]
            if (before.kind, before.size) == (mine.kind, mine.size) and before.last < mine.first:
                slot.append(i)
                break
        else:
            slots.append([i])
    return slots


def _place(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
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
