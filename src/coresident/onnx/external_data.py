"""Tensor data that a model keeps in files beside it. Source: ONNX, docs/ExternalData.md.

A model may name any file. Only regular files inside the model's own folder are read, and only as many bytes
as the tensor's type and shape say.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
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
        ExternalDataError: the file is missing, lies outside the folder, is not a regular one, or is too
            short; or the entries are not what the format allows.
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
    path = _inside(entries.get("location", ""), directory, tensor)
    offset, length = _number(entries, "offset", 0, tensor), _number(entries, "length", size, tensor)
    if length != size:
        raise ExternalDataError(
            f"tensor {tensor!r} needs {size} bytes; its external data has {length}", file=path
        )
    return _bytes(path, offset, size, tensor)


def _number(entries: Mapping[str, str], key: str, default: int, tensor: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExternalDataError(
            f"tensor {tensor!r} has external data with {key} {text!r}; a number of bytes is needed"
        )
    return int(text)


def _inside(location: str, directory: Path, tensor: str) -> Path:
    """The file, with links resolved; inside the folder, likewise resolved."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or "\0" in location or rooted or ".." in parts:
        raise ExternalDataError(
            f"tensor {tensor!r} has external data at {location!r}; a relative path without '..' is needed"
        )
    try:
        folder = directory.resolve(strict=True)
        path = (folder / location).resolve(strict=True)
    except FileNotFoundError:
        raise ExternalDataError(
            f"the external data of tensor {tensor!r} is missing", file=directory / location
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ExternalDataError(
            f"the external data of tensor {tensor!r} can't be found: {error}", file=directory / location
        ) from None
    if not path.is_relative_to(folder):
        raise ExternalDataError(
            f"the external data of tensor {tensor!r} lies outside the model's folder", file=path
        )
    return path


def _bytes(path: Path, offset: int, size: int, tensor: str) -> bytearray:
    # Opening must not follow a link put there meanwhile, nor wait for the other end of a pipe.
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        with open(os.open(path, flags), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ExternalDataError(
                    f"the external data of tensor {tensor!r} is not a regular file", file=path
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
    except OSError as error:
        raise ExternalDataError(
            f"the external data of tensor {tensor!r} can't be read: {error.strerror}", file=path
        ) from None
    if rest:
        raise ExternalDataError(f"the external data of tensor {tensor!r} ended early", file=path)
    return data
