"""What this machine can do at best: multiply-adds of one core, and bytes loaded from each level of memory.

Kernels written with the builder, run by the executor like any network; other rates are shares of these.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.codegen import driver, llvm
from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.target import Target
from coresident.codegen.types import F32, I64
from coresident.runtime import cpu
from coresident.runtime.executor import Array, Executor
from coresident.runtime.program import Port, Program, Step, Word

_CHAINS = 12
"""Independent sums: latency times throughput of a multiply-add is 8 to 10 on the cores known."""
_VECTORS = 8
"""Vectors loaded in one turn of the loop."""
_ITERATIONS = 400_000
_SWEPT = 64 << 20
"""Bytes to load in one measurement, at least."""
_RUNS, _ENOUGH = 5, 0.05
"""Runs of a measurement at least, and their seconds together."""
_EXCHANGES, _EXCHANGED = 64, 64 << 10
"""Steps in which threads pass a buffer on, and its bytes."""
_LARGEST = 256 << 20
"""What "memory" is measured on at most."""


@dataclass(frozen=True)
class Level:
    """A level of memory.

    Args:
        name: "L1", "L2", "L3" or "memory".
        capacity: bytes of it that all threads together have; None for memory.
        bandwidth: bytes loaded from it a second by all threads together.
    """

    name: str
    capacity: int | None
    bandwidth: float


@dataclass(frozen=True)
class Peak:
    """Ceilings of a machine.

    Args:
        threads: that the figures of the levels are for.
        macs: fp32 multiply-adds of one core a second.
        levels: from near to far.
    """

    threads: int
    macs: float
    levels: tuple[Level, ...]

    @property
    def total_macs(self) -> float:
        """Multiply-adds of all threads a second, were each alone."""
        return self.macs * self.threads

    def level(self, size: int) -> Level:
        """The nearest level that holds so many bytes."""
        return next(level for level in self.levels if level.capacity is None or size <= level.capacity)


@dataclass(frozen=True)
class Team:
    """What threads of a machine do to each other.

    Args:
        threads: at least 2.
        macs: fp32 multiply-adds of one of them a second while all multiply: half of a core's where two share
            it.
        line: seconds that a line takes longer which another core wrote, to be read and written.
    """

    threads: int
    macs: float
    line: float


def multiply_adds(target: Target) -> Function:
    """Sums of products in registers. Words: turns of the loop. Scratch: a line."""
    f = kernel(target, "peak_multiply_adds")
    vector = F32.by(target.lanes(F32))
    factor = f.load(vector, f["scratch"])
    sums = [f.var(f.splat(float(i), vector)) for i in range(_CHAINS)]
    with f.loop(0, word(f, 0, I64)):
        for total in sums:
            total.set(f.fma(factor, factor, total.get()))
    _keep(f, [total.get() for total in sums])
    return f


def loads(target: Target) -> Function:
    """Loads of consecutive vectors, a buffer a task. Words: the first buffer, turns of the loop, sweeps."""
    f = kernel(target, "peak_loads")
    lanes = target.lanes(F32)
    vector, stride = F32.by(lanes), _VECTORS * lanes
    turns = word(f, 1, I64)
    base = f.offset(word(f, 0), f["task"] * turns * stride, F32)
    sums = [f.var(f.splat(0.0, vector)) for _ in range(_VECTORS)]
    with f.loop(0, word(f, 2, I64)), f.loop(0, turns) as turn:
        for i, total in enumerate(sums):
            total.set(total.get() + f.load(vector, base, turn * stride + i * lanes, align=vector.bytes))
    _keep(f, [total.get() for total in sums])
    return f


def exchanges(target: Target) -> Function:
    """Adds one to each vector of a buffer. Words: the first buffer, turns of the loop, how many buffers after
    the task's own it is, and how many there are."""
    f = kernel(target, "peak_exchanges")
    vector = F32.by(target.lanes(F32))
    turns, ahead, buffers = (word(f, i, I64) for i in (1, 2, 3))
    base = f.offset(word(f, 0), (f["task"] + ahead) % buffers * turns * vector.lanes, F32)
    with f.loop(0, turns) as turn:
        at = turn * vector.lanes
        f.store(f.load(vector, base, at, align=vector.bytes) + 1.0, base, at, align=vector.bytes)
    return f


