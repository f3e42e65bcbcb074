"""Moments collected from samples against those of all columns of all positions."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_networks import CASES, ENGINE, prepared

from coresident.errors import InputError
from coresident.graph.graph import Fact, Graph, Node
from coresident.sparsification import moments, statistics
from coresident.sparsification.moments import MomentSums
from coresident.sparsification.network import layers, problems
from coresident.sparsification.preparation import prepare
from coresident.sparsification.statistics import Sampler, collect, pictures
from coresident.sparsification.unfolding import columns, positions

FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize(
    "name", ["asymmetric", "grouped", "up overlapping", "1-D", "3-D", "gemm", "matmul 4-D"]
)
def test_moments_are_those_of_all_positions(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(1)
    graph, layer = prepared(case, rng)
    batches = [{"x": rng.standard_normal(case.x).astype(np.float32)} for _ in range(3)]
    ((found, moments),) = collect(graph, [layer], lambda: batches, engine=ENGINE)
    assert found is layer
    assert len(moments) == len(problems(layer))
    for number, each in enumerate(moments):
        seen = [columns(layer, number, b["x"], np.arange(positions(layer, number, case.x))) for b in batches]
        x = np.concatenate(seen, axis=1).astype(np.float64)
        assert each.count == x.shape[1]
        np.testing.assert_allclose(each.mean, x.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(each.second, x @ x.T / x.shape[1], atol=1e-4)
        np.testing.assert_allclose(each.covariance, np.cov(x, bias=True), atol=1e-4)


def _two_layers() -> Graph:
    rng = np.random.default_rng(2)
    constants = {
        "w0": rng.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "w1": rng.standard_normal((8, 16, 3, 3)).astype(np.float32),
    }
    nodes = (
        Node("Conv", ("x", "w0"), ("a",), {"pads": (1, 1, 1, 1)}, "first"),
        Node("Relu", ("a",), ("r",), {}, "relu"),
        Node("Conv", ("r", "w1"), ("y",), {"pads": (1, 1, 1, 1)}, "second"),
    )
    return prepare(Graph(("x",), ("y",), nodes, constants, {"x": Fact(FLOAT, (4, 8, 20, 20))}))


def test_the_same_positions_are_drawn_for_the_same_seed_however_layers_are_grouped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "SAMPLES", 0)
    graph, rng = _two_layers(), np.random.default_rng(3)
    both = layers(graph)
    batches = [{"x": rng.standard_normal((4, 8, 20, 20)).astype(np.float32)} for _ in range(2)]
    together = {a.name: m for a, m in collect(graph, both, lambda: batches, engine=ENGINE, seed=5)}
    apart = {a.name: m for a, m in collect(graph, both, lambda: batches, engine=ENGINE, seed=5, memory=1)}
    other = {a.name: m for a, m in collect(graph, both[:1], lambda: batches, engine=ENGINE, seed=6)}
    for name in ("first", "second"):
        assert 0 < together[name][0].count < 8 * 400
        np.testing.assert_array_equal(together[name][0].mean, apart[name][0].mean)
        np.testing.assert_allclose(
            together[name][0].covariance, apart[name][0].covariance, rtol=1e-4, atol=1e-4
        )
    assert np.any(together["first"][0].mean != other["first"][0].mean)
    # Chosen positions are few, but tell the same.
    np.testing.assert_allclose(together["first"][0].mean, other["first"][0].mean, atol=0.25)


def test_each_picture_gives_as_many_positions() -> None:
    (layer, _) = layers(_two_layers())
    (chosen,) = Sampler(layer, 0, 1000).drawn((3, 8, 20, 20))
    assert np.bincount(chosen // 400).tolist() == [49, 49, 49]
    assert len(set(chosen.tolist())) == len(chosen)
    (more,) = Sampler(layer, 0, 4).drawn((1, 8, 20, 20))
    assert len(more) == 400


def test_samples_that_are_missing_or_not_finite_are_refused() -> None:
    graph = _two_layers()
    both = layers(graph)
    with pytest.raises(InputError, match="no samples"):
        list(collect(graph, both, list, engine=ENGINE))
    x = np.ones((4, 8, 20, 20), np.float32)
    assert pictures(lambda: [{"x": x}, {"x": x}]) == 8
    x[1] = np.nan
    with pytest.raises(InputError, match="not finite") as error:
        list(collect(graph, both, lambda: [{"x": x}], engine=ENGINE))
    assert error.value.node == "first"
    x[:] = 1e25
    with pytest.raises(InputError, match=r"too large|not finite"), np.errstate(all="ignore"):
        list(collect(graph, both[:1], lambda: [{"x": x}], engine=ENGINE))
    assert list(collect(graph, [], list, engine=ENGINE)) == []


@pytest.mark.parametrize("columns", [1, 5, 30, 31])
@pytest.mark.parametrize("rows", [4, 512])
def test_moments_wait_for_each_other(columns: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_ROWS", rows)
    x = np.random.default_rng(columns).standard_normal((columns, 57)).astype(np.float32)
    sums = MomentSums()
    for part in np.split(x, [1, 2, 40, 41, 50], axis=1):
        np.testing.assert_array_equal(sums.add(part), part - sums.pivot[:, None])
        if sums.count == 41:
            sums.moments()
    found = sums.moments()
    assert found.count == 57
    np.testing.assert_allclose(found.mean, x.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(x, bias=True).reshape(columns, -1), atol=1e-5)


def test_small_variances_do_not_drown_in_large_means() -> None:
    rng = np.random.default_rng(3)
    low = rng.standard_normal((6, 1)) * rng.standard_normal((6, 500))
    x = (3000 + low).astype(np.float32)
    sums = MomentSums()
    for part in np.array_split(x, 7, axis=1):
        sums.add(part)
    found = sums.moments()
    np.testing.assert_allclose(found.mean, x.mean(axis=1, dtype=np.float64), rtol=1e-7)
    exact = np.cov(x.astype(np.float64), bias=True)
    np.testing.assert_allclose(found.covariance, exact, rtol=0, atol=1e-4 * np.abs(exact).max())
