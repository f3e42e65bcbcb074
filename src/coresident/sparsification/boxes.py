"""Boxes in the outputs of detectors whose heads are known, and how many of two sets are the same.

Heads: YOLOv5 [N, boxes, 5 + classes], YOLOv8 [N, 4 + classes, boxes], FastestDet [N, 5 + classes, rows,
columns], SSD's boxes [N, boxes, 4] with scores [N, boxes, classes] (two outputs), and [N, boxes, 6] or
[boxes, 6] after suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.errors import InputError
from coresident.graph.operator import Array

MOST_BEFORE = 1000
"""Boxes of a picture that suppression looks at, best first."""

SUPPRESSED_ABOVE = 0.45
"""Overlap with a better box of its class above which a box goes."""

MATCHED_FROM = 0.5
"""Overlap from which on two boxes are of the same thing."""

_FARTHEST = 4.0
"""Corners in shares of the picture do not lie farther out."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """What a detector sees in one picture.

    Args:
        corners: float64 [boxes, 4], left, top, right, bottom.
        scores: float64 [boxes].
        classes: int64 [boxes].
    """

    corners: Array
    scores: Array
    classes: Array

    def above(self, threshold: float) -> Boxes:
        """Those with a higher score."""
        chosen = self.scores > threshold
        return Boxes(self.corners[chosen], self.scores[chosen], self.classes[chosen])


def head_of(shapes: Sequence[Sequence[int]]) -> str:
    """The form of a head, by the shapes of a network's outputs; "" for none that is known."""
    if len(shapes) == 2 and all(len(shape) == 3 for shape in shapes):
        first, second = shapes
        if first[1] == second[1] and 4 in (first[2], second[2]) and first[2] != second[2]:
            return "ssd"
    if len(shapes) != 1:
        return ""
    shape = shapes[0]
    if len(shape) == 4 and shape[1] > 5:
        return "cells"
    if shape[-1] == 6 and len(shape) in (2, 3) and shape[-2] <= MOST_BEFORE:
        return "suppressed"
    if len(shape) != 3:
        return ""
    if shape[1] < shape[2]:
        return "yolov8" if shape[1] > 4 else ""
    return "yolov5" if shape[2] > 5 else ""


def parts(head: str, outputs: Sequence[Array]) -> list[Array]:
    """The outputs in pieces of one unit each: places apart from scores, whose numbers are far smaller."""
    cuts = {"cells": (1, (1, 5)), "yolov8": (1, (4,)), "yolov5": (2, (4,)), "suppressed": (-1, (4, 5))}
    if head not in cuts:
        return list(outputs)
    axis, places = cuts[head]
    return np.split(outputs[0], places, axis)


def decode(head: str, outputs: Sequence[Array], threshold: float = 0.01) -> list[Boxes]:
    """The boxes in each picture of a batch, overlapping ones of a class suppressed, best first.

    Args:
        head: form of the head (`head_of`).
        outputs: of the network.
        threshold: least score.
    """
    arrays = [np.asarray(output, np.float64) for output in outputs]
    if head == "suppressed":
        whole = arrays[0].reshape(-1, *arrays[0].shape[-2:])
        return [Boxes(p[:, :4], p[:, 4], p[:, 5].astype(np.int64)).above(threshold) for p in whole]
    count = len(arrays[0])
    return [_suppressed(_candidates(head, [a[i] for a in arrays]).above(threshold)) for i in range(count)]


def _candidates(head: str, arrays: Sequence[Array]) -> Boxes:
    """All boxes of a picture."""
    if head == "cells":
        return _cells(arrays[0])
    if head == "ssd":
        corners, scores = arrays if arrays[0].shape[-1] == 4 else (arrays[1], arrays[0])
        # Class 0 is the background.
        return Boxes(corners, scores[:, 1:].max(1), scores[:, 1:].argmax(1))
    rows = arrays[0].T if head == "yolov8" else arrays[0]
    scores = rows[:, 4:] if head == "yolov8" else rows[:, 4:5] * rows[:, 5:]
    corners = np.column_stack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2])
    return Boxes(corners, scores.max(1), scores.argmax(1))


