"""Sessions called from several threads at once, several sessions at once, and memory that does not grow."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import model_of

from coresident import Session

Array = np.ndarray[Any, Any]

SEED = 13
SIZES = (9, 16, 31)
"""Heights and widths that the network is run on."""


@pytest.fixture(scope="module")
def network() -> bytes:
    """A residual network of convolutions, a pool and a matrix, its height and width free."""
    generator = np.random.default_rng(SEED)

    def weights(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["e"], ["f"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["f", "w2"], ["y"]),
    ]
    constants = {"w0": weights(16, 3, 3, 3), "w1": weights(16, 16, 3, 3), "w2": weights(16, 10)}
    model = model_of(nodes, {"x": np.zeros((1, 3, 9, 9), np.float32)}, ["y", "d"], constants, 17)
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    return bytes(model.SerializeToString())


def picture(seed: int, size: int) -> Array:
    return np.random.default_rng((SEED, seed)).standard_normal((1, 3, size, size)).astype(np.float32)


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Each call in a thread of its own, all let go together; what one of them raises is raised."""
    gate, wrong = threading.Barrier(len(calls)), list[BaseException]()

    def enter(call: Callable[[], None]) -> None:
        gate.wait()
        try:
            call()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=enter, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a caller waits for ever"
    if wrong:
        raise wrong[0]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_callers_of_one_session(network: bytes, threads: int) -> None:
    session = Session(network, threads=threads, cache=False)
    wanted = {
        (seed, size): session.run(None, {"x": picture(seed, size)}) for seed in range(6) for size in SIZES
    }

    def caller(seed: int) -> Callable[[], None]:
        def call() -> None:
            for turn in range(60):
                size = SIZES[(turn + seed) % len(SIZES)]
                got = session.run(None, {"x": picture(seed, size)})
                hint = f"seed {seed}, size {size}, turn {turn}"
                assert all(np.array_equal(a, b) for a, b in zip(got, wanted[seed, size])), hint

        return call

    at_once([caller(seed) for seed in range(6)])


def test_several_sessions(network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))
    sessions = [Session(network, threads=threads) for threads in (1, 2, 2, 3)]
    x = {"x": picture(0, 16)}
    wanted = [session.run(None, x) for session in sessions]

    def caller(number: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(100):
                got = sessions[number].run(None, x)
                assert all(np.array_equal(a, b) for a, b in zip(got, wanted[number])), f"session {number}"

        return call

    def maker(number: int) -> Callable[[], None]:
        """Sessions come and go beside those that run."""

        def call() -> None:
            for _ in range(5):
                with Session(network, threads=1 + number % 2) as session:
                    got = session.run(None, x)
                np.testing.assert_array_equal(got[0], wanted[number % 2][0])

        return call

    at_once([*(caller(number) for number in range(4)), maker(0), maker(1)])


def test_outputs_belong_to_their_caller(network: bytes) -> None:
    session = Session(network, threads=2, cache=False)
    first = session.run(None, {"x": picture(0, 16)})
    kept = [array.copy() for array in first]
    for seed in range(1, 10):
        session.run(None, {"x": picture(seed, 16)})[0].fill(np.nan)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept))
    x = picture(0, 16)
    before = x.copy()
    session.run(None, {"x": x})
    assert np.array_equal(x, before), "the input was written to"


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_calls(network: bytes) -> None:
    session = Session(network, threads=2, cache=False)
    x = {"x": picture(0, 31)}
    size = sum(array.nbytes for array in session.run(None, x))
    calls = 3000
    for _ in range(200):
        session.run(None, x)
    before = resident()
    for _ in range(calls):
        session.run(None, x)
    assert resident() - before < size * calls / 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_sessions(
    network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))
    x = {"x": picture(0, 256)}

    def use() -> None:
        with Session(network, threads=2) as session:
            session.run(None, x)

    for _ in range(3):
        use()
    before, sessions = resident(), 30
    for _ in range(sessions):
        use()
    # A session that stayed would keep its activations, of 16 channels at least.
    assert resident() - before < sessions * 16 * 256 * 256 * 4 / 5
