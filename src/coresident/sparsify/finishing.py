"""From a choice of forms to the network: weights solved again in place, statistics repaired, quantised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from coresident.graph.graph import Graph
from coresident.sparsify import correction, quantization
from coresident.sparsify.candidates import weight_bits
from coresident.sparsify.database import Database
from coresident.sparsify.forms import Form
from coresident.sparsify.project import Project


@dataclass(frozen=True)
class Finished:
    """A network that is done.

    Args:
        sparse: in float32, plain ONNX operators.
        graph: the result; the same where nothing is quantised.
        floating: names of layers that stay in float though the others are bytes, with the reason.
    """

    sparse: Graph
    graph: Graph
    floating: Mapping[str, str]


def finish(
    project: Project,
    database: Database,
    choice: Mapping[str, Form],
    dtype: str,
    floating: Mapping[str, str],
) -> Finished:
    """Build the network that was chosen.

    Args:
        choice: by layer.
        dtype: "int8" or "float32".
        floating: names of nodes that stay in float, with the reason.
    """
    sparse = database.stitched(project.graph, project.prunable, choice)
    pruned = [layer for layer in project.prunable if choice.get(layer.name, _DENSE).sparsity > 0]
    if pruned:
        sparse = correction.resolve(project.graph, sparse, pruned, project.calibration.batches, **_common(project))
        sparse = correction.repair(project.graph, sparse, pruned, project.calibration.batches, **_common(project))
    if dtype != "int8":
        return Finished(sparse, sparse, {})
    return Finished(sparse, quantised(project, sparse, floating), floating)
