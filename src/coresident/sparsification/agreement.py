"""How much a changed network says what the original says, and, where labels are given, how much is right.

1. Classifier: share of samples with the same best class, mean KL divergence.
2. Segmenter: share of pixels with the same class, Dice of what is not background, mean KL divergence.
3. Detector: share of boxes that have a partner (F1 of boxes above `SHOWN`), relative error of the heads.
4. Any other: relative error.

What a search goes by is, for classes, the Jensen-Shannon divergence: it has a bound, so that no single sample
outweighs all others, and of two networks told the one that keeps more decisions where KL told the other (a
ResNet-20 with its means and deviations repaired, in five runs of six).

Source: Lin 1991, "Divergence measures based on the Shannon entropy".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification import boxes
from coresident.sparsification.preparation import bound

Task = Literal["classifier", "segmenter", "detector", "other"]

TASKS: tuple[Task, ...] = ("classifier", "segmenter", "detector", "other")

METRICS: Mapping[Task, str] = {"classifier": "top-1", "segmenter": "Dice", "detector": "AP50"}
"""What `accuracy` is, by task: share of the samples; of what is not background, mean over the samples; area
under precision at an overlap of one half, mean over the classes."""

SHOWN = 0.25
"""Score above which a detector's box counts."""

COARSEST = 8
"""Pixels of the input for one of the output, along an axis, up to which a map of classes segments."""

_ELEMENTS = 1 << 22
"""Of all outputs that are compared at a time."""

_LEAST = 1e-7
"""A probability is taken to be at least this, as its logarithm."""


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree on some samples.

    Args:
        task: that was compared.
        samples: how many.
        share: 0..1, of the decisions that are the same: classes, pixels, boxes; for other tasks 1 minus the
            relative error.
        loss: smooth, 0 for the same outputs; what a search goes by.
        details: all figures, by name.
    """

    task: Task
    samples: int
    share: float
    loss: float
    details: Mapping[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As it goes into a report."""
        return {
            "task": self.task,
            "samples": self.samples,
            "share": self.share,
            "loss": self.loss,
            **self.details,
        }


def task_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Task:
    """What a network does, by the shapes of its outputs.

    Args:
        graph: prepared.
        shapes: of the inputs, where the graph has free dimensions.

    Raises:
        InputError: sizes are missing.
    """
    known = bound(graph, shapes)
    sizes = [known.facts[name].sizes for name in graph.outputs]
    pictures = [known.facts[name].sizes for name in graph.inputs if len(known.facts[name].shape) >= 4]
    return task_by(sizes, pictures[0] if pictures else None)


def task_by(outputs: Sequence[Sequence[int]], picture: Sequence[int] | None) -> Task:
    """What a network does, by shapes of its outputs and of the picture that it reads, if it reads one."""
    first = outputs[0]
    if len(outputs) == 1 and len(first) >= 2 and first[1] > 1 and all(size == 1 for size in first[2:]):
        return "classifier"
    if picture is None:
        return "other"
    fine = [
        shape
        for shape in outputs
        if len(shape) == len(picture)
        and all(0 < size * COARSEST >= whole for size, whole in zip(shape[2:], picture[2:]))
    ]
    if len(fine) == len(outputs):
        return "segmenter"
    if boxes.head_of(outputs) or len(outputs) > 1:
        return "detector"
    return "other"


