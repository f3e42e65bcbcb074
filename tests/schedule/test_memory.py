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
