"""Streams of nonzeros, read as the kernel reads them."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.kernels.sparse_stream import UNROLL, Offsets, _in_rounds


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("seed", range(20))
def test_rounds_hold_the_offsets_and_weights_of_each_row(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = Offsets(bits, 4, -8, 0)
    counts = rng.integers(0, 14, rng.integers(1, 20))
    words = np.empty((counts.sum(), 2), np.int32)
    words[:, 0] = rng.integers(0, 1 << min(bits, 31), len(words))
    words[:, 1] = rng.standard_normal(len(words)).astype(np.float32).view(np.int32)
    stream = _in_rounds(words, counts, offsets)
    at, read = 0, []
    for count in counts.tolist():
        for size in [UNROLL] * (count // UNROLL) + [count % UNROLL] * (count % UNROLL > 0):
            loads = -(-size // offsets.together)
            weights = at + 2 * loads
            places = stream[at:weights].view(f"u{bits // 8}")[:size]
            read += list(zip(places.tolist(), stream[weights : weights + size].tolist()))
            at = weights + size
    assert at == len(stream)
    assert read == list(map(tuple, words.tolist()))
