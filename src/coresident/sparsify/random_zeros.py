"""A network with zeros in random places: how fast it runs depends on where they may stand, not on why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coresident.graph.graph import Graph
from coresident.sparsify.forms import Form
from coresident.sparsify.network import Layer, blocks, matrices, weight_of

Array = np.ndarray[Any, Any]


def with_random_zeros(graph: Graph, layers: Sequence[Layer], choice: Mapping[str, Form], seed: int) -> Graph:
    """The network with as many weights zero as each layer's form says, in its pattern, at random.

    What is left of the weights is scaled so that activations keep their variance: numbers that fade from
    layer to layer would end as subnormal ones, which are slow.

    Args:
        graph: prepared.
        layers: of the graph.
        choice: forms of some of the layers, by name; their products are float32 whatever the form says.
        seed: of the places, for each layer its own.
    """
    initializers = dict(graph.initializers)
    for number, layer in enumerate(layers):
        form = choice.get(layer.name)
        if form is None or form.pattern == "dense":
            continue
        rng = np.random.default_rng((seed, number, round(1e6 * form.sparsity), form.pattern == "4block"))
        weight = initializers[layer.weight]
        parts = matrices(layer, weight)
        if form.pattern == "4block":
            keeps = [
                _kept(rng, part.shape[0], int(block[-1]) + 1, form.sparsity)[:, block]
                for part, block in zip(parts, blocks(layer))
            ]
        else:
            keeps = [_kept(rng, part.shape[0], part.shape[1], form.sparsity) for part in parts]
        scale = np.float32(1 / math.sqrt(1 - form.sparsity))
        zeroed = [np.where(keep, scale * part, np.float32(0)) for part, keep in zip(parts, keeps)]
        initializers[layer.weight] = weight_of(layer, zeroed, weight)
    return graph.with_(initializers=initializers)


def _kept(rng: np.random.Generator, rows: int, columns: int, sparsity: float) -> Array:
    """bool [rows, columns], of which the share `sparsity` is False."""
    drawn = rng.random(rows * columns, dtype=np.float32)
    zeros = round(sparsity * drawn.size)
    keep = np.ones(drawn.size, bool)
    keep[np.argpartition(drawn, zeros - 1)[:zeros] if zeros else []] = False
    return keep.reshape(rows, columns)
