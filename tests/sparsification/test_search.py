"""What single layers cost the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_pipeline import SIZE, network, samples

from coresident.onnx.reader import read
from coresident.sparsification import data, database, search
from coresident.sparsification.candidates import families
from coresident.sparsification.checkpoint import Checkpoint
from coresident.sparsification.execution import Engine
from coresident.sparsification.forms import Form
from coresident.sparsification.network import layers
from coresident.sparsification.preparation import prepare
from coresident.sparsification.progress import NO_PROGRESS
from coresident.sparsification.project import Project
from coresident.sparsification.settings import Settings


@pytest.mark.parametrize("most", [40, 9])
def test_effects_are_those_of_the_whole_network(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they are measured from the layer on, some samples standing for all where that is much work."""
    monkeypatch.setattr(search, "FEWEST", most)
    monkeypatch.setattr(search, "SENSITIVE", 0.0)
    monkeypatch.setattr(search, "_floored", lambda errors, _: errors)
    shapes = {"x": (1, 3, SIZE, SIZE)}
    graph = prepare(read(network()), shapes)
    found = data.read(samples(40), data.inputs_of(graph, shapes))
    settings = Settings(sparsity=0.5, quantize="none")
    project = Project(
        graph,
        layers(graph, shapes),
        shapes,
        found,
        found,
        "classifier",
        settings,
        Engine(1),
        Checkpoint(tmp_path, {}),
        NO_PROGRESS,
        None,
    )
    (family,) = families(settings)
    levels = database.build(project, {family.pattern: family.sparsities})
    reference = project.outputs(graph, search.probes(project))
    some = found if most == 40 else found.subset({int(i) for i in np.linspace(0, 39, most)})
    assert len(some) == most
    dense = project.outputs(graph, some)
    got = search.losses(project, family, levels, reference, 0.0)
    assert len(project.prunable) > 1
    for layer in project.prunable:
        form = Form(family.dtype, family.pattern, 0.8)
        sparse = levels.stitched(graph, [layer], {layer.name: form})
        loss = project.compare(dense, project.outputs(sparse, some)).loss
        assert got.errors[layer.name][form] == pytest.approx(loss, rel=1e-3, abs=1e-7)
