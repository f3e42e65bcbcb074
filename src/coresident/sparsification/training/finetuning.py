"""Fine-tunes a model on labelled pictures along a recipe: `coresident finetune`."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coresident.errors import InputError, ResourceError
from coresident.runtime.files import write_atomically
from coresident.session import Session
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.samples import Samples
from coresident.sparsification.training.recipe import Distil, Quantise, Recipe
from coresident.sparsification.training.sparsifier import Sparsifier
from coresident.sparsification.training.tasks import Score, batches, check, loss_of, task_of

INPUT, OUTPUT = "image", "logits"
CHECKPOINT, MODEL, REPORT = "checkpoint.pt", "model.onnx", "report.json"


@dataclass(frozen=True)
class Options:
    """How to train.

    Args:
        batch: samples of a step.
        rate: learning rate of SGD with momentum 0.9 where the recipe sets none.
        decay: weight decay.
        seed: of the order of samples and of mirroring.
        resume: go on from a checkpoint in the output folder that the same call left there.
    """

    batch: int = 32
    rate: float = 0.01
    decay: float = 1e-4
    seed: int = 0
    resume: bool = True


def finetune(
    model: nn.Module,
    training: Samples,
    held_out: Samples,
    recipe: Recipe,
    out: Path,
    options: Options | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Train a model along a recipe and write it.

    Args:
        model: trained already; its logits are what it returns, [N, classes] or [N, classes, H, W].
        training: labelled samples to learn from, of one input called `image`.
        held_out: labelled samples to judge with.
        recipe: what happens when.
        out: an existing folder. Written there: model.onnx, report.json, and after each epoch checkpoint.pt.
        options: how to train.
        progress: told of epochs and steps.

    Returns:
        What report.json holds: the figures of the model before ("dense"), before it was quantised
        ("pruned"), and of model.onnx in this engine ("result"), with the zeros of its layers.

    Raises:
        InputError: the model's outputs don't fit the labels, or the recipe its layers.
        UnsupportedModel: its forward pass can't be quantised or exported.
        ResourceError: the disk is full.
    """
    options = options or Options()
    task = task_of(training)
    torch.manual_seed(options.seed)
    first = next(batches(training, INPUT, options.batch, None))
    with torch.no_grad():
        logits = check(model.eval()(first.images), first)
    if logits.shape[1] == 1:
        recipe = _for_sigmoid(recipe)
    steps = len(list(_starts(training, options.batch)))
    key = _digest(training, held_out, recipe, options)
    state = _checkpoint(out / CHECKPOINT, key) if options.resume else None
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=options.decay,
    )
    begin = 0
    if state is None:
        dense = judge(model, held_out, options.batch)
        figures: dict[str, Any] = {"dense": dense, "pruned": dense}
    with Sparsifier.attach(model, optimizer, steps, recipe, example=first.images) as sparsifier:
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            sparsifier.load_state_dict(state["sparsifier"])
            figures, begin = state["figures"], state["epoch"]
        for epoch in range(begin, sparsifier.epochs):
            progress.stage(f"epoch {epoch + 1} of {sparsifier.epochs}", steps)
            _epoch(sparsifier, training, epoch, options, progress)
            score = judge(model, held_out, options.batch)
            figures.setdefault("epochs", []).append(score)
            if not sparsifier.quantising:
                figures["pruned"] = score
            _save(
                out / CHECKPOINT,
                {
                    "key": key,
                    "epoch": epoch + 1,
                    "figures": figures,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sparsifier": sparsifier.state_dict(),
                },
            )
        free = {0: "batch"} | ({2: "height", 3: "width"} if task == "segmentation" else {})
        sparsifier.export(
            out / MODEL,
            first.images[:1],
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: free, OUTPUT: free},
        )
        layers = sparsifier.sparsity()
    progress.stage("judging model.onnx", 0)
    figures["result"] = judge_file(out / MODEL, held_out, options.batch)
    report = {
        "task": task,
        "training_samples": len(training),
        "held_out_samples": len(held_out),
        "quantised": bool(recipe.of(Quantise)),
        "sparsity": layers,
        **figures,
    }
    write_atomically(out / REPORT, [(json.dumps(report, indent=1) + "\n").encode()])
    return report


def _for_sigmoid(recipe: Recipe) -> Recipe:
    """One channel has no softmax to learn from."""
    changed = tuple(replace(m, answer="sigmoid") if isinstance(m, Distil) else m for m in recipe.modifiers)
    return replace(recipe, modifiers=changed)


def _starts(samples: Samples, size: int) -> list[int]:
    return [start for first, last in samples.groups() for start in range(first, last, size)]


def _epoch(
    sparsifier: Sparsifier, samples: Samples, epoch: int, options: Options, progress: Progress
) -> None:
    sparsifier.model.train()
    optimizer = sparsifier.optimizer
    assert optimizer is not None
    for batch in batches(samples, INPUT, options.batch, options.seed + 1000003 * epoch):
        outputs = check(sparsifier.model(batch.images), batch)
        loss = sparsifier.loss(loss_of(outputs, batch), outputs, batch.images)
        if not math.isfinite(loss.item()):
            raise InputError("the loss is not finite: a lower learning rate may help")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.advance()
    sparsifier.set_epoch(epoch + 1)


@torch.no_grad()
def judge(model: nn.Module, samples: Samples, size: int) -> dict[str, float]:
    """The figures of a model on labelled samples."""
    score = Score()
    model.eval()
    for batch in batches(samples, INPUT, size, None):
        score.add(check(model(batch.images), batch).numpy(), batch.labels.numpy())
    return score.record(task_of(samples))


def judge_file(path: Path, samples: Samples, size: int) -> dict[str, float]:
    """The figures of an ONNX file, run by this engine, on labelled samples."""
    score = Score()
    with Session(path) as session:
        for batch in batches(samples, INPUT, size, None):
            outputs = session.run(None, {INPUT: np.ascontiguousarray(batch.images.numpy())})[0]
            score.add(outputs, batch.labels.numpy())
    return score.record(task_of(samples))


def _digest(training: Samples, held_out: Samples, recipe: Recipe, options: Options) -> str:
    parts = [training.digest, held_out.digest, repr(replace(recipe, variables={})), repr(options)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _checkpoint(path: Path, key: str) -> Mapping[str, Any] | None:
    """What an earlier call left, if it was the same one."""
    if not path.exists():
        return None
    try:
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return deepcopy(state) if state["key"] == key else None
    except OSError as error:
        raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error
    except Exception as error:
        raise InputError(f"not a checkpoint ({error}); move it away", file=path) from None


def _save(path: Path, state: Mapping[str, Any]) -> None:
    stream = io.BytesIO()
    torch.save(state, stream)
    write_atomically(path, [stream.getvalue()])
