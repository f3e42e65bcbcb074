"""Small graphs by hand, and the check that a pass leaves what they compute."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from coresident.graph import operators  # noqa: F401
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer
from coresident.passes.patch import Pass
from coresident.passes.verify import verify


class Net:
    """Builds a graph node by node: `y = net("Conv", x, w, pads=(1, 1, 1, 1))`."""

    def __init__(self) -> None:
        self.facts: dict[str, Fact] = {}
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def input(self, *shape: int, dtype: str = "float32") -> str:
        name = f"input{len(self.facts)}"
        self.facts[name] = Fact(np.dtype(dtype), shape)
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, "int64")

    def random(self, *shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> str:
        generator = np.random.default_rng((seed, len(self.constants)))
        return self.constant(generator.uniform(low, high, shape))

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = tuple(f"{op.lower()}{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs))
        self.nodes.append(Node(op, inputs, names, attributes, names[0]))
        return names[0] if outputs == 1 else names

    def graph(self, *outputs: str) -> Graph:
        inputs = tuple(self.facts)
        return infer(Graph(inputs, outputs, tuple(self.nodes), self.constants, self.facts))


class QuantisedNet(Net):
    """A net that quantises and dequantises."""

    def q(self, x: str, scale: float = 0.03, point: int = 7, dtype: str = "uint8") -> str:
        return str(self("QuantizeLinear", x, self.constant(scale), self.constant(point, dtype)))

    def dq(self, x: str, scale: float = 0.03, point: int = 7, dtype: str = "uint8") -> str:
        return str(self("DequantizeLinear", x, self.constant(scale), self.constant(point, dtype)))

    def qdq(self, x: str, scale: float = 0.03, point: int = 7, dtype: str = "uint8") -> str:
        return self.dq(self.q(x, scale, point, dtype), scale, point, dtype)

    def bytes(self, *shape: int, dtype: str = "int8") -> str:
        bounds = np.iinfo(dtype)
        rng = np.random.default_rng((len(self.constants), *shape))
        return self.constant(rng.integers(bounds.min, bounds.max, shape), dtype)

    def weights(self, *shape: int, axis: int | None = 0, dtype: str = "int8", point: int = 0) -> str:
        """Dequantised constant bytes, with a scale for each index of an axis."""
        size = () if axis is None else (shape[axis],)
        scale = self.constant(np.linspace(0.002, 0.01, max(sum(size), 1)).reshape(size) if size else 0.004)
        points = self.constant(np.full(size, point), dtype)
        attributes = {} if axis is None else {"axis": axis}
        return str(self("DequantizeLinear", self.bytes(*shape, dtype=dtype), scale, points, **attributes))


def feeds(graph: Graph, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs, [-4, 4) for floats."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.uniform(-4, 4, graph.facts[name].sizes).astype(graph.facts[name].dtype)
        for name in graph.inputs
    }


def same(before: Graph, after: Graph, seed: int = 0, tolerance: float = 1e-5) -> None:
    """Compare what two graphs compute from the same random inputs; tolerance is of the output's range."""
    given = feeds(before, seed)
    expected, found = evaluate(before, dict(given)), evaluate(after, dict(given))
    for name in before.outputs:
        span = max(float(np.abs(expected[name]).max(initial=0)), 1.0)
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=tolerance * span, err_msg=f"output {name}, seed {seed}"
        )


def applied(step: Pass, graph: Graph, seed: int = 0, tolerance: float = 1e-5) -> Graph:
    """The graph after a pass, checked to be sound, to compute the same and to be settled."""
    after = step.run(graph)
    verify(graph, after, step.name)
    same(graph, after, seed, tolerance)
    assert counts(step.run(after)) == counts(after), "a second run of the pass finds more to do"
    return after


def counts(graph: Graph) -> dict[str, int]:
    """How many nodes there are of each operator."""
    return dict(Counter(node.op for node in graph.nodes))


def only(graph: Graph, op: str) -> Node:
    """The one node of an operator."""
    (node,) = (node for node in graph.nodes if node.op == op)
    return node
