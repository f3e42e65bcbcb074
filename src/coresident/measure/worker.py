"""One engine in its own process, which measures when told to: `worker.py ENGINE MODEL FEEDS.npz THREADS`.

Needs numpy, the engine and Python 3.9, and nothing of this package, so that it runs in any environment that
an engine may want. Orders come as lines of JSON and are answered by one each:

    {"do": "outputs", "file": F}              writes the outputs of one inference to F (.npz)
    {"do": "time", "seconds": S, "file": F}   runs for S seconds, writes the seconds of each call to F (.npy)

The first line, unasked, is {"ready_s": seconds to load and run once} or {"error": why not}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Feeds = dict[str, Any]
Run = Callable[[], list[Any]]


def _coresident(model: str, feeds: Feeds, threads: int, dense: bool = False) -> Run:
    import coresident

    session = coresident.Session(model, threads=threads, treat_zeros_as_dense=dense)
    return lambda: list(session.run(None, feeds))


def _coresident_dense(model: str, feeds: Feeds, threads: int) -> Run:
    return _coresident(model, feeds, threads, dense=True)


def _onnxruntime(model: str, feeds: Feeds, threads: int) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, feeds))


def _openvino(model: str, feeds: Feeds, threads: int, precision: str = "") -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({name: list(array.shape) for name, array in feeds.items()})
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    request = core.compile_model(network, "CPU", config).create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def run() -> list[Any]:
        request.infer()
        return [request.get_output_tensor(index).data for index in range(len(network.outputs))]

    return run


def _openvino_f32(model: str, feeds: Feeds, threads: int) -> Run:
    return _openvino(model, feeds, threads, "f32")


def _deepsparse(model: str, feeds: Feeds, threads: int) -> Run:
    os.environ["NM_DISABLE_ANALYTICS"] = "1"
    deepsparse: Any = importlib.import_module("deepsparse")
    inputs = list(feeds.values())
    engine = deepsparse.Engine(model, batch_size=inputs[0].shape[0], num_cores=threads)
    return lambda: list(engine.run(inputs))


ENGINES: dict[str, Callable[[str, Feeds, int], Run]] = {
    "coresident": _coresident,
    "coresident-dense": _coresident_dense,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "openvino-f32": _openvino_f32,
    "deepsparse": _deepsparse,
}
"""Each takes (path of the model, feeds, threads) and gives a call that runs one inference."""


def _times(run: Run, seconds: float) -> list[float]:
    """Seconds of each call, at least three, after two that don't count."""
    for _ in range(2):
        run()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _resident_bytes() -> int:
    """Memory that the process has resident; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _answer(run: Run, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "outputs":
        np.savez(order["file"], *[np.asarray(array) for array in run()])
        return {}
    np.save(order["file"], np.array(_times(run, order["seconds"])))
    return {"resident_bytes": _resident_bytes()}


def main() -> None:
    """Serve until standard input ends."""
    engine, model, feeds_file, threads = sys.argv[1:]
    # Engines print to standard output as they like; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    with np.load(feeds_file) as archive:
        feeds = {name: archive[name] for name in archive.files}
    start = time.perf_counter()
    try:
        run = ENGINES[engine](model, feeds, int(threads))
        run()
    except Exception as error:
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        return
    say({"ready_s": time.perf_counter() - start})
    for line in sys.stdin:
        say(_answer(run, json.loads(line)))


if __name__ == "__main__":
    main()
