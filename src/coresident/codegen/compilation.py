"""Kernels compiled on all cores, while further ones are still being written."""

from __future__ import annotations

import queue
import threading
from types import TracebackType
from typing import Self

from coresident.codegen import llvm
from coresident.codegen.builder import Function
from coresident.codegen.target import Target
from coresident.runtime.kernels import Kernels

_MODULE_LINES = 1024
"""What makes a module, which is work for one thread and an object to be loaded."""


class Compilation:
    """A queue of modules, and the threads that compile them.

        with Compilation(target, threads=4) as code:
            code.add(function)
            objects = code.objects()

    The objects do not depend on the number of threads. Leaving early drops what nobody has begun.

    Args:
        target: to compile for.
        threads: to compile with; the one that calls `objects` is one of them.
        kernels: where to look for what is compiled already, and to leave what is now. With it each function
            is an object by itself.
    """

    def __init__(self, target: Target, threads: int, kernels: Kernels | None = None) -> None:
        self._target, self._threads, self._kernels = target, threads, kernels
        self._module: list[Function] = []
        self._lines = 0
        self._queue: queue.SimpleQueue[tuple[int, str, str] | None] = queue.SimpleQueue()
        self._count = 0
        self._objects: dict[int, bytes] = {}
        self._failures: list[BaseException] = []
        self._helpers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()
        self._join()

    def add(self, function: Function) -> None:
        """Compile a function, which will not change any more; its name is another where its content is."""
        if self._kernels is not None and (known := self._kernels.get(self._target.key, function.name)):
            self._objects[self._count] = known
            self._count += 1
            return
        self._module.append(function)
        self._lines += function.lines
        if self._lines >= _MODULE_LINES or self._kernels is not None:
            self._submit()
            if len(self._helpers) < self._threads - 1:
                helper = threading.Thread(target=self._work, name="coresident-compile", daemon=True)
                self._helpers.append(helper)
                helper.start()

    def objects(self) -> tuple[bytes, ...]:
        """The objects of all functions added, in the order of these.

        Raises:
            TargetError: a function is not valid.
        """
        if self._module:
            self._submit()
        self._queue.put(None)
        self._work()
        self._join()
        if self._failures:
            raise self._failures[0]
        return tuple(self._objects[index] for index in range(self._count))

    def _submit(self) -> None:
        self._queue.put((self._count, self._module[0].name, llvm.module_text(self._module)))
        self._count += 1
        self._module, self._lines = [], 0

    def _work(self) -> None:
        """Compile modules until there are no more."""
        backend: llvm.Backend | None = None
        try:
            while (module := self._queue.get()) is not None:
                index, symbol, text = module
                backend = backend or llvm.Backend(self._target)
                self._objects[index] = backend.object(text)
                if self._kernels is not None:
                    self._kernels.put(self._target.key, symbol, self._objects[index])
        except BaseException as error:
            self._failures.append(error)
            self._drop()
        self._queue.put(None)

    def _drop(self) -> None:
        """Forget the modules that nobody has begun."""
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            return

    def _join(self) -> None:
        self._queue.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()
