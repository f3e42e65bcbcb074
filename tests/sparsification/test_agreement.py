"""Agreement of two networks, and accuracy, on outputs worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coresident.errors import InputError
from coresident.sparsification import boxes
from coresident.sparsification.agreement import METRICS, TASKS, accuracy, compare, named, task_by
from coresident.sparsification.boxes import Boxes, decode, head_of

SEED = 11
Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    ("outputs", "picture", "task"),
    [
        ([(4, 10)], (4, 3, 32, 32), "classifier"),
        ([(1, 1000, 1, 1)], (1, 3, 227, 227), "classifier"),
        ([(1, 10)], None, "classifier"),
        ([(1, 2, 64, 64)], (1, 1, 64, 64), "segmenter"),
        ([(1, 21, 65, 65)], (1, 3, 520, 520), "segmenter"),
        ([(1, 1, 8, 9, 10)], (1, 1, 16, 18, 20), "segmenter"),
        ([(1, 85, 22, 22)], (1, 3, 352, 352), "detector"),
        ([(1, 84, 8400)], (1, 3, 640, 640), "detector"),
        ([(1, 25200, 85)], (1, 3, 640, 640), "detector"),
        ([(1, 4420, 2), (1, 4420, 4)], (1, 3, 240, 320), "detector"),
        ([(1, 300, 6)], (1, 3, 640, 640), "detector"),
        ([(1, 1)], (1, 3, 32, 32), "other"),
        ([(1, 7, 9)], None, "other"),
    ],
)
def test_tasks_by_shapes(outputs: list[tuple[int, ...]], picture: tuple[int, ...] | None, task: str) -> None:
    assert task_by(outputs, picture) == task
    assert named(task) == task


def test_tasks_by_name() -> None:
    assert set(METRICS) == set(TASKS) - {"other"}
    with pytest.raises(InputError, match="no task 'poet'"):
        named("poet")


def jensen_shannon(p: Array, q: Array) -> float:
    mean = (p + q) / 2
    return float((p * np.log(p / mean) + q * np.log(q / mean)).sum() / 2)


def test_classifier() -> None:
    logits = np.array([[2, 1, 0], [0, 3, 0], [0, 0, 1], [5, 0, 0]], np.float32)
    other = logits.copy()
    other[2] = [1, 0, 0]
    found = compare("classifier", [logits], [other])
    assert (found.share, found.samples) == (0.75, 4)
    p, q = (np.exp(a[2]) / np.exp(a[2]).sum() for a in (logits.astype(float), other.astype(float)))
    assert found.details["kl"] == pytest.approx(float((p * np.log(p / q)).sum()) / 4)
    assert found.loss == pytest.approx(jensen_shannon(p, q) / 4)
    probabilities = [np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (logits, other)]
    assert compare("classifier", probabilities[:1], probabilities[1:]).loss == pytest.approx(found.loss, 1e-4)
    assert compare("classifier", [logits], [logits]).loss == 0
    assert accuracy("classifier", [logits], np.array([0, 1, 2, 1])) == 0.75
    assert found.record() == {"task": "classifier", "samples": 4, "share": 0.75, "loss": found.loss} | {
        "top1_agreement": 0.75,
        "kl": found.details["kl"],
    }


def test_what_a_search_goes_by_has_a_bound() -> None:
    sure = np.array([[40, 0], [0, 40]], np.float32)
    found = compare("classifier", [sure], [sure[::-1]])
    assert found.details["kl"] > 16
    assert found.loss == pytest.approx(np.log(2), rel=1e-3)


def test_segmenter_of_classes() -> None:
    logits = np.zeros((2, 3, 2, 2), np.float32)
    logits[:, 0] = 1
    logits[0, 1, 0, 0] = logits[0, 2, 1, 1] = 4
    other = logits.copy()
    other[0, 2, 1, 1] = 0
    found = compare("segmenter", [logits], [other])
    assert found.share == 7 / 8
    assert found.details["dice"] == pytest.approx(2 * 1 / 3)
    assert found.loss > 0
    masks = logits.argmax(1)
    assert accuracy("segmenter", [logits], masks) == 1
    assert accuracy("segmenter", [other], masks) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("logits", [True, False])
def test_segmenter_of_one_map(logits: bool) -> None:
    values = np.array([[-3, 2], [1, -1]], np.float32)[None, None]
    other = np.array([[-3, 2], [-1, -1]], np.float32)[None, None]
    if not logits:
        values, other = (1 / (1 + np.exp(-a)) for a in (values, other))
    found = compare("segmenter", [values], [other])
    assert found.share == 0.75
    assert found.details["dice"] == pytest.approx(2 / 3)
    p, q = (np.array([a, 1 - a]) for a in (1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))))
    assert found.details["kl"] == pytest.approx(float((p * np.log(p / q)).sum()) / 4, rel=1e-4)
    assert found.loss == pytest.approx(jensen_shannon(p, q) / 4, rel=1e-4)
    assert accuracy("segmenter", [other], np.array([[[0, 7], [9, 0]]])) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="size of the output"):
        accuracy("segmenter", [other], np.zeros((1, 3, 3), int))


def test_samples_in_parts_are_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(SEED)
    a, b = rng.standard_normal((2, 7, 3, 5, 5)).astype(np.float32)
    whole = compare("segmenter", [a], [b])
    monkeypatch.setattr("coresident.sparsification.agreement._ELEMENTS", 160)
    assert compare("segmenter", [a], [b]).loss == pytest.approx(whole.loss)


def test_others_by_their_errors() -> None:
    found = compare("other", [np.array([[3.0, 4.0]])], [np.array([[3.0, 4.5]])])
    assert found.loss == pytest.approx(0.01)
    assert found.share == pytest.approx(0.9)
    with pytest.raises(InputError, match="no accuracy"):
        accuracy("other", [np.zeros((1, 2))], [0])


def test_what_does_not_fit() -> None:
    one = np.zeros((1, 3), np.float32)
    with pytest.raises(InputError, match="can't be compared"):
        compare("classifier", [one], [one[:, :2]])
    with pytest.raises(InputError, match="no samples"):
        compare("classifier", [one[:0]], [one[:0]])
    with pytest.raises(InputError, match="2 labels for 1"):
        accuracy("classifier", [one], [1, 2])


def yolov8() -> np.ndarray:
    """Two things, one of them seen twice."""
    rows = np.zeros((300, 4 + 3), np.float32)
    rows[5] = [50, 60, 20, 10, 0.9, 0.1, 0]
    rows[6] = [51, 60, 20, 10, 0.8, 0.1, 0]
    rows[7] = [200, 90, 30, 30, 0, 0, 0.6]
    return np.ascontiguousarray(rows.T)[None]


def yolov5() -> np.ndarray:
    rows = yolov8()[0].T
    return np.concatenate([rows[:, :4], np.ones((300, 1)), rows[:, 4:]], 1)[None].astype(np.float32)


@pytest.mark.parametrize("output", [yolov8(), yolov5()])
def test_boxes_of_yolo(output: np.ndarray) -> None:
    (found,) = decode(head_of([output.shape]), [output])
    np.testing.assert_allclose(found.corners, [[40, 55, 60, 65], [185, 75, 215, 105]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6], rtol=1e-6)
    assert found.classes.tolist() == [0, 2]


def test_boxes_of_cells() -> None:
    output = np.zeros((1, 85, 4, 8), np.float32)
    output[0, :, 1, 2] = 0
    output[0, 0, 1, 2], output[0, 5 + 7, 1, 2] = 1, 1
    output[0, 1:3, 1, 2] = np.arctanh(0.5)
    (found,) = decode(head_of([output.shape]), [output])
    assert found.classes.tolist() == [7]
    assert found.scores.tolist() == [1]
    centre = np.array([2.5 / 8, 1.5 / 4])
    corners = np.concatenate([centre - 0.25, centre + 0.25])
    np.testing.assert_allclose(found.corners[0], corners)
    assert accuracy("detector", [output], [np.concatenate([[7], corners])[None]]) == 1
    assert accuracy("detector", [output], [np.zeros((0, 5))]) == 0


def test_boxes_with_scores_apart() -> None:
    corners = np.array([[[0, 0, 1, 1], [2, 2, 3, 3]]], np.float32)
    scores = np.array([[[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]]], np.float32)
    for outputs in ([corners, scores], [scores, corners]):
        (found,) = decode(head_of([a.shape for a in outputs]), outputs, 0.25)
        np.testing.assert_allclose(found.corners, [[2, 2, 3, 3]])
        assert found.classes.tolist() == [1]


def test_detector() -> None:
    output, other = yolov8(), yolov8()
    assert compare("detector", [output], [other]).share == 1
    other[0, :2, 7] += 40
    found = compare("detector", [output], [other])
    assert found.details["matched_boxes"] == 0.5
    assert found.loss > 0
    (seen,) = decode("yolov8", [output])
    pixels = [np.column_stack([seen.classes, seen.corners / [320, 200, 320, 200]])]
    assert accuracy("detector", [output], pixels, (200, 320)) == 1
    assert accuracy("detector", [other], pixels, (200, 320)) == 0.5
    with pytest.raises(InputError, match="in pixels"):
        accuracy("detector", [output], pixels)
    with pytest.raises(InputError, match="by boxes"):
        accuracy("detector", [output], [3], (200, 320))
    with pytest.raises(InputError, match="by a class"):
        accuracy("classifier", [np.eye(3)], [np.zeros((2, 5))] * 3)


def test_scores_count_beside_places() -> None:
    output, other = yolov8(), yolov8()
    other[0, 4:] *= 0.9
    assert compare("detector", [output], [other]).loss > 0.004


def test_suppressed_boxes_are_taken_as_they_are() -> None:
    output = np.zeros((2, 5, 6), np.float32)
    output[0, 0] = [1, 2, 3, 4, 0.9, 7]
    first, second = decode(head_of([output.shape]), [output])
    assert first.corners.tolist() == [[1, 2, 3, 4]]
    assert first.classes.tolist() == [7]
    assert not len(second.scores)


def test_partners_are_taken_once() -> None:
    box = np.array([[0.0, 0, 1, 1]])
    twice = Boxes(np.repeat(box, 2, 0), np.array([0.9, 0.8]), np.array([1, 1]))
    once = Boxes(box, np.array([0.9]), np.array([1]))
    assert boxes.matches(twice, once) == 1
    assert boxes.matches(once, twice) == 1
    assert boxes.average_precision([twice], [once]) == 1
    assert boxes.average_precision([once], [twice]) == 0.5
