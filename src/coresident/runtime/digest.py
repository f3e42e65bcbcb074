"""Checksums of large files, on all cores."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from coresident.runtime import cpu

_CHUNK = 4 << 20
_BUFFER = 64 << 10
"""What is read at a time: memory that is at hand, and stays in a core's cache until it is hashed."""


def digest(data: bytes | memoryview) -> str:
    """SHA-256, in hexadecimal, of the SHA-256s of its pieces of 4 MiB; of itself if it is one piece."""
    view = memoryview(data)

    def hash_some(parts: list[bytes], indices: range) -> None:
        for index in indices:
            parts[index] = hashlib.sha256(view[index * _CHUNK : (index + 1) * _CHUNK]).digest()

    return _combined(len(view), hash_some)


def digest_file(path: Path) -> str:
    """The `digest` of a file, which is not in memory at once.

    Raises:
        OSError: it can't be read.
    """

    def hash_some(parts: list[bytes], indices: range) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        with open(path, "rb", buffering=0) as stream:
            for index in indices:
                stream.seek(index * _CHUNK)
                piece, left = hashlib.sha256(), _CHUNK
                while left and (count := stream.readinto(buffer[:left])):
                    piece.update(buffer[:count])
                    left -= count
                parts[index] = piece.digest()

    return _combined(path.stat().st_size, hash_some)


def _combined(size: int, hash_some: Callable[[list[bytes], range], None]) -> str:
    """The digest of the pieces' digests, which `hash_some` writes at the indices it is given."""
    count = max(-(-size // _CHUNK), 1)
    parts = [b""] * count
    workers = min(cpu.usable_cores().count, count, 8) if count > 1 else 1
    failures: list[OSError] = []

    def work(first: int) -> None:
        try:
            hash_some(parts, range(first, count, workers))
        except OSError as error:
            failures.append(error)

    helpers = [threading.Thread(target=work, args=(first,)) for first in range(1, workers)]
    for helper in helpers:
        helper.start()
    work(0)
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
    return parts[0].hex() if count == 1 else hashlib.sha256(b"".join(parts)).hexdigest()
