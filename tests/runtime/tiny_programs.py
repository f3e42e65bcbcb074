"""Programs of a few hand-written kernels, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Sequence

from coresident.codegen import driver, llvm
from coresident.codegen.builder import Function, kernel, word
from coresident.codegen.target import NAMED, Target
from coresident.codegen.types import F32, I32, I64
from coresident.runtime import cpu
from coresident.runtime.program import Port, Program, Step, Word

TARGET = NAMED["x86-64-avx2" if cpu.machine() == "x86_64" else "aarch64-neon"]


def program(
    functions: Sequence[Function],
    steps: Sequence[Step],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    constants: bytes = b"",
    arena: int = 0,
    scratch: int = 0,
    target: Target = TARGET,
) -> Program:
    """A program for this machine out of kernels."""
    code = llvm.compile_object(llvm.module_text(functions), target)
    return Program(
        tuple(inputs),
        tuple(outputs),
        tuple(steps),
        (driver.object_code(target), code),
        constants,
        arena,
        scratch,
        target.key,
        ("avx2", "fma") if target.arch == "x86_64" else ("neon",),
    )


def add_one(name: str = "add_one") -> Function:
    """Words x, y, n: y = x + 1 on the task's n elements."""
    f = kernel(TARGET, name)
    x, y, n = word(f, 0), word(f, 1), word(f, 2, I64)
    with f.loop(f["task"] * n, (f["task"] + 1) * n) as i:
        f.store(f.load(F32, x, i) + 1.0, y, i)
    return f


def chain(
    tasks: int, steps: int, length: int = 1, barriers: Sequence[bool] | None = None, functions: int = 1
) -> Program:
    """`steps` times x + 1 over `tasks * length` elements, each task its own part all the way."""
    size = tasks * length

    def place(step: int) -> Word:
        if step < 0:
            return ("input", 0)
        return ("output", 0) if step == steps - 1 else ("arena", step % 2 * 4 * size)

    made = [
        Step(
            f"add_one_{i % functions}",
            (place(i - 1), place(i), ("integer", length)),
            tasks,
            True if barriers is None else barriers[i],
            {"op": "AddOne", "index": i},
        )
        for i in range(steps)
    ]
    kernels = [add_one(f"add_one_{i}") for i in range(functions)]
    return program(
        kernels, made, [Port("x", "float32", (size,))], [Port("y", "float32", (size,))], arena=8 * size
    )


def counting(tasks: int, uneven: int = 0) -> Program:
    """Counts, in memory that stays from run to run, how often each task has run; the counts are the output.

    Args:
        tasks: how many.
        uneven: the first task takes this many rounds of a loop, the others one: work is taken over.
    """
    count = kernel(TARGET, "count")
    counts, rounds, first = word(count, 0), word(count, 1, I64), count["task"].equals(0)
    spins = count.select(first, rounds, count.value(1, I64))
    total = count.var(0, I32)
    with count.loop(0, spins):
        # A volatile load, so that the rounds are not optimised away.
        total.set(
            count.emit(f"load volatile i32, ptr {count.offset(counts, count['task'], I32).text}", I32) + 1
        )
    count.store(total.get(), counts, count["task"])
    copy = kernel(TARGET, "copy")
    source, destination = word(copy, 0), word(copy, 1)
    copy.store(copy.load(I32, source, copy["task"]), destination, copy["task"])
    steps = [
        Step("count", (("arena", 0), ("integer", max(uneven, 1))), tasks),
        Step("copy", (("arena", 0), ("output", 0)), tasks),
    ]
    return program([count, copy], steps, [], [Port("counts", "int32", (tasks,))], arena=4 * tasks)
