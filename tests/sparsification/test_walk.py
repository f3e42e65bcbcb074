"""Walks piece by piece give what the whole network gives, while weights change behind each piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.sparsification.execution import Engine
from coresident.sparsification.walk import Walk

Array = np.ndarray[Any, Any]


def _network(rng: np.random.Generator) -> Graph:
    """Residual, a skip past two layers, dequantised weights, a shape computed from the input."""

    def some(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    constants = {
        "w0": some(8, 8, 3, 3),
        "w1": rng.integers(-9, 9, (8, 8, 3, 3)).astype(np.int8),
        "s1": np.full(8, 0.02, np.float32),
        "z1": np.zeros(8, np.int8),
        "w2": some(8, 16, 1, 1),
        "rest": np.array([-1]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "w3": some(8, 4),
    }
    pads = {"pads": (1, 1, 1, 1)}
    nodes = (
        Node("DequantizeLinear", ("w1", "s1", "z1"), ("w1.f",), {"axis": 0}, "weights"),
        Node("Shape", ("x",), ("shape",), {}, "shape"),
        Node("Slice", ("shape", "zero", "one"), ("n",), {}, "slice"),
        Node("Conv", ("x", "w0"), ("a",), pads, "first"),
        Node("Relu", ("a",), ("r",), {}, "relu"),
        Node("Conv", ("r", "w1.f"), ("b",), pads, "second"),
        Node("Add", ("b", "r"), ("s",), {}, "sum"),
        Node("Concat", ("s", "x"), ("c",), {"axis": 1}, "concat"),
        Node("Conv", ("c", "w2"), ("d",), {}, "third"),
        Node("GlobalAveragePool", ("d",), ("g",), {}, "pool"),
        Node("Concat", ("n", "rest"), ("to",), {"axis": 0}, "target"),
        Node("Reshape", ("g", "to"), ("f",), {}, "reshape"),
        Node("MatMul", ("f", "w3"), ("y",), {}, "last"),
    )
    facts = {"x": Fact(np.dtype(np.float32), ("N", 8, "H", "W"))}
    return Graph(("x",), ("y",), nodes, constants, facts)


@pytest.mark.parametrize("memory", [1 << 30, 9000, 0])
def test_pieces_give_what_the_whole_network_gives(memory: int) -> None:
    rng = np.random.default_rng(1)
    graph = _network(rng)
    shapes = [(3, 8, 6, 7), (3, 8, 6, 7), (2, 8, 5, 5)]
    batches = [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]
    asked = 0

    def again() -> list[dict[str, Array]]:
        nonlocal asked
        asked += 1
        return batches

    walk = Walk(again, Engine(1), memory)
    for before, wanted in (
        ("first", ["x"]),
        ("second", ["r", "d"]),
        ("third", ["c", "y"]),
        ("last", ["f"]),
    ):
        found = list(walk.values(graph, before, wanted))
        assert len(found) == len(batches)
        for values, batch in zip(found, batches):
            expected = evaluate(graph, dict(batch))
            assert list(values) == wanted
            for name in wanted:
                np.testing.assert_allclose(
                    values[name], expected[name], atol=1e-4, err_msg=f"{before} {name}"
                )
        # What stands behind changes; what came before does not.
        changing = {"first": "w0", "second": "s1", "third": "w2", "last": "w3"}[before]
        moved = graph.initializers[changing] * np.float32(0.5)
        graph = graph.with_(initializers={**graph.initializers, changing: moved})
    assert asked == {1 << 30: 1, 0: 4}.get(memory, asked)
