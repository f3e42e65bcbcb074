"""Memory that numpy does not give: aligned and private to the process, and executable.

Pages of code are written first and made executable after; they are never writable and executable at once (on
Apple silicon, where the system knows pages that are both, they are switched for the writing thread).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from coresident.errors import ResourceError

PAGE = mmap.ALLOCATIONGRANULARITY
HUGE_PAGE = 2 << 20

_SWITCHED = sys.platform == "darwin" and platform.machine() == "arm64"
"""Whether pages of code are switched between writable and executable a thread at a time."""

Protection = Literal["code", "constants"]


def round_up(size: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-size // unit) * unit


class Memory:
    """Anonymous zeroed memory, copied on write by a fork.

    Memory of 2 MiB and more starts at a multiple of that and asks for huge pages.

    Args:
        size: in bytes.

    Attributes:
        view: its bytes.
        address: of the first one.

    Raises:
        ResourceError: the system refuses it.
    """

    def __init__(self, size: int) -> None:
        size = round_up(max(size, 1), PAGE)
        unit = HUGE_PAGE if size >= HUGE_PAGE else PAGE
        reserved = size + (unit if unit > PAGE else 0)
        try:
            if sys.platform == "win32":
                self._map = mmap.mmap(-1, reserved)
            else:
                self._map = mmap.mmap(-1, reserved, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise ResourceError(f"no memory for {size} bytes: {error}") from error
        whole = np.frombuffer(self._map, np.uint8)
        start = -whole.ctypes.data % unit
        if unit == HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel built without huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE, start, size)
        self.view = memoryview(self._map)[start : start + size]
        self.address = int(whole.ctypes.data) + start

    def words(self, offset: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """`count` 64-bit words from a byte offset on."""
        return np.frombuffer(self.view, np.uint64, count, offset)


@functools.cache
def _library() -> Any:
    """The C library, or kernel32."""
    if sys.platform == "win32":
        return ctypes.WinDLL("kernel32", use_last_error=True)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_ssize_t]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def yield_function() -> tuple[int, bool]:
    """(address, whether it follows the Windows convention) of what gives the core to another thread."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
    address = ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value
    assert address is not None
    return address, sys.platform == "win32"


class CodeMemory:
    """Pages that will hold code: reserved, then filled once; released when garbage-collected.

    Memory of 2 MiB and more starts at a multiple of that and asks for huge pages.

    Args:
        size: in bytes.

    Raises:
        ResourceError: the system refuses memory.
    """

    def __init__(self, size: int) -> None:
        self.size = round_up(max(size, 1), PAGE)
        unit = HUGE_PAGE if self.size >= HUGE_PAGE else PAGE
        reserved = self.size + unit - PAGE
        start = _reserve(reserved)
        self.address = round_up(start, unit)
        self._release = weakref.finalize(self, _free, start, reserved)
        if unit == HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            # A wish: kernels built without huge pages refuse it.
            _library().madvise(self.address, self.size, mmap.MADV_HUGEPAGE)
        self._release.atexit = False

    def commit(self, image: bytes | bytearray, parts: Sequence[tuple[int, int, Protection]]) -> None:
        """Write the whole image and protect its parts.

        Args:
            image: of at most `size` bytes.
            parts: as `write` takes them.

        Raises:
            ResourceError: the system does not let this process have executable pages.
        """
        assert len(image) <= self.size
        source = (ctypes.c_char * len(image)).from_buffer_copy(image)
        self.write(lambda address: ctypes.memmove(address, source, len(image)), parts)

    def write(self, put: Callable[[int], object], parts: Sequence[tuple[int, int, Protection]]) -> None:
        """Have the memory written, from its address on, and protect its parts.

        Args:
            put: writes at an address.
            parts: (offset, size, protection); offsets are multiples of PAGE, and no two share a page.

        Raises:
            ResourceError: the system does not let this process have executable pages.
        """
        if _SWITCHED:
            library = _library()
            library.pthread_jit_write_protect_np(0)
            put(self.address)
            library.pthread_jit_write_protect_np(1)
            library.sys_icache_invalidate(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))
            return
        put(self.address)
        for offset, size, protection in parts:
            if size:
                _protect(self.address + offset, round_up(size, PAGE), protection)


def _reserve(size: int) -> int:
    library = _library()
    if sys.platform == "win32":
        library.VirtualAlloc.restype = ctypes.c_void_p
        library.VirtualAlloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
        address = library.VirtualAlloc(None, size, 0x3000, 0x04)  # MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE
        if not address:
            raise ResourceError(
                f"no memory for {size} bytes of code: {ctypes.WinError(ctypes.get_last_error())}"
            )
        return int(address)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _SWITCHED:
        flags |= 0x0800  # MAP_JIT: executable here, writable only for a thread that asks
        access |= mmap.PROT_EXEC
    address = library.mmap(None, size, access, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise ResourceError(f"no memory for {size} bytes of code: {_last_error()}")
    return int(address)


def _protect(address: int, size: int, protection: Protection) -> None:
    library = _library()
    if sys.platform == "win32":
        library.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
        before = ctypes.c_uint32()
        access = 0x20 if protection == "code" else 0x02  # PAGE_EXECUTE_READ, PAGE_READONLY
        if not library.VirtualProtect(address, size, access, ctypes.byref(before)):
            raise ResourceError(f"executable memory is refused: {ctypes.WinError(ctypes.get_last_error())}")
        library.GetCurrentProcess.restype = ctypes.c_void_p
        library.FlushInstructionCache.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        library.FlushInstructionCache(library.GetCurrentProcess(), address, size)
        return
    # On AArch64 Linux makes the caches agree when pages that were never executable become so.
    access = mmap.PROT_READ | (mmap.PROT_EXEC if protection == "code" else 0)
    if library.mprotect(address, size, access) != 0:
        raise ResourceError(
            f"the system refuses executable memory ({_last_error()}); a security policy may forbid it"
        )


def _free(address: int, size: int) -> None:
    if sys.platform == "win32":
        library = _library()
        library.VirtualFree.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32]
        library.VirtualFree(address, 0, 0x8000)  # MEM_RELEASE
        return
    _library().munmap(address, size)


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
