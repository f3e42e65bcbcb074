"""Compiled kernels kept in memory, for networks that share most of their kernels."""

from __future__ import annotations

import threading


class Kernels:
    """Objects of kernels that were compiled, by target and content: safe to use from several threads.

    Networks that differ in the numbers of their weights alone, as those on the way to a sparse one do, share
    nearly all kernels: sessions that are given the same `Kernels` compile each once.

    Args:
        most: bytes to keep; beyond that the oldest are forgotten.
    """

    def __init__(self, most: int = 256 << 20) -> None:
        self._most, self._size = most, 0
        self._objects: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()

    def get(self, target: str, symbol: str) -> bytes | None:
        """The object of a kernel for a target, None where it was not compiled yet."""
        with self._lock:
            return self._objects.get((target, symbol))

    def put(self, target: str, symbol: str, content: bytes) -> None:
        """Keep the object of a kernel."""
        with self._lock:
            self._size += len(content) - len(self._objects.pop((target, symbol), b""))
            self._objects[target, symbol] = content
            while self._size > self._most:
                self._size -= len(self._objects.pop(next(iter(self._objects))))
