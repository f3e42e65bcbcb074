"""Inputs to measure with."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.errors import InputError
from coresident.measure.feeds import fixed_shapes, random_feeds


def test_free_batches_are_one_unless_given() -> None:
    inputs: dict[str, tuple[int | str | None, ...]] = {"x": ("n", 3, 8), "y": (2, 4), "s": ()}
    assert fixed_shapes(inputs, {}) == {"x": (1, 3, 8), "y": (2, 4), "s": ()}
    assert fixed_shapes(inputs, {"y": (5, 4)}, batch=3) == {"x": (3, 3, 8), "y": (5, 4), "s": ()}


def test_sizes_left_open_are_told() -> None:
    with pytest.raises(InputError, match="--shape x="):
        fixed_shapes({"x": (1, 3, "h", None)}, {})
    with pytest.raises(InputError, match="no input 'z'"):
        fixed_shapes({"x": (1,)}, {"z": (1,)})


def test_feeds_are_the_same_each_time() -> None:
    dtypes = {"f": "float32", "d": "float64", "u": "uint8", "i": "int64", "b": "bool"}
    kinds = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
    shapes = dict.fromkeys(dtypes, (3, 50))
    first, second = random_feeds(shapes, kinds), random_feeds(shapes, kinds)
    for name, array in first.items():
        assert array.dtype == dtypes[name]
        assert array.shape == (3, 50)
        assert np.array_equal(array, second[name])
    assert set(np.unique(first["i"])) == {0, 1}
    assert first["u"].max() > 100
