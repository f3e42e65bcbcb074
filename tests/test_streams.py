"""Streams and requests: several inferences at once, futures, how they end, and memory that does not grow."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from test_concurrency import SIZES, at_once, network, picture, resident

from coresident import InputError, ResourceError, Session
from coresident.runtime.streams import Requests

__all__ = ["network"]

Array = np.ndarray[Any, Any]


def check_callers(session: Session, seconds: float, callers: int = 8) -> int:
    """Threads that call one session, directly and by futures; returns how many inferences there were."""
    wanted = {
        (seed, size): session.run(None, {"x": picture(seed, size)})
        for seed in range(callers)
        for size in SIZES
    }
    counts = [0] * callers
    stop = time.monotonic() + seconds

    def caller(seed: int) -> Callable[[], None]:
        def call() -> None:
            while time.monotonic() < stop:
                size = SIZES[counts[seed] % len(SIZES)]
                feeds = {"x": picture(seed, size)}
                future = counts[seed] % 3 == 0
                got = session.run_async(None, feeds).result(60) if future else session.run(None, feeds)
                assert all(np.array_equal(a, b) for a, b in zip(got, wanted[seed, size])), (seed, size)
                counts[seed] += 1

        return call

    at_once([caller(seed) for seed in range(callers)])
    return sum(counts)


@pytest.mark.parametrize(("threads", "streams"), [(2, 1), (2, 2), (4, 2), (5, 2)])
def test_eight_callers(network: bytes, threads: int, streams: int) -> None:
    with Session(network, threads=threads, streams=streams) as session:
        assert check_callers(session, 0.5) > 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("streams", [1, 2])
def test_eight_callers_for_a_minute(network: bytes, streams: int) -> None:
    with Session(network, threads=2, streams=streams) as session:
        check_callers(session, 3)
        before = resident()
        calls = check_callers(session, 60)
        # The outputs alone would be tens of kilobytes a call.
        assert resident() - before < 4 << 20, f"{calls} calls"


def test_streams_share_one_copy_of_the_weights(network: bytes) -> None:
    feeds = {"x": picture(0, 16)}
    with Session(network, threads=4, streams=2) as session:
        session.run(None, feeds)
        (executor,) = session._free.programs.executors()
        assert executor.threads == 2
        assert len(executor._free) == 2


@pytest.mark.parametrize("streams", [0, -1, 3])
def test_streams_that_can_not_be(network: bytes, streams: int) -> None:
    with pytest.raises(InputError, match="streams"):
        Session(network, threads=2, streams=streams)
    with pytest.raises(InputError, match="room"):
        Session(network, requests=0)


def test_errors_come_through_the_future(network: bytes) -> None:
    with Session(network, threads=1) as session:
        assert isinstance(session.run_async(None, {}).exception(60), InputError)
        assert isinstance(session.run_async(["absent"], {"x": picture(0, 9)}).exception(60), InputError)
        (y,) = session.run_async(["y"], {"x": picture(0, 9)}).result(60)
        np.testing.assert_array_equal(y, session.run(["y"], {"x": picture(0, 9)})[0])


def test_requests_taken_are_answered_before_the_end(network: bytes) -> None:
    session = Session(network, threads=2, streams=2, requests=50)
    futures = [session.run_async(None, {"x": picture(seed, 31)}) for seed in range(40)]
    session.close()
    assert all(future.done() and len(future.result()) == 2 for future in futures)
    with pytest.raises(ResourceError, match="closed"):
        session.run_async(None, {"x": picture(0, 31)})
    with pytest.raises(ResourceError, match="closed"):
        session.run(None, {"x": picture(0, 31)})
    session.close()


def test_the_queue_is_bounded() -> None:
    requests, gate, taken = Requests(1, 2), threading.Event(), list[Future[int]]()
    running = requests.submit(gate.wait)
    while not running.running():
        time.sleep(0.001)
    taken += [requests.submit(lambda: 1), requests.submit(lambda: 2)]
    submitter = threading.Thread(target=lambda: taken.append(requests.submit(lambda: 3)))
    submitter.start()
    submitter.join(0.05)
    assert submitter.is_alive()
    assert taken[1].cancel()
    gate.set()
    submitter.join(60)
    requests.close()
    assert [taken[0].result(60), taken[2].result(60)] == [1, 3]
    with pytest.raises(CancelledError):
        taken[1].result(60)


def test_who_waits_for_a_place_learns_of_the_end() -> None:
    requests, gate, wrong = Requests(1, 1), threading.Event(), list[Exception]()

    def submit() -> None:
        try:
            requests.submit(gate.wait).result(60)
        except ResourceError as error:
            wrong.append(error)

    submitters = [threading.Thread(target=submit) for _ in range(6)]
    for submitter in submitters:
        submitter.start()
    while requests._places._value:
        time.sleep(0.001)
    requests.close(wait=False)
    gate.set()
    for submitter in submitters:
        submitter.join(60)
        assert not submitter.is_alive()
    assert len(wrong) >= 3


def test_callbacks_may_ask_for_more(network: bytes) -> None:
    session, done = Session(network, threads=1, requests=1), threading.Event()
    left = [20]

    def again(future: Future[list[Array]]) -> None:
        assert len(future.result()) == 2
        left[0] -= 1
        if left[0]:
            session.run_async(None, {"x": picture(left[0], 9)}).add_done_callback(again)
        else:
            session.close()
            done.set()

    session.run_async(None, {"x": picture(0, 9)}).add_done_callback(again)
    assert done.wait(60)


def test_a_session_that_nobody_holds_ends_its_threads(network: bytes) -> None:
    session = Session(network, threads=1)
    session.run_async(None, {"x": picture(0, 9)}).result(60)
    assert isinstance(session.run_async(None, {}).exception(60), InputError)
    threads, gone = session._requests._threads, weakref.ref(session)
    del session
    gc.collect()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    gc.collect()
    assert gone() is None


def test_the_process_ends_and_forks_with_requests(network: bytes, tmp_path: Any) -> None:
    (tmp_path / "m.onnx").write_bytes(network)
    script = f"""
        import os, numpy, coresident
        session = coresident.Session({str(tmp_path / "m.onnx")!r}, threads=2, streams=2)
        feeds = {{"x": numpy.ones((1, 3, 31, 31), numpy.float32)}}
        wanted = session.run_async(None, feeds).result(60)
        futures = [session.run_async(None, feeds) for _ in range(8)]
        child = os.fork() if hasattr(os, "fork") else 0
        if child or not hasattr(os, "fork"):
            futures += [session.run_async(None, feeds) for _ in range(8)]
            futures[-1].add_done_callback(lambda future: print("well", flush=True))
            assert os.waitpid(child, 0)[1] == 0 if child else True
        else:
            assert numpy.array_equal(session.run_async(None, feeds).result(60)[0], wanted[0])
            os._exit(0)
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "well\n", "")
