"""Several inferences at once: which team of threads is free, and requests that wait for their turn."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from coresident.errors import ResourceError

if TYPE_CHECKING:
    from concurrent.futures import Future

Call = Callable[[], Any]
_Item: TypeAlias = "tuple[Future[Any], Call, threading.Semaphore | None]"
"""What holds the result, what makes it, and where its place in the queue is given back."""


class Forked(Protocol):
    """What has locks or threads that a child process must not wait for."""

    def after_fork(self) -> None: ...


def renew_after_fork(one: Forked) -> None:
    """Have `after_fork` called in child processes, as long as somebody holds the object."""
    _FORKED.add(one)


class Streams:
    """Hands the numbers 0 to `count` - 1 to callers, each to one at a time; the others wait.

    The number given back last is the next one handed out: its team is awake and has warm caches.

    Args:
        count: at least 1.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """All are free in a child process: who held them does not exist there."""
        self._free = list(range(self.count))
        # Counts what the list holds: a queue without items of its own is the cheapest semaphore.
        self._tickets: SimpleQueue[None] = SimpleQueue()
        for _ in self._free:
            self._tickets.put(None)

    def take(self) -> int:
        """A free number; waits until there is one."""
        self._tickets.get()
        return self._free.pop()

    def give(self, number: int) -> None:
        """Give a number back."""
        self._free.append(number)
        self._tickets.put(None)


class Requests:
    """Calls that run later, in the order of their coming, on a few threads.

    The threads are started by the first request and hold nothing of a call that has ended.

    Args:
        workers: how many run at once.
        room: how many may wait.
    """

    def __init__(self, workers: int, room: int) -> None:
        self._workers, self._room = workers, room
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child process starts without requests: those of its parent are answered there."""
        self._lock = threading.Lock()
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self._places = threading.Semaphore(self._room)
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, call: Call) -> Future[Any]:
        """Have a call made; waits while no place is free.

        A callback of an earlier future, which one of the threads runs, never waits here: it would for ever.

        Returns:
            What will hold its result, or what it raised; may be cancelled until it starts.

        Raises:
            ResourceError: closed, or the system starts no threads.
        """
        places = None if threading.current_thread() in self._threads else self._places
        if places is not None:
            places.acquire()
        # Brings logging with it, which sessions that only `run` do without.
        from concurrent.futures import Future

        future: Future[Any] = Future()
        try:
            with self._lock:
                if self._closed:
                    raise ResourceError("the session is closed")
                if not self._threads:
                    self._start()
                self._items.put((future, call, places))
        except BaseException:
            if places is not None:
                places.release()
            raise
        return future

    def _start(self) -> None:
        threads = [
            threading.Thread(
                target=_serve, args=(self._items,), name=f"coresident-request-{number}", daemon=True
            )
            for number in range(self._workers)
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:
            for _ in threads:
                self._items.put(None)
            self._items = SimpleQueue()
            raise ResourceError(f"the system does not start {self._workers} threads: {error}") from error
        self._threads = threads
        _OPEN.add(self)

    def close(self, wait: bool = True) -> None:
        """Take no more requests; those taken are answered.

        Args:
            wait: until they are; a callback, which would wait for itself, does not.
        """
        with self._lock:
            threads = self._threads
            if not self._closed:
                self._closed = True
                for _ in threads:
                    self._items.put(None)
        if wait and threading.current_thread() not in threads:
            for thread in threads:
                thread.join()


def _serve(items: SimpleQueue[_Item | None]) -> None:
    while (item := items.get()) is not None:
        future, call, places = item
        del item
        if places is not None:
            places.release()
        if future.set_running_or_notify_cancel():
            _answer(future, call)
        del future, call


def _answer(future: Future[Any], call: Call) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        # An error's trace holds this frame, and the future the error.
        del future, call


def _at_exit() -> None:
    for requests in list(_OPEN):
        requests.close()


def _after_fork() -> None:
    _OPEN.clear()
    for one in list(_FORKED):
        one.after_fork()


_OPEN: weakref.WeakSet[Requests] = weakref.WeakSet()
_FORKED: weakref.WeakSet[Forked] = weakref.WeakSet()
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
