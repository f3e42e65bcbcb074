"""Inputs to measure with: the same random numbers for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coresident.errors import InputError

Array = np.ndarray[Any, Any]
Shape = tuple[int | str | None, ...]


def fixed_shapes(
    inputs: Mapping[str, Shape], given: Mapping[str, tuple[int, ...]], batch: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Sizes for all dimensions of all inputs.

    Args:
        inputs: their shapes; what is no number is free.
        given: shapes chosen for some of them.
        batch: of the inputs whose shape was not given: their first dimension; None is 1 where that is free.

    Raises:
        InputError: a shape for an input that the model does not have, or a free dimension left over.
    """
    if unknown := sorted(set(given) - set(inputs)):
        raise InputError(f"the model has no input {unknown[0]!r}; it has {', '.join(map(repr, inputs))}")
    shapes = {}
    for name, shape in inputs.items():
        if name in given:
            shapes[name] = given[name]
            continue
        sizes = list(shape)
        if sizes and (batch is not None or not isinstance(sizes[0], int)):
            sizes[0] = batch or 1
        numbers = tuple(size for size in sizes if isinstance(size, int))
        if len(numbers) != len(sizes):
            raise InputError(
                f"the input {name!r} leaves sizes open; give them, as in --shape {name}=1x3x224x224",
                shape=list(shape),
            )
        shapes[name] = numbers
    return shapes


def random_feeds(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, np.dtype[Any]], seed: int = 0
) -> dict[str, Array]:
    """Arrays for the inputs: floats are normal with variance 1, bytes 0 to 255, other types 0 or 1.

    Integers are kept that small since many are indices.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for name, shape in shapes.items():
        dtype = np.dtype(dtypes[name])
        if dtype.kind == "f":
            feeds[name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        elif dtype == np.uint8:
            feeds[name] = rng.integers(0, 256, shape).astype(dtype)
        else:
            feeds[name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds
