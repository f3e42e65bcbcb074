"""Biases that make up for what rounding to eight bits shifts the mean of a layer's output by.

Each layer is corrected for its own rounding alone: it is computed in eight bits from what the float network
gives it, beside the float layer, in one network. So all layers are corrected in one pass, and no shift is
made up for twice, in the layer that causes it and in those behind it.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import ceil, prod

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import Array
from coresident.sparsification.execution import Engine, activations
from coresident.sparsification.placement import LAYERS
from coresident.sparsification.preparation import bound

LOCAL = ".in bytes"
"""Ends the names of values beside those of the float network."""


def correct_biases(
    graph: Graph,
    quantised: Graph,
    batches: Callable[[], Iterable[Mapping[str, Array]]],
    *,
    engine: Engine,
    memory: int = 1 << 30,
) -> Graph:
    """The quantised network with the int32 biases of its layers corrected.

    Args:
        graph: prepared, that the other was made of.
        quantised: by `quantization.quantize`.
        batches: gives arrays for the inputs, batch by batch, the same each time.
        engine: to run the network by.
        memory: bytes of values that are computed at a time.

    Raises:
        InputError: no samples.
        ModelError: the network can't be compiled.
    """
    makers = quantised.producers()
    layers = [node for node in quantised.nodes if node.op in LAYERS and _has_bias(quantised, makers, node)]
    first = next(iter(batches()), None)
    if first is None:
        raise InputError("no samples to correct biases with; at least one is needed")
    known = bound(graph, {name: first[name].shape for name in graph.inputs}).facts
    bytes_of = [8 * prod(known[node.outputs[0]].sizes) for node in layers]
    count = max(ceil(sum(bytes_of) / memory), 1)
    shifts: dict[str, Array] = {}
    for part in range(count):
        shifts |= _shifts(graph, quantised, layers[part::count], batches, engine)
    constants = dict(quantised.initializers)
    for node in layers:
        whole, scale = makers[node.inputs[2]].inputs[:2]
        moved = constants[whole] + np.rint(shifts[node.outputs[0]] / constants[scale].astype(np.float64))
        bounds = np.iinfo(np.int32)
        constants[whole] = moved.clip(bounds.min, bounds.max).astype(np.int32)
    return quantised.with_(initializers=constants)


def _has_bias(graph: Graph, makers: Mapping[str, Node], node: Node) -> bool:
    """Whether a node is a layer in eight bits with a bias of int32."""
    sources = [makers.get(name) for name in node.inputs]
    if len(sources) != 3 or any(maker is None or maker.op != "DequantizeLinear" for maker in sources):
        return False
    constant = graph.constant(makers[node.inputs[2]].inputs[0])
    return constant is not None and constant.dtype == np.int32


def _shifts(
    graph: Graph,
    quantised: Graph,
    layers: list[Node],
    batches: Callable[[], Iterable[Mapping[str, Array]]],
    engine: Engine,
) -> dict[str, Array]:
    """Of each layer's result, by which the mean of each channel is too small in eight bits."""
    both = _side_by_side(graph, quantised, layers)
    names = [node.outputs[0] for node in layers]
    sums: dict[str, Array] = {}
    elements = dict.fromkeys(names, 0)
    wanted = [each for name in names for each in (name, name + LOCAL)]
    for arrays in activations(both, wanted, batches(), engine):
        for name in names:
            exact, rounded = arrays[name], arrays[name + LOCAL]
            axes = (0, *range(2, exact.ndim))
            difference = exact.sum(axes, dtype=np.float64) - rounded.sum(axes, dtype=np.float64)
            sums[name] = sums.get(name, 0.0) + difference
            elements[name] += exact.size // exact.shape[1]
    return {name: total / elements[name] for name, total in sums.items()}


def _side_by_side(graph: Graph, quantised: Graph, layers: list[Node]) -> Graph:
    """The float network, and each layer in eight bits once more beside its own."""
    makers = quantised.producers()
    nodes = list(graph.nodes)
    made: set[str] = set()

    def add(node: Node, inputs: tuple[str, ...]) -> str:
        name = node.outputs[0] + LOCAL
        if name not in made:
            made.add(name)
            nodes.append(node.with_(inputs=inputs, outputs=(name,), name=node.name + LOCAL))
        return name

    for node in layers:
        back, weights, bias = (makers[name] for name in node.inputs)
        there = makers[back.inputs[0]]
        whole = add(there, there.inputs)
        x = add(back, (whole, *back.inputs[1:]))
        add(node, (x, add(weights, weights.inputs), add(bias, bias.inputs)))
    constants = {**quantised.initializers, **graph.initializers}
    return graph.with_(nodes=tuple(nodes), initializers=constants)
