"""Operators on floats whose data comes and goes as bytes.

A pass attaches two attributes to pools and Resizes: "from_bytes", (scale, zero point), says that the first
input is quantised so, and "to_bytes", (scale, zero point, element type), that the result is to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.numpy_math import NumpyMath
from coresident.graph.operator import Array, Infer, Reference

SINGLE = np.dtype(np.float32)


def converting(infer: Infer, reference: Reference) -> tuple[Infer, Reference]:
    """Inference and reference of an operator that heeds both attributes."""

    def infer_converted(node: Node, facts: Sequence[Fact | None]) -> Sequence[Fact]:
        first = facts[0] if facts else None
        if first is None or not converts(node):
            return infer(node, facts)
        if "from_bytes" in node.attributes:
            if first.dtype not in (np.uint8, np.int8):
                raise InvalidModel(f"bytes are needed, not {first.dtype}", shape=first.shape)
            facts = [Fact(SINGLE, first.shape), *facts[1:]]
        results = list(infer(node, facts))
        if "to_bytes" in node.attributes:
            results[0] = Fact(np.dtype(node.attributes["to_bytes"][2]), results[0].shape)
        return results

    def converted(node: Node, arrays: Sequence[Array | None]) -> Sequence[Array]:
        first = arrays[0] if arrays else None
        if first is None or not converts(node):
            return reference(node, arrays)
        math = NumpyMath()
        if "from_bytes" in node.attributes:
            scale, point = node.attributes["from_bytes"]
            single = math.dequantize(first, np.array(scale, SINGLE), np.array(point, first.dtype))
            arrays = [single, *arrays[1:]]
        results = list(reference(node, arrays))
        if "to_bytes" in node.attributes:
            scale, point, dtype = node.attributes["to_bytes"]
            results[0] = math.quantize(results[0], np.array(scale, SINGLE), np.array(point, dtype))
        return results

    return infer_converted, converted


def converts(node: Node) -> bool:
    """Whether a node has one of the attributes."""
    attributes: Any = node.attributes
    return "from_bytes" in attributes or "to_bytes" in attributes
