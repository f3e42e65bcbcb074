"""Correction in sequence: nearer to the dense network after than before, and zeros stay zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sparse_networks import ENGINE

from coresident.errors import InputError
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.sparsification.correction import repair, resolve
from coresident.sparsification.network import Layer, blocks, layers, matrices, weight_of
from coresident.sparsification.preparation import prepare
from coresident.sparsification.reconstruction import magnitude
from coresident.sparsification.statistics import collect

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)
SHAPE = (6, 16, 9, 10)


def _network() -> Graph:
    """A grouped and a transposed convolution, and a product."""
    rng = np.random.default_rng(1)

    def some(*shape: int) -> Array:
        fan = np.prod(shape[1:]) if shape[0] != 16 or len(shape) == 4 else shape[0]
        return (rng.standard_normal(shape) * (2 / fan) ** 0.5).astype(np.float32)

    constants = {
        "w1": some(16, 8, 3, 3),
        "w2": some(16, 12, 3, 3),
        "b2": some(12),
        "w3": some(12, 10),
    }
    pads = {"pads": (1, 1, 1, 1)}
    nodes = (
        Node("Conv", ("x", "w1"), ("c1",), {**pads, "group": 2}, "grouped"),
        Node("Relu", ("c1",), ("r1",), {}, "relu1"),
        Node("ConvTranspose", ("r1", "w2", "b2"), ("c2",), {"strides": (2, 2), **pads}, "up"),
        Node("Relu", ("c2",), ("r2",), {}, "relu2"),
        Node("Transpose", ("r2",), ("t",), {"perm": (0, 2, 3, 1)}, "transpose"),
        Node("MatMul", ("t", "w3"), ("y",), {}, "product"),
    )
    return prepare(Graph(("x",), ("y",), nodes, constants, {"x": Fact(FLOAT, SHAPE)}))


def _batches(seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    smooth = rng.standard_normal((4, *SHAPE[:2], 3, 4)).repeat(3, axis=3).repeat(3, axis=4)[..., :9, :10]
    return [{"x": (a + 0.3 * rng.standard_normal(SHAPE)).astype(np.float32)} for a in smooth]


def _pruned(graph: Graph, found: tuple[Layer, ...]) -> Graph:
    """Half of the smallest weights of each layer gone."""
    changed = dict(graph.initializers)
    for layer, moments in collect(graph, found, lambda: _batches(2), engine=ENGINE):
        weight = changed[layer.weight]
        (level,) = magnitude(matrices(layer, weight), moments, blocks(layer), [0.5], "unstructured")
        changed[layer.weight] = weight_of(layer, level.weights, weight)
    return graph.with_(initializers=changed)


def _error(dense: Graph, graph: Graph, seed: int = 3) -> float:
    """Of the output, on other samples, as a share of its variance."""
    change = power = 0.0
    for batch in _batches(seed)[:2]:
        wanted, got = (evaluate(g, dict(batch))["y"] for g in (dense, graph))
        change += float(((got - wanted) ** 2).mean())
        power += float(wanted.var())
    return change / power


def test_solving_again_brings_the_output_nearer_and_keeps_zeros() -> None:
    dense = _network()
    found = layers(dense)
    sparse = _pruned(dense, found)
    told: list[str] = []

    class Told:
        def stage(self, name: str, total: int) -> None:
            told.append(f"{name} {total}")

        def advance(self, n: int = 1, note: str = "") -> None:
            told.append(note)

    one, three = (
        resolve(dense, sparse, found, lambda: _batches(2), engine=ENGINE, stages=stages, progress=Told())
        for stages in (1, 3)
    )
    assert told == ["solving again 3", "grouped", "up", "product"] * 2
    for layer in found:
        before, after = (g.initializers[layer.weight] for g in (sparse, three))
        assert not np.any(after[before == 0]), layer.name
        assert np.count_nonzero(after) > 0.99 * np.count_nonzero(before)
    assert _error(dense, one) < 0.6 * _error(dense, sparse)
    assert _error(dense, three) < 0.5 * _error(dense, sparse)
    # Later stages see what earlier layers have become.
    assert _error(dense, three, 2) < _error(dense, one, 2)


def test_nothing_to_correct_changes_nothing() -> None:
    dense = _network()
    found = layers(dense)
    again = resolve(dense, dense, found, lambda: _batches(2), engine=ENGINE, stages=1)
    for layer in found:
        np.testing.assert_allclose(
            again.initializers[layer.weight], dense.initializers[layer.weight], atol=2e-3
        )
    assert _error(dense, repair(dense, dense, found, lambda: _batches(2), engine=ENGINE, stages=1)) < 1e-8
    shared = [replace(layer, bias="") for layer in found]
    assert resolve(dense, dense, shared, lambda: _batches(2), engine=ENGINE) is dense
    assert repair(dense, dense, shared, lambda: _batches(2), engine=ENGINE) is dense


@pytest.mark.parametrize("scales", [True, False])
def test_repair_gives_each_channel_its_mean_again(scales: bool) -> None:
    dense = _network()
    found = layers(dense)
    sparse = _pruned(dense, found)
    better = repair(dense, sparse, found, lambda: _batches(2), engine=ENGINE, stages=3, scales=scales)
    assert _error(dense, better) < _error(dense, sparse)
    for layer in found:
        before, after = (g.initializers[layer.weight] for g in (sparse, better))
        np.testing.assert_array_equal(before == 0, after == 0)
        axes = tuple(axis for axis in range(4) if axis != layer.channel_axis)
        wanted, got = (
            np.mean([evaluate(g, dict(b))[layer.output].mean(axis=axes) for b in _batches(2)], axis=0)
            for g in (dense, better)
        )
        np.testing.assert_allclose(got, wanted, atol=2e-4, err_msg=layer.name)


def test_biases_of_quantised_layers_are_repaired_in_their_integers() -> None:
    dense = _network()
    found = layers(dense)[:1]
    (layer,) = found
    scale = np.full(layer.channels, 1 / 64, np.float32)
    integers = {"q": np.full(layer.channels, 40, np.int32), "s": scale, "z": np.zeros(16, np.int32)}
    nodes = [Node("DequantizeLinear", ("q", "s", "z"), ("bias.back",), {"axis": 0}, "dq")]
    for node in dense.nodes:
        nodes.append(node.with_(inputs=(*node.inputs[:2], "bias.back")) if node.name == layer.name else node)
    now = dense.with_(nodes=tuple(nodes), initializers={**dense.initializers, **integers})
    better = repair(dense, now, found, lambda: _batches(2), engine=ENGINE)
    assert better.initializers["q"].dtype == np.int32
    assert np.all(np.abs(better.initializers["q"]) <= 1)
    np.testing.assert_array_equal(better.initializers[layer.weight], dense.initializers[layer.weight])


def test_what_is_not_finite_is_refused() -> None:
    dense = _network()
    found = layers(dense)
    broken = dense.with_(
        initializers={**dense.initializers, found[0].weight: dense.initializers[found[0].weight] * np.inf}
    )
    with pytest.raises(InputError, match="finite"), np.errstate(all="ignore"):
        resolve(dense, broken, found, lambda: _batches(2), engine=ENGINE)
    with pytest.raises(InputError, match="finite"), np.errstate(all="ignore"):
        repair(dense, broken, found, lambda: _batches(2), engine=ENGINE)
    with pytest.raises(InputError, match="no samples"):
        resolve(dense, dense, found, list, engine=ENGINE)
