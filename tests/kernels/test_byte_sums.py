"""Residual additions of bytes in two multiply-adds: the same bytes as by the letter, for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.kernels.byte_sums import Dequantised, weights


@pytest.mark.parametrize("seed", range(20))
def test_all_combinations_are_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [int(p) for p in rng.integers(0, 256, 3)]
    scales = [float(np.float32(s)) for s in rng.uniform(0.001, 0.1, 3)]
    terms = tuple(Dequantised(0, 255, -p, s) for p, s in zip(points, scales))[:2]
    found = weights(terms, scales[2], -points[2], 255 - points[2])
    if found is None:
        pytest.skip("the long way, which is always right")
    (first, second), constant = found
    n = np.arange(256, dtype=np.float32)
    a, b = ((n - np.float32(p)) * np.float32(s) for p, s in zip(points[:2], scales))
    wanted = np.clip(np.rint((a[:, None] + b) / np.float32(scales[2])) + points[2], 0, 255)
    # Exact in float64, and rounded to float32 once for each of the two steps.
    inner = (n.astype(np.float64) * second + constant).astype(np.float32)
    outer = (n.astype(np.float64)[:, None] * first + inner).astype(np.float32)
    np.testing.assert_array_equal(np.clip(np.rint(outer) + points[2], 0, 255), wanted, f"seed {seed}")


def test_there_mostly_is_a_short_way() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        scales = [float(np.float32(s)) for s in rng.uniform(0.001, 0.1, 3)]
        terms = tuple(Dequantised(0, 255, 0, s) for s in scales[:2])
        found += weights(terms, scales[2], 0, 255) is not None
    assert found > 30


def test_scales_beyond_all_bounds_have_no_short_way() -> None:
    term = Dequantised(0, 255, 0, 1e38)
    assert weights((term, Dequantised(0, 255, 0, 1e-38)), 1e-30, 0, 255) is None
    assert weights((term,), 1.0, 0, 255) is None
