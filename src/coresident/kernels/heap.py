"""Heaps inside kernels. Source: Williams, "Algorithm 232: heapsort", 1964."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I64

Entry = tuple[Value, ...]
"""A value and its index, or one number that says both."""


@dataclass(frozen=True)
class Heap:
    """Entries of which none stands above one that is to stand above it.

    Args:
        f: the kernel.
        get, put: read and write the entry at a place.
        above: whether one entry is to stand above another.
    """

    f: Function
    get: Callable[[Value], Entry]
    put: Callable[[Value, Entry], None]
    above: Callable[[Entry, Entry], Value]

    def build(self, size: Value) -> None:
        """Make a heap of what stands at the first places."""
        half = size // 2
        with self.f.loop(0, half) as i:
            at = half - 1 - i
            self.sink(at, size, self.get(at))

    def sink(self, start: Value, size: Value, entry: Entry) -> None:
        """Put an entry where it belongs, at a place or below, in a heap of so many."""
        f = self.f
        hole, child = f.var(start), f.var(start * 2 + 1)
        with f.while_(lambda: child.get() < size):
            left = child.get()
            right = f.minimum(left + 1, size - 1)
            chosen = f.select(self.above(self.get(right), self.get(left)), right, left)
            found = self.get(chosen)
            rises = self.above(found, entry)
            with f.when(rises):
                self.put(hole.get(), found)
                hole.set(chosen)
            child.set(f.select(rises, chosen * 2 + 1, size))
        self.put(hole.get(), entry)

    def sort(self, size: Value) -> None:
        """Turn a heap into a list, what stood above last."""
        top = self.f.constant(0, I64)
        with self.f.loop(1, size) as i:
            last = size - i
            moved, first = self.get(last), self.get(top)
            self.put(last, first)
            self.sink(top, last, moved)