def _cells(data: Array) -> Boxes:
    """FastestDet: an object in each cell, where in it, how large, and classes."""
    channels, rows, columns = data.shape
    flat = data.reshape(channels, rows * columns).T
    scores = np.maximum(flat[:, 0], 0) ** 0.6 * np.maximum(flat[:, 5:].max(1), 0) ** 0.4
    cell = np.stack(np.divmod(np.arange(rows * columns), columns)[::-1], 1)
    centre = (cell + np.tanh(flat[:, 1:3])) / [columns, rows]
    size = 1 / (1 + np.exp(-flat[:, 3:5]))
    return Boxes(np.column_stack([centre - size / 2, centre + size / 2]), scores, flat[:, 5:].argmax(1))


def _suppressed(boxes: Boxes) -> Boxes:
    order = np.argsort(-boxes.scores, kind="stable")[:MOST_BEFORE]
    kept: list[int] = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared = overlap(boxes.corners[best], boxes.corners[order]) > SUPPRESSED_ABOVE
        order = order[~(shared & (boxes.classes[order] == boxes.classes[best]))]
    return Boxes(boxes.corners[kept], boxes.scores[kept], boxes.classes[kept])


def overlap(box: Array, others: Array) -> Array:
    """Intersection over union of a box [4] with others [n, 4], corners each."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(common / np.maximum(areas - common, 1e-12))


def labelled(labels: Sequence[Array], found: Sequence[Boxes], picture: tuple[int, int] | None) -> list[Boxes]:
    """Labels as boxes in the units of a network's own.

    Args:
        labels: for each picture [boxes, 5]: class, then corners in shares of the picture.
        found: what the network makes of these pictures, in shares or in pixels.
        picture: height and width that the network sees.

    Raises:
        InputError: pixels, and no size given.
    """
    extent = max((float(np.abs(one.corners).max(initial=0)) for one in found), default=0.0)
    units = np.ones(4)
    if extent > _FARTHEST:
        if picture is None:
            raise InputError("the detector's boxes are in pixels, and the size of its picture is not known")
        units = np.array([picture[1], picture[0]] * 2, np.float64)
    return [
        Boxes(label[:, 1:] * units, np.ones(len(label)), label[:, 0].astype(np.int64))
        for label in map(np.asarray, labels)
    ]


def matches(found: Boxes, wanted: Boxes) -> int:
    """How many boxes have a partner of their class in the other set, each partner taken once."""
    free = np.ones(len(wanted.scores), bool)
    count = 0
    for i in np.argsort(-found.scores, kind="stable"):
        shares = overlap(found.corners[i], wanted.corners)
        shares = np.where(free & (wanted.classes == found.classes[i]), shares, 0)
        if shares.size and shares.max() >= MATCHED_FROM:
            free[shares.argmax()] = False
            count += 1
    return count


def average_precision(found: Sequence[Boxes], wanted: Sequence[Boxes]) -> float:
    """AP50: the area under the best precision at each recall, mean over the classes that there are.

    Args:
        found: in each picture.
        wanted: in each picture; scores are not looked at.
    """
    classes = np.unique(np.concatenate([boxes.classes for boxes in wanted]))
    results = []
    for kind in classes:
        hits: list[tuple[float, bool]] = []
        total = 0
        for have, want in zip(found, wanted, strict=True):
            left = want.corners[want.classes == kind]
            total += len(left)
            own = have.classes == kind
            for score, corners in sorted(zip(have.scores[own], have.corners[own]), key=lambda p: -p[0]):
                shares = overlap(corners, left)
                hit = bool(shares.size and shares.max() >= MATCHED_FROM)
                if hit:
                    left = np.delete(left, shares.argmax(), 0)
                hits.append((float(score), hit))
        right = np.cumsum([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=np.float64)
        precision = right / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        results.append(float(np.sum(np.diff(right, prepend=0) / total * best)))
    return float(np.mean(results)) if results else 0.0
