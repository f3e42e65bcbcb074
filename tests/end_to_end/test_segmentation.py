"""Networks that segment: nuclei against the shipped output, neurons as the flood-filling network is used."""

from __future__ import annotations

import gzip
import math
from functools import cache
from typing import Any

import assets
import numpy as np
import pytest
from engines import Array, close, ours, pictures, run_theirs, theirs
from PIL import Image

NEURONS = ("ffn_fib25", "ffn_fib25.onnx")
FIELD = 33
"""Voxels along each side of what the network sees at once."""


def test_nuclei_as_shipped() -> None:
    folder = assets.path("models", "nuclei_unet2d")
    image = np.load(folder / "test_input.npy").astype(np.float32)
    wanted = np.load(folder / "test_output.npy")
    image = (image - image.mean((2, 3), keepdims=True)) / (image.std((2, 3), keepdims=True) + 1e-6)
    (logits,) = ours("nuclei_unet2d", "weights.onnx").run(None, {"input.1": image})
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert float(np.abs(probability - wanted).max()) < 1e-5


@cache
def volume() -> Array:
    """The gray values, uint8 [250, 250, 250]."""
    return np.stack(
        [_gray(path) for path in pictures("em_fib25", "training_sample2", "grayscale_maps", suffix=".png")]
    )


def _gray(path: Any) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


@cache
def neurons() -> Array:
    """The number of the neuron at each voxel.

    Both data sets of the HDF5 file lie in it in one piece: "stack", uint32 [250, 250, 250], the numbers of
    supervoxels; and "transforms", pairs of uint64: a supervoxel, and the neuron that it is of.
    """
    path = assets.path("data", "em_fib25", "training_sample2", "groundtruth.h5.gz")
    content = gzip.decompress(path.read_bytes())
    stack = np.frombuffer(content, "<u4", 250**3, 2144).reshape(250, 250, 250)
    pairs = np.frombuffer(content, "<u8", offset=2144 + stack.nbytes).reshape(-1, 2).astype(np.int64)
    table = np.zeros(int(pairs[:, 0].max()) + 1, np.int64)
    table[pairs[:, 0]] = pairs[:, 1]
    return table[stack]


def around(array: Array, place: tuple[int, ...], size: int) -> Array:
    return array[tuple(slice(at - size // 2, at - size // 2 + size) for at in place)]


def filled(gray: Array, place: tuple[int, ...]) -> Array:
    """Two passes of the network from a seed; True where it takes the object at the seed to be.

    ONNX Runtime must come to the same in both.
    """
    image = ((around(gray, place, FIELD).astype(np.float32) - 128) / 33)[None, None]
    seed = np.full(image.shape, math.log(0.05 / 0.95), np.float32)
    seed[(0, 0, *(FIELD // 2,) * 3)] = math.log(0.95 / 0.05)
    for _ in range(2):
        feeds = {"image": image, "seed": seed}
        outputs = ours(*NEURONS).run(None, feeds)
        close(outputs, run_theirs(theirs(*NEURONS), feeds), f"seed at {place}")
        (seed,) = outputs
    return seed[0, 0] > 0


def score(found: Array, wanted: Array) -> float:
    """Intersection over union."""
    return float((found & wanted).sum() / (found | wanted).sum())


def test_a_neuron_that_leaves_much_of_the_field() -> None:
    place = (76, 84, 28)
    wanted = around(neurons(), place, FIELD) == neurons()[place]
    assert wanted.mean() < 0.7
    assert score(filled(volume(), place), wanted) > 0.95


@pytest.mark.slow
def test_neurons_at_random_seeds() -> None:
    seed = 0
    generator = np.random.default_rng(seed)
    truth, gray = neurons(), volume()
    scores: list[float] = []
    while len(scores) < 12:
        place = tuple(int(at) for at in generator.integers(20, 230, 3))
        inside = around(truth, place, 9)
        if truth[place] and (inside == truth[place]).all():
            scores.append(score(filled(gray, place), around(truth, place, FIELD) == truth[place]))
    assert np.median(scores) > 0.98, f"random seed {seed}: {scores}"
    assert min(scores) > 0.95, f"random seed {seed}: {scores}"
