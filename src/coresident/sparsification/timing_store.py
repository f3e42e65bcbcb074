"""The folder in which timings are kept: one JSON file for a network's shapes on one machine.

A file is readable by its owner alone, replaced whole, and verified when it is read; what does not hold is
measured again, after a warning.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coresident import cache
from coresident.errors import ArtifactError, CoresidentWarning, Error
from coresident.runtime.files import write_atomically
from coresident.sparsification.forms import Form

_FORMAT = 1
_MOST_BYTES = 64 << 20
_MOST_CALLS = 256
"""Times of the dense network that are kept, the latest ones."""


@dataclass(frozen=True)
class Measured:
    """A network with all prunable layers in one form.

    Args:
        ratio: of a call's time to that of the dense float32 network.
        shares: of that time which the layers take, by name.
    """

    ratio: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """What was measured of a network.

    Args:
        dense: seconds of calls of the dense float32 network.
        forms: what was measured in each form.
    """

    dense: tuple[float, ...] = ()
    forms: Mapping[Form, Measured] = field(default_factory=dict)

    def with_form(self, form: Form, measured: Measured, dense: tuple[float, ...]) -> Record:
        """The same with one more form, and the times of dense calls beside it."""
        return Record((*self.dense, *dense)[-_MOST_CALLS:], {**self.forms, form: measured})


class Store:
    """Where one network's record is kept.

    Args:
        folder: for all networks; made where it is missing. None keeps nothing.
        key: of the network and all that its times depend on.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._key = key
        self._path = None if folder is None else folder / f"{key}.json"

    def read(self, layers: Collection[str]) -> Record:
        """The record; an empty one where there is none, or after a warning where it is not usable.

        Args:
            layers: names that it must tell of.
        """
        if self._path is None or not self._path.exists():
            return Record()
        try:
            cache.check_owner(self._path)
            return _parsed(self._path, self._key, set(layers))
        except (Error, OSError) as error:
            warnings.warn(
                f"timings that were kept are not usable and are measured again: {error}",
                CoresidentWarning,
                stacklevel=3,
            )
            with contextlib.suppress(OSError):
                self._path.unlink()
            return Record()

    def write(self, record: Record) -> None:
        """Keep a record; warns where that fails."""
        if self._path is None:
            return
        content = {
            "format": _FORMAT,
            "key": self._key,
            "dense": list(record.dense),
            "forms": [
                {
                    "dtype": form.dtype,
                    "pattern": form.pattern,
                    "sparsity": form.sparsity,
                    "ratio": measured.ratio,
                    "shares": dict(measured.shares),
                }
                for form, measured in record.forms.items()
            ],
        }
        text = json.dumps({"digest": cache.key(content), "content": content}, allow_nan=False)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, [text.encode()], mode=0o600)
        except (Error, OSError) as error:
            warnings.warn(f"timings can't be kept: {error}", CoresidentWarning, stacklevel=3)


def _parsed(path: Path, key: str, layers: set[str]) -> Record:
    """The record of a file.

    Raises:
        ArtifactError: it is damaged, or of something else.
        OSError: it can't be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ArtifactError("is too large", file=path)
    try:
        whole = json.loads(path.read_bytes())
        content = whole["content"]
        if whole["digest"] != cache.key(content):
            raise ArtifactError("is damaged", file=path)
        if content["format"] != _FORMAT or content["key"] != key:
            raise ArtifactError("was made for something else", file=path)
        forms = {}
        for entry in content["forms"]:
            shares = {name: _number(share, most=1 + 1e-6) for name, share in entry["shares"].items()}
            if set(shares) != layers:
                raise ArtifactError("tells of other layers", file=path)
            form = Form(entry["dtype"], entry["pattern"], entry["sparsity"])
            forms[form] = Measured(_number(entry["ratio"]), shares)
        return Record(tuple(map(_number, content["dense"])), forms)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"is damaged: {error}", file=path) from error


def _number(value: Any, most: float = math.inf) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= most or math.isinf(value):
        raise ValueError(f"{value!r} where a time is expected")
    return float(value)
