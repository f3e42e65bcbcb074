"""The files of a folder and of those inside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from coresident.errors import InputError, ResourceError

_MOST = 2_000_000


def files_in(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """Files by their endings, sorted by name.

    Names that begin with a dot are left out. Links to folders are followed, each folder is entered once.

    Returns:
        Names relative to the folder, with slashes, and paths; then what could not be listed, and why.

    Raises:
        ResourceError: the folder can't be listed.
        InputError: it holds millions of files.
    """
    found: list[tuple[str, Path]] = []
    failed: list[tuple[str, str]] = []
    for path, why in _walk(folder, failed):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(folder).as_posix()
        if why:
            failed.append((name, why))
        else:
            found.append((name, path))
        if len(found) > _MOST:
            raise InputError(f"more than {_MOST} files", file=folder)
    return sorted(found), sorted(failed)


def _walk(folder: Path, failed: list[tuple[str, str]]) -> Iterator[tuple[Path, str]]:
    """Files, and why one can't be used; folders that can't be listed go to `failed`."""
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            if here == folder:
                message = f"the folder can't be read: {error.strerror or error}"
                raise ResourceError(message, file=folder) from error
            failed.append(
                (here.relative_to(folder).as_posix(), f"can't be listed: {error.strerror or error}")
            )
            continue
        below = []
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    below.append(path)
                elif entry.is_file():
                    yield path, ""
                elif entry.is_symlink():
                    yield path, "a link to nothing"
            except OSError as error:
                yield path, error.strerror or str(error)
        waiting += reversed(below)
