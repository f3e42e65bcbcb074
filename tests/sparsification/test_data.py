"""Samples: read from folders, arrays and iterables; what is bad is named, skipped or refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coresident.errors import CoresidentWarning, ImageError, InputError, ResourceError
from coresident.graph.graph import Fact, Graph
from coresident.sparsification import data
from coresident.sparsification.samples import Samples
from coresident.vision.tensors import Preprocessing, tensor_of

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)
PICTURE = {"x": Fact(FLOAT, ("n", 3, 8, 8))}
FREE = {"x": Fact(FLOAT, ("n", 3, "h", "w"))}
FLAT = {"x": Fact(FLOAT, ("n", 5))}


def read(source: object, inputs: Any = PICTURE, *arguments: Any, **options: Any) -> Samples:
    """Without the warnings that few samples give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoresidentWarning)
        return data.read(source, inputs, *arguments, **options)


def _pictures(folder: Path, count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in range(count)]
    for index, picture in enumerate(made):
        Image.fromarray(picture).save(folder / f"{index:03}.png")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _pictures(tmp_path / "pictures", 10)
    return tmp_path / "pictures"


def test_a_folder_in_the_order_of_names(folder: Path) -> None:
    pictures = _pictures(folder / "inside", 3, seed=1)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._000.png").write_bytes(b"what another system leaves behind")
    samples = read(folder)
    assert samples.names == tuple(
        [f"{i:03}.png" for i in range(10)] + [f"inside/{i:03}.png" for i in range(3)]
    )
    assert samples.labels is None
    assert samples.rejected == ()
    for index, picture in enumerate(pictures):
        wanted = tensor_of(picture, Preprocessing(), (1, 3, 8, 8), FLOAT)
        assert np.array_equal(samples.feeds(10 + index)["x"], wanted)
    batches = list(samples.batches(4))
    assert [batch["x"].shape[0] for batch in batches] == [4, 4, 4, 1]
    assert np.array_equal(np.concatenate([batch["x"] for batch in batches])[10:11], samples.feeds(10)["x"])


def test_few_samples_warn_and_enough_do_not(folder: Path) -> None:
    with pytest.warns(CoresidentWarning, match="10 samples are few"):
        data.read(folder, PICTURE)
    _pictures(folder, 32)
    assert len(data.read(folder, PICTURE)) == 32


