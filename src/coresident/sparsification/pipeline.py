"""`sparsify`: from a trained dense network to one that this CPU runs faster, and the proof of what it does.

Source of the order of things: Frantar and Alistarh 2022 (arXiv 2208.11580, layer-wise reconstruction), and
the same authors' SPDY (2022, allocation by dynamic programming over measured times).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import coresident
from coresident.compiler import compile_file
from coresident.errors import CoresidentWarning, InputError
from coresident.onnx.reader import read
from coresident.onnx.self_contained import self_contained
from coresident.onnx.writer import serialize
from coresident.runtime import cpu
from coresident.runtime.files import write_atomically
from coresident.sparsification import agreement
from coresident.sparsification.candidates import families
from coresident.sparsification.checkpoint import Checkpoint
from coresident.sparsification.data import inputs_of
from coresident.sparsification.data import read as read_samples
from coresident.sparsification.execution import Engine, spare_memory
from coresident.sparsification.network import layers, prepare
from coresident.sparsification.ordering import ordered
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.project import Project
from coresident.sparsification.report import Report
from coresident.sparsification.reporting import reported
from coresident.sparsification.run import Run
from coresident.sparsification.samples import Samples
from coresident.sparsification.settings import Settings
from coresident.vision.tensors import Preprocessing

HELD_OUT = 0.2
"""Share of the samples that the result is judged by."""
_MOST_HELD_OUT = 512
_TELLING = 4
"""Classes that come out otherwise among the samples held back, were the drop just what was asked: of fewer
samples chance decides."""
_WORK = ".sparsify"
"""Folder inside the output where an interrupted run left what it had."""


@dataclass(frozen=True)
class Result:
    """A network that was sparsified.

    Args:
        model: ONNX, with zeros in its weights, and QuantizeLinear and DequantizeLinear where it has bytes.
        artifact: compiled for this CPU; None where the network leaves sizes open.
        report: what was done, and what it brought.
        preprocessing: that its pictures need, in JSON values.
    """

    model: bytes
    artifact: bytes | None
    report: Report
    preprocessing: Mapping[str, Any]

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write model.onnx, model.cres, preprocessing.json and the report's files.

        Returns:
            The files.

        Raises:
            ResourceError: the disk does not take them.
        """
        folder = Path(folder)
        written = list(self.report.write(folder))
        contents = {"model.onnx": self.model, "preprocessing.json": _json(self.preprocessing)}
        if self.artifact is not None:
            contents["model.cres"] = self.artifact
        for name, content in contents.items():
            write_atomically(folder / name, [content])
            written.append(folder / name)
        return tuple(written)


