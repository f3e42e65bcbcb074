"""Trained networks and real data to judge what becomes of a network: see `Case`."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detection
import numpy as np
from PIL import Image

import coresident

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
BATCH = 50
"""Pictures a call while judging, where they are all of one size."""


@dataclass(frozen=True)
class Case:
    """A trained network, pictures to calibrate on, and others to judge by.

    Args:
        model: an ONNX file.
        calibration: feeds of single pictures.
        judge: runs a session of the network, or of what became of it, over the other pictures.
    """

    model: Path
    calibration: Sequence[Feeds]
    judge: Callable[[coresident.Session], Score]


@dataclass(frozen=True)
class Score:
    """Args:
    accuracy: share of pictures classified rightly, Dice, or average precision; by the labels.
    answers: of each picture or pixel, to count how many are the same with another network.
    """

    accuracy: float
    answers: Array

    def agreement(self, other: Score) -> float:
        """Share of the answers that are the same."""
        return float((self.answers == other.answers).mean())


def _batches(x: Array, size: int = BATCH) -> Iterator[Array]:
    for start in range(0, len(x), size):
        yield x[start : start + size]


def _classifies(x: Array, labels: Array, name: str, batch: int) -> Callable[[coresident.Session], Score]:
    def judge(session: coresident.Session) -> Score:
        answers = [session.run(None, {name: part})[0].argmax(1) for part in _batches(x, batch)]
        best = np.concatenate(answers)
        return Score(float((best == labels).mean()), best)

    return judge


def _cifar(pixels: Array) -> Array:
    scaled = (pixels / np.float32(255) - np.float32([0.485, 0.456, 0.406])) / np.float32(
        [0.229, 0.224, 0.225]
    )
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _cifar_test(folder: Path) -> tuple[Array, Array]:
    """The 10,000 test pictures, uint8 [n, 32, 32, 3], and their classes (folders in the order of names)."""
    found = []
    with tarfile.open(folder / "cifar10_test_jpg.tar.gz") as archive:
        for member in archive:
            if not member.name.endswith(".jpg"):
                continue
            stream = archive.extractfile(member)
            assert stream is not None
            with Image.open(stream) as image:
                found.append((member.name, Path(member.name).parent.name, np.asarray(image.convert("RGB"))))
    found.sort(key=lambda one: one[0])
    kinds = sorted({kind for _, kind, _ in found})
    return np.stack([pixels for *_, pixels in found]), np.array([kinds.index(kind) for _, kind, _ in found])


def cifar(assets: Path, depth: int, pictures: int = 256) -> Case:
    """A ResNet of CIFAR-10: calibrated on training pictures, judged by the 10,000 test JPEGs."""
    folder = assets / "data" / "cifar10"
    rows = []
    for number in (0, 1):
        with Image.open(folder / f"cifar10_batch_{number}.png") as image:
            rows.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
    known = _cifar(np.concatenate(rows))
    chosen = np.random.default_rng(0).permutation(len(known))[:pictures]
    test, labels = _cifar_test(folder)
    return Case(
        next((assets / "models" / "cifar10_resnet").rglob(f"resnet{depth}_cifar10.onnx")),
        [{"input": known[i : i + 1]} for i in sorted(chosen)],
        _classifies(_cifar(test), labels, "input", BATCH),
    )


def squeezenet(assets: Path) -> Case:
    """SqueezeNet 1.1: calibrated on every other ImageNet sample and COCO128's photos, judged by the rest."""
    folder = assets / "data" / "imagenet_samples"
    with open(folder / "labels.csv", newline="") as stream:
        labels = {row["file"]: int(row["ilsvrc_class_index"]) for row in csv.DictReader(stream)}
    photos = [path for path in sorted(folder.glob("*.JPEG")) if path.name in labels]

    def tensors(paths: list[Path]) -> Array:
        levels = np.stack([sized(path, 227)[..., ::-1] - np.float32([104, 117, 123]) for path in paths])
        return np.ascontiguousarray(levels.transpose(0, 3, 1, 2))

    x = tensors(photos)
    others = tensors(sorted((assets / "data" / "coco128").glob("*.jpg")))
    return Case(
        next((assets / "models" / "squeezenet").rglob("squeezenet_v1.1.onnx")),
        [{"data": one[None]} for one in (*x[::2], *others)],
        _classifies(x[1::2], np.array([labels[path.name] for path in photos[1::2]]), "data", 1),
    )


def sized(path: Path, size: int) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32)


def nuclei(assets: Path, pictures: int = 48, size: int = 512) -> Case:
    """The nuclei U-Net: fluorescence pictures of DSB2018, every other one to calibrate on; Dice by truth.

    Pictures that are smaller than the network's input are mirrored beyond their edges.
    """
    folder = assets / "data" / "nuclei_dsb2018"
    pairs = []
    for path in sorted((folder / "images").glob("*.png")):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"), np.float32)[:size, :size]
        if grey.mean() > 100:  # stained tissue, which the network was not trained on
            continue
        with Image.open(folder / "labels" / path.name) as image:
            mask = np.asarray(image)[:size, :size] > 0
        pairs.append((grey, mask))
    pairs = [pairs[i] for i in sorted(np.random.default_rng(0).permutation(len(pairs))[:pictures])]
    feeds = [{"input.1": _normalised(grey, size)[None, None]} for grey, _ in pairs]

    def judge(session: coresident.Session) -> Score:
        found, dice = [], []
        for one, (_, true) in zip(feeds[1::2], pairs[1::2]):
            mask = session.run(None, one)[0][0, 0, : true.shape[0], : true.shape[1]] > 0
            dice.append(2 * float((mask & true).sum()) / max(float(mask.sum() + true.sum()), 1.0))
            found.append(mask.ravel())
        return Score(float(np.mean(dice)), np.concatenate(found))

    return Case(assets / "models" / "nuclei_unet2d" / "weights.onnx", feeds[::2], judge)


def _normalised(grey: Array, size: int) -> Array:
    grey = np.pad(grey, [(0, size - length) for length in grey.shape], mode="symmetric")
    return (grey - grey.mean()) / (grey.std() + np.float32(1e-6))


def fastestdet(assets: Path) -> Case:
    """FastestDet: calibrated on every other photo of COCO128, judged by AP50 on the rest."""
    folder = assets / "data" / "coco128"
    photos = sorted(folder.glob("*.jpg"))
    feeds = [
        {
            "input.1": np.ascontiguousarray(
                (sized(path, 352)[..., ::-1] / np.float32(255)).transpose(2, 0, 1)
            )[None]
        }
        for path in photos
    ]

    def judge(session: coresident.Session) -> Score:
        outputs = [session.run(None, one)[0] for one in feeds[1::2]]
        boxes = [detection.fastestdet(output, 0.01) for output in outputs]
        truth = [detection.yolo_labels(path.with_suffix(".txt")) for path in photos[1::2]]
        found = [detection.fastestdet(output, 0.5) for output in outputs]
        return Score(detection.average_precision(boxes, truth), np.array([len(one) for one in found]))

    return Case(assets / "models" / "fastestdet" / "FastestDet.onnx", feeds[::2], judge)
