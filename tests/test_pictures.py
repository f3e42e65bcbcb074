"""Batches that are run picture by picture, a thread each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model_of

import coresident
from coresident import ArtifactError, InputError, ResourceError, Session, compiler
from coresident.runtime.pictures import PictureExecutor
from coresident.runtime.program import Pictures

Array = np.ndarray[Any, Any]
SHAPE = (3, 20, 30)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "WORTHWHILE", 0)


def network(count: int, *more: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> bytes:
    """A convolution over `count` pictures, and what follows it."""
    rng = np.random.default_rng(0)
    x = np.zeros((count, *SHAPE), np.float32)
    w = rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
    first = helper.make_node("Conv", ["x", "w"], ["y" if not more else "c"], pads=[1, 1, 1, 1])
    return bytes(model_of([first, *more], {"x": x}, list(outputs), {"w": w}).SerializeToString())


def pictures(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def taken(session: Session, x: Array) -> Pictures | None:
    return session.program({"x": x}).pictures


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(("count", "threads"), [(2, 1), (4, 2), (7, 2), (5, 4), (8, 3)])
def test_a_batch_is_what_its_pictures_are(count: int, threads: int, streams: int) -> None:
    if streams > threads:
        pytest.skip("no two streams of one thread")
    x = pictures(count)
    with Session(network(1), threads=1) as one, Session(network(count), threads, streams=streams) as whole:
        (got,) = whole.run(None, {"x": x})
        assert whole.get_inputs()[0].shape == x.shape
        assert whole.get_outputs()[0].shape == got.shape
        even = count % (threads // streams) == 0 or (count, threads // streams) in ((7, 2), (8, 3))
        assert (taken(whole, x) is not None) == even
        for picture, result in zip(x, got):
            wanted = one.run(None, {"x": picture[None]})[0][0]
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


def test_outputs_along_other_axes_and_such_that_are_the_same_for_all() -> None:
    nodes = (
        helper.make_node("Transpose", ["c"], ["y"], perm=[1, 0, 2, 3]),
        helper.make_node("ReduceMean", ["w"], ["z"], keepdims=0),
    )
    x = pictures(4)
    with Session(network(4, *nodes, outputs=("y", "z")), threads=2) as session:
        y, z = session.run(None, {"x": x})
        batch = taken(session, x)
        assert batch is not None
        assert batch.axes == (1, None)
        assert y.shape == (5, 4, 20, 30)
        assert z.shape == ()
    with Session(network(4), threads=2) as plain:
        np.testing.assert_array_equal(y.transpose(1, 0, 2, 3), plain.run(None, {"x": x})[0])


def test_pictures_that_meet_stay_together() -> None:
    mean = helper.make_node("Softmax", ["c"], ["y"], axis=0)
    x = pictures(4)
    with Session(network(4, mean), threads=2) as session:
        assert taken(session, x) is None
        np.testing.assert_allclose(session.run(None, {"x": x})[0].sum(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize(("more", "together"), [(0, False), (1, True)])
def test_small_networks_stay_together(more: int, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "WORTHWHILE", 5 * 3 * 9 * 600 + more)
    with Session(network(4), threads=2) as session:
        assert (taken(session, pictures(4)) is None) == together


def test_weights_that_come_from_memory_serve_all_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "FAR_BYTES", 0)
    monkeypatch.setattr(compiler, "FAR_RATE", 1e-9)
    with Session(network(4), threads=2) as session:
        assert taken(session, pictures(4)) is None


def test_an_artifact_keeps_the_batch(tmp_path: Path) -> None:
    path, again = tmp_path / "a.cres", tmp_path / "b.cres"
    x = pictures(4)
    coresident.compile(network(4), path, threads=2)
    coresident.compile(path, again, threads=2)
    with Session(network(4), threads=2) as session:
        (wanted,) = session.run(None, {"x": x})
    for file in (path, again):
        with Session(file, threads=2) as session:
            assert taken(session, x) is not None
            assert session.get_inputs()[0].shape == x.shape
            np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)


def test_free_batches_are_run_so_too() -> None:
    x = pictures(4)
    with Session(network(1), threads=2, shapes={"x": (None, *SHAPE)}) as session:
        (got,) = session.run(None, {"x": x})
        assert taken(session, x) is not None
        np.testing.assert_allclose(got[2:3], session.run(None, {"x": x[2:3]})[0], rtol=1e-5, atol=1e-5)


def test_callers_at_the_same_time() -> None:
    with Session(network(6), threads=2) as session:
        feeds = [pictures(6, seed) for seed in range(4)]
        wanted = [session.run(None, {"x": x})[0] for x in feeds]
        failures: list[int] = []

        def call(number: int) -> None:
            for _ in range(20):
                if not np.array_equal(session.run(None, {"x": feeds[number]})[0], wanted[number]):
                    failures.append(number)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_what_is_refused() -> None:
    session = Session(network(4), threads=2)
    with pytest.raises(InputError, match=r"\[4, 3, 20, 30\] is wanted"):
        session.run(None, {"x": pictures(2)})
    session.close()
    with pytest.raises(ResourceError):
        session.run(None, {"x": pictures(4)})
    good = {"count": 2, "inputs": [0], "axes": [0]}
    for content in ({}, {**good, "count": 0}, {**good, "count": "two"}, {**good, "inputs": ["x"]}):
        with pytest.raises(ArtifactError):
            Pictures.of(content)


def test_steps_are_timed_for_one_picture() -> None:
    with Session(network(4), threads=2) as session:
        steps = session.profile({"x": pictures(4)}, 2)
        assert all(seconds >= 0 for _, seconds in steps)
        assert session.resident_bytes({"x": pictures(4)}) > 0
        assert isinstance(session._fixed, PictureExecutor)
