"""What is learned from labels: a class for each picture, or for each pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coresident.errors import InputError
from coresident.sparsification.samples import Samples

Array = np.ndarray[Any, Any]
Task = Literal["classification", "segmentation"]
IGNORED = 255
"""The label of pixels that count for nothing."""


@dataclass(frozen=True)
class Batch:
    """Inputs float32 [N, C, H, W] and labels int64, [N] or [N, H, W]."""

    images: Tensor
    labels: Tensor


def task_of(samples: Samples) -> Task:
    """What the labels are for.

    Raises:
        InputError: there are no labels, or boxes.
    """
    wanted = "training needs labels: folders named by class, a .csv, or a folder of masks"
    if samples.labels is None:
        raise InputError(wanted)
    if np.asarray(samples.labels[0]).dtype.kind == "f":
        raise InputError(f"{wanted}; these are boxes, which a loop of your own can learn from (Sparsifier)")
    return "classification" if np.ndim(samples.labels[0]) == 0 else "segmentation"


def batches(samples: Samples, name: str, size: int, seed: int | None) -> Iterator[Batch]:
    """Batches of samples of one shape: in order without a seed, else shuffled and mirrored at random."""
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = []
    for first, last in samples.groups():
        order = np.arange(first, last) if seed is None else first + rng.permutation(last - first)
        parts += [order[start : start + size].tolist() for start in range(0, len(order), size)]
    if seed is not None:
        parts = [parts[index] for index in rng.permutation(len(parts))]
    assert samples.labels is not None
    for part in parts:
        images = torch.from_numpy(np.concatenate([samples.feeds(index)[name] for index in part]))
        labels = torch.from_numpy(np.stack([np.asarray(samples.labels[index]) for index in part])).long()
        if seed is not None:
            mirrored = torch.from_numpy(rng.random(len(part)) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
            if labels.ndim > 1:
                labels[mirrored] = labels[mirrored].flip(-1)
        yield Batch(images, labels)


def check(outputs: Any, batch: Batch) -> Tensor:
    """The outputs, if they are logits for these labels.

    Raises:
        InputError: they are not, as [N, classes] and [N, classes, H, W] would be.
    """
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model returns {type(outputs).__name__}; one tensor of logits is needed")
    wanted = list(batch.labels.shape)
    if [outputs.shape[0], *outputs.shape[2:]] != wanted or outputs.ndim < 2:
        raise InputError(
            f"the model returns {list(outputs.shape)} for labels {wanted}; [N, classes] is needed, "
            "or [N, classes, H, W] for masks"
        )
    counted = batch.labels[batch.labels != IGNORED]
    most, classes = int(counted.max()) if counted.numel() else 0, max(outputs.shape[1], 2)
    if outputs.shape[1] == 1 and batch.labels.ndim > 1:
        return outputs
    if most >= classes:
        raise InputError(f"a label {most}; the model has {outputs.shape[1]} classes, from 0")
    return outputs


def loss_of(outputs: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy; with one channel, that of a sigmoid for all labels above 0."""
    found: Tensor
    if outputs.shape[1] > 1:
        found = functional.cross_entropy(outputs.float(), batch.labels, ignore_index=IGNORED)
        return found
    found = functional.binary_cross_entropy_with_logits(outputs.float()[:, 0], (batch.labels > 0).float())
    return found


class Score:
    """Top-1 accuracy of classes; of masks, Dice of all that is no background, and accuracy of pixels."""

    def __init__(self) -> None:
        self.right = self.total = self.both = self.sums = 0

    def add(self, outputs: Array, labels: Array) -> None:
        """Count a batch: logits [N, C, ...], and labels [N, ...]."""
        found = (outputs[:, 0] > 0).astype(np.int64) if outputs.shape[1] == 1 else outputs.argmax(1)
        counted = labels != IGNORED
        labels = (labels > 0).astype(np.int64) if outputs.shape[1] == 1 else labels
        self.right += int(((found == labels) & counted).sum())
        self.total += int(counted.sum())
        self.both += int(((found > 0) & (found == labels) & counted).sum())
        self.sums += int(((found > 0) & counted).sum() + ((labels > 0) & counted).sum())

    def record(self, task: Task) -> dict[str, float]:
        """The figures by name; the first one is what the task is judged by."""
        accuracy = self.right / max(self.total, 1)
        if task == "classification":
            return {"accuracy": accuracy}
        return {"dice": 2 * self.both / self.sums if self.sums else 1.0, "pixel_accuracy": accuracy}
