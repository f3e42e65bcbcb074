"""Detectors on real photos: the boxes are those of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import assets
import numpy as np
from engines import Array, ours, picture, pictures, planes, run_theirs, theirs

FACES = ("face_ultralight", "version-RFB-320.onnx")
OBJECTS = ("fastestdet", "FastestDet.onnx")
COUNTS = {"1": 44, "10": 19, "11": 25, "12": 5, "13": 2, "15": 16, "16": 9}
"""Faces in each photo, by the network's makers; the eighth of SOURCE.md is not among the assets."""


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


def faces(outputs: list[Array]) -> Array:
    """[n, 5]: corners, in shares of the photo, and score of each face above 0.7."""
    scores, boxes = outputs[0][0, :, 1], outputs[1][0]
    boxes, scores = boxes[scores > 0.7], scores[scores > 0.7]
    kept = suppressed(boxes, scores, 0.3)
    return np.column_stack([boxes[kept], scores[kept]])


def test_faces() -> None:
    counts = {}
    for path in pictures("faces", suffix=".jpg"):
        feeds = {"input": planes((picture(path, (320, 240)) - np.float32(127)) / 128)}
        found, wanted = (
            faces(outputs) for outputs in (ours(*FACES).run(None, feeds), run_theirs(theirs(*FACES), feeds))
        )
        assert found.shape == wanted.shape, path.name
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4, err_msg=path.name)
        counts[path.stem] = len(found)
    assert counts.items() >= COUNTS.items()


def objects(output: Array, threshold: float) -> Array:
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


def truth(path: Path) -> Array:
    """[n, 6] as `objects` has them, from YOLO's file beside a photo: class, centre and size."""
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


def test_objects_in_photos() -> None:
    photos = pictures("coco128", suffix=".jpg")
    every: tuple[list[Array], list[Array]] = ([], [])
    for path in photos:
        feeds = {"input.1": planes(picture(path, (352, 352))[..., ::-1] / np.float32(255))}
        outputs = ours(*OBJECTS).run(None, feeds)[0], run_theirs(theirs(*OBJECTS), feeds)[0]
        found, wanted = (objects(output, 0.5) for output in outputs)
        assert found.shape == wanted.shape, path.name
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3, err_msg=path.name)
        for boxes, output in zip(every, outputs):
            boxes.append(objects(output, 0.01))
    assert photos
    assert assets.path("data", "coco128", photos[0].name).exists()
    precisions = [average_precision(boxes, [truth(path) for path in photos]) for boxes in every]
    assert abs(precisions[0] - precisions[1]) < 1e-3, precisions
    # 0.3214 over the 128 photos that these 64 are taken from.
    assert precisions[0] > 0.25
