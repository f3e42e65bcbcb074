"""Which layers suffer most, found with few networks; losses here are made up, by what is quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from coresident.graph.graph import Fact, Graph, Node
from coresident.sparsification.placement import place
from coresident.sparsification.ranges import Range
from coresident.sparsification.sensitivity import keep_worst, sensitivity

COUNT = 17


def chain() -> tuple[Graph, dict[str, Range]]:
    """Convolutions one behind another."""
    nodes = [Node("Conv", (f"v{i}", "w"), (f"v{i + 1}",), {}, f"layer{i}") for i in range(COUNT)]
    fact = Fact(np.dtype(np.float32), (1, 4, 5, 5))
    weights = {"w": np.ones((4, 4, 1, 1), np.float32)}
    graph = Graph(("v0",), (f"v{COUNT}",), tuple(nodes), weights, {"v0": fact})
    return graph, {name: Range(0, 1, 0, 1) for name in place(graph).values}


def losses(worth: Mapping[str, float], calls: list[int]) -> Callable[[Graph], float]:
    """A network's loss is the sum over its quantised layers."""

    def loss(graph: Graph) -> float:
        calls.append(1)
        convolutions = [node for node in graph.nodes if node.op == "Conv"]
        assert len(convolutions) == COUNT
        return sum(worth.get(n.name, 0.001) for n in convolutions if n.inputs[1].endswith("dequantized"))

    return loss


def test_the_worst_layers_are_found() -> None:
    graph, ranges = chain()
    calls: list[int] = []
    found = sensitivity(graph, ranges, losses({"layer3": 5, "layer11": 2}, calls), tries=20)
    assert len(calls) <= 20
    assert sorted(name for group in found for name in group.layers) == sorted(
        f"layer{i}" for i in range(COUNT)
    )
    assert [group.layers for group in found[:2]] == [("layer3",), ("layer11",)]
    assert found[0].loss == 5


def test_layers_skipped_are_not_tried() -> None:
    graph, ranges = chain()
    found = sensitivity(graph, ranges, losses({}, []), skip=["layer5"], tries=8)
    names = {name for group in found for name in group.layers}
    assert names == {f"layer{i}" for i in range(COUNT)} - {"layer5"}


@pytest.mark.parametrize(
    ("most", "floating"),
    [(10, ()), (3, ("layer3",)), (0.5, ("layer3", "layer11")), (1e-9, None)],
)
def test_as_few_as_do_stay_in_floats(most: float, floating: tuple[str, ...] | None) -> None:
    graph, ranges = chain()
    loss = losses({"layer3": 5, "layer11": 2}, [])
    order = sensitivity(graph, ranges, loss, tries=40)
    kept = keep_worst(graph, ranges, order, loss, most)
    if floating is None:
        assert len(kept.floating) == COUNT
        assert kept.loss == 0
    else:
        assert kept.floating == floating
        assert kept.loss <= most
        assert kept.loss == loss(kept.graph)
