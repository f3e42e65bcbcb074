"""How many threads numpy's and scipy's linear algebra runs on.

OpenBLAS shares out each call among threads that spin until the others are done. Of the many small
factorisations that reconstruction needs, each takes longer so than on one thread, and on a machine that does
something else as well, hundreds of times as long. Both packages carry an OpenBLAS of their own in their
wheels; another library, where there is one, is left as it is.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy

from coresident.graph.operator import Array
from coresident.runtime import cpu

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@functools.cache
def _libraries() -> tuple[tuple[Callable[[], int], Callable[[int], None]], ...]:
    """How to ask for and to set the number of threads of each OpenBLAS that is loaded."""
    found = []
    for package in (np, scipy):
        folder = Path(str(package.__file__)).parent
        for place in (folder.parent / f"{package.__name__}.libs", folder / ".dylibs"):
            for path in sorted(place.glob("*openblas*")) if place.is_dir() else ():
                library = ctypes.CDLL(str(path))
                for name in _NAMES:
                    if hasattr(library, name.format("set_num_threads")):
                        found.append(
                            (
                                getattr(library, name.format("get_num_threads")),
                                getattr(library, name.format("set_num_threads")),
                            )
                        )
                        break
    return tuple(found)


@contextmanager
def one_thread() -> Iterator[None]:
    """While this is open, linear algebra runs on the thread that asks for it; in the whole process."""
    before = [get() for get, _ in _libraries()]
    for _, put in _libraries():
        put(1)
    try:
        yield
    finally:
        for (_, put), count in zip(_libraries(), before):
            put(count)


def in_threads(work: Callable[[slice], None], rows: int, chunk: int) -> None:
    """Have rows worked on, so many at a time, on all cores of this process; within `one_thread`."""
    parts = [slice(first, min(first + chunk, rows)) for first in range(0, rows, chunk)]
    if len(parts) < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(min(len(parts), cpu.usable_cores().count)) as pool:
        list(pool.map(work, parts))


def product(a: Array, b: Array) -> Array:
    """a @ b on all cores of this process; within `one_thread`.

    Args:
        a: float32 [rows, n].
        b: float32 [n, columns].
    """
    result = np.empty((len(a), b.shape[1]), np.float32)

    def some(rows: slice) -> None:
        np.matmul(a[rows], b, out=result[rows])

    # Each call brings all of b into the order that it reads.
    in_threads(some, len(a), max(-(-len(a) // cpu.usable_cores().count), 1))
    return result
