"""Training with zeros: masks, schedules, distillation and quantisation in any PyTorch loop.

Recipes need PyYAML, everything else PyTorch: both come with `python -m pip install 'coresident[train]'`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from coresident.errors import ResourceError
from coresident.sparsification.training.recipe import (
    Alternate,
    Constant,
    Distil,
    LearningRate,
    Prune,
    Quantise,
    Recipe,
    WeightDecay,
)
from coresident.sparsification.training.recipe_files import load

if TYPE_CHECKING:
    from coresident.sparsification.training.sparsifier import ScheduledModifierManager, Sparsifier

__all__ = [
    "HOW",
    "Alternate",
    "Constant",
    "Distil",
    "LearningRate",
    "Prune",
    "Quantise",
    "Recipe",
    "ScheduledModifierManager",
    "Sparsifier",
    "WeightDecay",
    "is_there",
    "load",
    "require",
]


HOW = "python -m pip install 'coresident[train]'"
"""How PyTorch is installed."""


def is_there() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def require() -> None:
    """Raise a ResourceError that says how to install PyTorch, where it is missing."""
    if not is_there():
        raise ResourceError(f"training needs PyTorch: {HOW}")


def __getattr__(name: str) -> Any:
    """PyTorch is imported when what needs it is first asked for."""
    if name in ("Sparsifier", "ScheduledModifierManager"):
        require()
        from coresident.sparsification.training import sparsifier

        return getattr(sparsifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
