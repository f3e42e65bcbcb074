"""Moves a tensor whose innermost dimension is not its source's: squares are transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import Type
from coresident.kernels.loops import Dimension, Entry, Split
from coresident.kernels.lowering import Tensor
from coresident.kernels.vectors import transpose

_REGISTER_BITS = {1: 128, 2: 128, 4: 256, 8: 256}


def edge(target: Target, itemsize: int) -> int:
    """Elements along a side of a square: as many registers are transposed together."""
    return min(_REGISTER_BITS[itemsize], target.vector_bits) // (8 * itemsize)


def loops_of(loops: Sequence[Dimension], side: int) -> list[Dimension] | None:
    """The loops with the source's innermost and the destination's innermost last; None if no square fits."""
    across = [i for i, loop in enumerate(loops) if loop.strides[0] == 1 and loop.size >= side]
    down = [i for i, loop in enumerate(loops) if loop.strides[1] == 1 and loop.size >= side]
    if not across or not down or across[0] == down[0]:
        return None
    last = (down[0], across[0])
    return [*(loop for i, loop in enumerate(loops) if i not in last), *(loops[i] for i in last)]


@dataclass(frozen=True)
class Squares:
    """The kernel; squares at the ends overlap their neighbours, which writes the same elements twice.

    Args:
        loops: the last two are down (the source's innermost) and across (the destination's).
        operands: destination and source.
        side: of a square.
        tasks: about how many are wanted.
    """

    loops: tuple[Dimension, ...]
    operands: tuple[Tensor, Tensor]
    side: int
    tasks: int

    def emit(self, target: Target) -> tuple[Function, int]:
        """The kernel and its number of tasks."""
        down, across = self.loops[-2:]
        split = Split.of([loop.size for loop in self.loops[:-1]], self.tasks, self.side)
        entry = Entry(self.loops, self.operands, split)
        f, pointers = entry.function(target, "transpose")
        rows = entry.rows(f, pointers, len(self.loops) - 2)
        with rows as (here, start, stop), f.loop(start, stop, self.side) as i:
            row = f.minimum(i, down.size - self.side)
            with f.loop(0, across.size, self.side) as j:
                self._square(f, entry, here, row, f.minimum(j, across.size - self.side))
        return f, split.tasks

    def _square(
        self, f: Function, entry: Entry, pointers: Sequence[Value], row: Value, column: Value
    ) -> None:
        down, across = self.loops[-2:]
        vector = Type("i", self.operands[0].dtype.itemsize * 8, self.side)
        offsets = [row * d + column * a for d, a in zip(down.strides, across.strides)]
        target, source = entry.advance(f, pointers, offsets)
        rows = [f.load(vector, source, i * across.strides[1]) for i in range(self.side)]
        for i, column_vector in enumerate(transpose(f, rows)):
            f.store(column_vector, target, i * down.strides[0])
