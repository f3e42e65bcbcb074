"""Engines that take turns on one model, each in a process of its own: none spins while another is timed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from coresident.errors import Error, ResourceError
from coresident.measure import worker
from coresident.vision import images

Array = np.ndarray[Any, Any]
PAUSE = 0.2
"""Seconds between turns: threads of the engine before stop spinning, and the core cools down."""


@dataclass(frozen=True)
class Turn:
    """Who takes a turn.

    Args:
        engine: one of `worker.ENGINES`.
        model: a path, or the content of an ONNX file.
        python: that the engine runs in; "" is this one.
    """

    engine: str
    model: str | os.PathLike[str] | bytes
    python: str = ""


@dataclass(frozen=True)
class Result:
    """What was measured of one engine.

    Args:
        name: whose turn it was.
        rounds: seconds of every call, an array a round.
        ready: seconds to load the model and run it once.
        resident_bytes: of its process while running; 0 where unknown.
        outputs: of one inference.
        walls: seconds of each round; several calls may have been under way at once.
    """

    name: str
    rounds: tuple[Array, ...]
    ready: float
    resident_bytes: int
    outputs: tuple[Array, ...]
    walls: tuple[float, ...]

    @property
    def times(self) -> Array:
        return np.concatenate(self.rounds)

    @property
    def median(self) -> float:
        """The median of the rounds' medians, in seconds."""
        return float(np.median(self.medians))

    @property
    def medians(self) -> Array:
        return np.array([np.median(times) for times in self.rounds])

    @property
    def rates(self) -> Array:
        """Calls a second, of each round."""
        return np.array([len(times) / wall for times, wall in zip(self.rounds, self.walls)])

    def serves_more_than(self, other: Result) -> float:
        """How many times as many calls a second as another, the median over rounds."""
        return float(np.median(self.rates / other.rates))

    def faster_than(self, other: Result) -> float:
        """How many times as fast as another, the median over rounds."""
        return float(np.median(other.medians / self.medians))

    def error(self, reference: Result) -> float:
        """The largest difference from another's outputs, as a share of the range of each of those."""
        pairs = list(zip(self.outputs, reference.outputs))
        if len(self.outputs) != len(reference.outputs) or any(a.shape != b.shape for a, b in pairs):
            return math.inf
        return max((_difference(a, b) for a, b in pairs), default=0.0)


def _difference(found: Array, wanted: Array) -> float:
    if wanted.size == 0:
        return 0.0
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    scale = float(np.nanmax(b) - np.nanmin(b)) if not np.isnan(b).all() else 0.0
    scale = scale or float(np.nanmax(np.abs(b), initial=0.0)) or 1.0
    return float(np.nanmax(np.abs(a - b), initial=0.0)) / scale


class _Engine:
    """One engine's process."""

    def __init__(self, name: str, command: Sequence[str], log: IO[bytes]) -> None:
        self.name = name
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        except OSError as error:
            raise ResourceError(f"{name} can't be started: {error.strerror}", file=command[0]) from error

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise Error(f"{self.name} ended with status {status}")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise Error(f"{self.name}: {message['error']}")
        return message

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _model_file(model: str | os.PathLike[str] | bytes, file: Path) -> str:
    if not isinstance(model, bytes):
        return os.fspath(model)
    file.write_bytes(model)
    return str(file)


def take_turns(
    turns: Mapping[str, Turn],
    feeds: Mapping[str, Array],
    threads: int,
    *,
    streams: int = 1,
    rounds: int = 5,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Time engines on a model, or models in an engine: in each round, each runs alone for some seconds.

    Args:
        turns: by any names, in the order in which they run.
        feeds: the inputs of every inference.
        threads: of each engine.
        streams: calls under way at once, which share the threads.
        rounds: how often each has its turn.
        seconds: of a turn.
        progress: is told what happens.

    Returns:
        The results of those that ran, in order, and why each of the others did not.
    """
    script = str(Path(worker.__file__))
    failures: dict[str, str] = {}
    running: dict[str, _Engine] = {}
    ready: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="coresident-") as temporary,
        contextlib.ExitStack() as stack,
        open(os.devnull, "wb") as log,
    ):
        folder = Path(temporary)
        images.write_arrays(folder / "feeds.npz", feeds)
        for number, (name, turn) in enumerate(turns.items()):
            progress(f"loading {name}")
            path = _model_file(turn.model, folder / f"{number}.onnx")
            arguments = [turn.engine, path, str(folder / "feeds.npz"), str(threads), str(streams)]
            command = [turn.python or sys.executable, script, *arguments]
            try:
                engine = _Engine(name, command, log)
                stack.callback(engine.close)
                ready[name] = float(engine.answer()["ready_s"])
                running[name] = engine
            except Error as error:
                failures[name] = str(error)
        outputs = {name: _outputs(engine, folder / "outputs.npz") for name, engine in running.items()}
        times: dict[str, list[Array]] = {name: [] for name in running}
        walls: dict[str, list[float]] = {name: [] for name in running}
        resident = dict.fromkeys(running, 0)
        for number in range(rounds):
            for name, engine in running.items():
                progress(f"round {number + 1} of {rounds}: {name}")
                time.sleep(PAUSE)
                file = folder / "times.npy"
                answer = engine.ask(do="time", seconds=seconds, file=str(file))
                resident[name] = int(answer["resident_bytes"])
                times[name].append(np.load(file))
                walls[name].append(float(answer["seconds"]))
    results = {
        name: Result(name, tuple(times[name]), ready[name], resident[name], outputs[name], tuple(walls[name]))
        for name in running
    }
    return results, failures


def _outputs(engine: _Engine, file: Path) -> tuple[Array, ...]:
    engine.ask(do="outputs", file=str(file))
    with np.load(file) as archive:
        return tuple(archive[name] for name in archive.files)
