"""Runs trained vision networks on CPUs: compiles ONNX models to machine code that skips their zeros.

session = coresident.Session("model.onnx")
outputs = session.run(None, {"x": array})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coresident.errors import (
    ArtifactError,
    CoresidentWarning,
    Error,
    ExternalDataError,
    ImageError,
    InputError,
    InvalidModel,
    ModelError,
    ResourceError,
    TargetError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from coresident.session import Session

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CoresidentWarning",
    "Error",
    "ExternalDataError",
    "ImageError",
    "InputError",
    "InvalidModel",
    "ModelError",
    "ResourceError",
    "Session",
    "TargetError",
    "UnsupportedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Sessions bring numpy with them, so they are imported when first asked for."""
    if name == "Session":
        from coresident.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
