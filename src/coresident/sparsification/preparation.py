"""A model brought to the form in which its weights can be changed: plain ONNX operators and one way to write
each layer.

1. Constants are folded, float16 becomes float32 between inputs and outputs, Identity and Dropout go.
2. Batch norms, scales and shifts go into the layer that they follow.
3. Each Conv, ConvTranspose, Gemm and MatMul with constant weights gets a bias of its own, zeros where it had
   none: statistics are repaired by changing it. That of a MatMul is an Add behind it.
4. alpha and beta of a Gemm are multiplied into its constants.
5. Nodes get names that are unique.

Values that remain keep their names, and free dimensions stay free: only what holds for all sizes is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from coresident.errors import InputError, UnsupportedModel
from coresident.graph import operators
from coresident.graph.graph import Dimension, Fact, Graph, Node
from coresident.graph.operator import Array, infer
from coresident.passes import fold_batch_norm, fold_constants, remove_identities, widen_half

assert operators, "importing them fills the table"

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input holds weights."""

_QUANTISED = frozenset(
    (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "ConvTransposeInteger",
        "MatMulInteger",
    )
)


def bound(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """The graph at one set of sizes, with facts for all values.

    Args:
        graph: as read or prepared.
        shapes: of the inputs; those of an input whose sizes are all fixed may be left out.

    Raises:
        InputError: a size is missing, or is not what the model says.
        ModelError: the sizes do not fit each other.
    """
    sizes: dict[str, int] = {}
    facts: dict[str, Fact] = {}
    if unknown := sorted((shapes or {}).keys() - set(graph.inputs)):
        raise InputError(f"no input {unknown[0]!r}; the inputs are {', '.join(graph.inputs)}")
    for name in graph.inputs:
        fact = graph.facts[name]
        shape: tuple[Dimension, ...] = tuple((shapes or {}).get(name, fact.shape))
        if len(shape) != len(fact.shape):
            raise InputError(f"input {name!r} has {len(fact.shape)} dimensions, {fact.shape}", shape=shape)
        for want, have in zip(fact.shape, shape):
            if not isinstance(have, int):
                raise InputError(f"input {name!r}: the size of {have!r} must be given", shape=fact.shape)
            known = want if isinstance(want, int) else sizes.setdefault(want, have) if want else have
            if known != have:
                raise InputError(f"input {name!r}: {have} where the model takes {want}={known}", shape=shape)
        facts[name] = Fact(fact.dtype, shape)
    outputs = {
        name: Fact(graph.facts[name].dtype, ())
        for name in graph.outputs
        if name in graph.facts and name not in graph.inputs
    }
    return infer(graph.with_(facts={**outputs, **facts}))


def prepare(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Graph:
    """The network as it is sparsified; computes what the model computes, but for rounding.

    Args:
        graph: as read (`onnx.reader`).
        shapes: sizes of the inputs at which the passes look at it; needed where the model has free ones.

    Returns:
        A graph of plain ONNX operators with facts for inputs and outputs as the model declares them.

    Raises:
        UnsupportedModel: it is quantised already.
        InputError: sizes are missing, or not what the model says.
        ModelError: it contradicts itself.
    """
    quantised = [node for node in graph.nodes if node.op in _QUANTISED]
    if quantised:
        raise UnsupportedModel(
            f"the model is quantised already, in {len(quantised)} places; sparsify the float model that it"
            " was made from",
            node=quantised[0].name,
            op=quantised[0].op,
        )
    free = {name: graph.facts[name] for name in (*graph.inputs, *graph.outputs) if name in graph.facts}
    work = bound(widen_half.widened(graph), shapes)
    for step in (fold_constants.CONSTANTS, remove_identities.COPIES, fold_batch_norm.PASS):
        work = step.run(work)
    return _written(_named(work)).with_(facts=free)


def _named(graph: Graph) -> Graph:
    """The graph with unique names of its nodes."""
    taken: set[str] = set()
    nodes = []
    for node in graph.nodes:
        stem = node.name or next(filter(None, node.outputs))
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}.{number}"
        taken.add(name)
        nodes.append(node.with_(name=name))
    return graph.with_(nodes=tuple(nodes))


class _Writer:
    """Writes each layer in its one form; grows nodes and constants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.constants = dict(graph.initializers)
        self._taken = {*graph.inputs, *graph.initializers, *graph.facts}
        self._names = {node.name for node in graph.nodes}
        self._readings = Counter(name for node in graph.nodes for name in node.inputs)
        self._readings.update(graph.outputs)
        self._own: dict[str, str] = {}

    def add(self, node: Node) -> None:
        if node.op == "Add" and node.outputs[0] in self._own:
            # The bias of a MatMul.
            shared = self._own[node.outputs[0]]
            bias = self._bias(node, shared, self.constants[shared])
            node = node.with_(inputs=tuple(bias if name == shared else name for name in node.inputs))
        weights = self.graph.constant(node.input(1))
        if node.op not in LAYERS or weights is None or not np.issubdtype(weights.dtype, np.floating):
            self.nodes.append(node)
        elif node.op == "MatMul":
            self._product(node, weights)
        elif node.op == "Gemm":
            self._gemm(node, weights)
        else:
            channels = weights.shape[0 if node.op == "Conv" else 1]
            channels *= 1 if node.op == "Conv" else int(node.get("group", 1))
            bias = self._bias(node, node.input(2), np.zeros(channels, weights.dtype))
            self.nodes.append(node.with_(inputs=(*node.inputs[:2], bias)))

    def _gemm(self, node: Node, weights: Array) -> None:
        alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
        columns = weights.shape[0 if node.get("transB", 0) else 1]
        weight, bias = node.inputs[1], node.input(2)
        constant = np.zeros(columns, weights.dtype) if not bias else self.graph.constant(bias)
        if constant is None or (constant.size != columns and constant.size != 1):
            # A bias that depends on the row, or on the input, stays as it is.
            self.nodes.append(node)
            return
        if alpha != 1.0:
            weight = self._fresh(f"{weight}.scaled")
            self.constants[weight] = (weights * weights.dtype.type(alpha)).astype(weights.dtype)
        row = np.broadcast_to(np.asarray(constant * weights.dtype.type(beta)).ravel(), (columns,))
        same = bool(bias) and beta == 1.0 and constant.shape == (columns,)
        attributes = {k: v for k, v in node.attributes.items() if k not in ("alpha", "beta")}
        name = self._bias(node, bias if same else "", row.astype(weights.dtype))
        inputs = (node.inputs[0], weight, name)
        self.nodes.append(node.with_(inputs=inputs, attributes=attributes))

    def _product(self, node: Node, weights: Array) -> None:
        result = node.outputs[0]
        rank = len(self.graph.facts[result].shape)
        readers = [each for each in self.graph.nodes if result in each.inputs]
        if weights.ndim != 2 or rank < 1:
            self.nodes.append(node)
            return
        if len(readers) == 1 and readers[0].op == "Add" and result not in self.graph.outputs:
            other = next((name for name in readers[0].inputs if name != result), "")
            constant = self.graph.constant(other)
            if constant is not None and constant.shape == weights.shape[1:]:
                self._own[readers[0].outputs[0]] = other
                self.nodes.append(node)
                return
        product, name = self._fresh(f"{result}.product"), f"{node.name}.bias"
        while name in self._names:
            name += "."
        self._names.add(name)
        bias = self._bias(node, "", np.zeros(weights.shape[1], weights.dtype))
        self.nodes.append(node.with_(outputs=(product,)))
        self.nodes.append(Node("Add", (product, bias), (result,), {}, name))

    def _bias(self, node: Node, given: str, otherwise: Array) -> str:
        """The bias of a layer: the one given, copied where others read it too, or another."""
        constant = self.graph.constant(given)
        if given and (constant is None or self._readings[given] == 1):
            return given
        name = self._fresh(f"{given or node.outputs[0] + '.bias'}")
        self.constants[name] = otherwise if constant is None else constant
        return name

    def _fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}.{number}"
        self._taken.add(name)
        return name


def _written(graph: Graph) -> Graph:
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.add(node)
    read = {name for node in writer.nodes for name in node.inputs} | set(graph.outputs)
    constants = {name: array for name, array in writer.constants.items() if name in read}
    return graph.with_(nodes=tuple(writer.nodes), initializers=constants)
