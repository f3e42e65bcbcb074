"""Checksums of large files, on all cores."""

from __future__ import annotations

import hashlib
import threading

from coresident.runtime import cpu

_CHUNK = 4 << 20


def digest(data: bytes | memoryview) -> str:
    """SHA-256, in hexadecimal, of the SHA-256s of its pieces of 4 MiB; of itself if it is one piece."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    if len(view) <= _CHUNK:
        return hashlib.sha256(view).hexdigest()
    starts = range(0, len(view), _CHUNK)
    parts = [b""] * len(starts)
    workers = min(cpu.usable_cores().count, len(starts), 8)

    def hash_every(first: int) -> None:
        for index in range(first, len(parts), workers):
            start = starts[index]
            parts[index] = hashlib.sha256(view[start : start + _CHUNK]).digest()

    helpers = [threading.Thread(target=hash_every, args=(first,)) for first in range(1, workers)]
    for helper in helpers:
        helper.start()
    hash_every(0)
    for helper in helpers:
        helper.join()
    return hashlib.sha256(b"".join(parts)).hexdigest()
