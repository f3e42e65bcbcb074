"""Where a network is quantised: which layers multiply bytes, and which values between them are bytes.

A value is quantised where a layer to be quantised reads it, and where bytes go on from one operator to
another on the way from such layers to such a layer: through sums, joins, pools, resizes, activations, and
what only moves elements. It is not

1. between a sum, layer or pool and the Relu or Clip that alone reads it: saturation is that function then;
2. inside a function of one value, x * sigmoid(x) say, which is one table of bytes;
3. where only operators that stay in floats read it: a layer before an output gives floats at once.

Operators that stay in floats: what a quantised layer is not reached from (an output's tail: softmax, boxes),
normalisations over channels, products of two activations, and layers that are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from coresident.graph.graph import Graph, Node

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input holds weights."""

MOVERS = frozenset(
    (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"),
        *("Slice", "Split", "Expand", "Tile", "Gather", "Pad", "MaxPool", "Resize", "Identity"),
    )
)
"""Operators whose results have elements of their first input: they share its parameters."""

POOLS = frozenset(("AveragePool", "GlobalAveragePool", "ReduceMean"))

FUNCTIONS = frozenset(
    (
        *("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu"),
        *("Celu", "Gelu", "Mish", "Swish", "Softplus", "Softsign", "ThresholdedRelu", "Erf", "Abs", "Neg"),
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "BatchNormalization"),
    )
)
"""Element-wise operators that bytes go through. Others (Exp, Sqrt, Pow) belong to normalisations and tails,
whose values have no range that a byte spans."""

BOUNDS = ("Relu", "Clip")


@dataclass(frozen=True)
class Placement:
    """Where a network is quantised.

    Args:
        values: to be quantised, in the order in which they are made.
        sources: for each of them the value whose parameters it takes, often itself.
        joined: (input of a Concat, its result): parameters to share if their ranges are alike; the input has
            other readers as well.
        layers: names of the nodes that multiply bytes.
    """

    values: tuple[str, ...]
    sources: Mapping[str, str]
    joined: tuple[tuple[str, str], ...]
    layers: tuple[str, ...]


def place(graph: Graph, skip: Collection[str] = ()) -> Placement:
    """Where a network is quantised.

    Args:
        graph: prepared (`network.prepare`).
        skip: names of nodes that stay in floats.
    """
    return _Places(graph, frozenset(skip)).placement()


def float_tail(graph: Graph) -> frozenset[str]:
    """Names of the nodes that stay in floats by default, because no layer is behind them: those of an
    output's tail (softmax, sigmoid, arithmetic on boxes), with a convolution that is an expectation over
    bins of a box edge (YOLOv8's DFL).
    """
    leads: set[str] = set()
    tail = set()
    for node in reversed(graph.nodes):
        if not is_expectation(graph, node) and (
            is_layer(graph, node) or any(name in leads for name in node.outputs)
        ):
            leads.update(filter(None, node.inputs))
        else:
            tail.add(node.name)
    return frozenset(tail)


def is_layer(graph: Graph, node: Node) -> bool:
    """Whether a node is a product of an activation and constant float32 weights, with a constant bias for
    each output channel or none."""
    if node.op not in LAYERS or graph.constant(node.inputs[0]) is not None:
        return False
    weights = graph.constant(node.inputs[1])
    if weights is None or weights.dtype != np.float32:
        return False
    if node.op == "MatMul":
        return weights.ndim == 2
    if not node.input(2):
        return True
    bias = graph.constant(node.inputs[2])
    return bias is not None and bias.shape == (channels(node, weights.shape),)


def channels(node: Node, shape: tuple[int, ...]) -> int:
    """Output channels of a layer with weights of this shape."""
    if node.op == "ConvTranspose":
        return shape[1] * int(node.get("group", 1))
    return shape[0] if node.op == "Conv" or node.get("transB", 0) else shape[1]


