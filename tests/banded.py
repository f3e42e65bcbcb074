"""Whole programs run step by step, every buffer between bands that nothing may touch.

The planner packs the buffers of a program side by side and over each other, so that a kernel that writes
past the end of its own would mostly go unseen. Here each lies alone, and after each step only scratch and the
buffers and outputs that the step says it writes may have changed.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from coresident import compiler
from coresident.kernels.lowering import Operand, Tensor
from coresident.runtime import elf
from coresident.runtime.executor import written_code
from coresident.runtime.program import Program
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]

BAND = 4096
_PATTERN = 0xA5
_NEVER_WRITTEN = 0xFF
"""NaN, as floats."""


class BandedPlanner(Planner):
    """A planner that remembers which buffers each step writes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: list[set[tuple[str, int]]] = []

    def step(self, *arguments: Any, writes: Sequence[Tensor] = (), **options: Any) -> None:
        self.written.append({(tensor.storage.kind, tensor.storage.buffer) for tensor in writes})
        super().step(*arguments, writes=writes, **options)


@contextmanager
def planners() -> Iterator[list[BandedPlanner]]:
    """The planners of what is compiled meanwhile."""
    made: list[BandedPlanner] = []

    def plan(*arguments: Any) -> BandedPlanner:
        made.append(BandedPlanner(*arguments))
        return made[-1]

    with mock.patch.object(compiler, "Planner", plan):
        yield made


class _Memory:
    """Buffers at 64-byte boundaries with bands before, between and behind them."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        starts, end = [], BAND
        for content in contents:
            starts.append(end)
            end += -(-len(content) // BAND) * BAND + BAND
        whole = np.full(end + 64, _PATTERN, np.uint8)
        self.bytes = whole[-whole.ctypes.data % 64 :][:end]
        self.places = [(start, start + len(content)) for start, content in zip(starts, contents)]
        for (start, stop), content in zip(self.places, contents):
            self.bytes[start:stop] = np.frombuffer(content, np.uint8)
        self._before = self.bytes.copy()

    def address(self, index: int, offset: int = 0) -> int:
        return int(self.bytes.ctypes.data) + self.places[index][0] + offset

    def changed(self, writable: set[int]) -> list[int]:
        """The buffers, -1 for a band, that differ from what they were the last time though they may not."""
        found = []
        different = np.flatnonzero(self.bytes != self._before)
        self._before[different] = self.bytes[different]
        for i, (start, stop) in enumerate(self.places):
            inside = (different >= start) & (different < stop)
            if i not in writable and inside.any():
                found.append(i)
            different = different[~inside]
        return found + [-1] * bool(len(different))


def run(planner: BandedPlanner, program: Program, arrays: Sequence[Array]) -> list[Array]:
    """The outputs of a program for this machine, hidden ones too; tasks are run in random order.

    Raises:
        AssertionError: a step changes what is not its own.
    """
    sizes = [int(np.prod(port.shape)) * np.dtype(port.dtype).itemsize for port in program.outputs]
    fresh = [bytes([_NEVER_WRITTEN]) * size for size in (*(b.size for b in planner._buffers), *sizes)]
    mutable = _Memory([*fresh, bytes([_NEVER_WRITTEN]) * program.scratch_bytes])
    buffers, scratch = len(planner._buffers), len(fresh)
    fixed = _Memory([bytes(program.constants), *(np.ascontiguousarray(a).tobytes() for a in arrays)])
    code = elf.load(program.objects, program.target.split("-", 1)[0])
    extra = written_code(program, code, fixed.address(0))
    order = random.Random(0)

    def word(operand: Operand) -> int:
        if isinstance(operand, int):
            return operand & (1 << 64) - 1
        if operand.kind == "constant":
            return fixed.address(0, operand.offset)
        if operand.kind == "code":
            return extra.address + operand.offset
        if operand.kind == "input":
            return fixed.address(1 + operand.buffer, operand.offset)
        return mutable.address(operand.buffer + buffers * (operand.kind == "output"), operand.offset)

    for (symbol, operands, tasks, _, info), written in zip(planner._steps, planner.written):
        kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(
            code.address(symbol)
        )
        words = (ctypes.c_uint64 * max(len(operands), 1))(*map(word, operands))
        for task in order.sample(range(tasks), tasks):
            kernel(ctypes.addressof(words), task, mutable.address(scratch))
        own = {number + buffers * (kind == "output") for kind, number in written}
        assert not mutable.changed(own | {scratch}), f"{symbol} writes outside its buffers: {info}"
        assert not fixed.changed(set()), f"{symbol} writes to inputs or constants: {info}"
    found = []
    for i, port in enumerate(program.outputs):
        start, stop = mutable.places[buffers + i]
        found.append(mutable.bytes[start:stop].view(port.dtype).reshape(port.shape))
    return found
