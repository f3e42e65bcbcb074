"""The cache of compiled programs: a folder of artifacts named by what they were made from.

Entries are readable by their owner alone, written atomically and verified when read. Nothing that goes wrong
with the cache stops a session: it warns, and the program is compiled.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import stat
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from coresident.errors import ArtifactError, CoresidentWarning, Error, ResourceError
from coresident.runtime import artifact
from coresident.runtime.artifact import Artifact
from coresident.runtime.program import Program

LIMIT_BYTES = 2 << 30
_SUFFIX = ".cres"
_KEY = "cache_key"
"""Where an entry says what it is, whatever its file is named."""
_ABANDONED_SECONDS = 3600


def key(entries: dict[str, Any]) -> str:
    """The name of what is made from these entries (JSON values)."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprint(package: str, *patterns: str) -> str:
    """Names, sizes and times of a package's files, found without importing it.

    A version number does not change while a package is worked on; its files do.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(path for folder in folders for pattern in patterns for path in Path(folder).glob(pattern))
    return key({str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files})


@dataclass(frozen=True)
class State:
    """A cache as `doctor` shows it.

    Args:
        path: its folder; None where there is no cache.
        entries: programs in it.
        bytes: their size.
        writable: whether new ones can be kept.
        problem: why it is not used or not writable, "" if all is well.
    """

    path: Path | None
    entries: int
    bytes: int
    writable: bool
    problem: str


class Cache(Protocol):
    """Where compiled programs are kept between processes."""

    def get(self, key: str) -> Program | None:
        """The program of a key, None if it is not there or not usable."""

    def put(self, key: str, program: Program) -> None:
        """Keep a program; warns where that fails."""

    def state(self) -> State:
        """For people."""


class NoCache:
    """Keeps nothing.

    Args:
        problem: why.
    """

    def __init__(self, problem: str = "") -> None:
        self._problem = problem

    def get(self, key: str) -> Program | None:
        return None

    def put(self, key: str, program: Program) -> None:
        return None

    def state(self) -> State:
        return State(None, 0, 0, False, self._problem)


class DiskCache:
    """Programs in a folder of this user's.

    Args:
        folder: exists and is this user's alone.
        limit_bytes: above it the entries that were not used for longest go.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._warned = False

    def get(self, key: str) -> Program | None:
        path = self.folder / (key + _SUFFIX)
        if not path.exists():
            return None
        try:
            check_owner(path)
            found = artifact.read(path).programs
            if len(found) != 1 or found[0].info.pop(_KEY, None) != key:
                raise ArtifactError("was made for something else", file=path)
        except Error as error:
            self._discard(path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found[0]

    def put(self, key: str, program: Program) -> None:
        try:
            # Not synchronised with the disk: an entry that a crash cuts is found out when it is read.
            entry = replace(program, info={**program.info, _KEY: key})
            artifact.write(Artifact((entry,)), self.folder / (key + _SUFFIX), mode=0o600, sync=False)
            self._evict()
        except (Error, OSError) as error:
            self._warn_once(f"the compiled program can't be kept in the cache: {error}")

    def state(self) -> State:
        entries = self._entries()
        size = sum(size for _, size, _ in entries)
        writable = os.access(self.folder, os.W_OK)
        return State(self.folder, len(entries), size, writable, "" if writable else "the folder is read-only")

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, size, path) of every program."""
        found = []
        with os.scandir(self.folder) as scan:
            for entry in scan:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return found

    def _evict(self) -> None:
        """Keep the folder within its limit, and remove what interrupted writers left."""
        entries = sorted(self._entries())
        size = sum(size for _, size, _ in entries)
        for _, one, path in entries[:-1]:
            if size <= self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                size -= one
        for path in self.folder.glob(f".*{_SUFFIX}.*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def _discard(self, path: Path, error: Exception) -> None:
        warnings.warn(
            f"an entry of the cache is not usable and is made again: {error}", CoresidentWarning, stacklevel=3
        )
        with contextlib.suppress(OSError):
            path.unlink()

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, CoresidentWarning, stacklevel=3)


def check_owner(path: Path) -> None:
    """Raise ArtifactError unless the file or folder is this user's and nobody else can write it."""
    if not hasattr(os, "getuid"):
        return
    status = os.stat(path)
    if status.st_uid != os.getuid():
        raise ArtifactError("belongs to another user", file=path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ArtifactError("can be written by other users", file=path)


def default_folder() -> Path:
    """CORESIDENT_CACHE_DIR, or the user's cache folder of the platform."""
    named = os.environ.get("CORESIDENT_CACHE_DIR")
    if named:
        return Path(named)
    # Brings a good deal with it that is not needed where the folder is named.
    import platformdirs

    return Path(platformdirs.user_cache_dir("coresident", appauthor=False))


def open_cache(folder: Path | None = None, *, enabled: bool = True, limit_bytes: int = LIMIT_BYTES) -> Cache:
    """The cache to use.

    Args:
        folder: where; None for `default_folder`.
        enabled: False gives a cache that keeps nothing, as does CORESIDENT_CACHE=0 in the environment.
        limit_bytes: size to stay within.

    Returns:
        A cache that keeps nothing, after a warning, if the folder can't be made or is not this user's alone.
    """
    if not enabled or os.environ.get("CORESIDENT_CACHE") == "0":
        return NoCache("switched off")
    folder = folder or default_folder()
    try:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"can't be made: {error.strerror or error}", file=folder) from error
        check_owner(folder)
    except Error as error:
        warnings.warn(f"the cache is not used: its folder {error}", CoresidentWarning, stacklevel=2)
        return NoCache(str(error))
    return DiskCache(folder, limit_bytes)
