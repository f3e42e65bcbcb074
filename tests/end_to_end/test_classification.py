"""Classifiers on real pictures: SqueezeNet on ImageNet samples, ResNets on CIFAR-10."""

from __future__ import annotations

import csv

import assets
import numpy as np
import pytest
from engines import Array, ours, picture, pictures, planes, run_theirs, theirs
from PIL import Image

BATCH = 10


def test_squeezenet_on_imagenet_samples() -> None:
    with open(assets.path("data", "imagenet_samples", "labels.csv"), newline="") as stream:
        labels = {row["file"]: int(row["ilsvrc_class_index"]) for row in csv.DictReader(stream)}
    network = ("squeezenet", "squeezenet_v1.1.onnx")
    photos = pictures("imagenet_samples", suffix=".JPEG")
    assert photos
    hits = np.zeros((2, 2), int)
    for path in photos:
        blue_first = picture(path, (227, 227))[..., ::-1]
        feeds = {"data": planes(blue_first - np.float32([104, 117, 123]))}
        both = [ours(*network).run(None, feeds)[0][0], run_theirs(theirs(*network), feeds)[0][0]]
        np.testing.assert_allclose(*both, rtol=0, atol=1e-4, err_msg=path.name)
        for engine, probabilities in enumerate(both):
            best = np.argsort(-probabilities)[:5]
            hits[engine] += [best[0] == labels[path.name], labels[path.name] in best]
    assert hits[0].tolist() == hits[1].tolist(), "top-1 and top-5"
    # 65 and 86 % of the 200 pictures that these are taken from.
    assert (hits[0] > len(photos) * np.array([0.6, 0.8])).all(), hits


def cifar10() -> tuple[Array, Array]:
    """The 2,000 training pictures as the networks want them, and their classes."""
    folder = assets.path("data", "cifar10")
    rows = []
    for number in (0, 1):
        with Image.open(folder / f"cifar10_batch_{number}.png") as image:
            rows.append(np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3))
    pixels = np.concatenate(rows) / np.float32(255)
    pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    labels = np.loadtxt(folder / "labels_recovered.txt", dtype=int)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels


def right(depth: int, start: int, stop: int) -> int:
    """How many of these CIFAR-10 pictures a ResNet classifies rightly; ONNX Runtime must choose the same."""
    network = ("cifar10_resnet", f"resnet{depth}_cifar10.onnx")
    pixels, labels = cifar10()
    count = 0
    for at in range(start, stop, BATCH):
        feeds = {"input": pixels[at : at + BATCH]}
        got = ours(*network).run(None, feeds)[0].argmax(1)
        wanted = run_theirs(theirs(*network), feeds)[0].argmax(1)
        assert got.tolist() == wanted.tolist(), f"pictures from {at}"
        count += int((got == labels[at : at + BATCH]).sum())
    return count


@pytest.mark.parametrize("depth", [20, 56])
def test_resnets_on_cifar10(depth: int) -> None:
    assert right(depth, 0, 500) == 500


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "share"), [(20, 0.9985), (56, 1.0)])
def test_resnets_on_all_lossless_pictures_of_cifar10(depth: int, share: float) -> None:
    assert right(depth, 0, 2000) / 2000 == share
