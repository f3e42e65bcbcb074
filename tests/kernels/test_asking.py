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
