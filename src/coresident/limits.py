"""How much a model, which may come from a stranger, may ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no such names
        return 64 << 30


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated by what the model says.

    Args:
        model_bytes: of the ONNX file; a protobuf message can't be longer than the default.
        external_bytes: of the tensors kept in other files, together.
        nodes: of the graph, functions expanded and subgraphs counted.
        depth: of subgraphs or function calls inside each other.
        attribute_elements: of one attribute that is a list.
        memory_bytes: of one value, and of all that one call of a program needs with its weights; by custom
            the memory of the machine.
    """

    model_bytes: int = (1 << 31) - 1
    external_bytes: int = 64 << 30
    nodes: int = 50_000
    depth: int = 16
    attribute_elements: int = 1 << 20
    memory_bytes: int = field(default_factory=_physical_memory)


DEFAULT = Limits()
