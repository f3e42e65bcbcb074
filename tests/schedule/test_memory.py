"""Buffers that live at the same time lie apart."""

from __future__ import annotations

import random

import pytest

from coresident.schedule.memory import ALIGNMENT, Lifetime, place


@pytest.mark.parametrize("seed", range(20))
def test_buffers_that_meet_lie_apart(seed: int) -> None:
    rng = random.Random(seed)
    buffers = []
    for _ in range(rng.randrange(40)):
        first = rng.randrange(30)
        size = rng.choice((0, 1, ALIGNMENT, ALIGNMENT + 1, rng.randrange(100_000)))
        buffers.append(Lifetime(size, first, first + rng.randrange(9)))
    offsets, arena = place(buffers)
    for i, (a, at) in enumerate(zip(buffers, offsets)):
        assert at % ALIGNMENT == 0, f"seed {seed}"
        assert at + a.size <= arena, f"seed {seed}"
        for b, other in zip(buffers[:i], offsets):
            meet = a.first <= b.last and b.first <= a.last
            assert not meet or at + a.size <= other or other + b.size <= at, f"seed {seed}"


def test_buffers_share_places_when_they_may() -> None:
    size = 3 * ALIGNMENT
    chain = [Lifetime(size, step, step + 1) for step in range(100)]
    assert place(chain)[1] == 2 * size
    together = [Lifetime(size, 0, 0)] * 100
    assert place(together)[1] == 100 * size


@pytest.mark.parametrize("seed", range(20))
def test_buffers_of_a_kind_share_memory_with_none_but_their_own(seed: int) -> None:
    rng = random.Random(seed)
    buffers = []
    for _ in range(rng.randrange(40)):
        first = rng.randrange(30)
        kind = rng.choice((None, "a", "b"))
        size = rng.randrange(1, 100_000) if kind is None else {"a": 5000, "b": 70_000}[kind]
        buffers.append(Lifetime(size, first, first + rng.randrange(9), kind))
    offsets, arena = place(buffers)
    for i, (a, at) in enumerate(zip(buffers, offsets)):
        assert at + a.size <= arena, f"seed {seed}"
        for b, other in zip(buffers[:i], offsets):
            apart = at + a.size <= other or other + b.size <= at
            if a.kind == b.kind:
                meet = a.first <= b.last and b.first <= a.last
                assert apart if meet else apart or a.kind is None or at == other, f"seed {seed}"
            else:
                assert apart, f"seed {seed}"


def test_buffers_of_a_kind_follow_each_other() -> None:
    chain = [Lifetime(ALIGNMENT, 2 * step, 2 * step + 1, "kind") for step in range(50)]
    assert place(chain) == ([0] * 50, ALIGNMENT)
