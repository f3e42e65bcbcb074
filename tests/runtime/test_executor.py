"""Programs run on one and several threads, from several callers, across forks and to the process's end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_programs

from coresident.codegen import driver
from coresident.codegen.builder import kernel, word
from coresident.codegen.target import NAMED
from coresident.codegen.types import I64
from coresident.errors import ArtifactError, InputError, ResourceError, TargetError
from coresident.runtime import cpu, team
from coresident.runtime.executor import Executor
from coresident.runtime.program import Port, Step

THREADS = (1, 2, 4)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 7, 8, 17, 31])
def test_steps_run_in_order(threads: int, tasks: int) -> None:
    executor = Executor(tiny_programs.chain(tasks, steps=9, length=5), threads)
    x = np.arange(tasks * 5, dtype=np.float32)
    for run in range(3):
        (y,) = executor.run([x + run])
        np.testing.assert_array_equal(y, x + run + 9)


@pytest.mark.parametrize("threads", THREADS)
def test_steps_without_barriers_overlap_and_all_end(threads: int) -> None:
    size = 64
    steps = [
        Step("add_one", (("input", 0), ("arena", 4 * size * i), ("integer", 1)), size, barrier=i == 4)
        for i in range(5)
    ]
    last = Step("add_one", (("arena", 4 * size * 3), ("output", 0), ("integer", 1)), size, barrier=False)
    program = tiny_programs.program(
        [tiny_programs.add_one()],
        [*steps, last],
        [Port("x", "float32", (size,))],
        [Port("y", "float32", (size,))],
        arena=4 * size * 5,
    )
    executor = Executor(program, threads)
    x = np.arange(size, dtype=np.float32)
    for run in range(200):
        np.testing.assert_array_equal(executor.run([x + run])[0], x + run + 2)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("uneven", [0, 20_000])
def test_every_task_runs_once_a_run(threads: int, uneven: int) -> None:
    executor = Executor(tiny_programs.counting(257, uneven), threads)
    for run in range(1, 101):
        (counts,) = executor.run([])
        assert (counts == run).all(), f"run {run}: {counts}"


def test_the_caller_finishes_alone_if_no_worker_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = tiny_programs.counting(100)
    executor = Executor(program, 3)
    alone = team.Team(3, executor._entry)
    alone.close()
    monkeypatch.setattr("coresident.runtime.executor.team_of", lambda *of: alone)
    assert (executor.run([])[0] == 1).all()
    assert (executor.run([])[0] == 2).all()


def test_workers_that_slept_are_woken() -> None:
    executor = Executor(tiny_programs.counting(64), 2)
    for run in range(1, 6):
        assert (executor.run([])[0] == run).all()
        time.sleep(5 * team.SPIN_SECONDS)
    workers = team.team_of(2, executor._entry)
    assert all(worker.is_alive() for worker in workers._workers)


@pytest.mark.parametrize("threads", THREADS)
def test_several_callers_at_once(threads: int) -> None:
    executor = Executor(tiny_programs.chain(16, steps=7, length=3), threads)
    wrong: list[str] = []

    def call(seed: int) -> None:
        x = np.full(48, seed, np.float32)
        for run in range(50):
            (y,) = executor.run([x + run])
            if not (y == seed + run + 7).all():
                wrong.append(f"caller {seed}, run {run}: {y}")

    callers = [threading.Thread(target=call, args=(1000 * i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong, wrong[:3]


def test_executors_of_different_thread_counts_take_turns() -> None:
    executors = [Executor(tiny_programs.chain(11, steps=4), threads) for threads in (1, 2, 3, 4, 2)]
    x = np.arange(11, dtype=np.float32)
    for run in range(20):
        for executor in executors:
            np.testing.assert_array_equal(executor.run([x + run])[0], x + run + 4)


def test_executors_that_die_while_workers_spin() -> None:
    x = np.arange(8, dtype=np.float32)
    program = tiny_programs.chain(8, steps=30)
    for _ in range(60):
        executor = Executor(program, 3)
        np.testing.assert_array_equal(executor.run([x])[0], x + 30)
        del executor


def test_scratch_is_each_workers_own() -> None:
    f = kernel(tiny_programs.TARGET, "through_scratch")
    out, task, scratch = word(f, 0), f["task"], f["scratch"]
    with f.loop(0, 64) as i:
        f.store(task + i, scratch, i)
    total = f.var(0, I64)
    with f.loop(0, 64) as i:
        total.set(total.get() + f.load(I64, scratch, i))
    f.store(total.get(), out, task * 2)
    f.store(f.emit(f"ptrtoint ptr {scratch.text} to i64", I64), out, task * 2 + 1)
    step = Step("through_scratch", (("output", 0),), 200)
    program = tiny_programs.program([f], [step], [], [Port("y", "int64", (200, 2))], scratch=512)
    executor = Executor(program, 4)
    for _ in range(20):
        (y,) = executor.run([])
        np.testing.assert_array_equal(y[:, 0], 64 * np.arange(200) + 64 * 63 // 2)
        places = np.unique(y[:, 1])
        assert (places % 64 == 0).all()
        assert len(places) == 1 or np.diff(places).min() >= 512 + 64


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "uint8", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (1, 5, 1)])
def test_ports_of_any_type_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    f = kernel(tiny_programs.TARGET, "copy_bytes")
    kind = replace(I64, bits=8)
    with f.loop(0, word(f, 2, I64)) as i:
        f.store(f.load(kind, word(f, 0), i), word(f, 1), i)
    step = Step("copy_bytes", (("input", 0), ("output", 0), ("integer", size)), 1)
    program = tiny_programs.program([f], [step], [Port("x", dtype, shape)], [Port("y", dtype, shape)])
    x = np.arange(3 * 5 * 7)[: int(np.prod(shape))].reshape(shape).astype(dtype)
    x.flags.writeable = False
    (y,) = Executor(program, 2).run([x])
    assert y.dtype == x.dtype
    assert y.shape == shape
    assert y.ctypes.data % 64 == 0 or y.size == 0
    np.testing.assert_array_equal(x, y)


def test_outputs_are_new_each_time() -> None:
    executor = Executor(tiny_programs.chain(4, steps=1), 1)
    first = executor.run([np.zeros(4, np.float32)])[0]
    executor.run([np.ones(4, np.float32)])
    assert (first == 1).all()


def test_constants_and_negative_integers() -> None:
    f = kernel(tiny_programs.TARGET, "constants")
    f.store(f.load(I64, word(f, 0)) + word(f, 1, I64), word(f, 2))
    step = Step("constants", (("constant", 8), ("integer", -5), ("output", 0)), 1)
    constants = np.array([1, 1000, 3], np.int64).tobytes()
    program = tiny_programs.program([f], [step], [], [Port("y", "int64", (1,))], constants=constants)
    assert Executor(program, 1).run([])[0] == 995
    shifted = np.frombuffer(b"\0" * 3 + constants, np.uint8)[3:]
    assert Executor(replace(program, constants=memoryview(shifted)), 1).run([])[0] == 995


@pytest.mark.parametrize("threads", [1, 2])
def test_profile_times_every_step(threads: int) -> None:
    x = np.arange(8, dtype=np.float32)
    # Without barriers, which steps that depend on each other need, there are no results to look at.
    for barriers in (None, [False] * 5 + [True]):
        executor = Executor(tiny_programs.chain(8, steps=6, barriers=barriers), threads)
        executor.run([x])
        seconds = executor.profile([x], repeats=3)
        assert len(seconds) == 6
        assert all(0 <= second < 1 for second in seconds)
        if barriers is None:
            np.testing.assert_array_equal(executor.run([x])[0], x + 6)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros(7, np.float32), r"\[7\].*\[8\]"),
        (np.zeros(8, np.float64), "float64.*float32"),
        (np.zeros((8, 1), np.float32), r"\[8, 1\]"),
        (np.zeros(16, np.float32)[::2], "contiguous"),
        (np.frombuffer(bytes(33), np.uint8)[1:].view(np.float32), "aligned"),
    ],
)
def test_arrays_that_do_not_fit(x: np.ndarray, says: str) -> None:
    executor = Executor(tiny_programs.chain(8, steps=2), 2)
    with pytest.raises(InputError, match=says):
        executor.run([x])
    np.testing.assert_array_equal(executor.run([np.zeros(8, np.float32)])[0], np.full(8, 2))


def test_a_closed_executor_refuses() -> None:
    executor = Executor(tiny_programs.chain(8, steps=2), 2)
    executor.run([np.zeros(8, np.float32)])
    executor.close()
    with pytest.raises(ResourceError, match="closed"):
        executor.run([np.zeros(8, np.float32)])


def test_programs_that_this_machine_can_not_run() -> None:
    program = tiny_programs.chain(2, steps=1)
    unknown = {"x86_64": "avx512fp16", "aarch64": "sve2"}[cpu.machine()]
    if unknown in (cpu.features() or ()):
        pytest.skip(f"this CPU has {unknown}")
    with pytest.raises(TargetError, match=unknown):
        Executor(replace(program, features=("avx2", unknown)), 1)
    other = NAMED["aarch64-neon" if cpu.machine() == "x86_64" else "x86-64-avx2"]
    with pytest.raises(TargetError, match=f"compiled for {other.arch}"):
        Executor(replace(program, target=other.key), 1)
    with pytest.raises(ArtifactError, match="machine"):
        Executor(replace(program, objects=(driver.object_code(other),)), 1)


@pytest.mark.parametrize(
    "word",
    [("constant", 1), ("arena", -1), ("arena", 1 << 40), ("input", 1), ("output", -1), ("nonsense", 0)],
)
def test_arguments_out_of_bounds(word: tuple[str, int]) -> None:
    program = tiny_programs.chain(2, steps=1)
    step = replace(program.steps[0], words=(word,))
    with pytest.raises(ArtifactError, match=word[0]):
        Executor(replace(program, steps=(step,)), 1)
    with pytest.raises(ArtifactError, match="no symbol"):
        Executor(replace(program, steps=(replace(step, kernel="absent", words=()),)), 1)


def test_preparation_runs_once_for_a_call_s_memory() -> None:
    """It adds one to what stays in the arena, which every call then reads."""
    n = ("integer", 2)
    into, out = ("arena", 0), ("output", 0)
    once = Step("add_one", (into, into, n), 1)
    program = tiny_programs.program(
        [tiny_programs.add_one()],
        [Step("add_one", (into, out, n), 1)],
        [Port("x", "float32", (2,))],
        [Port("y", "float32", (2,))],
        arena=8,
    )
    executor = Executor(replace(program, preparation=(once,)), 1)
    for _ in range(3):
        np.testing.assert_array_equal(executor.run([np.zeros(2, np.float32)])[0], [2, 2])
    with pytest.raises(ArtifactError, match="preparation"):
        Executor(replace(program, preparation=(replace(once, words=(into, out, n)),)), 1)


def test_code_is_written_once_and_stays() -> None:
    """What writers write, steps find; it can't be changed any more, and arguments stay within bounds."""
    n = ("integer", 2)
    writer = Step("add_one", (("constant", 0), ("code", 64), n), 1)
    program = tiny_programs.program(
        [tiny_programs.add_one()],
        [Step("add_one", (("code", 64), ("output", 0), n), 1)],
        [],
        [Port("y", "float32", (2,))],
        constants=np.float32([5, 6]).tobytes(),
    )
    program = replace(program, code_bytes=128, writers=(writer,))
    executor = Executor(program, 1)
    for _ in range(2):
        np.testing.assert_array_equal(executor.run([])[0], [7, 8])
    assert executor.resident_bytes == Executor(replace(program, code_bytes=256), 1).resident_bytes - 128
    for out in (("code", 129), ("code", -1), ("constant", 9), ("arena", 0), ("input", 0), ("output", 0)):
        with pytest.raises(ArtifactError, match=f"writer add_one has an argument out of bounds: {out[0]}"):
            Executor(replace(program, writers=(replace(writer, words=(out,)),)), 1)
    with pytest.raises(ArtifactError, match="code 129"):
        Executor(replace(program, steps=(replace(program.steps[0], words=(("code", 129),)),)), 1)
    with pytest.raises(ArtifactError, match="no symbol"):
        Executor(replace(program, writers=(replace(writer, kernel="absent"),)), 1)


