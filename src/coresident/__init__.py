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
from coresident.limits import Limits

if TYPE_CHECKING:
    from coresident.compiler import compile_file as compile
    from coresident.session import Session
    from coresident.sparsification.pipeline import sparsify

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CoresidentWarning",
    "Error",
    "ExternalDataError",
    "ImageError",
    "InputError",
    "InvalidModel",
    "Limits",
    "ModelError",
    "ResourceError",
    "Session",
    "TargetError",
    "UnsupportedModel",
    "__version__",
    "compile",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    """Sessions bring numpy with them and the compiler LLVM, so both are imported when first asked for."""
    if name == "Session":
        from coresident.session import Session

        return Session
    if name == "compile":
        from coresident.compiler import compile_file

        return compile_file
    if name == "sparsify":
        from coresident.sparsification.pipeline import sparsify

        return sparsify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What tab completion shows."""
    return sorted({*globals(), *__all__})
