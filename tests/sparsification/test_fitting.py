"""Weights fitted under a mask, with and without a ReLU behind them."""

import numpy as np
import pytest

from coresident.errors import InputError
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import Array
from coresident.sparsification.fitting import Pairs, fitted, is_rectified
from coresident.sparsification.network import layers
from coresident.sparsification.preparation import prepare


def _network() -> Graph:
    node = Node("Conv", ("x", "w"), ("y",), {}, "conv")
    weights = {"w": np.ones((10, 24, 1, 1), np.float32)}
    return prepare(Graph(("x",), ("y",), (node,), weights, {"x": Fact(np.dtype(np.float32), (1, 24, 9, 9))}))


def _problem(seed: int) -> tuple[Array, Array, Array, Array]:
    """What is read, the dense weights, a bias, and a mask that leaves half of the weights."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(24, 24))
    x = np.maximum(mix @ rng.normal(size=(24, 700)), 0).astype(np.float32)
    weights = rng.normal(size=(10, 24)).astype(np.float32)
    bias = rng.normal(size=10).astype(np.float32) * 4
    return x, weights, bias, rng.random(weights.shape) < 0.5


def _fit(x: Array, weights: Array, bias: Array, mask: Array, *, keeps: bool) -> tuple[Array, Array]:
    pairs = Pairs(keeps)
    for part in np.array_split(np.arange(x.shape[1]), 3):
        pairs.add(x[:, part], weights @ x[:, part])
    layer = layers(_network())[0]
    return fitted(layer, pairs, weights * mask, weights, bias, centred=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_that_knows_of_the_relu_is_better_behind_it(seed: int) -> None:
    x, weights, bias, mask = _problem(seed)

    def error(fit: tuple[Array, Array]) -> float:
        found, shift = fit
        assert not np.any(found[~mask])
        wanted = np.maximum(weights @ x + bias[:, None], 0)
        made = np.maximum(found @ x + (bias + shift)[:, None], 0)
        return float(np.square(made - wanted).mean())

    plain, knowing = (error(_fit(x, weights, bias, mask, keeps=keeps)) for keeps in (False, True))
    untouched = error((weights * mask, np.zeros(10)))
    assert knowing < plain < untouched, (knowing, plain, untouched)


def test_without_a_relu_it_is_the_least_squares_fit() -> None:
    x, weights, bias, mask = _problem(7)
    found, shift = _fit(x, weights, bias, mask, keeps=False)
    y = weights @ x
    for row in range(len(weights)):
        columns = np.flatnonzero(mask[row])
        design = np.vstack([x[columns], np.ones(x.shape[1])]).T
        best, *_ = np.linalg.lstsq(design.astype(np.float64), y[row], rcond=None)
        exact = np.square(design @ best - y[row]).mean()
        got = np.square(found[row] @ x + shift[row] - y[row]).mean()
        # Changes are damped a little.
        assert exact * (1 - 1e-4) <= got < 1.1 * exact + 1e-6


def test_where_all_results_show_both_fits_are_one() -> None:
    x, weights, _, mask = _problem(3)
    high = np.full(10, 1e4, np.float32)
    one, other = (_fit(x, weights, high, mask, keeps=keeps) for keeps in (False, True))
    np.testing.assert_allclose(one[0], other[0], atol=2e-2)


def test_values_that_are_not_finite_are_refused() -> None:
    x, weights, bias, mask = _problem(0)
    x[3, 5] = np.inf
    with pytest.raises(InputError, match="finite"), np.errstate(all="ignore"):
        _fit(x, weights, bias, mask, keeps=True)


@pytest.mark.parametrize(
    ("readers", "expected"),
    [
        ([Node("Relu", ("v",), ("y",))], True),
        ([Node("Relu", ("v",), ("y",)), Node("Relu", ("v",), ("z",))], True),
        ([Node("Clip", ("v", "zero", "six"), ("y",))], True),
        ([Node("Clip", ("v", "six", "six"), ("y",))], False),
        ([Node("Clip", ("v", "", "six"), ("y",))], False),
        ([Node("Relu", ("v",), ("y",)), Node("Add", ("v", "x"), ("z",))], False),
        ([], False),
    ],
)
def test_what_is_behind_a_layer(readers: list[Node], expected: bool) -> None:
    constants = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    graph = _network().with_(
        nodes=(Node("Neg", ("x",), ("v",)), *readers),
        initializers=constants,
        outputs=tuple(name for node in readers for name in node.outputs),
    )
    assert is_rectified(graph, "v") == expected
    assert not is_rectified(graph.with_(outputs=("v",)), "v")


@pytest.mark.parametrize("keeps", [False, True])
def test_what_varies_little_around_a_large_mean_is_seen(keeps: bool) -> None:
    x, weights, bias, mask = _problem(8)
    means = 1e4 * np.ones((len(x), 1), np.float32)
    high = np.full(len(bias), 1e6, np.float32)  # behind the ReLU all shows
    near, _ = _fit(x, weights, high, mask, keeps=keeps)
    far, _ = _fit(x + means, weights, high, mask, keeps=keeps)
    np.testing.assert_allclose(far, near, rtol=0, atol=0.05 * np.abs(near).max())