def sparsify(
    model: object,
    data: object,
    *,
    target_speedup: float | None = None,
    latency_ms: float | None = None,
    sparsity: float | None = None,
    max_drop: float | None = None,
    pattern: str = "auto",
    quantize: str = "auto",
    effort: str = "default",
    budget: float | None = None,
    skip: Sequence[str] = (),
    threads: int | None = None,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    labels: object = None,
    task: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    limit: int | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = NO_PROGRESS,
    resume: bool = True,
) -> Result:
    """Make a trained network faster on this CPU, without labels or training, and show what that cost.

    Args:
        model: path or content of an ONNX model of floats, or a `torch.nn.Module`.
        data: samples such as the network will see; whatever `data.read` takes.
        target_speedup, latency_ms, sparsity, max_drop: see `Settings`, as for all that follow up to `task`.
        preprocessing: of pictures.
        labels: of the samples, to show accuracy beside agreement; whatever `data.read` takes.
        shapes: sizes of inputs that the model leaves open, for one sample; of all arguments of a module.
        limit: samples at most.
        output: folder for what an interrupted run goes on from; None keeps it in a temporary one.
        progress: is told what happens.
        resume: whether to go on from there; otherwise all is worked out anew.

    Returns:
        The network and its report. A target that can't be reached gives the network that comes nearest;
        `report.target` says so, and what holds it.

    Raises:
        InputError: settings, data or model don't fit each other.
        ModelError: the model can't be used, or is quantised already.
        ResourceError: memory or disk.
    """
    settings = Settings(
        target_speedup=target_speedup,
        latency_ms=latency_ms,
        sparsity=sparsity,
        max_drop=max_drop,
        pattern=pattern,  # type: ignore[arg-type]  # checked when made
        quantize=quantize,  # type: ignore[arg-type]
        effort=effort,  # type: ignore[arg-type]
        budget=budget,
        skip=tuple(skip),
        threads=threads,
        seed=seed,
        task=task,
    )
    started = time.monotonic()
    content, name = _content(model, data, shapes)
    original = read(content)
    samples = read_samples(
        data, inputs_of(original, shapes), preprocessing, labels, limit=limit, seed=seed, progress=progress
    )
    first = samples.feeds(0)
    sizes = {each: array.shape for each, array in first.items()}
    graph = prepare(original, sizes)
    found = layers(graph, sizes, settings.skip)
    in_blocks = settings.sparsity != 0 and any(one.pattern == "4block" for one in families(settings))
    if in_blocks:
        graph = ordered(graph, found, sizes, seed)
    kind = agreement.task_of(graph, sizes) if task is None else agreement.named(task)
    calibration, held_out = parts(samples, kind, settings)
    calibration = calibration.completed(seed)
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory(prefix="coresident-") as temporary:
        work = Path(temporary) / _WORK if output is None else Path(output) / _WORK
        key = {
            "model": digest,
            "samples": calibration.digest,
            "skip": settings.skip,
            "seed": seed,
            "effort": effort,
            "ordered": in_blocks,
            "version": coresident.__version__,
        }
        checkpoint = Checkpoint(work, key)
        if not resume:
            checkpoint.clear()
        project = Project(
            graph,
            found,
            sizes,
            calibration,
            held_out,
            kind,
            settings,
            Engine(threads or cpu.usable_cores().count, spare_memory()),
            checkpoint,
            progress,
            None if budget is None else started + budget,
        )
        if not project.prunable and settings.quantize == "none":
            reasons = "; ".join(sorted({f"{layer.name}: {layer.why}" for layer in project.layers})[:8])
            raise InputError(f"no layer of the model can lose weights ({reasons or 'it has none'})")
        run = Run(project, first)
        made = run.made()
        progress.stage("compiling and measuring", 0)
        onnx = serialize(made.graph)
        artifact = _compiled(onnx, sizes, project.engine.threads)
        report = reported(project, run, made, name, content, onnx, artifact, samples.rejected, started)
        checkpoint.clear()
    return Result(onnx, artifact, report, samples.preprocessing.record())


def parts(samples: Samples, task: agreement.Task, settings: Settings) -> tuple[Samples, Samples]:
    """The samples to calibrate with and those to judge with: of the latter as many as tell the drop that was
    asked, where a sample is one decision, but no more than half."""
    share, most = HELD_OUT, _MOST_HELD_OUT
    needed = 0
    if settings.max_drop and task == "classifier":
        needed = math.ceil(_TELLING / settings.max_drop)
        share, most = min(max(share, needed / len(samples)), 0.5), max(most, needed)
    calibration, held_out = samples.split(share, settings.seed)
    if len(held_out) > most:
        held_out, _ = held_out.split(1 - most / len(held_out), settings.seed)
    if len(held_out) < needed:
        warnings.warn(
            f"{len(held_out)} samples are held back to judge by; to tell a drop of {settings.max_drop:.2%} "
            f"{needed} are needed: what is lost on others may be more",
            CoresidentWarning,
            stacklevel=3,
        )
    return calibration, held_out


def _content(model: object, data: object, shapes: Mapping[str, tuple[int, ...]] | None) -> tuple[bytes, str]:
    """An ONNX model's bytes, self-contained, and what to call it."""
    if isinstance(model, bytes):
        return model, "model"
    if isinstance(model, str | os.PathLike):
        return self_contained(Path(model)), Path(model).name
    if not (callable(model) and hasattr(model, "state_dict")):
        raise InputError(
            f"a {type(model).__name__} is no model; path or content of an ONNX file, or a torch.nn.Module, is"
        )
    if not shapes and not isinstance(data, np.ndarray):
        raise InputError('a module does not say what it takes: give shapes={"input": (1, 3, 224, 224)}, say')
    from coresident.sparsification.training import require

    require()
    from coresident.sparsification.training.modules import exported

    sizes = shapes or {"input": (1, *data.shape[1:])}  # type: ignore[attr-defined]
    return exported(model, sizes), type(model).__name__


def _compiled(model: bytes, shapes: Mapping[str, tuple[int, ...]], threads: int) -> bytes:
    """The artifact for this CPU."""
    with tempfile.TemporaryDirectory(prefix="coresident-") as folder:
        path = Path(folder) / "model.cres"
        compile_file(model, path, shapes=shapes, threads=threads)
        return path.read_bytes()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
