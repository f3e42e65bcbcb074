"""Tensor data that a model keeps in files beside it. Source: ONNX, docs/ExternalData.md.

A model may name any file. Only regular files inside the model's own folder are read, through no link of
either kind, and only as many bytes as the tensor's type and shape say.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from coresident.errors import ExternalDataError

KEYS = frozenset(("location", "offset", "length", "checksum"))
"""Keys that the format has; the checksum is not verified."""


def read(entries: Mapping[str, str], size: int, directory: Path | None, tensor: str) -> bytearray:
    """The bytes of a tensor.

    Args:
        entries: the tensor's external_data.
        size: bytes that its type and shape need.
        directory: the model's folder; None if the model was given as bytes.
        tensor: its name, for messages.

    Raises:
        ExternalDataError: the file is missing, lies outside the folder or behind a link, is not a regular
            one, has other names, or is too short; or the entries are not what the format allows.
    """
    unknown = sorted(entries.keys() - KEYS)
    if unknown:
        raise ExternalDataError(
            f"external data of tensor {tensor!r} with keys {unknown}; known are {', '.join(sorted(KEYS))}"
        )
    if directory is None:
        raise ExternalDataError(
            f"tensor {tensor!r} has external data, and a model given as bytes has no folder; give its path"
        )
    parts = _parts(entries.get("location", ""), tensor)
    offset, length = _number(entries, "offset", 0, tensor), _number(entries, "length", size, tensor)
    if length != size:
        raise ExternalDataError(
            f"tensor {tensor!r} needs {size} bytes; its external data has {length}",
            file=directory.joinpath(*parts),
        )
    return _bytes(parts, directory, offset, size, tensor)


def _number(entries: Mapping[str, str], key: str, default: int, tensor: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExternalDataError(
            f"tensor {tensor!r} has external data with {key} {text!r}; a number of bytes is needed"
        )
    return int(text)


def _parts(location: str, tensor: str) -> tuple[str, ...]:
    """The names that lead from the folder to the file."""
    parts = PurePosixPath(location).parts
    both = (*parts, *PureWindowsPath(location).parts)
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not parts or "\0" in location or rooted or ".." in both:
        raise ExternalDataError(
            f"tensor {tensor!r} has external data at {location!r}; a relative path without '..' is needed"
        )
    return parts


def _opened(parts: Sequence[str], directory: Path) -> int:
    """The file, with no link followed on the way from the folder, nor a pipe waited for.

    Raises:
        OSError: it can't be opened, or a link stands in the way.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if os.open not in os.supports_dir_fd:
        path = directory
        for part in parts:
            path = path / part
            if _is_link(os.lstat(path)):
                raise OSError(errno.ELOOP, "a link", str(path))
        return os.open(path, flags)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            if _is_link(os.lstat(part, dir_fd=folder)):
                raise OSError(errno.ELOOP, "a link", part)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)


def _is_link(status: os.stat_result) -> bool:
    """Whether it leads elsewhere: a symbolic link, or on Windows any reparse point."""
    return stat.S_ISLNK(status.st_mode) or bool(getattr(status, "st_reparse_tag", 0))


def _bytes(parts: Sequence[str], directory: Path, offset: int, size: int, tensor: str) -> bytearray:
    path = directory.joinpath(*parts)
    try:
        with open(_opened(parts, directory), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ExternalDataError(
                    f"the external data of tensor {tensor!r} is not a regular file", file=path
                )
            if status.st_nlink > 1:
                raise ExternalDataError(
                    f"the external data of tensor {tensor!r} has another name (a hard link), which may lie "
                    "outside the model's folder; make a copy of it",
                    file=path,
                )
            if offset + size > status.st_size:
                raise ExternalDataError(
                    f"tensor {tensor!r} needs bytes {offset} to {offset + size}; there are {status.st_size}",
                    file=path,
                )
            file.seek(offset)
            data = bytearray(size)
            rest = memoryview(data)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
    except FileNotFoundError:
        raise ExternalDataError(f"the external data of tensor {tensor!r} is missing", file=path) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ExternalDataError(
                f"the external data of tensor {tensor!r} is behind a link, which may lead outside the "
                "model's folder; make a copy of it",
                file=path,
            ) from None
        raise ExternalDataError(
            f"the external data of tensor {tensor!r} can't be read: {error.strerror}", file=path
        ) from None
    if rest:
        raise ExternalDataError(f"the external data of tensor {tensor!r} ended early", file=path)
    return data
