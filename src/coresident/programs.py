"""The programs of one model that are ready, for different sizes, and batches that run in pieces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from coresident.runtime.pictures import AnyExecutor

Array = np.ndarray[Any, Any]
Key = TypeVar("Key", bound=Hashable)


class Programs(Generic[Key]):
    """The programs used last, within bounds on their number and their memory; the newest always stays.

    Args:
        most: how many.
        memory: bytes of all of them: code, weights, and the activations of one call on each stream.
    """

    def __init__(self, most: int, memory: int) -> None:
        self._most, self._memory = most, memory
        self._lock = threading.Lock()
        self._ready: OrderedDict[Key, AnyExecutor] = OrderedDict()

    def after_fork(self) -> None:
        """Go on in a child process, where nobody holds the lock."""
        self._lock = threading.Lock()

    def get(self, key: Key) -> AnyExecutor | None:
        """A program, which counts as used now."""
        executor = self._ready.get(key)
        if executor is not None:
            with self._lock:
                if key in self._ready:  # another thread may have thrown it out
                    self._ready.move_to_end(key)
        return executor

    def put(self, key: Key, executor: AnyExecutor) -> None:
        """Keep a program; those not used for longest go if there are too many."""
        with self._lock:
            self._ready[key] = executor
            self._ready.move_to_end(key)
            while len(self._ready) > 1 and self._too_many(0):
                self._ready.popitem(last=False)

    def room(self) -> bool:
        """Whether one more, as large as the largest, could be kept without another's going."""
        with self._lock:
            return not self._too_many(1)

    def _too_many(self, more: int) -> bool:
        count = len(self._ready) + more
        sizes = [executor.resident_bytes for executor in self._ready.values()]
        return count > self._most or sum(sizes) + more * max(sizes, default=0) > self._memory

    def bindings(self) -> list[Key]:
        """What the programs are for."""
        with self._lock:
            return list(self._ready)

    def executors(self) -> list[AnyExecutor]:
        """All programs."""
        with self._lock:
            return list(self._ready.values())


@dataclass(frozen=True)
class Piece:
    """Some pictures of a batch, which a program of `size` pictures runs.

    Args:
        start: of the first.
        count: how many; where they are fewer than the program takes, the last is repeated.
        size: of the program's batch.
    """

    start: int
    count: int
    size: int


def pieces(count: int, sizes: Iterable[int]) -> list[Piece]:
    """How programs of these batch sizes run so many pictures: large programs first.

    A rest that is smaller than every program overlaps the pictures before it or, where there are none, is
    filled up.

    Args:
        count: at least 1.
        sizes: at least one, each at least 1.
    """
    known = sorted(set(sizes), reverse=True)
    found: list[Piece] = []
    done = 0
    while done < count:
        size = next((size for size in known if size <= count - done), known[-1])
        start = max(min(done, count - size), 0)
        found.append(Piece(start, min(size, count - start), size))
        done = start + size
    return found


def run_in_pieces(
    arrays: Sequence[Array],
    pictures: Collection[int],
    plan: Sequence[Piece],
    axes: Sequence[int | None],
    run: Callable[[int, list[Array]], list[Array]],
) -> list[Array]:
    """The outputs for a batch, from programs for smaller or larger ones.

    Args:
        arrays: the inputs.
        pictures: the positions of those whose first dimension is the batch.
        plan: covers the batch.
        axes: of each output, the one along which the pictures lie; None: the same for all.
        run: one inference, by a program of this batch size.
    """
    total = max(piece.start + piece.count for piece in plan)
    outputs: list[Array] = []
    for piece in plan:
        fed = [_cut(array, piece) if i in pictures else array for i, array in enumerate(arrays)]
        results = run(piece.size, fed)
        if not outputs:
            outputs = [
                result if axis is None else _wide(result, axis, total) for result, axis in zip(results, axes)
            ]
        for output, result, axis in zip(outputs, results, axes):
            if axis is not None:
                front = (slice(None),) * axis
                here = slice(piece.start, piece.start + piece.count)
                output[(*front, here)] = result[(*front, slice(piece.count))]
    return outputs


def _wide(array: Array, axis: int, size: int) -> Array:
    return np.empty((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)


def _cut(array: Array, piece: Piece) -> Array:
    part = array[piece.start : piece.start + piece.count]
    missing = piece.size - piece.count
    return np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
