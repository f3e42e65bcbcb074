"""One engine in its own process, measuring when told: `worker.py ENGINE MODEL FEEDS.npz THREADS STREAMS`.

Needs numpy, the engine and Python 3.9, and nothing of this package, so that it runs in any environment that
an engine may want. Orders come as lines of JSON and are answered by one each:

    {"do": "outputs", "file": F}              writes the outputs of one inference to F (.npz)
    {"do": "time", "seconds": S, "file": F}   runs for S seconds, writes the seconds of each call to F (.npy)

With STREAMS above 1, so many calls are under way at any time, and the engine splits its threads among them.
The first line, unasked, is {"ready_s": seconds to load and run once} or {"error": why not}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Feeds = dict[str, Any]
Run = Callable[[], list[Any]]


def _coresident(model: str, feeds: Feeds, threads: int, streams: int, dense: bool = False) -> Run:
    import coresident

    session = coresident.Session(model, threads=threads, streams=streams, treat_zeros_as_dense=dense)
    return lambda: list(session.run(None, feeds))


def _coresident_dense(model: str, feeds: Feeds, threads: int, streams: int) -> Run:
    return _coresident(model, feeds, threads, streams, dense=True)


def _onnxruntime(model: str, feeds: Feeds, threads: int, streams: int) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads // streams
    # It has no streams: all calls of a session share its pool, so that each caller needs its own.
    own = threading.local()

    def run() -> list[Any]:
        if not hasattr(own, "session"):
            own.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return list(own.session.run(None, feeds))

    return run


def _openvino(model: str, feeds: Feeds, threads: int, streams: int, precision: str = "") -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({name: list(array.shape) for name, array in feeds.items()})
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if streams > 1:
        config |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(streams)}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(network, "CPU", config)
    own = threading.local()

    def run() -> list[Any]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
            for name, array in feeds.items():
                own.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request = own.request
        request.infer()
        return [request.get_output_tensor(index).data for index in range(len(network.outputs))]

    return run


def _openvino_f32(model: str, feeds: Feeds, threads: int, streams: int) -> Run:
    return _openvino(model, feeds, threads, streams, "f32")


def _deepsparse(model: str, feeds: Feeds, threads: int, streams: int) -> Run:
    os.environ["NM_DISABLE_ANALYTICS"] = "1"
    deepsparse: Any = importlib.import_module("deepsparse")
    inputs = list(feeds.values())
    several = {"num_streams": streams, "scheduler": "multi_stream"} if streams > 1 else {}
    engine = deepsparse.Engine(model, batch_size=inputs[0].shape[0], num_cores=threads, **several)
    return lambda: list(engine.run(inputs))


ENGINES: dict[str, Callable[[str, Feeds, int, int], Run]] = {
    "coresident": _coresident,
    "coresident-dense": _coresident_dense,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-f32": _openvino_f32,
    "deepsparse": _deepsparse,
}
"""Each takes (path of the model, feeds, threads, streams) and gives a call that runs one inference."""


def _times(run: Run, seconds: float) -> list[float]:
    """Seconds of each call, after two that don't count."""
    for _ in range(2):
        run()
    return _times_of_calls(run, seconds)


def _times_of_calls(run: Run, seconds: float) -> list[float]:
    """Seconds of each call, at least three."""
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _times_at_once(run: Run, seconds: float, streams: int) -> tuple[list[float], float]:
    """Seconds of each call when `streams` threads call, and seconds until all have ended."""
    if streams == 1:
        times = _times(run, seconds)
        return times, sum(times)
    for_each: list[list[float]] = [[] for _ in range(streams)]
    starts: list[float] = []
    gate = threading.Barrier(streams, lambda: starts.append(time.perf_counter()))

    def caller(times: list[float]) -> None:
        for _ in range(2):
            run()
        gate.wait()
        times += _times_of_calls(run, seconds)

    callers = [threading.Thread(target=caller, args=(times,), daemon=True) for times in for_each]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return [one for times in for_each for one in times], time.perf_counter() - starts[0]


def _resident_bytes() -> int:
    """Memory that the process has resident; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _answer(run: Run, order: dict[str, Any], streams: int) -> dict[str, Any]:
    if order["do"] == "outputs":
        np.savez(order["file"], *[np.asarray(array) for array in run()])
        return {}
    times, seconds = _times_at_once(run, order["seconds"], streams)
    np.save(order["file"], np.array(times))
    return {"resident_bytes": _resident_bytes(), "seconds": seconds}


def main() -> None:
    """Serve until standard input ends."""
    engine, model, feeds_file, threads, streams = sys.argv[1:]
    # Engines print to standard output as they like; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    with np.load(feeds_file) as archive:
        feeds = {name: archive[name] for name in archive.files}
    start = time.perf_counter()
    try:
        run = ENGINES[engine](model, feeds, int(threads), int(streams))
        run()
    except Exception as error:
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        return
    say({"ready_s": time.perf_counter() - start})
    for line in sys.stdin:
        say(_answer(run, json.loads(line), int(streams)))


if __name__ == "__main__":
    main()
