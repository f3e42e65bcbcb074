"""From a choice of forms to the network: weights solved again in place, statistics repaired, quantised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from coresident.graph.graph import Graph
from coresident.sparsification import correction
from coresident.sparsification.bias_correction import correct_biases
from coresident.sparsification.candidates import weight_bits
from coresident.sparsification.database import Database
from coresident.sparsification.forms import DType, Form
from coresident.sparsification.project import Project
from coresident.sparsification.quantization import quantize
from coresident.sparsification.ranges import Range, ranges


@dataclass(frozen=True)
class Finished:
    """A network that is done.

    Args:
        sparse: in float32, plain ONNX operators.
        graph: the result; the same where nothing is quantised.
        floating: layers that stay in float because of what their bytes would cost, with the reason.
    """

    sparse: Graph
    graph: Graph
    floating: Mapping[str, str]


def activation_ranges(project: Project, graph: Graph) -> dict[str, Range]:
    """What bytes are to span, over the calibration samples."""
    project.progress.stage("ranges of activations", 0)
    return ranges(graph, project.calibration.batches(), threads=project.threads)


def finish(
    project: Project,
    database: Database,
    choice: Mapping[str, Form],
    dtype: DType,
    floating: Collection[str],
) -> Finished:
    """Build the network that was chosen.

    Args:
        choice: by layer.
        dtype: of its products.
        floating: names of nodes that stay in float where the others become bytes.
    """
    sparse = database.stitched(project.graph, project.prunable, choice)
    pruned = [layer for layer in project.prunable if layer.name in choice and choice[layer.name].sparsity]
    if pruned:
        sparse = correction.resolve(
            project.graph,
            sparse,
            pruned,
            project.calibration.batches,
            threads=project.threads,
            seed=project.settings.seed,
            progress=project.progress,
        )
        sparse = _repaired(project, sparse)
    if dtype == "float32":
        return Finished(sparse, sparse, {})
    return Finished(sparse, in_bytes(project, sparse, floating), {})


def in_bytes(project: Project, graph: Graph, floating: Collection[str]) -> Graph:
    """The network quantised, its biases corrected for what rounding shifts."""
    found = activation_ranges(project, graph)
    quantised = quantize(graph, found, skip=floating, weight_bits=weight_bits())
    project.progress.stage("correcting biases", 0)
    return correct_biases(graph, quantised, project.calibration.batches, threads=project.threads)


def _repaired(project: Project, graph: Graph) -> Graph:
    return correction.repair(
        project.graph,
        graph,
        project.layers,
        project.calibration.batches,
        threads=project.threads,
        progress=project.progress,
    )
