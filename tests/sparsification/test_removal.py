"""What removing units costs, and the inverses that tell it, against inverses of single matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import HOST, RUN_TARGETS, WIDTHS, few

from coresident.codegen.types import F32
from coresident.errors import InputError
from coresident.sparsification import removal
from coresident.sparsification.blas import one_thread
from coresident.sparsification.cholesky import factorised
from coresident.sparsification.inverse_code import BLOCK, Inverses
from coresident.sparsification.removal import Units

Array = np.ndarray[Any, Any]
ON = {"host": HOST} | RUN_TARGETS | WIDTHS


@pytest.fixture(autouse=True)
def _small_products_on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _gram(rng: np.random.Generator, columns: int) -> Array:
    x = np.maximum(rng.standard_normal((3 * columns + 5, columns)), 0) @ rng.standard_normal(
        (columns, columns)
    )
    return (x.T @ x / len(x) + 0.1 * np.eye(columns)).astype(np.float32)


@pytest.mark.parametrize("target", ON)
@pytest.mark.parametrize("seed", few(range(40), 6))
def test_blocks_of_inverses(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    lanes = ON[target].lanes(F32)
    size, tasks = int(rng.integers(1, 60)), int(rng.integers(1, 4))
    width = BLOCK * int(rng.integers(1, 1 + -(-size // BLOCK)))
    gram = np.zeros((size + 1, size + 1), np.float32)
    gram[:-1, :-1] = _gram(rng, size)
    columns = np.full((tasks, width, lanes), size, np.int32)
    sizes = BLOCK * rng.integers(0, width // BLOCK + 1, tasks)
    for task, lane in np.ndindex(tasks, lanes):
        count = int(rng.integers(0, min(size, sizes[task]) + 1))
        places = np.sort(rng.permutation(sizes[task])[:count])
        columns[task, places, lane] = np.sort(rng.permutation(size)[:count])
    found = Inverses(gram, ON[target], 1 + seed % 2).blocks(columns, sizes)
    for task, lane in np.ndindex(tasks, lanes):
        chosen = columns[task, : sizes[task], lane]
        whole = gram[chosen[:, None], chosen].astype(np.float64) + np.diag((chosen == size).astype(float))
        inverse = np.linalg.inv(whole)
        for block in range(sizes[task] // BLOCK):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            np.testing.assert_allclose(
                found[task, block, ..., lane],
                inverse[part, part],
                rtol=1e-3,
                atol=1e-4 * np.abs(inverse).max(),
            )


def _brute(gram: Array, mask: Array, weights: Array, units: Array, parts: list[Array]) -> Array:
    """Costs of the units of one row, from the inverse of each part by itself."""
    costs = np.zeros(int(units.max()) + 1)
    for part in parts:
        inverse = np.linalg.inv(gram[np.ix_(part, part)].astype(np.float64))
        for unit in np.unique(units[part]):
            places = np.flatnonzero(units[part] == unit)
            w = weights[part[places]].astype(np.float64)
            costs[unit] = w @ np.linalg.solve(inverse[np.ix_(places, places)], w)
    return costs


@pytest.mark.parametrize("seed", few(range(60), 12))
def test_costs_are_those_of_single_inverses(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows are worked on a few at a time, and where the last block of channels lacks some."""
    monkeypatch.setattr(removal, "_TOGETHER", (1 << 22, 50)[seed % 2])
    rng = np.random.default_rng(seed)
    taps, channels, rows = int(rng.choice([1, 1, 4, 9])), int(rng.integers(1, 14)), int(rng.integers(1, 40))
    each = np.arange(channels) // (4 if seed % 3 else 1)
    units = np.concatenate([each + tap * (each[-1] + 1) for tap in range(taps)])
    gram, weights = _gram(rng, len(units)), rng.standard_normal((rows, len(units))).astype(np.float32)
    alive = rng.random((rows, int(units.max()) + 1)) < rng.choice([0.1, 0.5, 1.0])
    alive[rng.random(rows) < 0.1] = False
    mask = alive[:, units]
    found = Units.of(units, np.bincount(units), gram, taps).costs(mask, weights, 1000)
    for row in range(rows):
        want = _brute(gram, mask[row], weights[row], units, [np.flatnonzero(mask[row])])
        np.testing.assert_allclose(found[row][alive[row]], want[alive[row]], rtol=2e-3, atol=1e-5)


def test_parts_hold_neighbouring_channels_with_their_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    units = np.arange(8 * 3)
    gram, weights = _gram(rng, 24), rng.standard_normal((2, 24)).astype(np.float32)
    mask = np.ones((2, 24), bool)
    found = Units.of(units, np.ones(24, np.int64), gram, 3).costs(mask, weights, 6)
    parts = [
        np.array([tap * 8 + channel for channel in (c, c + 1) for tap in range(3)]) for c in range(0, 8, 2)
    ]
    for row in range(2):
        np.testing.assert_allclose(found[row], _brute(gram, mask[row], weights[row], units, parts), rtol=2e-3)
    monkeypatch.setattr(removal, "WIDEST", 6)
    again = Units.of(units, np.ones(24, np.int64), gram, 3).costs(mask, weights, 1000)
    np.testing.assert_array_equal(again, found)


def _nearly_singular(seed: int) -> Array:
    v = np.random.default_rng(seed).uniform(1, 2, 3).astype(np.float32)
    return np.asarray(np.outer(v, v) + np.diag(v * np.float32(1e-7)))


def _needs_float64(gram: Array) -> bool:
    if np.linalg.eigvalsh(gram.astype(np.float64))[0] < 1e-9:
        return False
    return bool(factorised(gram, np.arange(len(gram))).dtype == np.float64)


@pytest.mark.parametrize("block", [1, 4])
def test_what_float32_does_not_factorise_is_inverted_in_float64(block: int) -> None:
    near = next(gram for gram in map(_nearly_singular, range(1000)) if _needs_float64(gram))
    gram = np.diag(np.array([0, 0, 0, 2, 4, 5], np.float32))
    gram[:3, :3] = near
    weights = np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)
    units = np.array([0, 0, 0, 1, 1, 1]) if block == 4 else np.arange(6)
    mask = np.ones((3, 6), bool)
    mask[1, 3:] = mask[2, :3] = False
    found = Units.of(units, np.bincount(units), gram, 1).costs(mask, weights, 100)
    for row in range(3):
        want = _brute(gram, mask[row], weights[row], units, [np.flatnonzero(mask[row])])
        alive = mask[row][np.searchsorted(units, np.arange(len(want)))]
        np.testing.assert_allclose(found[row][alive], want[alive], rtol=1e-5)
    with pytest.raises(InputError, match="positive definite"):
        Units.of(units, np.bincount(units), -gram, 1).costs(mask, weights, 100)
