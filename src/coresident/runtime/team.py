"""Thread teams: Python threads parked inside compiled code, shared by all sessions of the process.

One team for each thread count, and more of them, numbered, where sessions run several inferences at once. A
team runs one job at a time; its other callers wait for their turn. A worker spins for about two milliseconds
after a job and then sleeps on a semaphore, without Python's lock in both. The caller of the next job wakes
who sleeps, and would finish alone if nobody came.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from typing import Any

from coresident.errors import ResourceError
from coresident.runtime import abi
from coresident.runtime.elf import LoadedCode
from coresident.runtime.memory import Memory, yield_function

SPIN_SECONDS = 2e-3
"""How long a worker waits for the next job before it sleeps."""
PATIENCE_SECONDS = 20e-6
"""How long anyone spins before giving the core away between looks."""


class EntryPoints:
    """The team's native functions in one loaded program, which they keep loaded.

    Args:
        code: objects with those of `codegen/driver.py` among them.

    Raises:
        ArtifactError: they are not.
    """

    def __init__(self, code: LoadedCode) -> None:
        self.code = code
        self.yield_address, self.yield_windows = yield_function()
        # Objects follow the ELF convention whatever the system; Windows needs the twins made for it.
        suffix = "_windows" if "coresident_run_windows" in code and self.yield_windows else ""
        address = ctypes.c_void_p
        self.run: Any = ctypes.CFUNCTYPE(None, address)(code.address("coresident_run" + suffix))
        self.worker: Any = ctypes.CFUNCTYPE(ctypes.c_uint64, address, ctypes.c_uint64)(
            code.address("coresident_worker" + suffix)
        )
        self.ticks: Any = ctypes.CFUNCTYPE(ctypes.c_uint64)(code.address("coresident_ticks"))

    def ticks_per_second(self, seconds: float = 1e-3) -> float:
        """The rate of the clock that compiled code reads, measured for this long."""
        ticks, start = self.ticks(), time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            pass
        return float((self.ticks() - ticks) / (now - start))


class Team:
    """A caller and `threads` - 1 worker threads.

    Args:
        threads: at least 2.
        entry: whose worker function the threads run.
        number: among the teams of so many threads.

    Raises:
        ResourceError: the system does not start so many threads.
    """

    def __init__(self, threads: int, entry: EntryPoints, number: int = 0) -> None:
        self.threads, self.entry = threads, entry
        self.lock = threading.Lock()
        self._memory = Memory(abi.team_bytes(threads))
        self.address = self._memory.address
        self._words = self._memory.view.cast("Q")
        self._bytes = self._memory.view
        self._sleeping = abi.team_sleeping(threads)
        rate = entry.ticks_per_second()
        self.patience_ticks = int(rate * PATIENCE_SECONDS)
        for field, value in (
            (abi.TEAM_SPIN, int(rate * SPIN_SECONDS)),
            (abi.TEAM_PATIENCE, self.patience_ticks),
            (abi.TEAM_YIELD, entry.yield_address),
            (abi.TEAM_YIELD_WINDOWS, int(entry.yield_windows)),
            (abi.TEAM_THREADS, threads),
        ):
            self._words[field // 8] = value
        self._gates = [threading.Semaphore(0) for _ in range(threads)]
        self._alive = True
        self._workers = [
            threading.Thread(
                target=self._work, args=(index,), name=f"coresident-{threads}-{number}-{index}", daemon=True
            )
            for index in range(1, threads)
        ]
        try:
            for worker in self._workers:
                worker.start()
        except RuntimeError as error:
            self.close()
            raise ResourceError(f"the system does not start {threads - 1} threads: {error}") from error

    def _work(self, index: int) -> None:
        worker, address, gate = self.entry.worker, self.address, self._gates[index]
        while worker(address, index) == abi.WORKER_SLEEP:
            gate.acquire()

    def run(self, native_run: Any, job: int) -> None:
        """Run a job with the team; waits while it runs another."""
        with self.lock:
            sleeping = bytes(self._bytes[self._sleeping : self._sleeping + self.threads])
            if 1 in sleeping:
                self._wake(sleeping)
            native_run(job)

    def _wake(self, sleeping: bytes) -> None:
        # A worker may clear its own flag at the same time; its gate then lets it pass once without need.
        for index, sleeps in enumerate(sleeping):
            if sleeps:
                self._bytes[self._sleeping + index] = 0
                self._gates[index].release()

    def leave(self, job: int) -> None:
        """Return when no worker reads the memory of a job that is not running any more."""
        slots = [(abi.TEAM_SLOTS + index * abi.LINE) // 8 for index in range(1, self.threads)]
        while self._alive and any(self._words[slot] == job for slot in slots):
            time.sleep(0)

    def close(self) -> None:
        """End the worker threads; jobs run on without them."""
        self._words[abi.TEAM_CLOSED // 8] = 1
        for gate in self._gates:
            gate.release()
        for worker in self._workers:
            if worker.ident is not None:
                worker.join(timeout=5.0)
        self._alive = False

    def abandon(self) -> None:
        """Forget the threads: those of the parent do not exist in a process that was forked."""
        self._alive = False


class _Teams:
    """The teams of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.teams: dict[tuple[int, int], Team] = {}

    def get(self, threads: int, entry: EntryPoints, number: int) -> Team:
        key = threads, number
        found = self.teams.get(key)
        if found is not None:
            return found
        with self.lock:
            if key not in self.teams:
                self.teams[key] = Team(threads, entry, number)
            return self.teams[key]

    def close(self) -> None:
        for team in self.teams.values():
            team.close()

    def after_fork(self) -> None:
        for team in self.teams.values():
            team.abandon()
        self.lock = threading.Lock()
        self.teams = {}


_TEAMS = _Teams()
atexit.register(_TEAMS.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TEAMS.after_fork)


def team_of(threads: int, entry: EntryPoints, number: int = 0) -> Team:
    """One of the process's teams of so many threads, which starts with these entry points if it must."""
    return _TEAMS.get(threads, entry, number)
