"""Networks with one layer of each kind, for the tests of sparsification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.sparsification.execution import Engine
from coresident.sparsification.network import Layer, layers
from coresident.sparsification.preparation import prepare

Array = np.ndarray[Any, Any]

ENGINE = Engine(1)
"""Tests differ in numbers more than in kernels, which they share."""


@dataclass(frozen=True)
class Case:
    """A layer: operator, shape of the input, shape of the weights, attributes."""

    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "plain": Case("Conv", (2, 5, 7, 9), (6, 5, 3, 3), {"pads": (1, 1, 1, 1)}),
    "pointwise": Case("Conv", (2, 9, 5, 4), (7, 9, 1, 1)),
    "asymmetric": Case("Conv", (2, 8, 8, 7), (5, 8, 3, 2), {"pads": (2, 0, 1, 1), "strides": (2, 1)}),
    "dilated": Case("Conv", (1, 3, 11, 12), (4, 3, 3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
    "same upper": Case("Conv", (2, 4, 8, 9), (5, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    "same lower": Case("Conv", (2, 4, 8, 9), (5, 4, 2, 4), {"auto_pad": "SAME_LOWER", "strides": (2, 3)}),
    "valid": Case("Conv", (1, 4, 8, 9), (5, 4, 3, 3), {"auto_pad": "VALID"}),
    "grouped": Case("Conv", (2, 12, 6, 5), (9, 4, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
    "depthwise": Case("Conv", (2, 7, 6, 5), (7, 1, 3, 3), {"group": 7, "pads": (1, 1, 1, 1)}),
    "1-D": Case("Conv", (2, 6, 17), (5, 6, 5), {"strides": (3,), "pads": (2, 1)}),
    "3-D": Case("Conv", (1, 3, 5, 6, 4), (4, 3, 3, 2, 3), {"pads": (1, 0, 1, 1, 1, 1), "strides": (2, 1, 1)}),
    "up": Case("ConvTranspose", (2, 6, 4, 5), (6, 5, 2, 2), {"strides": (2, 2)}),
    "up overlapping": Case(
        "ConvTranspose",
        (2, 6, 4, 5),
        (6, 5, 3, 4),
        {"strides": (2, 2), "pads": (1, 1, 0, 2), "output_padding": (1, 0)},
    ),
    "up grouped": Case("ConvTranspose", (2, 6, 4, 5), (6, 3, 3, 3), {"strides": (2, 2), "group": 2}),
    "up dilated": Case("ConvTranspose", (1, 4, 5, 6), (4, 3, 3, 2), {"strides": (2, 3), "dilations": (2, 1)}),
    "up sparse": Case("ConvTranspose", (1, 4, 5, 6), (4, 3, 1, 2), {"strides": (2, 3)}),
    "up same": Case(
        "ConvTranspose", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": (2, 2), "auto_pad": "SAME_UPPER"}
    ),
    "up 3-D": Case("ConvTranspose", (1, 4, 3, 2, 3), (4, 3, 2, 3, 2), {"strides": (2, 1, 2)}),
    "gemm": Case("Gemm", (5, 9), (9, 7)),
    "gemm scaled": Case("Gemm", (5, 9), (7, 9), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm transposed": Case("Gemm", (9, 5), (9, 7), {"transA": 1}),
    "matmul": Case("MatMul", (5, 9), (9, 7)),
    "matmul 4-D": Case("MatMul", (2, 3, 5, 9), (9, 7)),
    "matmul vector": Case("MatMul", (9,), (9, 7)),
}


def graph_of_case(case: Case, rng: np.random.Generator, *, bias: bool = True) -> Graph:
    """A network of the one layer; a MatMul's bias is an Add behind it."""
    weights = rng.standard_normal(case.w).astype(np.float32)
    constants: dict[str, Array] = {"w": weights}
    facts = {"x": Fact(np.dtype(np.float32), case.x)}
    if case.op == "MatMul":
        constants |= {"b": rng.standard_normal(case.w[1]).astype(np.float32)} if bias else {}
        nodes = [Node("MatMul", ("x", "w"), ("p" if bias else "y",), {}, "layer")]
        nodes += [Node("Add", ("p", "b"), ("y",), {}, "add")] if bias else []
        return Graph(("x",), ("y",), tuple(nodes), constants, facts)
    channels = case.w[0] if case.op == "Conv" or case.attributes.get("transB") else case.w[1]
    channels *= case.attributes.get("group", 1) if case.op == "ConvTranspose" else 1
    constants |= {"b": rng.standard_normal(channels).astype(np.float32)} if bias else {}
    node = Node(case.op, ("x", "w", *(("b",) if bias else ())), ("y",), case.attributes, "layer")
    return Graph(("x",), ("y",), (node,), constants, facts)


def prepared(case: Case, rng: np.random.Generator, *, bias: bool = True) -> tuple[Graph, Layer]:
    """The network of a layer, prepared, and the layer."""
    graph = prepare(graph_of_case(case, rng, bias=bias))
    (layer,) = layers(graph)
    return graph, layer


def evaluated(graph: Graph, x: Array) -> Array:
    """The first output of a network by the references."""
    return evaluate(graph, {"x": x})[graph.outputs[0]]
