"""Pictures to tensors and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coresident.errors import ImageError, InputError, ResourceError
from coresident.vision.tensors import Preprocessing, mask_of, picture_of, tensor_of

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]
DEEP = GREY.astype(np.uint16) * 257


def test_planes_of_colours() -> None:
    found = tensor_of(RGB, Preprocessing(), ("n", 3, "h", "w"), np.float32)
    assert found.shape == (1, 3, 6, 8)
    assert found.flags.c_contiguous
    assert np.allclose(found[0].transpose(1, 2, 0), RGB / 255)


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((1, 6, 8, 3), None, (1, 6, 8, 3)),
        ((3, 6, 8), None, (3, 6, 8)),
        ((6, 8, 3), None, (6, 8, 3)),
        ((1, 3, 6, 3), "nchw", (1, 3, 6, 3)),
        ((1, "a", "b", "c"), "nhwc", (1, 6, 8, 3)),
        ((1, 1, None, None), None, (1, 1, 6, 8)),
        ((6, 8), None, (6, 8)),
    ],
)
def test_layouts(shape: tuple[int | str | None, ...], layout: str | None, wanted: tuple[int, ...]) -> None:
    options = Preprocessing(layout=layout)  # type: ignore[arg-type]
    assert tensor_of(RGB, options, shape, np.float32).shape == wanted


def test_channels_mean_and_deviation() -> None:
    options = Preprocessing(mean=(1, 2, 3), std=(2, 4, 8), channels="bgr", scale=1.0)
    found = tensor_of(RGB, options, (1, 3, 6, 8), np.float32)
    for plane, channel, mean, std in zip(found[0], (2, 1, 0), (1, 2, 3), (2, 4, 8)):
        assert np.allclose(plane, (RGB[:, :, channel].astype(np.float32) - mean) / std)
    grey = tensor_of(RGB, Preprocessing(scale=1.0), (1, 1, 6, 8), np.float32)
    assert np.allclose(grey[0, 0], RGB @ [0.299, 0.587, 0.114], atol=1e-3)
    assert tensor_of(GREY, Preprocessing(), (1, 3, 6, 8), np.float32).shape == (1, 3, 6, 8)


def test_levels_of_16_bits_are_kept() -> None:
    found = tensor_of(DEEP, Preprocessing(), (1, 1, 6, 8), np.float32)
    assert np.allclose(found[0, 0], DEEP / 65535)


def test_integers_take_levels_as_they_are() -> None:
    assert np.array_equal(tensor_of(RGB, Preprocessing(), (1, 6, 8, 3), np.uint8)[0], RGB)
    assert tensor_of(DEEP, Preprocessing(), (1, 1, 6, 8), np.uint8).max() == 255


def test_sizes() -> None:
    assert tensor_of(RGB, Preprocessing(size=(3, 4)), (1, 3, "h", "w"), np.float32).shape == (1, 3, 3, 4)
    fixed = tensor_of(np.full((6, 8), 51, np.uint8), Preprocessing(), (1, 1, 12, 4), np.float32)
    assert np.allclose(fixed, 0.2)
    assert fixed.shape == (1, 1, 12, 4)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (Preprocessing(), (2, 3, 6, 8), "one picture"),
        (Preprocessing(), (1, 3, 6, 8, 9), "one picture"),
        (Preprocessing(), (1, 4, 6, 8), "4 channels"),
        (Preprocessing(channels="gray"), (1, 3, 6, 8), "3 channels"),
        (Preprocessing(size=(5, 8)), (1, 3, 6, 8), "5x8"),
        (Preprocessing(mean=(1, 2)), (1, 3, 6, 8), "2 values"),
    ],
)
def test_what_does_not_fit(options: Preprocessing, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tensor_of(RGB, options, shape, np.float32, "x")


def test_no_deviation() -> None:
    with pytest.raises(InputError):
        Preprocessing(std=(0.0,))


def test_outputs_as_pictures() -> None:
    unit = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 1, 6, 8)
    picture, how = picture_of(unit)
    assert picture.shape == (6, 8)
    assert (picture.min(), picture.max()) == (0, 255)
    assert "0..1" in how
    half, _ = picture_of(unit / 2)
    assert half.max() == 128
    wide, how = picture_of(np.concatenate([unit, -unit, 7 * unit], axis=1))
    assert wide.shape == (6, 8, 3)
    assert how.startswith("-1..7")
    assert np.array_equal(picture_of(RGB.transpose(2, 0, 1))[0], RGB)
    assert picture_of(np.array([[True, False]]))[0].tolist() == [[255, 0]]
    assert picture_of(np.array([[0.0, np.nan, np.inf, 1.0]]))[0].tolist() == [[0, 0, 255, 255]]
    assert picture_of(np.full((4, 4), 3.0))[0].max() == 0


@pytest.mark.parametrize("shape", [(1, 2, 6, 8), (2, 1, 6, 8), (1000,), (1, 1, 0, 8)])
def test_outputs_that_are_no_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="like a picture"):
        picture_of(np.zeros(shape, np.float32))
    with pytest.raises(ImageError, match="finite"):
        picture_of(np.full((2, 2), np.nan))


@pytest.mark.parametrize("size", [(16, 16), (16, 8), (5, 31)])
def test_a_letterbox_keeps_proportions_and_fills_the_rest(size: tuple[int, int]) -> None:
    options = Preprocessing(size=size, fit="letterbox", scale=1.0)
    white = np.full((6, 8), 255, np.uint8)
    found = tensor_of(white, options, (1, 1, "h", "w"), np.float32)[0, 0]
    assert found.shape == size
    assert set(np.unique(found)) == {114.0, 255.0}
    rows, columns = np.nonzero(found == 255)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == size[0] or width == size[1]
    assert abs(height / width - 6 / 8) < 0.2
    for least, extent, whole in ((rows.min(), height, size[0]), (columns.min(), width, size[1])):
        assert abs(least - (whole - extent) / 2) <= 0.5
    deep = tensor_of(white.astype(np.uint16) * 257, options, (1, 1, "h", "w"), np.float32)
    assert set(np.unique(deep)) == {114.0 * 257, 65535.0}


def test_a_crop_is_the_middle() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[10:90, 60:140] = 255
    options = Preprocessing(size=(40, 40), fit="crop", crop_share=0.8)
    assert (tensor_of(picture, options, (1, 3, "h", "w"), np.float32) == 1).all()
    whole = Preprocessing(size=(40, 40), fit="crop", crop_share=1.0)
    assert abs(tensor_of(picture, whole, (1, 3, "h", "w"), np.float32).mean() - 0.64) < 0.01
    tiny = np.full((1, 1), 7, np.uint8)
    assert tensor_of(tiny, options, (1, 1, "h", "w"), np.uint8).min() == 7


def test_masks_keep_their_labels() -> None:
    mask = np.zeros((6, 8), np.uint16)
    mask[2:4] = 60000
    found = mask_of(mask, Preprocessing(size=(16, 16), fit="letterbox"), (1, 3, "h", "w"))
    assert (found.shape, found.dtype) == ((16, 16), np.int32)
    assert set(np.unique(found)) == {0, 60000}
    assert found[:2].max() == 0
    assert np.array_equal(mask_of(mask, Preprocessing(), (1, 3, 6, 8)), mask)


OPTIONS = Preprocessing((0.5, 0.4, 0.3), (0.2,), (8, 9), "bgr", 0.1, "nhwc", "letterbox", 7.0, 0.9)


def test_options_are_saved_and_read(tmp_path: Path) -> None:
    for options in (Preprocessing(), OPTIONS):
        options.save(tmp_path / "a.json")
        assert Preprocessing.read(tmp_path / "a.json") == options
        assert Preprocessing.of(options.record()) == options
    assert Preprocessing.of({"mean": [1]}) == Preprocessing(mean=(1.0,))
    with pytest.raises(ResourceError):
        Preprocessing.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"means": [0]},
        {"mean": 0.5},
        {"mean": []},
        {"mean": ["a"]},
        {"mean": None},
        {"std": [0]},
        {"std": [float("nan")]},
        {"size": [3]},
        {"size": [0, 4]},
        {"size": [1.5, 2]},
        {"channels": "rgba"},
        {"channels": ["rgb"]},
        {"fit": None},
        {"scale": True},
        {"scale": float("inf")},
        {"crop_share": 0},
        {"pad": "a"},
    ],
)
def test_options_that_are_none(record: Any) -> None:
    with pytest.raises(InputError):
        Preprocessing.of(record)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '{"mean": 1}', "\xff"])
def test_files_that_hold_no_options(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"a\.json"):
        Preprocessing.read(tmp_path / "a.json")