def test_a_folder_without_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files with"):
        read(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.doc").write_text("text")
    with pytest.raises(InputError, match="a folder or a file with"):
        read(tmp_path / "a.doc")


def test_bad_pictures_are_skipped_to_a_limit(folder: Path) -> None:
    (folder / "000.png").write_bytes(b"not a picture")
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(CoresidentWarning) as told:
        samples = data.read(folder, PICTURE)
    assert [name for name, _ in samples.rejected] == ["000.png", "001.png"]
    assert "not a picture" in samples.rejected[0][1]
    assert len(samples) == 8
    assert "skipped 000.png (not a picture" in str(told[0].message)
    assert "and 1 more" in str(told[0].message)
    (folder / "002.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"more than 20%: 000.png: not a picture.*; 00.\.png"):
        read(folder)
    assert len(read(folder, most_rejected=0.3)) == 7
    with pytest.raises(InputError, match="can't be used"):
        read(folder / "002.png")


def test_nothing_but_bad_pictures_end_early(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="3 of 3 files tried"):
        read(folder)
    with pytest.raises(InputError, match="10 of 10 files tried"):
        read(folder, most_rejected=1.0)


def test_links(folder: Path, tmp_path: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(folder / "pipe.png")
    elsewhere = tmp_path / "elsewhere"
    _pictures(elsewhere, 2)
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    samples = read(folder)
    assert len(samples) == 12
    assert samples.names[-1] == "link/001.png"
    assert [name for name, _ in samples.rejected] == ["gone.png", "loop.png"]


def test_a_limit_draws_at_random_and_the_same_again(folder: Path) -> None:
    few = read(folder, limit=4, seed=3)
    assert len(few) == 4
    assert list(few.names) == sorted(few.names)
    assert few.names == read(folder, limit=4, seed=3).names
    assert any(few.names != read(folder, limit=4, seed=seed).names for seed in range(4))
    assert read(folder, limit=100).names == read(folder).names
    with pytest.raises(InputError, match="limit of 0"):
        read(folder, limit=0)


def test_sizes_stand_together(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (7, 9), (8, 8), (7, 9), (9, 7)]):
        Image.new("RGB", (size[1], size[0])).save(tmp_path / f"{index}.png")
    samples = read(tmp_path, FREE)
    assert samples.names == ("0.png", "2.png", "1.png", "3.png", "4.png")
    assert [batch["x"].shape for batch in samples.batches()] == [(2, 3, 8, 8), (2, 3, 7, 9), (1, 3, 9, 7)]
    assert {item.shapes for item in read(tmp_path, PICTURE).items} == {((1, 3, 8, 8),)}
    for index in range(9):
        Image.new("RGB", (5 + index, 8)).save(tmp_path / f"more{index}.png")
    with pytest.warns(CoresidentWarning) as told:
        data.read(tmp_path, FREE)
    assert any("different sizes" in str(one.message) for one in told)


def test_wrong_channels_name_the_file(folder: Path) -> None:
    with pytest.raises(InputError, match=r"4 channels.*000\.png"):
        read(folder, {"x": Fact(FLOAT, (1, 4, 8, 8))})
    with pytest.raises(InputError, match="one input"):
        read(folder, PICTURE | {"y": Fact(FLOAT, (1, 3, 8, 8))})


def test_pictures_beyond_the_memory_are_decoded_again(folder: Path) -> None:
    all_of_them = read(folder)
    few = read(folder, memory=3 * 3 * 8 * 8 * 4)
    assert few.digest == all_of_them.digest
    for index in range(10):
        assert np.array_equal(few.feeds(index)["x"], all_of_them.feeds(index)["x"])
    (folder / "009.png").unlink()
    with pytest.raises(ImageError, match="no such file"):
        few.feeds(9)
    free = read(folder, FREE, memory=0)
    Image.new("RGB", (5, 5)).save(folder / "000.png")
    with pytest.raises(InputError, match="has changed"):
        free.feeds(0)


def test_digests_tell_samples_apart(folder: Path) -> None:
    first = read(folder).digest
    assert read(folder).digest == first
    assert read(folder, PICTURE, Preprocessing(mean=(0.5,))).digest != first
    assert read(folder, PICTURE, None, list(range(10))).digest != first
    Image.new("RGB", (8, 8)).save(folder / "009.png")
    assert read(folder).digest != first


def test_arrays_on_disk(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 3, 8, 8))
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", x=values, labels=np.arange(6))
    plain, labelled = read(tmp_path / "a.npy"), read(str(tmp_path / "a.npz"))
    for samples in (plain, labelled, read(values), read({"x": values})):
        assert len(samples) == 6
        assert np.array_equal(samples.feeds(4)["x"], values[4:5].astype(np.float32))
        assert samples.feeds(4)["x"].dtype == np.float32
    assert plain.names[4] == "a.npy[4]"
    assert labelled.labels is not None
    assert np.asarray(labelled.labels).tolist() == list(range(6))
    with pytest.raises(InputError, match="twice"):
        read(tmp_path / "a.npz", labels=list(range(6)))
    few = read(tmp_path / "a.npz", limit=3, seed=1)
    assert [f"a.npz[{label}]" for label in np.asarray(few.labels)] == list(few.names)


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", values[0])
    np.save(tmp_path / "b.npy", values[1:2])
    np.savez(tmp_path / "c.npz", x=values[2])
    samples = read(tmp_path, FLAT)
    assert np.array_equal(np.concatenate([batch["x"] for batch in samples.batches()]), values)
    np.save(tmp_path / "d.npy", values)
    assert read(tmp_path, FLAT, most_rejected=0.5).rejected[0] == (
        "d.npy",
        "holds 3 samples; in a folder each file is one",
    )


def test_wrong_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "names.npz", z=np.zeros((2, 5), np.float32))
    with pytest.raises(InputError, match=r"arrays are 'z'; the inputs are 'x'.*names\.npz"):
        read(tmp_path / "names.npz", FLAT)
    np.savez(tmp_path / "more.npz", x=np.zeros((2, 5), np.float32), z=np.zeros(3))
    with pytest.raises(InputError, match="'x', 'z'"):
        read(tmp_path / "more.npz", FLAT)
    with pytest.raises(InputError, match="does not fit the input 'x', float32"):
        read(np.zeros((2, 6), np.float32), FLAT)
    with pytest.raises(InputError, match="does not fit"):
        read(np.zeros((2, 3, 5), np.float32), FLAT)
    with pytest.raises(InputError, match="not numbers"):
        read(np.array(["a", "b"]), FLAT)
    with pytest.raises(InputError, match="not numbers"):
        read(np.zeros((2, 5), np.complex64), FLAT)
    with pytest.raises(InputError, match="no samples"):
        read(np.zeros((0, 5), np.float32), FLAT)
    with pytest.raises(InputError, match="is empty"):
        read(np.zeros((2, 3, 0, 4), np.float32), FREE)
    with pytest.raises(InputError, match="different numbers"):
        read({"x": np.zeros((2, 5)), "y": np.zeros((3, 5))}, dict.fromkeys("xy", FLAT["x"]))
    with pytest.raises(InputError, match="can't be read from int"):
        read(7, FLAT)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([Trap()], dtype=object))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ImageError, match="Python objects"):
            read(tmp_path / name, FLAT)
    with pytest.raises(InputError, match="not numbers"):
        read(np.array([None]), FLAT)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite(bad: float) -> None:
    values = np.ones((10, 5), np.float32)
    values[3, 2] = bad
    samples = read(values, FLAT)
    assert [name for name, _ in samples.rejected] == ["sample[3]"]
    assert "sample[3]" not in samples.names
    values[4:7, 0] = bad
    with pytest.raises(InputError, match="holds"):
        read(values, FLAT)
    with pytest.raises(InputError, match="holds infinities"):
        read(np.full((2, 5), 1e300), FLAT)