def named(task: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    for known in TASKS:
        if known == task:
            return known
    raise InputError(f"no task {task!r}; tasks are {', '.join(TASKS)}")


def compare(task: Task, reference: Sequence[Array], outputs: Sequence[Array]) -> Agreement:
    """How far the outputs of two networks agree.

    Args:
        task: what they do.
        reference: the original's outputs, samples along axis 0.
        outputs: those of the other one.

    Raises:
        InputError: there are no samples, or shapes differ.
    """
    shapes = [[array.shape for array in arrays] for arrays in (reference, outputs)]
    if shapes[0] != shapes[1]:
        raise InputError(f"outputs of shapes {shapes[1]} can't be compared with others of {shapes[0]}")
    samples = shapes[0][0][0] if shapes[0] and shapes[0][0] else 0
    if not samples or any(not array.size for array in reference):
        raise InputError("no samples to compare two networks by; at least one is needed")
    totals: dict[str, float] = {}
    for part in _parts(reference, samples):
        for name, value in _sums(task, *([array[part] for array in a] for a in (reference, outputs))).items():
            totals[name] = totals.get(name, 0.0) + value
    return _agreement(task, samples, totals)


def _parts(arrays: Sequence[Array], samples: int) -> list[slice]:
    """Slices of the samples, so that few are held in double precision; one where axis 0 is none of samples
    everywhere."""
    if any(array.shape[:1] != (samples,) for array in arrays):
        return [slice(None)]
    step = max(_ELEMENTS * samples // sum(array.size for array in arrays), 1)
    return [slice(start, start + step) for start in range(0, samples, step)]


def _sums(task: Task, want: Sequence[Array], have: Sequence[Array]) -> dict[str, float]:
    """What adds up over batches."""
    if task == "classifier":
        p, q = (_probabilities(np.asarray(one[0]).reshape(len(one[0]), -1)) for one in (want, have))
        return {"same": float((p.argmax(1) == q.argmax(1)).sum()), **_divergences(p, q)}
    if task == "segmenter":
        totals: dict[str, float] = {}
        for a, b in zip(want, have):
            for name, value in _pixels(a, b).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals
    if task != "detector":
        return _errors(want, have)
    head = boxes.head_of([array.shape for array in want])
    sums = _errors(boxes.parts(head, want), boxes.parts(head, have))
    if head:
        for original, other in zip(boxes.decode(head, want, SHOWN), boxes.decode(head, have, SHOWN)):
            sums["matched"] = sums.get("matched", 0.0) + boxes.matches(other, original)
            sums["boxes"] = sums.get("boxes", 0.0) + (len(original.scores) + len(other.scores)) / 2
    return sums


def _errors(want: Sequence[Array], have: Sequence[Array]) -> dict[str, float]:
    """Squared errors and squares, of each array by itself: a box in pixels is no thousand scores."""
    sums = {}
    for i, (a, b) in enumerate(zip(want, have)):
        if np.issubdtype(a.dtype, np.floating):
            exact = a.astype(np.float64)
            sums[f"error {i}"] = float(((b - exact) ** 2).sum())
            sums[f"square {i}"] = float((exact**2).sum())
    return sums


def _probabilities(values: Array) -> Array:
    """Along axis 1: as they are where they are probabilities, else by softmax."""
    exact = values.astype(np.float64)
    if exact.min() >= 0 and np.allclose(exact.sum(1), 1, atol=1e-3):
        return exact
    powers = np.exp(exact - exact.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _divergence(p: Array, q: Array) -> Array:
    """KL divergence along axis 1, in nats."""
    terms = p * (np.log(np.maximum(p, _LEAST)) - np.log(np.maximum(q, _LEAST)))
    return np.asarray(np.maximum(terms.sum(1), 0))


def _divergences(p: Array, q: Array) -> dict[str, float]:
    """Sums of the divergences along axis 1."""
    mean = (p + q) / 2
    bounded = (_divergence(p, mean) + _divergence(q, mean)) / 2
    return {"kl": float(_divergence(p, q).sum()), "js": float(bounded.sum())}


def _exclusive(values: Array) -> bool:
    """Whether the maps along axis 1 are classes of which a pixel has one, not each one by itself."""
    apart = values.min() >= 0 and values.max() <= 1 and not np.allclose(values.sum(1), 1, atol=1e-3)
    return values.shape[1] > 1 and not apart


def _pixels(want: Array, have: Array) -> dict[str, float]:
    p, q = np.asarray(want, np.float64), np.asarray(have, np.float64)
    if _exclusive(p):
        p, q = _probabilities(p), _probabilities(q)
        a, b = p.argmax(1), q.argmax(1)
        inside, found, common = a > 0, b > 0, (a == b) & (a > 0)
    else:
        # One probability, or its logit, for each map.
        if p.min() < 0 or p.max() > 1:
            p, q = (1 / (1 + np.exp(-np.clip(x, -500, 500))) for x in (p, q))
        a, b = p > 0.5, q > 0.5
        inside, found, common = a, b, a & b
        p, q = (np.stack([one, 1 - one], 1) for one in (p, q))
    return {
        "same": float((a == b).sum()),
        "pixels": float(a.size),
        "common": float(common.sum()),
        "either": float(inside.sum() + found.sum()),
        **_divergences(p, q),
    }


def _agreement(task: Task, samples: int, totals: Mapping[str, float]) -> Agreement:
    if task == "classifier":
        share, kl = totals["same"] / samples, totals["kl"] / samples
        return Agreement(task, samples, share, totals["js"] / samples, {"top1_agreement": share, "kl": kl})
    if task == "segmenter":
        share, kl, loss = (totals[name] / totals["pixels"] for name in ("same", "kl", "js"))
        dice = 2 * totals["common"] / totals["either"] if totals["either"] else 1.0
        return Agreement(task, samples, share, loss, {"pixel_agreement": share, "dice": dice, "kl": kl})
    numbers = [int(name.split()[1]) for name in totals if name.startswith("error")]
    relative = [totals[f"error {i}"] / max(totals[f"square {i}"], 1e-30) for i in numbers]
    loss = float(np.mean(relative)) if relative else 0.0
    details = {"relative_squared_error": loss}
    share = max(1 - loss**0.5, 0.0)
    if "boxes" in totals:
        share = totals["matched"] / totals["boxes"] if totals["boxes"] else 1.0
        details["matched_boxes"] = share
    return Agreement(task, samples, share, loss, details)


def accuracy(
    task: Task,
    outputs: Sequence[Array],
    labels: Sequence[Any] | Array,
    picture: tuple[int, int] | None = None,
) -> float:
    """How much of what a network says is right.

    Args:
        task: what it does.
        outputs: its outputs, samples along axis 0.
        labels: for each sample: of classifiers a class; of segmenters an array of classes [spatial...], where
            0 is background; of detectors [boxes, 5], class, left, top, right and bottom in shares of the
            picture.
        picture: its height and width, for detectors whose boxes are in pixels.

    Returns:
        0..1, by the measure in `METRICS`.

    Raises:
        InputError: a task that has no labels, or labels that do not fit.
    """
    if task == "other":
        raise InputError(f"a network of the task {task!r} has no accuracy; its outputs can only be compared")
    count = len(outputs[0])
    if len(labels) != count or not count:
        raise InputError(f"{len(labels)} labels for {count} samples")
    wanted = {"classifier": 0, "segmenter": outputs[0].ndim - 2, "detector": 2}[task]
    if wrong := {np.ndim(label) for label in labels} - {wanted}:
        kinds = {"classifier": "a class", "segmenter": "a mask", "detector": "boxes"}
        raise InputError(f"labels of {wrong.pop()} dimensions; a {task} is judged by {kinds[task]} a sample")
    if task == "classifier":
        best = np.asarray(outputs[0]).reshape(count, -1).argmax(1)
        return float(np.mean(best == np.asarray(labels)))
    if task == "segmenter":
        values = outputs[0]
        likely = 0.5 if values.min() >= 0 and values.max() <= 1 else 0.0
        found = values.argmax(1) if _exclusive(values) else values[:, 0] > likely
        return float(np.mean([_dice(one, np.asarray(mask)) for one, mask in zip(found, labels)]))
    head = boxes.head_of([array.shape for array in outputs])
    if not head:
        raise InputError("the form of the detector's outputs is not known; its boxes can't be judged")
    found = boxes.decode(head, outputs)
    return boxes.average_precision(found, boxes.labelled(list(labels), found, picture))


def _dice(found: Array, mask: Array) -> float:
    """Of one sample: classes, or what is inside; of a mask for the latter, all but 0 is."""
    if found.shape != mask.shape:
        raise InputError("a mask must have the size of the output", shape=(found.shape, mask.shape))
    wanted = mask if found.dtype != np.bool_ else mask > 0
    either = (found > 0).sum() + (wanted > 0).sum()
    return float(2 * ((found == wanted) & (wanted > 0)).sum() / either) if either else 1.0