def test_too_much_memory_is_refused() -> None:
    program = replace(tiny_programs.chain(2, steps=1), arena_bytes=1 << 50)
    with pytest.raises(ResourceError, match="memory"):
        Executor(program, 1).run([np.zeros(2, np.float32)])


def _in_a_process(script: str, *options: str) -> str:
    """What a script prints; it must end by itself, with success and nothing on stderr."""
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    result = subprocess.run(
        [sys.executable, *options, "-c", path + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_use_after_fork() -> None:
    # Python 3.12 and later warn of forks in processes with threads.
    printed = _in_a_process(
        """
        import os
        import numpy as np, tiny_programs
        from coresident.runtime.executor import Executor
        executors = [Executor(tiny_programs.chain(8, steps=20), threads) for threads in (1, 2, 3)]
        x = np.arange(8, dtype=np.float32)
        def check():
            for run in range(20):
                for executor in executors:
                    assert (executor.run([x])[0] == x + 20).all()
        check()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                check()
                grandchild = os.fork()
                if grandchild == 0:
                    check()
                    executors.clear()
                    os._exit(0)
                assert os.waitpid(grandchild, 0)[1] == 0
                executors.clear()
                os._exit(0)
            check()
            assert os.waitpid(child, 0)[1] == 0
        print("well")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert printed == "well\n"


def test_the_process_ends_cleanly() -> None:
    printed = _in_a_process(
        """
        import threading, time
        import numpy as np, tiny_programs
        from coresident.runtime.executor import Executor
        x = np.arange(8, dtype=np.float32)
        spinning = Executor(tiny_programs.chain(8, steps=20), 2)
        sleeping = Executor(tiny_programs.chain(8, steps=20), 3)
        sleeping.run([x])
        time.sleep(0.05)
        def forever():
            while True:
                spinning.run([x])
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.05)
        print("end", flush=True)
        """
    )
    assert printed == "end\n"
