"""Measure what is not arithmetic: `python bench/overhead.py FOLDER`, with models of bench/models.py in it.

Calls on a tiny network; cold and warm starts; memory; one thread against two; two processes side by side.
Every figure comes from fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

SECONDS = 2.0

CHILD = """
import json, os, sys, time
start = time.perf_counter()
import numpy as np
import coresident
model, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
session = coresident.Session(model, threads=threads)
inputs = session.get_inputs()
feeds = {one.name: np.random.default_rng(0).standard_normal(one.shape, dtype=np.float32) for one in inputs}
session.run(None, feeds)
ready = time.perf_counter() - start
times, stop = [], time.perf_counter() + seconds
while time.perf_counter() < stop or len(times) < 3:
    before = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - before)
with open("/proc/self/status") as status:
    lines = dict(line.split(":", 1) for line in status if ":" in line)
memory = {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}
steps = sum(seconds for _, seconds in session.profile(feeds, 100)) if threads == 1 else None
print(json.dumps({"ready": ready, "median": float(np.median(times)), "memory": memory, "steps": steps}))
"""


def start(model: Path, threads: int, seconds: float, cache: str) -> subprocess.Popen[str]:
    """Begin to measure in a fresh process."""
    environment = {**os.environ, "CORESIDENT_CACHE_DIR": cache}
    command = [sys.executable, "-c", CHILD, str(model), str(threads), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process measured."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def once(model: Path, threads: int, cache: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure alone."""
    return finish(start(model, threads, seconds, cache))


def write_tiny(path: Path) -> None:
    """A network of one operator on four numbers."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def calls(folder: Path, cache: str) -> None:
    """Start and call a tiny network."""
    tiny = folder / "tiny.onnx"
    write_tiny(tiny)
    cold = once(tiny, 1, cache)
    for threads in (1, 2):
        once(tiny, threads, cache, 0.1)
        warm = once(tiny, threads, cache)
        steps = "" if warm["steps"] is None else f", {warm['steps'] * 1e6:.2f} us of them in compiled code"
        print(
            f"one operator, {threads} threads: {warm['median'] * 1e6:.1f} us a call{steps}; "
            f"ready in {warm['ready']:.2f} s"
        )
    print(f"one operator: ready in {cold['ready']:.2f} s without cache, imports included")


def starts(model: Path, cache: str) -> None:
    """Compile a model, then find it in the cache."""
    cold, warm = once(model, 2, cache), once(model, 2, cache)
    memory = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in warm["memory"].items())
    print(
        f"{model.stem}, 2 threads: cold {cold['ready']:.2f} s, from the cache {warm['ready']:.2f} s "
        f"(imports and the first run included); {memory}"
    )


def sharing(model: Path, cache: str) -> None:
    """Two threads, and two processes."""
    for threads in (1, 2):
        once(model, threads, cache, 0.1)
    alone, both = once(model, 1, cache), once(model, 2, cache)
    print(f"{model.stem}: 2 threads are {alone['median'] / both['median']:.2f}x as fast as 1")
    pair = [finish(process) for process in [start(model, 1, 2 * SECONDS, cache) for _ in range(2)]]
    loss = max(one["median"] for one in pair) / alone["median"] - 1
    print(f"{model.stem}: two processes of one thread lose {loss:.1%} to each other")


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Measure what is not arithmetic.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=("rn50", "rn50_s90"), metavar="MODEL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = str(Path(temporary) / "cache")
        calls(Path(temporary), cache)
        for name in options.models:
            starts(options.folder / f"{name}.onnx", cache)
            sharing(options.folder / f"{name}.onnx", cache)


if __name__ == "__main__":
    main()
