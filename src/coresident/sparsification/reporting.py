"""The report of a run: everything in it is measured on the result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from coresident.graph.graph import Graph
from coresident.onnx.writer import serialize
from coresident.sparsification import agreement, verification
from coresident.sparsification.forms import FLOAT_DENSE
from coresident.sparsification.network import Layer
from coresident.sparsification.project import Project
from coresident.sparsification.report import Accuracy, LayerReport, Machine, Report, Sizes, Target
from coresident.sparsification.run import Made, Run


def reported(
    project: Project,
    run: Run,
    made: Made,
    name: str,
    content: bytes,
    onnx: bytes,
    artifact: bytes | None,
    rejected: tuple[tuple[str, str], ...],
    started: float,
) -> Report:
    """Measure the result and report.

    Args:
        run: that made it.
        made: the result.
        name: of the model.
        content, onnx, artifact: the original, the result, and the result compiled.
        rejected: samples that could not be read.
        started: `time.monotonic` when the run began.
    """
    feeds = project.held_out.feeds(0)
    dense_bytes = None if run.dense_in_bytes is None else serialize(run.dense_in_bytes)
    latency, notes = verification.latency(content, onnx, dense_bytes, feeds, project.engine.threads)
    before = verification.layer_seconds(
        serialize(project.graph), project.layers, feeds, project.engine.threads
    )
    after = verification.layer_seconds(onnx, project.layers, feeds, project.engine.threads)
    dense, result = run.accuracy, run.accuracy_of(made)
    accuracy = None
    if dense is not None and result is not None:
        accuracy = Accuracy(agreement.METRICS[project.task], dense, result)
    report = Report(
        model=name,
        task=project.task,
        target=Target("sparsity", 0.0, 0.0),
        layers=tuple(_layer(project, run, made, layer, before, after) for layer in project.layers),
        latency=latency,
        sizes=Sizes(len(content), len(onnx), None if artifact is None else len(artifact)),
        agreement=made.agreement.record(),
        machine=Machine.here(project.engine.threads),
        seed=project.settings.seed,
        seconds=time.monotonic() - started,
        accuracy=accuracy,
        calibration_samples=len(project.calibration),
        held_back_samples=len(project.held_out),
        rejected=rejected,
        shapes={each: tuple(shape) for each, shape in project.shapes.items()},
        settings=project.settings.record(),
        notes=(*made.notes, *notes),
    )
    return replace(report, target=_target(project, run, made, report))


def _target(project: Project, run: Run, made: Made, report: Report) -> Target:
    kind, asked = project.settings.target
    allocation = made.choice.allocation
    reached = {
        "target_speedup": report.latency.speedup,
        "latency_ms": report.latency.result * 1e3,
        "sparsity": _pruned_share(project, made.graph),
        "max_drop": run.drop(made),
    }[kind]
    holding = tuple((each.layer or "everything else", each.share) for each in allocation.holding[:8])
    return Target(kind, asked, reached, allocation.feasible, holding)  # type: ignore[arg-type]


def _pruned_share(project: Project, graph: Graph) -> float:
    """Share of zeros in the layers that may have them."""
    sizes = sum(layer.size for layer in project.prunable)
    found = sum(verification.zeros(graph, layer) * layer.size for layer in project.prunable)
    return found / sizes if sizes else 0.0


def _layer(
    project: Project,
    run: Run,
    made: Made,
    layer: Layer,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> LayerReport:
    form = made.choice.allocation.choice.get(layer.name, FLOAT_DENSE)
    in_bytes = verification.is_quantised(made.graph, layer)
    why = layer.why if not layer.prunable else ""
    if made.choice.losses.family.dtype == "int8" and not in_bytes:
        why = "; ".join(filter(None, (why, made.floating.get(layer.name, "the tail of an output"))))
    return LayerReport(
        name=layer.name,
        op=layer.op,
        shape=layer.shape,
        sparsity=verification.zeros(made.graph, layer),
        pattern=form.pattern if form.sparsity else "dense",
        dtype="int8" if in_bytes else "float32",
        seconds_before=before[layer.name],
        seconds_after=after[layer.name],
        error=run.error(layer.name, form),
        kept=why,
    )
