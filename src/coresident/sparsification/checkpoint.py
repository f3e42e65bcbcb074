"""What a run has worked out so far, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coresident.errors import CoresidentWarning, ResourceError
from coresident.runtime.files import write_atomically

Array = np.ndarray[Any, Any]


class Checkpoint:
    """A folder of arrays by name, each valid for the inputs that it was worked out from.

    Args:
        folder: made when something is stored; None keeps nothing.
        key: whatever decides the results: digests of model and data, settings. What is there for another
            key is not read.

    Raises:
        ResourceError: the folder can't be made.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self._folder = folder
        self._digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()

    def _path(self, name: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{hashlib.sha256(f'{self._digest} {name}'.encode()).hexdigest()[:32]}.npz"

    def load(self, name: str) -> dict[str, Array] | None:
        """What was stored under a name; None where nothing was, or where it does not hold any more."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("its digest differs")
            with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            warnings.warn(
                f"{path} is damaged ({error}): it is worked out again", CoresidentWarning, stacklevel=2
            )
            return None

    def store(self, name: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays under a name.

        Raises:
            ResourceError: no space, no permission.
        """
        path = self._path(name)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"can't be made: {error.strerror}", file=path.parent) from error
        content = _archived(arrays)
        write_atomically(path, [hashlib.sha256(content).digest(), content], sync=False)

    def clear(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._folder)


def _archived(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as the content of an npz file."""
    stream = io.BytesIO()
    # np.savez would take an array called "file" for a parameter of its own.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return stream.getvalue()
