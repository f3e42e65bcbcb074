"""What a session is made from, before anyone looks into it: bytes, and a digest of all that they say."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from coresident.errors import InvalidModel, ResourceError
from coresident.onnx.references import external_locations
from coresident.runtime.digest import digest, digest_file
from coresident.runtime.files import read_in_place


@dataclass(frozen=True)
class Source:
    """A model or an artifact, not yet parsed.

    Args:
        content: its bytes, in place where it is a file.
        path: of the file, if it is one.
        stamp: what changes when the file does.
    """

    content: bytes | memoryview
    path: Path | None = None
    stamp: tuple[int, ...] = ()

    @staticmethod
    def of(model: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Source:
        """A path or the content of a file.

        Raises:
            InvalidModel: no such file.
            ResourceError: it can't be read.
        """
        if isinstance(model, bytes | bytearray | memoryview):
            return Source(bytes(model))
        path = Path(model)
        if not path.is_file():
            raise InvalidModel("not a file" if path.exists() else "no such file", file=path)
        try:
            return Source(read_in_place(path), path, _stamp(path))
        except OSError as error:
            raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error

    @property
    def unchanged(self) -> bool:
        """Whether the file is still what it was."""
        try:
            return self.path is None or _stamp(self.path) == self.stamp
        except OSError:
            return False

    def digest(self) -> str:
        """Of the content and of the files that it refers to.

        Raises:
            ResourceError: the file can't be read.
        """
        if self.path is None:
            return digest(self.content)
        try:
            own = digest_file(self.path)
        except OSError as error:
            raise ResourceError(f"can't be read: {error.strerror or error}", file=self.path) from error
        others = {name: _digest_beside(self.path.parent, name) for name in external_locations(self.content)}
        return hashlib.sha256(json.dumps([own, others]).encode()).hexdigest() if others else own


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest_beside(folder: Path, name: str) -> str:
    """Of a file in the model's folder; "" for one that the reader of the model will refuse."""
    try:
        path = (folder / name).resolve()
        if not (path.is_relative_to(folder.resolve()) and path.is_file()):
            return ""
        return digest_file(path)
    except (OSError, ValueError, RuntimeError):
        return ""