def test_bytes_are_pictures() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 9, 3)).astype(np.uint8)
    options = Preprocessing(mean=(0.5,), std=(0.25,))
    samples = read(pictures, PICTURE, options)
    assert np.array_equal(samples.feeds(2)["x"], tensor_of(pictures[2], options, (1, 3, 8, 8), FLOAT))
    grey = {"x": Fact(FLOAT, ("n", 1, 6, 9))}
    wanted = (pictures[1:2, None, :, :, 0].astype(np.float32) / 255 - 0.5) / 0.25
    for form in (pictures[..., 0], pictures[..., :1]):
        assert np.allclose(read(form, grey, options).feeds(1)["x"], wanted)
    with pytest.raises(InputError, match="which are pictures"):
        read(pictures.transpose(0, 3, 1, 2), {"x": Fact(FLOAT, ("n", 3, 6, 9))})
    whole = {"x": Fact(np.dtype(np.uint8), ("n", 6, 9, 3))}
    assert np.array_equal(read(pictures, whole).feeds(3)["x"], pictures[3:4])


def test_integers_within_their_type() -> None:
    inputs = {"x": Fact(np.dtype(np.int8), ("n", 5))}
    assert read(np.full((2, 5), -128), inputs).feeds(0)["x"].dtype == np.int8
    with pytest.raises(InputError, match="can't hold"):
        read(np.full((2, 5), 128), inputs)
    with pytest.raises(InputError, match="takes int8"):
        read(np.zeros((2, 5), np.float32), inputs)


