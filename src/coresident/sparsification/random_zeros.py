"""A network with zeros in random places: how fast it runs depends on where they may stand, not on why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coresident.graph.graph import Graph
from coresident.sparsification.forms import Form
from coresident.sparsification.network import Layer, blocks, matrices, weight_of

Array = np.ndarray[Any, Any]


def with_random_zeros(graph: Graph, layers: Sequence[Layer], choice: Mapping[str, Form], seed: int) -> Graph:
    """The network with as many weights zero as each layer's form says, in its pattern, at random.

    What is left of weights of floats is scaled so that activations keep their variance: numbers that fade
    from layer to layer would end as subnormal ones, which are slow.

    Args:
        graph: prepared, or quantised after that (QDQ).
        layers: of the graph as it was prepared.
        choice: forms of some of the layers, by name; products stay those of the graph whatever the form says.
        seed: of the places, for each layer its own.
    """
    initializers = dict(graph.initializers)
    nodes, producers = {node.name: node for node in graph.nodes}, graph.producers()
    for number, layer in enumerate(layers):
        form = choice.get(layer.name)
        if form is None or form.pattern == "dense":
            continue
        rng = np.random.default_rng((seed, number, round(1e6 * form.sparsity), form.pattern == "4block"))
        name = nodes[layer.name].inputs[1]
        if name not in initializers:
            name = producers[name].inputs[0]
        weight = initializers[name]
        parts = matrices(layer, weight)
        if form.pattern == "4block":
            keeps = [
                _kept(rng, part.shape[0], int(block[-1]) + 1, form.sparsity)[:, block]
                for part, block in zip(parts, blocks(layer))
            ]
        else:
            keeps = [_kept(rng, part.shape[0], part.shape[1], form.sparsity) for part in parts]
        scale = np.float32(1 / math.sqrt(1 - form.sparsity) if weight.dtype.kind == "f" else 1)
        zeroed = [np.where(keep, scale * part, np.float32(0)) for part, keep in zip(parts, keeps)]
        initializers[name] = weight_of(layer, zeroed, weight)
    return graph.with_(initializers=initializers)


def _kept(rng: np.random.Generator, rows: int, columns: int, sparsity: float) -> Array:
    """bool [rows, columns], of which the share `sparsity` is False."""
    drawn = rng.random(rows * columns, dtype=np.float32)
    zeros = round(sparsity * drawn.size)
    keep = np.ones(drawn.size, bool)
    keep[np.argpartition(drawn, zeros - 1)[:zeros] if zeros else []] = False
    return keep.reshape(rows, columns)
