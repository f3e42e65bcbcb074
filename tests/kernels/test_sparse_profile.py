"""What cost models are told of nonzeros, against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.kernels.geometry import block_sizes
from coresident.kernels.sparse_profile import profiles


@pytest.mark.parametrize("seed", range(30))
def test_profiles_count_what_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, inputs, taps = (int(rng.integers(1, most)) for most in (40, 70, 10))
    nonzero = rng.random((outputs, inputs, taps)) < rng.choice([0.0, 0.1, 0.5, 1.0])
    nonzero[rng.random(outputs) < 0.1] = False
    sharings = [1, 2, 4]
    found = profiles(nonzero.reshape(outputs, -1), inputs, taps, sharings)
    assert set(found) == {(shared, block) for shared in sharings for block in block_sizes(inputs)}
    for (shared, block), profile in found.items():
        counts = [
            [
                int(np.count_nonzero(nonzero[row : row + shared, first : first + block].any(axis=0)))
                for row in range(0, outputs, shared)
            ]
            for first in range(0, inputs, block)
        ]
        assert profile.blocks == len(counts)
        assert profile.rows == sum(map(len, counts))
        assert profile.nonzeros == sum(map(sum, counts))
        assert profile.lengths == sum(len(set(rows)) for rows in counts)
        assert profile.each == profile.nonzeros / profile.rows
