"""Model-local functions: bounds on what they expand to, and the expansion.

A few functions that call each other twice expand to more nodes than memory holds, and one that calls itself
without end; so the expansion is counted before it is made.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import inliner

from coresident.errors import InvalidModel

MAX_NODES = 200_000
"""Nodes of a model, functions expanded and subgraphs counted."""

MAX_DEPTH = 16
"""Subgraphs or function calls inside each other."""

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def check_size(model: onnx.ModelProto) -> None:
    """Count the nodes that the model expands to.

    Raises:
        InvalidModel: more than `MAX_NODES`, deeper than `MAX_DEPTH`, two functions of one name, or one that
            calls itself.
    """
    functions: dict[Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in functions:
            raise InvalidModel(f"two functions are named {function.domain}.{function.name}")
        functions[key] = function
    expanded: dict[Key, int] = {}
    _count(model.graph.node, functions, expanded, ())
    for key, function in functions.items():
        if key not in expanded:
            expanded[key] = _count(function.node, functions, expanded, (key,))


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with calls of its functions replaced by their bodies.

    Raises:
        InvalidModel: a function can't be expanded.
    """
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        # The inliner is compiled code that throws whatever its own checks throw.
        raise InvalidModel(f"a function of the model can't be expanded: {error}") from error


def _count(
    nodes: Iterable[onnx.NodeProto],
    functions: dict[Key, onnx.FunctionProto],
    expanded: dict[Key, int],
    path: tuple[Key | str, ...],
) -> int:
    if len(path) > MAX_DEPTH:
        raise InvalidModel(f"subgraphs or functions inside each other more than {MAX_DEPTH} deep")
    total = 0
    for node in nodes:
        total += 1
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            if key in path:
                raise InvalidModel(f"function {node.domain}.{node.op_type} calls itself", node=node.name)
            if key not in expanded:
                expanded[key] = _count(functions[key].node, functions, expanded, (*path, key))
            total += expanded[key]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                total += _count(graph.node, functions, expanded, (*path, "subgraph"))
        if total > MAX_NODES:
            raise InvalidModel(f"more than {MAX_NODES} nodes, functions expanded")
    return total
