"""Values inside a network, as the engine computes them."""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.sparsification.execution import Engine, activations, cut, spare_memory

FLOAT = np.dtype(np.float32)


def _network() -> Graph:
    rng = np.random.default_rng(3)
    constants = {
        "w0": rng.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "w1": rng.standard_normal((8, 16, 1, 1)).astype(np.float32),
        "b1": rng.standard_normal(8).astype(np.float32),
    }
    nodes = (
        Node("Conv", ("x", "w0"), ("a",), {"pads": (1, 1, 1, 1)}, "first"),
        Node("Relu", ("a",), ("r",), {}, "relu"),
        Node("Conv", ("r", "w1", "b1"), ("c",), {}, "second"),
        Node("Add", ("c", "x"), ("y",), {}, "sum"),
    )
    facts = {"x": Fact(FLOAT, ("N", 8, 6, 7)), "other": Fact(FLOAT, (1,))}
    return Graph(("x", "other"), ("y",), nodes, constants, facts)


def test_a_graph_is_cut_to_what_values_need() -> None:
    part = cut(_network(), ["r"])
    assert [node.name for node in part.nodes] == ["first", "relu"]
    assert (part.inputs, part.outputs, set(part.initializers)) == (("x",), ("r",), {"w0"})


def test_values_of_batches_of_different_sizes() -> None:
    graph, rng = _network(), np.random.default_rng(4)
    batches = [
        {"x": rng.standard_normal((n, 8, 6, 7)).astype(np.float32), "other": np.zeros(1, np.float32)}
        for n in (3, 3, 2)
    ]
    found = list(activations(graph, ["a", "r", "x", "b1", "a"], batches, engine=Engine(1)))
    assert len(found) == 3
    for values, batch in zip(found, batches):
        assert set(values) == {"a", "r", "x", "b1"}
        assert values["x"] is batch["x"]
        wanted = evaluate(graph, dict(batch))
        for name in ("a", "r", "b1"):
            np.testing.assert_allclose(values[name], wanted[name], atol=1e-4)


def test_inputs_and_constants_need_no_engine() -> None:
    batch = {"x": np.zeros((1, 8, 6, 7), np.float32), "other": np.zeros(1, np.float32)}
    (values,) = activations(_network(), ["x", "b1"], [batch], engine=Engine(1))
    assert values["x"] is batch["x"]


def test_memory_to_spare_is_within_what_there_is() -> None:
    assert 1 << 30 <= spare_memory() < 1 << 45
