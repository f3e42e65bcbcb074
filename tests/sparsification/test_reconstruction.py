"""Reconstruction against brute force: all masks, plain least squares, one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from coresident.errors import InputError
from coresident.sparsification import cholesky, masked
from coresident.sparsification.blas import one_thread
from coresident.sparsification.moments import Moments
from coresident.sparsification.reconstruction import DAMPING, Level, levels, magnitude, refit

Array = np.ndarray


@pytest.fixture(autouse=True)
def _small_products_on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _data(seed: int, columns: int, count: int = 400) -> Array:
    """Correlated columns with means, not negative, [count, columns]."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * 0.5 + np.eye(columns)
    return np.maximum(rng.standard_normal((count, columns)) @ mix + 0.3, 0)


def _moments(x: Array) -> Moments:
    return Moments(len(x), x.mean(axis=0), np.cov(x.T, bias=True).astype(np.float32))


def _weights(seed: int, rows: int, columns: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def _loss(x: Array, w: Array, now: Array) -> float:
    """Mean square change of the output with the best bias, damped as the solver does, as a share."""
    centred = x - x.mean(axis=0)
    hessian = centred.T @ centred / len(x)
    damped = hessian + DAMPING * hessian.diagonal().mean() * np.eye(len(hessian))
    change = (w - now).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", change, damped, change))


def _best(x: Array, w: Array, mask: Array) -> Array:
    """Each row's best weights under a mask, by least squares on the samples themselves."""
    centred = x - x.mean(axis=0)
    ridge = np.sqrt(DAMPING * (centred**2).mean(axis=0).mean() * len(x))
    rows = np.vstack([centred, ridge * np.eye(x.shape[1])])
    result = np.zeros(w.shape)
    for row in range(len(w)):
        alive = np.flatnonzero(mask[row])
        result[row, alive] = np.linalg.lstsq(rows[:, alive], rows @ w[row], rcond=None)[0]
    return result


def _check(level: Level, x: Array, weights: Array) -> None:
    """What a level says of itself is so."""
    (mask,), (now,), (bias,) = level.masks, level.weights, level.biases
    assert not np.any(now[~mask])
    assert _loss(x, weights, now) <= 1.005 * _loss(x, weights, _best(x, weights, mask)) + 1e-6
    wanted = x @ weights.T
    got = x @ now.T + bias
    np.testing.assert_allclose(got.mean(axis=0), wanted.mean(axis=0), atol=1e-3)
    error = ((got - wanted) ** 2).mean(axis=0).sum() / wanted.var(axis=0).sum()
    assert level.error == pytest.approx(error, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_masks_are_nearly_the_best_of_all(seed: int) -> None:
    x, w = _data(seed, 9), _weights(seed + 100, 1, 9)
    for alive in (3, 5, 7):
        best = np.inf
        for columns in combinations(range(9), alive):
            mask = np.zeros((1, 9), bool)
            mask[0, list(columns)] = True
            best = min(best, _loss(x, w, _best(x, w, mask)))
        (level,) = levels([w], [_moments(x)], [np.arange(9) // 4], [1 - alive / 9], "unstructured", "max")
        assert level.masks[0].sum() == alive
        _check(level, x, w)
        # Greedy choice is not the best one, but near: magnitude is off by several times as much.
        assert _loss(x, w, level.weights[0]) <= 1.5 * best + 1e-9, f"seed {seed}, {alive} left"


def _one_at_a_time(x: Array, w: Array, units: Array, gone: int) -> Array:
    """The mask that removing the cheapest unit of the layer, each time with all rows solved again, leaves."""
    mask = np.ones(w.shape, bool)
    for _ in range(gone):
        costs = {}
        base = _loss(x, w, _best(x, w, mask))
        for row in range(len(w)):
            for unit in set(units[mask[row]]):
                trial = mask.copy()
                trial[row, units == unit] = False
                costs[row, unit] = (_loss(x, w, _best(x, w, trial)) - base) / (units == unit).sum()
        row, unit = min(costs, key=lambda key: costs[key])
        mask[row, units == unit] = False
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_single_weights_go_as_in_exact_optimal_brain_surgeon(seed: int) -> None:
    x, w = _data(seed, 7), _weights(seed + 200, 2, 7)
    (level,) = levels([w], [_moments(x)], [np.arange(7) // 4], [8 / 14], "unstructured", "max")
    np.testing.assert_array_equal(level.masks[0], _one_at_a_time(x, w, np.arange(7), 8), err_msg=f"{seed=}")


@pytest.mark.parametrize("seed", range(3))
def test_blocks_go_as_in_exact_optimal_brain_surgeon(seed: int) -> None:
    # Two taps of six channels: blocks of 4 and 2 at each.
    units = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3])
    x, w = _data(seed, 12), _weights(seed + 300, 2, 12)
    mask = _one_at_a_time(x, w, units, 4)
    (level,) = levels([w], [_moments(x)], [units], [1 - mask.mean()], "4block", "max", taps=[2])
    # Whole chunks of at most the least block are one block at a time.
    np.testing.assert_array_equal(level.masks[0], mask, err_msg=f"{seed=}")
    _check(level, x, w)


@pytest.mark.parametrize("pattern", ["unstructured", "4block"])
@pytest.mark.parametrize("effort", ["fast", "default", "max"])
def test_levels_are_nested_exact_and_better_than_magnitude(pattern: str, effort: str) -> None:
    x, w = _data(1, 72, 3000), _weights(2, 10, 72)
    units = np.arange(72) // 4
    shares = (0.25, 0.5, 0.75, 0.9)
    found = levels([w], [_moments(x)], [units], shares, pattern, effort, taps=[9])
    baseline = magnitude([w], [_moments(x)], [units], shares, pattern)
    before = np.ones(w.shape, bool)
    for share, level, plain in zip(shares, found, baseline):
        assert not np.any(level.masks[0] & ~before)
        before = level.masks[0]
        assert share - 4 / w.size <= level.removed <= share + 1e-9
        if pattern == "4block":
            assert np.all(level.masks[0].reshape(10, -1, 4).sum(axis=2) % 4 == 0)
        _check(level, x, w)
        assert level.error < plain.error, (share, level.error, plain.error)
        assert not np.any(plain.biases[0])
        np.testing.assert_array_equal(plain.weights[0], np.where(plain.masks[0], w, 0))
    assert found[0].error < 0.7 * baseline[0].error
    assert [level.error for level in found] == sorted(level.error for level in found)


def test_narrow_inverses_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    from coresident.sparsification import reconstruction

    x, w = _data(3, 96, 4000), _weights(4, 12, 96)
    arguments = ([w], [_moments(x)], [np.arange(96) // 4], (0.5, 0.8))
    for pattern in reconstruction.PATTERNS:
        exact = levels(*arguments, pattern, "default", taps=[3])
        narrow = reconstruction.Effort(0.15, 0, 24)
        monkeypatch.setitem(reconstruction.EFFORTS, "narrow", narrow)
        for a, b in zip(exact, levels(*arguments, pattern, "narrow", taps=[3])):
            assert b.error < 1.6 * a.error


def test_several_problems_compete_for_what_is_left() -> None:
    xs = [_data(seed, 16, 1000) for seed in (5, 6)]
    weights = [_weights(7, 4, 16), 0.05 * _weights(8, 4, 16)]
    (level,) = levels(weights, [_moments(x) for x in xs], [np.arange(16) // 4] * 2, [0.5], "unstructured")
    kept = [mask.sum() for mask in level.masks]
    assert sum(kept) == 64
    assert kept[0] > 3 * kept[1], "small weights go first"


def test_constant_columns_go_first_and_into_the_bias() -> None:
    x, w = _data(9, 12, 500), _weights(10, 3, 12)
    x[:, 2], x[:, 7] = 0, 3.5
    for pattern, units in (("unstructured", np.arange(12)), ("4block", np.arange(12) // 4)):
        (level,) = levels([w], [_moments(x)], [units], [0.1], pattern)
        if pattern == "unstructured":
            assert not np.any(level.masks[0][:, [2, 7]])
            assert level.error < 1e-4
        np.testing.assert_allclose(
            (x @ level.weights[0].T + level.biases[0]).mean(0), (x @ w.T).mean(0), atol=1e-2
        )
    x[:] = 1.5
    (level,) = levels([w], [_moments(x)], [np.arange(12)], [0.5], "unstructured")
    assert not np.any(level.weights[0])
    assert level.error == 0
    np.testing.assert_allclose(level.biases[0], 1.5 * w.sum(axis=1), rtol=1e-4)


def test_without_centring_the_bias_stays() -> None:
    x, w = _data(11, 12, 500), _weights(12, 3, 12)
    (level,) = levels([w], [_moments(x)], [np.arange(12)], [0.5], "unstructured", centred=False)
    assert not np.any(level.biases[0])
    wanted = x @ w.T
    error = ((x @ level.weights[0].T - wanted) ** 2).mean() / (wanted**2).mean()
    assert level.error == pytest.approx(error, rel=1e-2)


def test_given_masks_are_refitted() -> None:
    x, w = _data(13, 33, 900), _weights(14, 5, 33)
    mask = np.random.default_rng(15).random(w.shape) < 0.4
    mask[2] = False
    mask[3] = True
    level = refit([w], [_moments(x)], [mask])
    _check(level, x, w)
    np.testing.assert_allclose(level.weights[0][3], w[3], atol=1e-3)
    assert level.sparsity == pytest.approx(1 - mask.mean())


@pytest.mark.parametrize("seed", range(3))
def test_iterations_find_what_factorisations_find(seed: int) -> None:
    x = _data(seed, 80, 2000).astype(np.float32)
    gram = x.T @ x / len(x) + 0.01 * np.eye(80, dtype=np.float32)
    w, mask = _weights(seed, 20, 80), np.random.default_rng(seed).random((20, 80)) < 0.5
    target = w @ gram
    direct = masked._by_row(gram, target, mask)
    together = masked._together(gram, target, mask, w, w, 1e-6, 200)
    for row in range(20):
        alive = mask[row]
        exact = np.linalg.solve(gram[np.ix_(alive, alive)].astype(np.float64), target[row, alive])
        np.testing.assert_allclose(direct[row, alive], exact, atol=1e-3)
    change = direct - together
    assert np.einsum("ij,jk,ik->", change, gram, change) < 1e-4 * np.einsum("ij,jk,ik->", w, gram, w)
    assert not np.any(together[~mask])


def _nearly_singular(seed: int) -> Array:
    v = np.random.default_rng(seed).uniform(1, 2, 3).astype(np.float32)
    return np.asarray(np.outer(v, v) + np.diag(v * np.float32(1e-7)))


def _needs_float64(gram: Array) -> bool:
    exact = gram.astype(np.float64)
    if np.linalg.eigvalsh(exact)[0] < 1e-9:
        return False
    return bool(cholesky.factorised(gram, np.arange(len(gram))).dtype == np.float64)


def test_a_factorisation_that_fails_in_float32_is_made_in_float64() -> None:
    gram = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]], np.float64)
    assert cholesky.factorised(gram.astype(np.float32), np.arange(1)).dtype == np.float32
    assert any(map(_needs_float64, map(_nearly_singular, range(1000))))
    negative = -np.eye(2, dtype=np.float32)
    with pytest.raises(InputError, match="positive definite"):
        cholesky.factorised(negative, np.arange(2))


def test_what_cannot_be_worked_with_is_refused() -> None:
    x, w = _data(16, 8), _weights(17, 2, 8)
    units = [np.arange(8) // 4]
    with pytest.raises(InputError, match="no data"):
        levels([w], [Moments(0, np.zeros(8), np.zeros((8, 8), np.float32))], units, [0.5], "4block")
    broken = _moments(x)
    broken.covariance[0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        levels([w], [broken], units, [0.5], "4block")
    with pytest.raises(ValueError, match="ascend"):
        levels([w], [_moments(x)], units, [0.5, 0.4], "4block")
    with pytest.raises(ValueError, match="effort"):
        levels([w], [_moments(x)], units, [0.5], "4block", "much")
    with pytest.raises(ValueError, match="pattern"):
        magnitude([w], [_moments(x)], units, [0.5], "2:4")  # type: ignore[arg-type]
