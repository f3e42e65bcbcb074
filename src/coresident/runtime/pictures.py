"""Batches, picture by picture: each thread runs the program of one picture by itself.

Threads that share a layer wait for each other after it and fetch what others wrote, and the layers of a whole
batch are larger than any cache. Where the pictures of a batch do not meet, neither has to be.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from coresident.errors import InputError, ResourceError
from coresident.runtime.executor import Executor
from coresident.runtime.program import Program
from coresident.runtime.streams import Requests

Array = np.ndarray[Any, Any]

_WAITING = 1024
"""Calls for help that may wait: more than there are callers."""


class PictureExecutor:
    """Runs batches by a program of one picture; used as an `Executor` is.

    Args:
        program: compiled for one picture and one thread, with `pictures`.
        threads, features, streams: as `Executor` takes them.

    Raises:
        TargetError, ArtifactError, ResourceError: as `Executor`.
    """

    def __init__(
        self, program: Program, threads: int, features: Collection[str] | None = None, streams: int = 1
    ) -> None:
        assert program.pictures is not None
        self.program, self.threads = program, threads
        self._pictures = program.pictures
        self._ports, self._results = program.ports
        self._one = Executor(program, 1, features)
        # Callers work themselves, so that one gets done even if all helpers are others'.
        helpers = threads * streams - 1
        self._helpers = Requests(helpers, _WAITING) if helpers else None
        if self._helpers is not None:
            weakref.finalize(self, self._helpers.close, wait=False).atexit = False

    @property
    def resident_bytes(self) -> int:
        """Weights, code, and the activations of one picture on each thread."""
        call = self.program.arena_bytes + self.program.scratch_bytes
        return self._one.resident_bytes + call * (self.threads - 1)

    def run(self, arrays: Sequence[Array], stream: int = 0) -> list[Array]:
        """One batch; arguments, results and errors as of `Executor.run`.

        Args:
            arrays: one for each input, with all pictures.
            stream: of no consequence here.
        """
        for port, array in zip(self._ports, arrays):
            if array.shape != port.shape:
                raise InputError(
                    f"the input {port.name!r} is {array.dtype} {list(array.shape)}, "
                    f"but {port.dtype} {list(port.shape)} is wanted"
                )
        count = self._pictures.count
        try:
            outputs = [np.empty(port.shape, port.dtype) for port in self._results]
        except (MemoryError, ValueError) as error:
            raise ResourceError("no memory for the outputs of a batch") from error
        numbers = itertools.count()

        def work() -> None:
            # Taking the next number is atomic.
            for number in itertools.takewhile(lambda number: number < count, numbers):
                self._put(outputs, self._one.run(self._fed(arrays, number)), number)

        helpers = self._helpers
        helped = range(min(self.threads, count) - 1)
        futures = [helpers.submit(work) for _ in helped] if helpers is not None else []
        try:
            work()
        finally:
            for future in futures:
                if not future.cancel():
                    future.result()
        return outputs

    def _fed(self, arrays: Sequence[Array], number: int) -> list[Array]:
        """What one picture's program is fed."""
        return [
            array[number : number + 1] if i in self._pictures.inputs else array
            for i, array in enumerate(arrays)
        ]

    def _put(self, outputs: Sequence[Array], results: Sequence[Array], number: int) -> None:
        for output, result, axis in zip(outputs, results, self._pictures.axes):
            if axis is not None:
                output[(slice(None),) * axis + (slice(number, number + 1),)] = result
            elif number == 0:
                output[...] = result

    def profile(self, arrays: Sequence[Array], repeats: int = 10) -> list[float]:
        """Median seconds that each step takes for one picture; as `Executor.profile`."""
        return self._one.profile(self._fed(arrays, 0), repeats)

    def close(self) -> None:
        """Give memory back; calls that are under way end well, later ones are refused."""
        if self._helpers is not None:
            self._helpers.close()
        self._one.close()


AnyExecutor = Executor | PictureExecutor


def executor_of(
    program: Program, threads: int, features: Collection[str] | None = None, streams: int = 1
) -> AnyExecutor:
    """What runs a program; arguments and errors as of `Executor`."""
    make = Executor if program.pictures is None else PictureExecutor
    return make(program, threads, features, streams)
