"""Files written whole or not at all, and files read in place."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from coresident.errors import ResourceError


def write_atomically(
    path: Path, parts: Iterable[bytes | memoryview], *, mode: int = 0o666, sync: bool = True
) -> None:
    """Replace a file by new content; on failure the old one stays and nothing else does.

    Args:
        path: the file; its folder must exist.
        parts: the content, in order.
        mode: permissions of the new file, less the process's umask.
        sync: whether the content must be on the disk before the name is.

    Raises:
        ResourceError: no space, no permission, no such folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
            with os.fdopen(file, "wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ResourceError(f"can't write: {error.strerror or error}", file=path) from error


def read_in_place(path: Path) -> memoryview:
    """A file's content as read-only memory that the system fills from it as it is touched.

    Raises:
        OSError: it can't be opened or mapped.
    """
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