def test_iterables_are_read_once_and_no_further_than_needed() -> None:
    taken = []

    def endless() -> Iterator[Array]:
        while True:
            taken.append(len(taken))
            yield np.full(5, len(taken), np.float32)

    samples = read(endless(), FLAT, limit=7)
    assert len(samples) == len(taken) == 7
    assert [float(samples.feeds(i)["x"][0, 0]) for i in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(ResourceError, match="more than 0 MiB"):
        read(endless(), FLAT, memory=100)
    assert len(taken) < 20


def test_iterables_of_all_kinds() -> None:
    one, batch = np.ones(5, np.float32), np.arange(10, dtype=np.float32).reshape(2, 5)
    samples = read([one, batch, {"x": batch}, (one.tolist())], FLAT)
    assert samples.names == ("0", "1[0]", "1[1]", "2[0]", "2[1]", "3")
    assert samples.feeds(2)["x"].tolist() == [[5, 6, 7, 8, 9]]
    labelled = read([(one, 3), [batch, [4, 5]], {"x": one, "label": 6}, ({"x": one}, np.int8(7))], FLAT)
    assert np.asarray(labelled.labels).tolist() == [3, 4, 5, 6, 7]
    masks = read([(np.zeros((3, 8, 8)), np.full((8, 8), i)) for i in range(3)])
    assert np.asarray(masks.labels).shape == (3, 8, 8)
    for wrong, message in [
        ([one, "text"], "element 1"),
        ([None], "element 0"),
        ([(one, 0.5)], "whole numbers"),
        ([(batch, [1, 2, 3])], "one for each sample"),
        ([(one, 1), one], "1 of 2 samples have labels"),
        ([one, np.zeros(6, np.float32)], "element 1 of the data: .*does not fit"),
        ([{"z": one}], "element 0 of the data: the arrays are 'z'"),
        ([], "no samples"),
    ]:
        with pytest.raises(InputError, match=message):
            read(wrong, FLAT)


def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(10.0).reshape(2, 5).requires_grad_()
    assert np.array_equal(read(values, FLAT).feeds(1)["x"], [[5, 6, 7, 8, 9]])
    loader = [(values, torch.tensor([1, 0]))]
    assert np.asarray(read(loader, FLAT).labels).tolist() == [1, 0]


def test_networks_of_several_inputs() -> None:
    inputs = {"x": Fact(FLOAT, ("n", 2)), "size": Fact(FLOAT, ("n",)), "scale": Fact(FLOAT, ())}
    arrays = {"x": np.zeros((3, 2)), "size": np.arange(3), "scale": np.arange(3.0)}
    samples = read(arrays, inputs)
    assert samples.fixed_batch == 1
    assert [batch["scale"].shape for batch in samples.batches()] == [(), (), ()]
    assert [float(batch["size"][0]) for batch in samples.batches()] == [0, 1, 2]


def test_fixed_batches() -> None:
    inputs = {"x": Fact(FLOAT, (4, 3, 2, 2))}
    samples = read(np.random.default_rng(0).standard_normal((19, 3, 2, 2)), inputs, labels=range(19))
    assert samples.fixed_batch == 4
    assert len(samples) == 16
    assert [batch["x"].shape for batch in samples.batches()] == [(4, 3, 2, 2)] * 4
    kept, held = samples.split(0.3, 0)
    assert (len(kept), len(held)) == (12, 4)
    assert sorted([*kept.names, *held.names]) == sorted(samples.names)
    with pytest.raises(InputError, match="4 samples at once"):
        list(samples.batches(3))
    with pytest.raises(InputError, match="takes 4 samples"):
        read(np.zeros((3, 3, 2, 2)), inputs)
    ones = read(np.zeros((3, 3, 2, 2)), {"x": Fact(FLOAT, (1, 3, 2, 2))})
    assert [batch["x"].shape[0] for batch in ones.batches()] == [1, 1, 1]


@pytest.mark.parametrize("count", [2, 3, 7, 32, 33])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_splits(count: int, share: float) -> None:
    samples = read(np.arange(count * 5.0).reshape(count, 5), FLAT, labels=np.arange(count))
    for seed in range(3):
        kept, held = samples.split(share, seed)
        assert {*kept.names} | {*held.names} == {*samples.names}
        assert len(kept) + len(held) == count
        assert 1 <= len(held) < count
        assert abs(len(held) - share * count) <= 1
        for part in (kept, held):
            numbers = [int(name[7:-1]) for name in part.names]
            assert numbers == sorted(numbers) == np.asarray(part.labels).tolist()
        assert samples.split(share, seed)[0].digest == kept.digest


def test_one_sample_is_not_split() -> None:
    samples = read(np.zeros((1, 5)), FLAT)
    with pytest.warns(CoresidentWarning, match="too few"):
        assert samples.split(0.5, 0) == (samples, samples)


def test_samples_again() -> None:
    samples = read(np.zeros((9, 5)), FLAT)
    assert read(samples, FLAT).digest == samples.digest
    assert len(read(samples, FLAT, limit=4)) == 4
    with pytest.raises(InputError, match="other inputs"):
        read(samples, PICTURE)
    with pytest.raises(InputError, match="have their labels"):
        read(samples, FLAT, labels=range(9))


def test_augmented_pictures_are_parts_of_pictures(folder: Path) -> None:
    samples = read(folder, labels=range(10))
    more = samples.augmented(3, 5)
    assert len(more) == 40
    assert more.labels is None
    assert more.names[:2] == ("000.png", "000.png #1")
    assert more.digest == samples.augmented(3, 5).digest != samples.augmented(3, 6).digest
    mirrored = 0
    for index in range(40):
        part, whole = more.feeds(index)["x"], samples.feeds(index // 4)["x"]
        assert (part.shape, part.dtype) == (whole.shape, whole.dtype)
        assert part.min() >= whole.min() - 1e-6
        assert part.max() <= whole.max() + 1e-6
        if index % 4 == 0:
            assert np.array_equal(part, whole)
        else:
            mirrored += more.items[index].mirrored  # type: ignore[attr-defined]
    assert 5 < mirrored < 25
    rising = np.tile(np.arange(8, dtype=np.float32), (1, 3, 8, 1))
    parts = read(rising).augmented(8, 0)
    for item in parts.items[1:]:
        slope = np.diff(item.load()["x"][0, 0, 4])
        assert (slope <= 0).all() if item.mirrored else (slope >= 0).all()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="takes pictures"):
        read(np.zeros((2, 5)), FLAT).augmented(1, 0)


def test_few_small_pictures_are_made_more() -> None:
    few = read(np.random.default_rng(0).random((50, 3, 8, 8), np.float32))
    many = few.completed(3)
    assert len(many) == 300
    assert many.digest == few.completed(3).digest != few.completed(4).digest
    enough = read(np.zeros((256, 3, 8, 8), np.float32))
    assert enough.completed(3) is enough
    large = few.subset(range(4)).completed(0)
    assert len(large) == 256
    wide = read(np.zeros((5, 3, 1024, 1024), np.float32), {"x": Fact(FLOAT, ("n", 3, 1024, 1024))})
    assert wide.completed(0) is wide
    assert read(np.zeros((40, 5)), FLAT).completed(0).names == read(np.zeros((40, 5)), FLAT).names


def test_inputs_of_a_graph() -> None:
    graph = Graph(("x",), (), (), {}, {"x": Fact(FLOAT, ("n", 3, "h", "w"))})
    assert data.inputs_of(graph)["x"].shape == ("n", 3, "h", "w")
    assert data.inputs_of(graph, {"x": (2, 3, 16, 24)})["x"].shape == ("n", 3, 16, 24)
    for wrong in ({"z": (1,)}, {"x": (1, 4, 8, 8)}, {"x": (3, 8, 8)}):
        with pytest.raises(InputError):
            data.inputs_of(graph, wrong)


def test_progress_is_told(folder: Path) -> None:
    told: list[Any] = []

    class Record:
        def stage(self, name: str, total: int) -> None:
            told.append((name, total))

        def advance(self, n: int = 1, note: str = "") -> None:
            told.append(n)

    read(folder, limit=4, progress=Record())
    assert told == [("reading the data", 4), 1, 1, 1, 1]