def _keep(f: Function, values: list[Value]) -> None:
    """Store the sum of some values, so that they must be computed."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    f.store(total, f["scratch"])


def _program(
    target: Target,
    function: Function,
    steps: Sequence[tuple[Word, ...]],
    tasks: int,
    size: int,
) -> Program:
    """A step for each tuple of words."""
    ports = (Port("x", "float32", (size,)),) if size else ()
    return Program(
        inputs=ports,
        outputs=(),
        steps=tuple(Step(function.name, words, tasks) for words in steps),
        objects=(driver.object_code(target), llvm.compile_object(llvm.module_text([function]), target)),
        constants=b"",
        arena_bytes=0,
        scratch_bytes=64,
        target=target.key,
        features=tuple(sorted(target.features)),
    )


def _seconds(program: Program, threads: int, arrays: list[Array]) -> float:
    """The least seconds of a run."""
    executor = Executor(program, threads)
    times: list[float] = []
    while len(times) < _RUNS or sum(times) < _ENOUGH:
        start = time.perf_counter()
        executor.run(arrays)
        times.append(time.perf_counter() - start)
    executor.close()
    return min(times)


def _bandwidth(target: Target, function: Function, size: int, threads: int) -> float:
    """Bytes a second that the threads load together, each from a buffer of its own of about so many bytes."""
    turn = _VECTORS * target.vector_bits // 8
    turns = max(size // turn, 1)
    elements = turns * turn // 4 * threads
    raw = np.ones(elements + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    sweeps = max(1, _SWEPT // (turns * turn))
    words: tuple[Word, ...] = (("input", 0), ("integer", turns), ("integer", sweeps))
    program = _program(target, function, [words], threads, elements)
    return elements * 4 * sweeps / _seconds(program, threads, [raw[start : start + elements]])


def measure(target: Target, threads: int) -> Peak:
    """Measure this machine, in about half a second.

    Args:
        target: of this machine.
        threads: that load at the same time.

    Raises:
        TargetError: the target's code does not run here.
    """
    function = multiply_adds(target)
    words: tuple[Word, ...] = (("integer", _ITERATIONS),)
    least = _seconds(_program(target, function, [words], 1, 0), 1, [])
    macs = _ITERATIONS * _CHAINS * target.lanes(F32) / least

    sizes = cpu.caches()
    l1, l2 = sizes.l1d or target.l1_bytes, sizes.l2 or target.l2_bytes
    sweep = loads(target)
    # Half of a level, so that what else lies there does not push the buffer out.
    levels = [
        Level("L1", l1 * threads, _bandwidth(target, sweep, l1 // 2, threads)),
        Level("L2", l2 * threads, _bandwidth(target, sweep, l2 // 2, threads)),
    ]
    if sizes.l3 > l2:
        each = max(sizes.l3 // 2 // threads, l2 * 2)
        levels.append(Level("L3", sizes.l3, _bandwidth(target, sweep, each, threads)))
    far = min(max(4 * sizes.l3, 64 << 20), _LARGEST) // threads
    levels.append(Level("memory", None, _bandwidth(target, sweep, far, threads)))
    return Peak(threads, macs, tuple(levels))


def measure_team(target: Target, threads: int) -> Team:
    """Measure what threads of this machine do to each other, in a tenth of a second.

    Args:
        target: of this machine.
        threads: at least 2.

    Raises:
        TargetError: the target's code does not run here.
    """
    words: tuple[Word, ...] = (("integer", _ITERATIONS),)
    together = _seconds(_program(target, multiply_adds(target), [words], threads, 0), threads, [])
    turns = _EXCHANGED // (4 * target.lanes(F32))
    elements = _EXCHANGED // 4 * threads
    raw = np.ones(elements + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4

    def passing(ahead: int) -> float:
        steps: list[tuple[Word, ...]] = [
            (("input", 0), ("integer", turns), ("integer", step % 2 * ahead), ("integer", threads))
            for step in range(_EXCHANGES)
        ]
        program = _program(target, exchanges(target), steps, threads, elements)
        return _seconds(program, threads, [raw[start : start + elements]])

    lines = _EXCHANGED // 64 * (_EXCHANGES - 1)
    return Team(
        threads,
        _ITERATIONS * _CHAINS * target.lanes(F32) / together,
        max(passing(1) - passing(0), 0.0) / lines,
    )
