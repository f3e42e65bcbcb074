"""Labels from tables, lists, folders' names and masks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coresident.errors import CoresidentWarning, Error, InputError
from coresident.graph.graph import Fact
from coresident.sparsification import data
from coresident.sparsification.samples import Samples
from coresident.vision.tensors import Preprocessing

INPUTS = {"x": Fact(np.dtype(np.float32), ("n", 3, 8, 8))}
FREE = {"x": Fact(np.dtype(np.float32), ("n", 3, "h", "w"))}


def read(folder: Path, labels: object, inputs: Any = INPUTS, **options: Any) -> Samples:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoresidentWarning)
        return data.read(folder, inputs, options.pop("preprocessing", None), labels, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name in ("cat/a.png", "cat/b.png", "dog/c.jpg", "eel/deep/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def test_folders_are_classes_only_when_asked(folder: Path) -> None:
    assert read(folder, None).labels is None
    assert np.asarray(read(folder, "folders").labels).tolist() == [0, 0, 1, 2]
    few = read(folder, "folders", limit=2, seed=1)
    numbers = {"cat": 0, "dog": 1, "eel": 2}
    assert np.asarray(few.labels).tolist() == [numbers[name.split("/")[0]] for name in few.names]
    Image.new("RGB", (8, 8)).save(folder / "alone.png")
    with pytest.raises(InputError, match=r"'alone\.png' is in none"):
        read(folder, "folders")


def test_tables(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,class,remark\ncat/a.png,3,x\nb.png,4,y\nc,5\n\neel/deep/d, 6 \nother.png,9\n")
    assert np.asarray(read(folder, table).labels).tolist() == [3, 4, 5, 6]
    table.write_text("\ufeffa\t1\nb\t1\nc\t0\nd\t2\n", encoding="utf-8")
    assert np.asarray(read(folder, str(table)).labels).tolist() == [1, 1, 0, 2]
    for text, message in [
        ("a.png,1\nb.png,2\n", r"no label for 'dog/c\.jpg'"),
        ("file,class\na.png,cat\n", "line 2"),
        ("a.png,1\na.png,2\n", "another label"),
        ("", "no labels"),
        ("a.png,-1\n", "no labels"),
    ]:
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            read(folder, table)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read(folder, table)
    with pytest.raises(InputError, match="no such labels"):
        read(folder, tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match=r"\.csv and \.npy"):
        read(folder, folder / "cat" / "a.png")


def test_lists(folder: Path, tmp_path: Path) -> None:
    assert np.asarray(read(folder, [9, 8, 7, 6]).labels).tolist() == [9, 8, 7, 6]
    np.save(tmp_path / "labels.npy", np.array([9.0, 8, 7, 6]))
    found = read(folder, tmp_path / "labels.npy").labels
    assert np.asarray(found).tolist() == [9, 8, 7, 6]
    assert np.asarray(found).dtype == np.int64
    for wrong in ([1, 2, 3], 4, [0.5] * 4, [[0.5]] * 4, ["a"] * 4, [np.nan] * 4):
        with pytest.raises(Error):
            read(folder, wrong)


def test_labels_stay_with_their_samples_when_some_are_skipped(folder: Path) -> None:
    (folder / "cat" / "b.png").write_bytes(b"not a picture")
    samples = read(folder, [9, 8, 7, 6], most_rejected=0.5)
    assert np.asarray(samples.labels).tolist() == [9, 7, 6]
    assert samples.names == ("cat/a.png", "dog/c.jpg", "eel/deep/d.png")


def test_masks(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for index, name in enumerate("abcd"):
        levels = np.zeros((8, 8), np.uint16)
        levels[:, 4:] = 300 + index
        Image.fromarray(levels).save(masks / f"{name}.png")
    found = read(folder, masks).labels
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == ((4, 8, 8), np.int32)
    assert [int(mask[0, 7]) for mask in found] == [300, 301, 302, 303]
    assert (found[:, :, :4] == 0).all()
    Image.new("L", (9, 8)).save(masks / "a.png")
    with pytest.raises(InputError, match=r"cat/a\.png: the mask is 8x9, its picture 8x8"):
        read(folder, masks)
    (masks / "a.png").unlink()
    assert read(folder, masks, most_rejected=0.25).rejected[0][0] == "cat/a.png"
    Image.new("L", (8, 8)).save(masks / "a.png")
    Image.new("L", (8, 8)).save(masks / "a.bmp")
    with pytest.raises(InputError, match="two masks"):
        read(folder, masks)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no masks"):
        read(folder, empty)


def test_masks_of_palettes_and_colours(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in "abcd":
        mask = Image.fromarray(np.full((8, 8), 5, np.uint8), "L").convert("P")
        mask.putpalette([index % 256 for index in range(768)])
        mask.save(masks / f"{name}.png")
    assert np.unique(np.asarray(read(folder, masks).labels)).size == 1
    Image.new("RGB", (8, 8)).save(masks / "a.png")
    with pytest.raises(InputError, match="not colours"):
        read(folder, masks)


def test_masks_lie_over_their_pictures(tmp_path: Path) -> None:
    """What preprocessing does to a picture it does to its mask."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for index in range(4):
        size = rng.integers(16, 40, 2).tolist()
        levels = np.zeros(size, np.uint8)
        levels[size[0] // 4 : size[0] // 2, size[1] // 3 :] = 255
        Image.fromarray(levels).save(tmp_path / "a" / f"{index}.png")
        Image.fromarray(levels).save(tmp_path / "b" / f"{index}.png")
    for fit in ("stretch", "letterbox", "crop"):
        options = Preprocessing(size=(32, 32), fit=fit, pad=0)
        samples = read(tmp_path / "a", tmp_path / "b", FREE, preprocessing=options)
        assert samples.labels is not None
        for index in range(4):
            picture, mask = samples.feeds(index)["x"][0, 0], samples.labels[index]
            assert ((picture > 0.5) == (mask > 127)).mean() > 0.95, (fit, index)
    free = read(tmp_path / "a", tmp_path / "b", FREE)
    assert isinstance(free.labels, tuple)
    assert [mask.shape for mask in free.labels] == [free.feeds(i)["x"].shape[2:] for i in range(4)]


def test_boxes_beside_pictures(tmp_path: Path) -> None:
    pictures, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (pictures, labels):
        folder.mkdir()
    Image.new("RGB", (16, 8)).save(pictures / "a.png")
    Image.new("RGB", (16, 8)).save(pictures / "b.png")
    (labels / "a.txt").write_text("\ufeff3 0.5 0.5 0.5 1\n\n0 .25 .25 .1 .5\n", encoding="utf-8")
    (labels / "classes.txt").write_text("cat\n")

    def boxes(**options: Any) -> list[np.ndarray]:
        found = read(pictures, labels, preprocessing=Preprocessing(**options)).labels
        assert found is not None
        return [np.asarray(one) for one in found]

    first, second = boxes()
    np.testing.assert_allclose(first, [[3, 0.25, 0, 0.75, 1], [0, 0.2, 0, 0.3, 0.5]])
    assert second.shape == (0, 5)
    # 16x8 in 8x8: four rows in the middle.
    np.testing.assert_allclose(
        boxes(fit="letterbox")[0], [[3, 0.25, 0.25, 0.75, 0.75], [0, 0.2, 0.25, 0.3, 0.5]]
    )
    # The middle 8x8 is left.
    np.testing.assert_allclose(boxes(fit="crop", crop_share=1.0)[0], [[3, 0, 0, 1, 1], [0, 0, 0, 0.1, 0.5]])
    for text in ("3 0.5 0.5 0.5", "x 0.5 0.5 0.5 1", "-1 0.5 0.5 0.5 1", "1.5 0.5 0.5 0.5 1", "1 nan 0 0 1"):
        (labels / "a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{text}\n")
        with pytest.raises(InputError, match=r"line 2 is not CLASS.*a\.txt"):
            boxes()
    (labels / "a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        boxes()
    (labels / "a.txt").rename(labels / "c.txt")
    with pytest.raises(InputError, match=r"nor a \.txt"):
        boxes()
