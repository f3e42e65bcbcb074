"""Runs a compiled program: code loaded once, one context (memory of one call) for each caller at a time."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np

from coresident.errors import ArtifactError, InputError, ResourceError, TargetError
from coresident.runtime import abi, cpu, elf
from coresident.runtime.memory import CodeMemory, Memory, round_up
from coresident.runtime.program import Port, Program
from coresident.runtime.team import EntryPoints, Team, team_of

Array = np.ndarray[Any, Any]

_BYTE = ctypes.c_char
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
_ALIGNMENT = 64
_MOST_INTEGER = (1 << 63) - 1
_GUARD = 4096
"""Bytes after the arena and after each worker's scratch that vectors may run over."""


class _Context:
    """The memory of one call: arena, scratch, and the tables that compiled code reads.

    Args:
        layout: of the program.
        profile: whether every step ends with a barrier and the clock is written down.
    """

    def __init__(self, layout: _Layout, profile: bool) -> None:
        self.team: Team | None = None
        threads, steps = layout.threads, len(layout.tasks)
        stride = round_up(layout.scratch_bytes + _GUARD, 4096) + 2 * abi.LINE
        counter_lines = threads + 1 if threads > 1 else 0
        scratch = round_up(layout.arena_bytes + _GUARD, _ALIGNMENT)
        job = scratch + stride * threads
        table = job + abi.JOB_BYTES
        counters = table + abi.STEP_BYTES * steps
        words = counters + abi.LINE * counter_lines * steps
        stamps = words + 8 * len(layout.words)
        self._memory = Memory(stamps + 8 * (steps + 1))
        base = self._memory.address
        self.job = base + job

        own_words = self._memory.words(words, len(layout.words))
        own_words[:] = layout.words
        own_words[layout.arena_places] += np.uint64(base)
        # numpy takes 100 ns to write a word, a memoryview 40.
        self.words = self._memory.view[words:stamps].cast("Q")
        self.stamps = self._memory.words(stamps, steps + 1)

        barriers = [True] * steps if profile else layout.barriers
        record = self._memory.words(table, steps * (abi.STEP_BYTES // 8)).reshape(steps, abi.STEP_BYTES // 8)
        record[:, abi.STEP_KERNEL // 8] = layout.kernels
        record[:, abi.STEP_WORDS // 8] = base + words + 8 * np.asarray(layout.word_starts, np.uint64)
        record[:, abi.STEP_TASKS // 8] = layout.tasks
        record[:, abi.STEP_BARRIER // 8] = barriers
        record[:, abi.STEP_COUNTERS // 8] = (
            base + counters + abi.LINE * counter_lines * np.arange(steps, dtype=np.uint64)
        )
        group = 0
        for i, (tasks, barrier) in enumerate(zip(layout.tasks, barriers)):
            group += tasks
            record[i, abi.STEP_GROUP_TASKS // 8] = group
            group = 0 if barrier else group
        if threads > 1:
            # The first worker, the caller, gets what does not divide: a single task stays with it.
            shares = np.asarray(layout.tasks)[:, None] * np.arange(threads + 1)
            bounds = -(-shares // threads)
            lines = self._memory.words(counters, steps * counter_lines * 8).reshape(steps, counter_lines, 8)
            lines[:, :threads, abi.RANGE_START // 8] = bounds[:, :-1]
            lines[:, :threads, abi.RANGE_LENGTH // 8] = bounds[:, 1:] - bounds[:, :-1]

        self._preparation = [(kernel, base + words + 8 * at, n) for kernel, at, n in layout.preparation]
        self._scratch = base + scratch
        self.prepare()

        self._job_words = self._memory.words(job, abi.JOB_BYTES // 8)
        for field, value in (
            (abi.JOB_STEPS, base + table),
            (abi.JOB_STEP_COUNT, steps),
            (abi.JOB_WORKERS, threads),
            (abi.JOB_SCRATCH, base + scratch),
            (abi.JOB_SCRATCH_STRIDE, stride),
            (abi.JOB_PROFILE, base + stamps if profile else 0),
            (abi.JOB_YIELD, layout.entry.yield_address),
            (abi.JOB_YIELD_WINDOWS, int(layout.entry.yield_windows)),
        ):
            self._job_words[field // 8] = value

    def prepare(self) -> None:
        """Run the program's preparation, on this thread."""
        for kernel, words, tasks in self._preparation:
            for task in range(tasks):
                kernel(words, task, self._scratch)

    def join(self, team: Team) -> None:
        """Let jobs run with a team from now on (a fork ends the team that was)."""
        self.team = team
        self._job_words[abi.JOB_TEAM // 8] = team.address
        self._job_words[abi.JOB_PATIENCE // 8] = team.patience_ticks
        weakref.finalize(self, _leave, team, self.job, self._memory).atexit = False


def _leave(team: Team, job: int, memory: Memory) -> None:
    """The last act of a context: its memory, an argument to live till here, may go when nobody reads it."""
    team.leave(job)


class _Layout:
    """What all contexts of a program share: code, constants, and words without the arena's address."""

    def __init__(
        self, program: Program, threads: int, entry: EntryPoints, constants: int, written: int
    ) -> None:
        code = entry.code
        self.threads, self.entry = threads, entry
        self.arena_bytes, self.scratch_bytes = program.arena_bytes, program.scratch_bytes
        self.kernels = np.array([code.address(step.kernel) for step in program.steps], np.uint64)
        self.tasks = [step.tasks for step in program.steps]
        self.barriers = [step.barrier for step in program.steps]
        if self.barriers:
            self.barriers[-1] = True
        self.inputs: list[list[int]] = [[] for _ in program.inputs]
        self.outputs: list[list[int]] = [[] for _ in program.outputs]
        words: list[int] = []
        arena: list[int] = []
        bytes_of_constants = len(program.constants)
        starts: list[int] = []
        for step in (*program.preparation, *program.steps):
            if step.tasks < 0:
                raise ArtifactError(f"the step {step.kernel} has {step.tasks} tasks")
            starts.append(len(words))
            for kind, value in step.words:
                place = len(words)
                match kind:
                    case "integer":
                        words.append(value & (1 << 64) - 1)
                    case "constant" if 0 <= value <= bytes_of_constants:
                        words.append(constants + value)
                    case "code" if 0 <= value <= program.code_bytes:
                        words.append(written + value)
                    case "arena" if 0 <= value <= program.arena_bytes:
                        words.append(value)
                        arena.append(place)
                    case "input" if 0 <= value < len(self.inputs):
                        words.append(0)
                        self.inputs[value].append(place)
                    case "output" if 0 <= value < len(self.outputs):
                        words.append(0)
                        self.outputs[value].append(place)
                    case _:
                        raise ArtifactError(
                            f"the step {step.kernel} has an argument out of bounds: {kind} {value}"
                        )
        once = len(program.preparation)
        self.word_starts = starts[once:]
        own = starts[once] if once < len(starts) else len(words)
        if any(place < own for places in (*self.inputs, *self.outputs) for place in places):
            raise ArtifactError("a step of the preparation reads or writes what callers hand over")
        self.preparation = [
            (_KERNEL(code.address(step.kernel)), start, step.tasks)
            for step, start in zip(program.preparation, starts)
        ]
        self.words = np.array(words, np.uint64)
        self.arena_places = np.array(arena, np.intp)


class Executor:
    """A program ready to run; safe to call from several threads.

    Args:
        program: compiled for this machine.
        threads: of the team that runs it, at least 1.
        features: of this machine's CPU, by LLVM's names; None for what the system tells, if it does.
        streams: how many teams of so many threads may run it at once.

    Raises:
        TargetError: the code is for another kind of CPU, or uses a feature that this one lacks.
        ArtifactError: the program is corrupt.
        ResourceError: no memory, or executable memory is refused.
    """

    def __init__(
        self, program: Program, threads: int, features: Collection[str] | None = None, streams: int = 1
    ) -> None:
        if threads < 1:
            raise InputError(f"{threads} threads; at least 1 is needed")
        found = cpu.features() if features is None else features
        machine = program.target.split("-", 1)[0]
        if machine != cpu.machine():
            raise TargetError(f"the program was compiled for {machine}, and this CPU is {cpu.machine()}")
        if found is not None and (lacking := cpu.lacking(program.features, found)):
            raise TargetError(
                f"the program was compiled for a CPU with {', '.join(lacking)}, which this CPU lacks"
            )
        self.program, self.threads = program, threads
        self._entry = EntryPoints(elf.load(program.objects, machine))
        self._constants, address = _aligned(program.constants)
        self._written = written_code(program, self._entry.code, address)
        self._layout = _Layout(program, threads, self._entry, address, self._written.address)
        self._inputs = [_Place(port, places) for port, places in zip(program.inputs, self._layout.inputs)]
        self._outputs = [_Place(port, places) for port, places in zip(program.outputs, self._layout.outputs)]
        self._cuts = _cuts(program.outputs)
        self._shown = sum(not port.hidden for port in program.outputs)
        # Appending to and popping from a list are atomic: no lock that a fork could leave locked.
        # A list for each stream: a context that changed teams would be bound to both until its end.
        self._free: list[list[_Context]] = [[] for _ in range(streams)]
        self._closed = False
        for stream in range(streams if threads > 1 else 0):
            team_of(threads, self._entry, stream)

    @property
    def resident_bytes(self) -> int:
        """Weights, code, and the activations of one call on each stream."""
        program = self.program
        call = program.arena_bytes + program.scratch_bytes * self.threads
        code = sum(map(len, program.objects)) + program.code_bytes
        return len(program.constants) + code + call * len(self._free)

    def run(self, arrays: Sequence[Array], stream: int = 0) -> list[Array]:
        """One inference.

        Args:
            arrays: one for each of the program's inputs, in order, C-contiguous, of its dtype and shape.
            stream: which of the teams runs it.

        Returns:
            New arrays, one for each output, in order.

        Raises:
            InputError: an array is not as the program wants it.
            ResourceError: no memory, or the executor is closed.
        """
        try:
            context = self._free[stream].pop()
        except IndexError:
            context = self._context()
        try:
            outputs = self._bind(context, arrays)
            self._launch(context, stream)
        finally:
            self._release(context, stream)
        return outputs if self._cuts is None else self._cut(outputs)

    def _cut(self, outputs: list[Array]) -> list[Array]:
        """The outputs without what lies beyond their counts."""
        assert self._cuts is not None
        results = []
        for array, counts in zip(outputs[: self._shown], self._cuts):
            for axis, counting in counts:
                count = min(max(int(outputs[counting].item()), 0), array.shape[axis])
                array = array[(*[slice(None)] * axis, slice(count))]
            results.append(array.copy(order="C") if counts else array)
        return results

    def profile(self, arrays: Sequence[Array], repeats: int = 10) -> list[float]:
        """Median seconds that each step takes when no two steps overlap.

        Args:
            arrays: as for `run`.
            repeats: how many runs to measure, after one that is not.

        Raises:
            InputError, ResourceError: as `run`.
        """
        context = self._context(profile=True)
        outputs = self._bind(context, arrays)
        self._launch(context)
        durations: list[Array] = []
        ticks, start = self._entry.ticks(), time.perf_counter()
        for _ in range(max(repeats, 1)):
            self._launch(context)
            durations.append(np.diff(context.stamps).astype(np.float64))
        del outputs  # compiled code wrote to them until now
        while time.perf_counter() - start < 5e-3:  # too short a time measures the clock badly
            pass
        second = (self._entry.ticks() - ticks) / (time.perf_counter() - start)
        return [float(seconds) for seconds in np.median(durations, axis=0) / second]

    def close(self) -> None:
        """Give the contexts back; calls that are under way end well, later ones are refused."""
        self._closed = True
        for free in self._free:
            free.clear()

    def _context(self, profile: bool = False) -> _Context:
        if self._closed:
            raise ResourceError("the session is closed")
        return _Context(self._layout, profile)

    def _release(self, context: _Context, stream: int) -> None:
        self._free[stream].append(context)
        if self._closed:
            self._free[stream].clear()

    def _bind(self, context: _Context, arrays: Sequence[Array]) -> list[Array]:
        """Write the addresses of inputs and new outputs into the words."""
        if len(arrays) != len(self._inputs):
            raise InputError(f"{len(arrays)} inputs where the model has {len(self._inputs)}")
        words = context.words
        for place, array in zip(self._inputs, arrays):
            address = place.check(array)
            for word in place.words:
                words[word] = address
        outputs = []
        for place in self._outputs:
            array, address = place.allocate()
            outputs.append(array)
            for word in place.words:
                words[word] = address
        return outputs

    def _launch(self, context: _Context, stream: int = 0) -> None:
        if self.threads == 1:
            self._entry.run(context.job)
            return
        team = team_of(self.threads, self._entry, stream)
        if context.team is not team:
            context.join(team)
        team.run(self._entry.run, context.job)


def _cuts(ports: Sequence[Port]) -> list[tuple[tuple[int, int], ...]] | None:
    """For each output handed out, the dimensions whose size another output says; None if there are none."""
    for port in ports:
        for axis, counting in port.counts:
            if axis >= len(port.shape) or counting >= len(ports):
                raise ArtifactError(f"the output {port.name!r} is counted by nothing")
            if ports[counting].dtype != "int64" or ports[counting].shape != (1,):
                raise ArtifactError(f"the output {ports[counting].name!r} can't count")
    return [port.counts for port in ports] if any(port.counts or port.hidden for port in ports) else None


class _Place:
    """One port, prepared: what an array must be, and the words that take its address."""

    def __init__(self, port: Port, words: list[int]) -> None:
        self.name, self.shape, self.words = port.name, tuple(port.shape), words
        try:
            self.dtype = np.dtype(port.dtype)
            self.size = int(np.prod(self.shape, dtype=object)) if self.shape else 1
        except TypeError as error:
            raise ArtifactError(f"the port {port.name!r} has a type that numpy does not know") from error
        if self.dtype.hasobject or any(size < 0 for size in self.shape):
            raise ArtifactError(f"the port {port.name!r} can't have this type or shape", shape=self.shape)
        self.extra = _ALIGNMENT // self.dtype.itemsize if self.dtype.itemsize <= _ALIGNMENT else 1

    def check(self, array: Array) -> int:
        """The address of an input."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise InputError(
                f"the input {self.name!r} is {array.dtype} {list(array.shape)}, "
                f"but {self.dtype} {list(self.shape)} is wanted"
            )
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            raise InputError(f"the input {self.name!r} is not C-contiguous and aligned")
        return _address(array)

    def allocate(self) -> tuple[Array, int]:
        """A new array that starts at a cache line, and its address."""
        try:
            raw = np.empty(self.size + self.extra, self.dtype)
        except (MemoryError, ValueError, OverflowError) as error:
            raise ResourceError(f"no memory for the output {self.name!r}", shape=self.shape) from error
        address = _address(raw)
        skip = -address % _ALIGNMENT
        return np.ndarray(self.shape, self.dtype, raw, skip), address + skip


def written_code(program: Program, code: elf.LoadedCode, constants: int) -> CodeMemory:
    """The machine code that the program's writers write, ready to be executed.

    Args:
        code: of the program.
        constants: their address.

    Raises:
        ArtifactError: an argument is out of bounds.
        ResourceError: the system refuses executable memory.
    """
    memory = CodeMemory(program.code_bytes)
    bounds = {"constant": (constants, len(program.constants)), "code": (memory.address, program.code_bytes)}
    writers = []
    for step in program.writers:
        words = []
        for kind, value in step.words:
            start, size = bounds.get(kind, (0, _MOST_INTEGER if kind == "integer" else -1))
            if not 0 <= value <= size:
                raise ArtifactError(f"the writer {step.kernel} has an argument out of bounds: {kind} {value}")
            words.append(start + value)
        writers.append(
            (_KERNEL(code.address(step.kernel)), (ctypes.c_uint64 * len(words))(*words), step.tasks)
        )

    def put(_: int) -> None:
        for kernel, words, tasks in writers:
            for task in range(tasks):
                kernel(ctypes.addressof(words), task, None)

    memory.write(put, [(0, program.code_bytes, "code")])
    return memory


def _address(array: Array) -> int:
    """Where an array's elements are."""
    try:
        # A quarter of the time of `array.ctypes.data`.
        return ctypes.addressof(_BYTE.from_buffer(cast(Any, array)))
    except (TypeError, ValueError):  # read-only or empty
        return int(array.ctypes.data)


def _aligned(constants: bytes | memoryview) -> tuple[object, int]:
    """The constants where they are if they start at a cache line (a mapped artifact's do), else a copy.

    Returns:
        What keeps them alive, and their address.
    """
    here = np.frombuffer(constants, np.uint8)
    address = int(here.ctypes.data)
    if len(here) == 0 or address % _ALIGNMENT == 0:
        return here, address
    copy = Memory(len(here))
    copy.view[: len(here)] = memoryview(constants)
    return copy, copy.address
