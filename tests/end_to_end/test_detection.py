"""Detectors on real photos: the boxes are those of ONNX Runtime."""

from __future__ import annotations

import assets
import numpy as np
from detection import average_precision, fastestdet, suppressed, yolo_labels
from engines import Array, ours, picture, pictures, planes, run_theirs, theirs

FACES = ("face_ultralight", "version-RFB-320.onnx")
OBJECTS = ("fastestdet", "FastestDet.onnx")
COUNTS = {"1": 44, "10": 19, "11": 25, "12": 5, "13": 2, "15": 16, "16": 9}
"""Faces in each photo, by the network's makers; the eighth of SOURCE.md is not among the assets."""


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


def test_objects_in_photos() -> None:
    photos = pictures("coco128", suffix=".jpg")
    every: tuple[list[Array], list[Array]] = ([], [])
    for path in photos:
        feeds = {"input.1": planes(picture(path, (352, 352))[..., ::-1] / np.float32(255))}
        outputs = ours(*OBJECTS).run(None, feeds)[0], run_theirs(theirs(*OBJECTS), feeds)[0]
        found, wanted = (fastestdet(output, 0.5) for output in outputs)
        assert found.shape == wanted.shape, path.name
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3, err_msg=path.name)
        for boxes, output in zip(every, outputs):
            boxes.append(fastestdet(output, 0.01))
    assert photos
    assert assets.path("data", "coco128", photos[0].name).exists()
    precisions = [average_precision(boxes, [yolo_labels(path) for path in photos]) for boxes in every]
    assert abs(precisions[0] - precisions[1]) < 1e-3, precisions
    # 0.3214 over the 128 photos that these 64 are taken from.
    assert precisions[0] > 0.25
