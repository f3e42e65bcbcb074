"""A model with free dimensions at work: which program runs which arrays, and what is compiled when."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from coresident.errors import ResourceError
from coresident.programs import Programs, pieces, run_in_pieces
from coresident.runtime.pictures import AnyExecutor
from coresident.runtime.program import Program
from coresident.runtime.streams import renew_after_fork

if TYPE_CHECKING:
    from coresident.graph.batch import Batch

Array = np.ndarray[Any, Any]
Shapes = tuple[tuple[int, ...], ...]
Binding = tuple[Shapes, tuple[bytes, ...]]
"""What a program is compiled for: shapes of all inputs, values of those that shapes depend on."""

_MOST_BATCHES = 1024
"""Verdicts on batches to remember."""


class Maker(Protocol):
    """Where programs come from."""

    def program(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]) -> Program:
        """The program for these shapes of the inputs, and these values of those that shapes depend on."""

    def batch(
        self,
        size: int,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Array],
        pictures: Sequence[str],
    ) -> Batch:
        """Whether programs for a batch of this size can run a batch of these shapes in pieces."""


class FreeSizes:
    """Runs arrays of any sizes that the model admits.

    Args:
        inputs: names.
        bound: positions of the inputs whose values shapes depend on.
        pictures: positions of the others whose first dimension is free.
        maker: of programs.
        load: makes a program ready to run.
        infer: one inference by a program.
        programs, memory: how many programs to keep, and in how many bytes.
        background: whether batches may run in pieces while their own program is compiled.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        bound: Sequence[int],
        pictures: Sequence[int],
        maker: Maker,
        load: Callable[[Program], AnyExecutor],
        infer: Callable[[AnyExecutor, Sequence[Array]], list[Array]],
        *,
        programs: int,
        memory: int,
        background: bool,
    ) -> None:
        self.bound = frozenset(bound)
        self._inputs, self._pictures = inputs, pictures
        self._maker, self._load, self._infer, self._background = maker, load, infer, background
        self.programs: Programs[Binding] = Programs(max(programs, 1), memory)
        self.batches: dict[tuple[Binding, int], Batch] = {}
        self.compiling: threading.Thread | None = None
        self._failed: set[Binding] = set()
        self._closed = False
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Go on in a child process, where what compiled in the background does not exist."""
        self._lock = threading.Lock()
        self.compiling = None
        self.programs.after_fork()

    def run(self, arrays: list[Array]) -> list[Array]:
        """One inference.

        Raises:
            InputError, ModelError, ResourceError: as `Session.run`.
        """
        binding = self._binding(arrays)
        executor = self.programs.get(binding)
        if executor is None:
            outputs = self._in_pieces(binding, arrays) if self._background else None
            if outputs is not None:
                return outputs
            executor = self._compiled(binding, arrays)
        return self._infer(executor, arrays)

    def executor(self, arrays: Sequence[Array]) -> AnyExecutor:
        """The program for the sizes of some arrays, compiled now if there is none yet."""
        binding = self._binding(arrays)
        return self.programs.get(binding) or self._compiled(binding, arrays)

    def close(self) -> None:
        """Give memory back; calls under way end well, later ones are refused."""
        self._closed = True
        for executor in self.programs.executors():
            executor.close()

    def _binding(self, arrays: Sequence[Array]) -> Binding:
        return tuple(array.shape for array in arrays), tuple(arrays[i].tobytes() for i in sorted(self.bound))

    def _shapes(self, arrays: Sequence[Array]) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in zip(self._inputs, arrays)}

    def _values(self, arrays: Sequence[Array]) -> dict[str, Array]:
        return {self._inputs[i]: arrays[i].copy() for i in sorted(self.bound)}

    def _compiled(self, binding: Binding, arrays: Sequence[Array]) -> AnyExecutor:
        with self._lock:
            executor = self.programs.get(binding)
            if executor is None:
                if self._closed:
                    raise ResourceError("the session is closed")
                executor = self._load(self._maker.program(self._shapes(arrays), self._values(arrays)))
                self.programs.put(binding, executor)
                self._failed.discard(binding)
                if self._closed:
                    executor.close()
            return executor

    def _in_pieces(self, binding: Binding, arrays: list[Array]) -> list[Array] | None:
        """The outputs for a batch, from programs for other sizes of the batch; None if there can't be any."""
        shapes, values = binding
        sizes = {shapes[i][0] if shapes[i] else 0 for i in self._pictures}
        if len(sizes) != 1 or 0 in sizes or binding in self._failed:
            return None
        (count,) = sizes
        ready = {
            other[0][self._pictures[0]][0]: other
            for other in self.programs.bindings()
            if other[1] == values and self._with_batch_of(shapes, other[0]) == other[0]
        }
        ready.pop(0, None)
        if not ready or count in ready:  # it may have become ready just now
            return None
        plan = pieces(count, ready)
        found = [self._batch(binding, size, arrays) for size in {piece.size for piece in plan}]
        if any(batch.why or batch.axes != found[0].axes for batch in found):
            return None
        self._compile_later(binding, arrays)

        def run(size: int, fed: list[Array]) -> list[Array]:
            executor = self.programs.get(ready[size])
            return self._infer(self._compiled(ready[size], fed) if executor is None else executor, fed)

        return run_in_pieces(arrays, self._pictures, plan, found[0].axes, run)

    def _with_batch_of(self, shapes: Shapes, other: Shapes) -> Shapes:
        return tuple(
            (*other[i][:1], *shape[1:]) if i in self._pictures else shape for i, shape in enumerate(shapes)
        )

    def _batch(self, binding: Binding, size: int, arrays: Sequence[Array]) -> Batch:
        found = self.batches.get((binding, size))
        if found is None:
            found = self._examined(size, arrays)
            if len(self.batches) >= _MOST_BATCHES:
                self.batches.clear()
            self.batches[binding, size] = found
        return found

    def why_not_in_pieces(self, arrays: Sequence[Array]) -> str:
        """Why a batch of another size than that of these arrays can't run in pieces; "" if it can."""
        sizes = {arrays[i].shape[0] for i in self._pictures}
        if len(sizes) != 1 or 0 in sizes:
            return "inputs have first dimensions of different sizes, or empty ones"
        return self._examined(2 if 1 in sizes else 1, arrays).why

    def _examined(self, size: int, arrays: Sequence[Array]) -> Batch:
        pictures = [self._inputs[i] for i in self._pictures]
        return self._maker.batch(size, self._shapes(arrays), self._values(arrays), pictures)

    def _compile_later(self, binding: Binding, arrays: Sequence[Array]) -> None:
        """Compile a program in the background, one at a time, if there is room for it."""
        if (self.compiling is not None and self.compiling.is_alive()) or not self.programs.room():
            return
        # The caller may change its arrays meanwhile; those of which only the shape counts are not copied.
        kept = [
            array.copy() if i in self.bound else np.broadcast_to(np.zeros((), array.dtype), array.shape)
            for i, array in enumerate(arrays)
        ]

        def compile_() -> None:
            try:
                self._compiled(binding, kept)
            except Exception:
                # The next call for these sizes waits for the compiler, and is told what is wrong.
                if len(self._failed) < _MOST_BATCHES:
                    self._failed.add(binding)

        thread = threading.Thread(target=compile_, name="coresident-compile")
        self.compiling = thread
        with contextlib.suppress(RuntimeError):  # no more threads, or the process ends: pieces do as well
            thread.start()
