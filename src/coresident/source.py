"""What a session is made from, before anyone looks into it: bytes, a name, and a digest of everything that it
says."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from coresident.errors import InvalidModel, ResourceError
from coresident.onnx.references import external_locations
from coresident.runtime.digest import digest
from coresident.runtime.files import read_in_place


@dataclass(frozen=True)
class Source:
    """A model or an artifact, not yet parsed.

    Args:
        content: its bytes, in place where it is a file.
        path: of the file, if it is one.
    """

    content: bytes | memoryview
    path: Path | None

    @staticmethod
    def of(model: str | os.PathLike[str] | bytes | bytearray | memoryview) -> Source:
        """A path or the content of a file.

        Raises:
            InvalidModel: no such file.
            ResourceError: it can't be read.
        """
        if isinstance(model, bytes | bytearray | memoryview):
            return Source(bytes(model), None)
        path = Path(model)
        if not path.is_file():
            raise InvalidModel("not a file" if path.exists() else "no such file", file=path)
        try:
            return Source(read_in_place(path), path)
        except OSError as error:
            raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error

    def digest(self) -> str:
        """Of the content and of the files that it refers to."""
        parts = [digest(self.content)]
        if self.path is not None:
            parts += [
                f"{name}={_digest_beside(self.path.parent, name)}"
                for name in external_locations(self.content)
            ]
        return (
            parts[0]
            if len(parts) == 1
            else hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
        )


def _digest_beside(folder: Path, name: str) -> str:
    """Of a file in the model's folder; "" for one that the reader of the model will refuse."""
    try:
        path = (folder / name).resolve()
        if not (path.is_relative_to(folder.resolve()) and path.is_file()):
            return ""
        return digest(read_in_place(path))
    except (OSError, ValueError, RuntimeError):
        return ""
