"""The loops over several strided tensors of one shape: ordered, merged, and cut into tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.target import Target
from coresident.codegen.types import I64
from coresident.kernels.arguments import element_0
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Tensor
from coresident.kernels.vectors import unravel
from coresident.kernels.views import repeated


@dataclass(frozen=True)
class Dimension:
    """One loop: its size, and the stride of every operand in elements, the output first."""

    size: int
    strides: tuple[int, ...]


def dimensions(layouts: Sequence[Layout]) -> list[Dimension]:
    """The loops over layouts of one shape, merged, outermost first in the order of the first one's memory."""
    strides = zip(*(layout.strides for layout in layouts))
    loops = [Dimension(size, s) for size, s in zip(layouts[0].shape, strides) if size != 1]
    loops.sort(key=lambda loop: -abs(loop.strides[0]))
    merged: list[Dimension] = []
    for inner in loops:
        outer = merged[-1] if merged else None
        if outer and all(a == b * inner.size for a, b in zip(outer.strides, inner.strides)):
            merged[-1] = Dimension(outer.size * inner.size, inner.strides)
        else:
            merged.append(inner)
    return merged or [Dimension(1, (1,) * len(layouts))]


def broadcast(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor as seen from a shape that it broadcasts onto (numpy's rule): stride 0 where it repeats."""
    return replace(tensor, layout=repeated(tensor.layout, shape))


@dataclass(frozen=True)
class Split:
    """How loops are cut into tasks.

    Args:
        tasks: how many.
        outer: how many of the outer loops are counted through as one; none for a single task.
        rows: iterations of that count in a task.
        piece: elements of the innermost loop in a task, where that is cut; otherwise 0.
    """

    tasks: int
    outer: int
    rows: int
    piece: int

    @staticmethod
    def of(sizes: Sequence[int], wanted: int, unit: int) -> Split:
        """Into about `wanted` tasks; the innermost loop is cut at multiples of `unit`."""
        if wanted == 1:
            return Split(1, 0, 1, 0)
        *outer, inner = sizes
        total = 1
        for count, size in enumerate(outer, 1):
            total *= size
            if total >= wanted:
                rows = -(-total // wanted)
                return Split(-(-total // rows), count, rows, 0)
        piece = -(-inner * total // (wanted * unit)) * unit
        return Split(total * -(-inner // piece), len(outer), 1, piece)


@dataclass(frozen=True)
class Entry:
    """A kernel over loops: its arguments, and which part of the loops a task does.

    Args:
        loops: outermost first.
        operands: in the order of their words.
        split: into tasks.
    """

    loops: tuple[Dimension, ...]
    operands: tuple[Tensor, ...]
    split: Split

    def function(self, target: Target, name: str) -> tuple[Function, list[Value]]:
        """The kernel, and pointers to the first element of each operand."""
        f = kernel(target, name)
        return f, [element_0(f, i, tensor) for i, tensor in enumerate(self.operands)]

    def advance(self, f: Function, pointers: Sequence[Value], offsets: Sequence[Value | int]) -> list[Value]:
        """The pointers moved on by so many elements each."""
        return [
            p if isinstance(o, int) and o == 0 else f.offset(p, o * tensor.dtype.itemsize)
            for p, o, tensor in zip(pointers, offsets, self.operands)
        ]

    @contextmanager
    def rows(
        self, f: Function, pointers: Sequence[Value], count: int
    ) -> Iterator[tuple[list[Value], Value | int, Value | int]]:
        """Loops over this task's share of the first `count` loops; the one after them may be cut.

        Yields:
            The pointers there, and the part [start, stop) of the next loop (numbers, where it is whole).
        """
        split, inner = self.split, self.loops[count] if count < len(self.loops) else Dimension(1, ())
        counted = self.loops[: split.outer]
        sizes = [loop.size for loop in counted]
        strides = [[loop.strides[i] for loop in counted] for i in range(len(pointers))]
        task = f["task"]
        if split.piece:
            pieces = -(-inner.size // split.piece)
            row, piece = (task / pieces, task % pieces) if sizes else (task, task)
            start = piece * split.piece
            stop = f.minimum(start + split.piece, f.constant(inner.size, I64))
            yield self.advance(f, pointers, unravel(f, row, sizes, *strides)), start, stop
            return
        if split.outer == 0:
            with self._walk(f, pointers, self.loops[:count]) as here:
                yield here, 0, inner.size
            return
        first = task * split.rows
        last = f.minimum(first + split.rows, f.constant(math.prod(sizes), I64))
        with f.loop(first, last) as row:
            there = self.advance(f, pointers, unravel(f, row, sizes, *strides))
            with self._walk(f, there, self.loops[split.outer : count]) as here:
                yield here, 0, inner.size

    @contextmanager
    def _walk(
        self, f: Function, pointers: Sequence[Value], loops: Sequence[Dimension]
    ) -> Iterator[list[Value]]:
        if not loops:
            yield list(pointers)
            return
        with f.loop(0, loops[0].size) as i:
            moved = self.advance(f, pointers, [i * stride if stride else 0 for stride in loops[0].strides])
            with self._walk(f, moved, loops[1:]) as here:
                yield here
