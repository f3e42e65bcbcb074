"""Compute in float32 what the model has in float16: weights, constants and all values between.

Inputs and outputs keep their type; a cast stands behind and before them. Between them numbers are not
rounded to 11 bits, and may pass 65504.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coresident.graph.graph import Graph, Node
from coresident.graph.operator import infer
from coresident.passes.patch import Pass

_HALF = np.dtype(np.float16)


def widened(graph: Graph) -> Graph:
    """The graph without float16 between its inputs and outputs, and without facts of what lies between; sizes
    may be free."""
    halves = {name for name, fact in graph.facts.items() if fact.dtype == _HALF}
    halves |= {name for name, array in graph.initializers.items() if array.dtype == _HALF}
    if not halves:
        return graph
    taken = {*graph.facts, *graph.initializers}
    # Values that must keep their type keep their name; all that is read instead gets a new one.
    given = [name for name in graph.inputs if name in halves]
    names = {name: _fresh(name, taken) for name in dict.fromkeys((*given, *graph.outputs)) if name in halves}
    casts = [
        Node("Cast", (name,), (names[name],), {"to": "float32"}, name)
        for name in given
        if name not in graph.initializers
    ]
    nodes = [
        node.with_(
            inputs=tuple(names.get(n, n) for n in node.inputs),
            outputs=tuple(names.get(n, n) for n in node.outputs),
            attributes={key: _widened(value) for key, value in node.attributes.items()},
        )
        for node in graph.nodes
    ]
    back = [
        Node("Cast", (names[name],), (name,), {"to": "float16"}, name)
        for name in dict.fromkeys(graph.outputs)
        if name in halves and name not in given
    ]
    constants = {
        names.get(name, name): array.astype(np.float32) if array.dtype == _HALF else array
        for name, array in graph.initializers.items()
    }
    inputs = {name: graph.facts[name] for name in graph.inputs}
    outputs = {name: graph.facts[name] for name in graph.outputs if name in graph.facts}
    return graph.with_(nodes=(*casts, *nodes, *back), initializers=constants, facts={**outputs, **inputs})


def _run(graph: Graph) -> Graph:
    wide = widened(graph)
    return graph if wide is graph else infer(wide)


def _widened(attribute: Any) -> Any:
    """An attribute that names float16, or holds such numbers, of float32."""
    if isinstance(attribute, np.ndarray) and attribute.dtype == _HALF:
        return attribute.astype(np.float32)
    return "float32" if isinstance(attribute, str) and attribute == "float16" else attribute


def _fresh(name: str, taken: set[str]) -> str:
    stem = f"{name}.single"
    while stem in taken:
        stem += "."
    taken.add(stem)
    return stem


PASS = Pass("widen_half", _run)
