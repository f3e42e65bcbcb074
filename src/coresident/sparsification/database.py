"""Every layer at every share of zeros: worked out once, kept on disk, put together into networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coresident.graph.graph import Graph
from coresident.sparsification import reconstruction, statistics
from coresident.sparsification.checkpoint import Checkpoint
from coresident.sparsification.forms import Form
from coresident.sparsification.moments import Moments
from coresident.sparsification.network import Layer, blocks, matrices, problems, weight_of
from coresident.sparsification.project import Project
from coresident.sparsification.reconstruction import Pattern


@dataclass(frozen=True)
class Database:
    """Layers with zeros.

    Args:
        checkpoint: where the weights are kept.
        errors: by pattern, layer and share of zeros: squared error of the layer's outputs, as a share of
            what they vary by.
    """

    checkpoint: Checkpoint
    errors: Mapping[Pattern, Mapping[str, Mapping[float, float]]]

    def stitched(self, graph: Graph, layers: Sequence[Layer], choice: Mapping[str, Form]) -> Graph:
        """The network with each layer in the form chosen for it; those without a form stay as they are."""
        initializers = dict(graph.initializers)
        for layer in layers:
            form = choice.get(layer.name)
            if form is None or form.pattern == "dense":
                continue
            stored = self.checkpoint.load(_name(form.pattern, layer))
            assert stored is not None, layer.name
            weight = np.zeros(layer.size, np.float32)
            mask = np.unpackbits(stored[f"mask {form.sparsity}"], count=layer.size).astype(bool)
            weight[mask] = stored[f"weight {form.sparsity}"]
            initializers[layer.weight] = weight.reshape(layer.shape)
            initializers[layer.bias] = stored[f"bias {form.sparsity}"]
        return graph.with_(initializers=initializers)


def build(project: Project, sparsities: Mapping[Pattern, Sequence[float]]) -> Database:
    """Work out all layers at all shares of zeros, or take them from the checkpoint.

    Args:
        sparsities: shares of zeros by pattern, ascending.

    Raises:
        InputError: activations that are not finite; names the node.
        ResourceError: no space for the results.
    """
    checkpoint, patterns = project.checkpoint, list(sparsities)
    project.progress.stage("reconstructing layers", len(project.prunable) * len(patterns))
    missing = []
    for layer in project.prunable:
        if all(checkpoint.load(_name(pattern, layer)) is not None for pattern in patterns):
            project.progress.advance(len(patterns))
        else:
            missing.append(layer)
    for layer, moments in statistics.collect(
        project.graph,
        missing,
        project.calibration.batches,
        engine=project.engine,
        seed=project.settings.seed,
    ):
        for pattern in patterns:
            _reconstruct(project, layer, moments, pattern, sparsities[pattern])
            project.progress.advance(note=layer.name)
    errors: dict[Pattern, dict[str, dict[float, float]]] = {}
    for pattern in patterns:
        for layer in project.prunable:
            stored = checkpoint.load(_name(pattern, layer))
            assert stored is not None, layer.name
            errors.setdefault(pattern, {})[layer.name] = dict(
                zip(stored["sparsities"].tolist(), stored["errors"].tolist())
            )
    return Database(checkpoint, errors)


def _name(pattern: Pattern, layer: Layer) -> str:
    return f"level {pattern} {layer.name}"


def _reconstruct(
    project: Project,
    layer: Layer,
    moments: Sequence[Moments],
    pattern: Pattern,
    sparsities: Sequence[float],
) -> None:
    """Work out one layer and store it."""
    original = project.graph.initializers[layer.weight]
    bias = project.graph.initializers[layer.bias]
    # The phases of a transposed convolution share one bias: it can't make up for each of them.
    centred = layer.op != "ConvTranspose"
    found = reconstruction.levels(
        matrices(layer, original),
        moments,
        blocks(layer),
        sparsities,
        pattern,
        project.settings.effort,
        taps=[len(problem.taps) for problem in problems(layer)],
        centred=centred,
    )
    stored = {
        "sparsities": np.array([level.sparsity for level in found]),
        "errors": np.array([level.error for level in found]),
    }
    for level in found:
        weight = weight_of(layer, level.weights, original).ravel()
        change = np.concatenate(level.biases) if centred else np.zeros_like(bias)
        stored[f"mask {level.sparsity}"] = np.packbits(weight != 0)
        stored[f"weight {level.sparsity}"] = weight[weight != 0]
        stored[f"bias {level.sparsity}"] = (bias + change).astype(np.float32)
    project.checkpoint.store(_name(pattern, layer), stored)
