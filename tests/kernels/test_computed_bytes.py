"""Integer products whose weights or zero points are inputs of the network: exact, however long the sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import check_node

from coresident.graph.graph import Node

Array = np.ndarray[Any, Any]


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    dtype = rng.choice([np.uint8, np.int8])
    bounds = np.iinfo(dtype)
    if rng.random() < 0.3:  # the largest sums
        return np.full(shape, bounds.max, dtype)
    return rng.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)


def _check(op: str, arrays: dict[str, Array], computed: set[str], attributes: dict[str, Any]) -> None:
    node = Node(op, tuple(arrays), ("y",), attributes, op)
    feeds = {name: array for name, array in arrays.items() if name in computed}
    constants = {name: array for name, array in arrays.items() if name not in computed}
    check_node(node, feeds, constants, tolerance=0)


@pytest.mark.parametrize("seed", range(12))
def test_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, depth, columns = (int(rng.choice([1, 5, 17])), int(rng.choice([1, 257, 259, 600])), 7)
    stack = () if seed % 2 else (2,)
    arrays = {"a": _bytes(rng, (*stack, rows, depth)), "b": _bytes(rng, (*stack, depth, columns))}
    if seed % 3:
        shape = (1,) if seed % 3 == 1 else (*stack, rows, 1) if stack else (rows,)
        arrays["p"] = _bytes(rng, shape).astype(arrays["a"].dtype)
        arrays["q"] = _bytes(rng, (*stack, 1, columns) if stack else (columns,)).astype(arrays["b"].dtype)
    computed = {"a", *(name for name in arrays if rng.random() < 0.7)}
    _check("MatMulInteger", arrays, computed, {})


@pytest.mark.parametrize("seed", range(12))
def test_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, channels = int(rng.choice([1, 2])), int(rng.choice([2, 40]))
    taps, spatial = ((3, 2), (7, 6)) if seed % 2 else ((3,), (11,))
    arrays = {
        "x": _bytes(rng, (2, channels, *spatial)),
        "w": _bytes(rng, (4, channels // group, *taps)),
    }
    if seed % 3:
        arrays["p"] = _bytes(rng, (1,)).astype(arrays["x"].dtype)
        arrays["q"] = _bytes(rng, (1,) if seed % 3 == 1 else (4,)).astype(arrays["w"].dtype)
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * len(taps)))
    attributes = {"group": group, "pads": pads, "strides": (2,) * len(taps)}
    computed = {"x", *(name for name in arrays if rng.random() < 0.7)}
    _check("ConvInteger", arrays, computed, attributes)
