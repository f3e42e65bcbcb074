"""Measure how soon a model runs: `python bench/start.py MODEL.onnx ...`.

Each start is a fresh process that imports numpy and coresident, opens a session and runs it once: with an
empty cache ("cold"), from the cache, and from an artifact. Networks of one operator are measured beside the
models. All starts take turns; figures are medians in milliseconds. Whatever the environment says, modules are
byte-compiled and files in the system's cache, as after a first start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support import print_markdown

import coresident
from coresident.cli.command import positive

PARTS = ("interpreter", "numpy", "coresident", "session", "first run")

CHILD = """
import time
times = [time.monotonic()]
import json, sys
import numpy as np
times.append(time.monotonic())
import coresident
coresident.Session
times.append(time.monotonic())
session = coresident.Session(sys.argv[1], threads=int(sys.argv[2]))
times.append(time.monotonic())
feeds = {one.name: np.zeros(one.shape, one.dtype) for one in session.get_inputs()}
begin = time.monotonic()
session.run(None, feeds)
end = time.monotonic()
launched = float(sys.argv[3])
parts = [after - before for before, after in zip([launched, *times], times)]
print(json.dumps([*parts, end - begin]))
"""


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Args:
        title: of its row.
        file: a model or an artifact.
        cache: its folder; None for an empty one each time.
    """

    title: str
    file: Path
    cache: Path | None


def measure(start: Start, threads: int, bytecode: Path) -> list[float]:
    """Seconds of each of the parts, in a fresh process."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **os.environ,
            "CORESIDENT_CACHE_DIR": str(start.cache or Path(empty) / "cache"),
            "PYTHONPYCACHEPREFIX": str(bytecode),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment.pop("CORESIDENT_CACHE", None)
        command = [sys.executable, "-c", CHILD, str(start.file), str(threads)]
        # The clock of time.monotonic is the system's: processes can compare what they read.
        command.append(str(time.monotonic()))
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    parts: list[float] = json.loads(done.stdout)
    return parts


def write_relu(path: Path) -> None:
    """One operator on four numbers."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_convolution(path: Path) -> None:
    """A 3 x 3 convolution of 64 channels at 56 x 56."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 56, 56]) for name in ("x", "y")]
    weights = np.random.default_rng(0).standard_normal((64, 64, 3, 3), dtype=np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    initializers = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph([node], "convolution", ports[:1], ports[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def starts_of(model: Path, folder: Path, threads: int) -> list[Start]:
    """The ways to begin with a model."""
    artifact = folder / f"{model.stem}.cres"
    coresident.compile(model, artifact, threads=threads)
    return [
        Start(f"{model.stem}, cold", model, None),
        Start(f"{model.stem}, from the cache", model, folder / "cache"),
        Start(f"{model.stem}, artifact", artifact, folder / "cache"),
    ]


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Measure how soon a model runs.")
    parser.add_argument("models", type=Path, nargs="*", metavar="MODEL.onnx")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_relu(folder / "one Relu.onnx")
        write_convolution(folder / "one Conv.onnx")
        models = [folder / "one Relu.onnx", folder / "one Conv.onnx", *options.models]
        starts = [start for model in models for start in starts_of(model, folder, options.threads)]
        for start in starts:  # fills the caches
            measure(start, options.threads, folder / "bytecode")
        measured: dict[str, list[list[float]]] = {start.title: [] for start in starts}
        for _ in range(options.rounds):
            for start in starts:
                measured[start.title].append(measure(start, options.threads, folder / "bytecode"))
    rows = []
    for title, rounds in measured.items():
        parts = [statistics.median(part) for part in zip(*rounds)]
        total = statistics.median(sum(parts) for parts in rounds)
        rows.append([title, *(f"{seconds * 1e3:.0f}" for seconds in (*parts, total))])
    print_markdown(["ms", *PARTS, "in all"], rows)


if __name__ == "__main__":
    main()
