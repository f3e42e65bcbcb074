"""Moves a few planes into one whose elements take turns: pixel shuffles, colour pictures channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import Type
from coresident.kernels.loops import Dimension, Entry, Split
from coresident.kernels.lowering import Tensor

_MOST_PLANES = 4


def loops_of(loops: Sequence[Dimension], lanes: int) -> list[Dimension] | None:
    """The loops, last the one along the planes and the one over them; None if the copy is of another kind."""
    over = next((loop for loop in loops if loop.strides[0] == 1 and loop.size <= _MOST_PLANES), None)
    if over is None:
        return None
    along = next((loop for loop in loops if loop.strides == (over.size, 1) and loop.size >= lanes), None)
    if along is None:
        return None
    return [*(loop for loop in loops if loop not in (over, along)), along, over]


@dataclass(frozen=True)
class Interleaving:
    """The kernel; the last vectors of a run overlap those before, which writes the same elements twice.

    Args:
        loops: the last two are along the planes and over them.
        operands: destination and source.
        lanes: of a vector.
        tasks: about how many are wanted.
    """

    loops: tuple[Dimension, ...]
    operands: tuple[Tensor, Tensor]
    lanes: int
    tasks: int

    def emit(self, target: Target) -> tuple[Function, int]:
        """The kernel and its number of tasks."""
        along = self.loops[-2]
        split = Split.of([loop.size for loop in self.loops[:-1]], self.tasks, self.lanes)
        entry = Entry(self.loops, self.operands, split)
        f, pointers = entry.function(target, "interleave")
        rows = entry.rows(f, pointers, len(self.loops) - 2)
        with rows as (here, start, stop), f.loop(start, stop, self.lanes) as i:
            self._turn(f, here, f.minimum(i, along.size - self.lanes))
        return f, split.tasks

    def _turn(self, f: Function, pointers: Sequence[Value], at: Value) -> None:
        over = self.loops[-1]
        vector = Type("i", self.operands[0].dtype.itemsize * 8, self.lanes)
        planes = [f.load(vector, pointers[1], at + k * over.strides[1]) for k in range(over.size)]
        whole = self._joined(f, planes)
        # One shuffle and one wide store: LLVM knows the pattern (st3 on AArch64).
        order = [k * self.lanes + i for i in range(self.lanes) for k in range(over.size)]
        f.store(f.shuffle(whole, None, order), pointers[0], at * over.size)

    def _joined(self, f: Function, planes: Sequence[Value]) -> Value:
        """The vectors one after another, as one."""
        joined = planes[0]
        for k, plane in enumerate(planes[1:], 1):
            have = k * self.lanes
            wider = f.shuffle(plane, None, [i if i < self.lanes else 0 for i in range(have)])
            joined = f.shuffle(joined, wider, range(have + self.lanes))
        return joined
