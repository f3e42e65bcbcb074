"""Every error that a user can cause, as one tree.

    Error
    ├── ModelError                the model can't be used
    │   ├── InvalidModel          not a model, truncated, or contradicting itself
    │   ├── UnsupportedModel      operators, types or forms this version does not compile; all of them at once
    │   └── ExternalDataError     external data missing, outside the model's folder, or too short
    ├── InputError                what was fed does not fit the model's inputs
    ├── TargetError               the CPU, or the CPU named, lacks what the code needs
    ├── ArtifactError             a compiled file is corrupt, foreign or too new
    ├── ResourceError             no memory, no disk, no permission
    └── ImageError                a picture or array file can't be read or written

What is worth telling but stops nothing is a `CoresidentWarning`.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors raised by coresident for something its user can change.

    Args:
        message: what is wrong and what would be accepted.
        file: the file concerned.
        node: the name of the graph node concerned.
        op: its operator type.
        shape: the shape concerned.
    """

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        node: str | None = None,
        op: str | None = None,
        shape: object = None,
    ) -> None:
        self.message, self.file, self.node, self.op, self.shape = message, file, node, op, shape
        super().__init__(message)

    def at(
        self, *, file: object = None, node: str | None = None, op: str | None = None, shape: object = None
    ) -> Error:
        """This error with what was still unknown of its place filled in; returns itself."""
        self.file, self.node, self.op = self.file or file, self.node or node, self.op or op
        self.shape = shape if self.shape is None else self.shape
        return self

    def __str__(self) -> str:
        place = [f"file {self.file}"] if self.file else []
        place += [f"node {self.node!r}"] if self.node else []
        place += [f"operator {self.op}"] if self.op else []
        place += [f"shape {self.shape}"] if self.shape is not None else []
        return f"{self.message} [{', '.join(place)}]" if place else self.message


class ModelError(Error):
    """The model can't be used."""


class InvalidModel(ModelError):
    """The model is not a model, is truncated, or contradicts itself."""


class UnsupportedModel(ModelError):
    """The model needs operators, types or forms that this version does not compile."""


class ExternalDataError(ModelError):
    """External data is missing, lies outside the model's folder, or is too short."""


class InputError(Error):
    """What was fed does not fit the model's inputs."""


class TargetError(Error):
    """The CPU found, or the CPU named, lacks what the code needs."""


class ArtifactError(Error):
    """A compiled file is corrupt, foreign, or written by a newer version."""


class ResourceError(Error):
    """No memory, no disk space or no permission."""


class ImageError(Error):
    """A picture or array file can't be read or written."""


class CoresidentWarning(UserWarning):
    """Something did not work that the result does not depend on, such as the cache."""
