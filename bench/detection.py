"""Boxes of detectors: decoding, overlap, suppression, average precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def overlap(box: Array, others: Array) -> Array:
    """Intersection over union of a box (x1, y1, x2, y2) with others."""
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(corners[1] - corners[0], 0, None).prod(1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, others)]
    return np.asarray(common / np.maximum(areas[0] + areas[1] - common, 1e-12))


def suppressed(boxes: Array, scores: Array, threshold: float) -> list[int]:
    """Indices that greedy non-maximum suppression keeps, best first."""
    kept, order = [], np.argsort(-scores, kind="stable")
    while order.size:
        kept.append(int(order[0]))
        order = order[1:][overlap(boxes[order[0]], boxes[order[1:]]) <= threshold]
    return kept


def fastestdet(output: Array, threshold: float) -> Array:
    """What FastestDet's own post-processing makes of its output [1, 5 + 80, rows, columns].

    Returns:
        [n, 6]: corners in shares of the photo, score and class, best first.
    """
    _, channels, rows, columns = output.shape
    data = output[0].reshape(channels, rows * columns).T.astype(np.float64)
    scores = data[:, 0] ** 0.6 * data[:, 5:].max(1) ** 0.4
    cell = np.stack(np.divmod(np.arange(rows * columns), columns)[::-1], 1)
    centre = (cell + np.tanh(data[:, 1:3])) / [columns, rows]
    size = 1 / (1 + np.exp(-data[:, 3:5]))
    boxes = np.column_stack([centre - size / 2, centre + size / 2, scores, data[:, 5:].argmax(1)])
    boxes = boxes[scores > threshold]
    return boxes[suppressed(boxes[:, :4], boxes[:, 4], 0.45)]


def yolo_labels(path: Path) -> Array:
    """[n, 6] as `fastestdet` has them, from YOLO's file beside a photo: class, centre and size."""
    text = path.with_suffix(".txt").read_text()
    rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
    centre, size = rows[:, 1:3], rows[:, 3:5]
    return np.column_stack([centre - size / 2, centre + size / 2, np.ones(len(rows)), rows[:, 0]])


def average_precision(found: list[Array], wanted: list[Array]) -> float:
    """AP at an overlap of one half: the area under the best precision at each recall, mean over the
    classes."""
    results = []
    for kind in np.unique(np.concatenate(wanted)[:, 5]):
        hits, total = [], 0
        for boxes, targets in zip(found, wanted):
            left = targets[targets[:, 5] == kind]
            total += len(left)
            for box in boxes[boxes[:, 5] == kind]:
                shares = overlap(box[:4], left[:, :4]) if len(left) else np.zeros(1)
                hits.append((box[4], shares.max() >= 0.5))
                if shares.max() >= 0.5:
                    left = np.delete(left, shares.argmax(), 0)
        right = np.cumsum([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])])
        precision = right / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        results.append(float(np.sum(np.diff(right, prepend=0) / total * best)))
    return float(np.mean(results))
