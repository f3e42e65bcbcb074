"""Lines that are asked for: all that will be read, whatever begins where in a line."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.kernels.asking import Shares, lines_of


@pytest.mark.parametrize("seed", range(50))
def test_each_line_of_runs_is_asked_for_and_few_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    itemsize = int(rng.choice([1, 4]))
    line = 64 // itemsize
    starts = rng.integers(-200, 2000, rng.integers(1, 9))
    runs = [(int(start), int(start + rng.integers(1, 300))) for start in starts]
    asked = lines_of(runs, itemsize)
    assert asked == sorted(set(asked))
    for shift in range(line):
        read = {(element + shift) // line for start, end in runs for element in range(start, end)}
        found = [(element + shift) // line for element in asked]
        assert read <= set(found)
        # A run may end within a line, or begin in one that the run before has asked for.
        assert len(found) <= len(read) + 2 * len(runs)


@pytest.mark.parametrize("seed", range(20))
def test_each_line_of_whole_ones_is_asked_for_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = 16 * np.unique(rng.integers(-50, 500, (rng.integers(1, 9), 2)), axis=1)
    runs = [(int(start), int(end)) for start, end in np.sort(bounds, axis=1)]
    read = {line for start, end in runs for line in range(start, end, 16)}
    assert lines_of(runs, aligned=True) == sorted(read)


@pytest.mark.parametrize("seed", range(50))
def test_shares_hold_all_lines_of_all_channels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels, rows, count = (int(rng.integers(1, most)) for most in (80, 600, 40))
    lines = sorted(rng.choice(1000, count, replace=False).tolist())
    shares = Shares.of(lines, 1000, channels, rows)
    units = -(-channels // shares.channels) * shares.parts
    assert units <= rows
    asked = {
        unit // shares.parts * shares.channels * 1000 + int(line)
        for unit in range(units)
        for line in shares.lines[unit % shares.parts]
    }
    assert asked >= {channel * 1000 + line for channel in range(channels) for line in lines}


@pytest.mark.parametrize("seed", range(50))
def test_parts_of_rectangles_have_lines_at_the_same_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    down, across = rng.integers(1, 4, 2)
    rows, columns = down * rng.integers(1, 4), across * rng.integers(1, 4)
    lines = (np.arange(rows)[:, None] * 544 + 16 * np.arange(columns)).ravel().tolist()
    shares = Shares.of(lines, 10_000, 7, 7 * int(down * across))
    assert shares.parts == down * across
    assert sorted(shares.lines.ravel().tolist()) == lines
    steps = shares.steps
    assert steps is not None
    assert [[first + step for step in steps] for first in shares.lines[:, 0]] == shares.lines.tolist()