def is_expectation(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution with 0, 1, 2, ... as its weights."""
    weights = graph.constant(node.input(1)) if node.op == "Conv" else None
    return (
        weights is not None and weights.size > 1 and np.array_equal(weights.ravel(), np.arange(weights.size))
    )


class _Places:
    """Works a placement out."""

    def __init__(self, graph: Graph, skip: frozenset[str]) -> None:
        self.graph = graph
        self.skip = skip
        self.readers = graph.consumers()
        self.makers = graph.producers()
        self.layers = {
            node.outputs[0]: node
            for node in graph.nodes
            if node.name not in skip and is_layer(graph, node) and not is_expectation(graph, node)
        }
        self.roots = self._roots()
        self.bytes_possible = self._bytes_possible()
        self.leads = self._leads()

    def is_layer(self, node: Node) -> bool:
        return self.layers.get(node.outputs[0]) is node

    def operands(self, node: Node) -> tuple[str, ...]:
        """The values of a node that may be bytes if its result is; none for operators that stay in floats."""
        if node.name in self.skip:
            return ()
        if node.op == "Pad" and not self._pads_with_zero(node):
            return ()
        if node.op == "Resize" and node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return ()
        if node.op == "ReduceMean" and not self._is_spatial(node):
            return ()
        if node.op in MOVERS or node.op in POOLS:
            return self._activations(node.inputs[:1])
        found = self._activations(node.inputs)
        if node.op == "Div" and node.inputs[1] in found:
            return ()
        return found if node.op in FUNCTIONS or node.op == "Concat" else ()

    def placement(self) -> Placement:
        read = {node.inputs[0] for node in self.layers.values()}
        order = [*self.graph.inputs, *(name for node in self.graph.nodes for name in node.outputs if name)]
        values = tuple(
            name
            for name in order
            if name in read
            or (name in self.bytes_possible and name in self.leads and not self._is_interior(name))
        )
        sources, joined = self._shared(values)
        return Placement(values, sources, joined, tuple(node.name for node in self.layers.values()))

    def _activations(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name and name not in self.graph.initializers)

    def _pads_with_zero(self, node: Node) -> bool:
        if node.get("mode", "constant") != "constant" or not node.input(2):
            return True
        value = self.graph.constant(node.input(2))
        return value is not None and not value.any()

    def _is_spatial(self, node: Node) -> bool:
        """Whether a mean is one over pixels. Along one axis alone it is that of a normalisation."""
        axes = self.graph.constant(node.input(1))
        return axes is not None and axes.size >= 2

    def _roots(self) -> dict[str, str]:
        """Of each result of element-wise operators on one value, that value."""
        roots: dict[str, str] = {}
        for node in self.graph.nodes:
            operands = {roots.get(name, name) for name in self._activations(node.inputs)}
            if node.op in FUNCTIONS and len(operands) == 1:
                roots[node.outputs[0]] = operands.pop()
        return roots

    def _bytes_possible(self) -> set[str]:
        """Values that come from layers that multiply bytes, by operators that bytes go through."""
        found: set[str] = set()
        for node in self.graph.nodes:
            if self.is_layer(node) or any(name in found for name in self.operands(node)):
                found.update(filter(None, node.outputs))
        return found

    def _leads(self) -> set[str]:
        """Values that go on to a layer as bytes, or to an average, which smooths their rounding."""
        leads: set[str] = set()
        for node in reversed(self.graph.nodes):
            if self.is_layer(node):
                leads.add(node.inputs[0])
            elif node.op in POOLS or any(name in leads for name in node.outputs):
                leads.update(self.operands(node))
        return leads

    def _is_interior(self, name: str) -> bool:
        readers = self.readers.get(name, [])
        if name in self.graph.outputs or not readers:
            return False
        maker = self.makers.get(name)
        if maker is not None and len(readers) == 1 and maker.op not in MOVERS:
            reader = readers[0]
            if reader.op in BOUNDS and self.operands(reader) == (name,):
                return True
            if maker.op == "MatMul" and reader.op == "Add" and self.operands(reader) == (name,):
                return True
        root = self.roots.get(name)
        return root is not None and all(self.roots.get(reader.outputs[0]) == root for reader in readers)

    def _shared(self, values: tuple[str, ...]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
        """For each value the one whose parameters it takes, and what may be shared besides."""
        sources = {name: name for name in values}
        groups: dict[str, list[str]] = {name: [name] for name in values}

        def merge(name: str, source: str) -> None:
            for each in groups.pop(sources[name]):
                sources[each] = source
                groups[source].append(each)

        joined: list[tuple[str, str]] = []
        for node in self.graph.nodes:
            if node.op in MOVERS and self._is_mover(node) and node.inputs[0] in sources:
                for name in node.outputs:
                    if name in sources and name not in self.graph.inputs:
                        merge(name, sources[node.inputs[0]])
        for node in self.graph.nodes:
            whole = node.outputs[0]
            if node.op != "Concat" or whole not in sources or not self.operands(node):
                continue
            for name in dict.fromkeys(node.inputs):
                if name not in sources or sources[name] == sources[whole]:
                    continue
                members = groups[sources[name]]
                if all(
                    self._stays(reader, node, members) for each in members for reader in self.readers[each]
                ):
                    merge(name, sources[whole])
                else:
                    joined.append((name, whole))
        return sources, tuple(joined)

    def _is_mover(self, node: Node) -> bool:
        """Resizes that interpolate have elements of their own."""
        return node.op != "Resize" or node.get("mode", "nearest") == "nearest"

    def _stays(self, reader: Node, join: Node, members: list[str]) -> bool:
        """Whether what a reader makes of a value has the value's parameters."""
        return reader is join or (
            reader.op in MOVERS and self._is_mover(reader) and reader.outputs[0] in members
        )
