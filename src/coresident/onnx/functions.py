"""Model-local functions: bounds on what they expand to, and the expansion.

A few functions that call each other twice expand to more nodes than memory holds, and one that calls itself
without end; so the expansion is counted before it is made.
"""

from __future__ import annotations

from collections.abc import Iterable

from coresident.errors import InvalidModel
from coresident.limits import Limits
from coresident.onnx import proto

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def check_size(model: proto.ModelProto, limits: Limits) -> None:
    """Count the nodes that the model expands to.

    Raises:
        InvalidModel: more nodes or deeper than the limits allow, two functions of one name, or one that
            calls itself.
    """
    functions: dict[Key, proto.FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in functions:
            raise InvalidModel(f"two functions are named {function.domain}.{function.name}")
        functions[key] = function
    expanded: dict[Key, int] = {}
    _count(model.graph.node, functions, expanded, (), limits)
    for key, function in functions.items():
        if key not in expanded:
            expanded[key] = _count(function.node, functions, expanded, (key,), limits)


def inlined(model: proto.ModelProto) -> proto.ModelProto:
    """The model with calls of its functions replaced by their bodies.

    Raises:
        InvalidModel: a function can't be expanded.
    """
    # Brings the whole package with it, which models without functions do without.
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        # The inliner is compiled code that throws whatever its own checks throw.
        raise InvalidModel(f"a function of the model can't be expanded: {error}") from error


def _count(
    nodes: Iterable[proto.NodeProto],
    functions: dict[Key, proto.FunctionProto],
    expanded: dict[Key, int],
    path: tuple[Key | str, ...],
    limits: Limits,
) -> int:
    if len(path) > limits.depth:
        raise InvalidModel(f"subgraphs or functions inside each other more than {limits.depth} deep")
    total = 0
    for node in nodes:
        total += 1
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            if key in path:
                raise InvalidModel(f"function {node.domain}.{node.op_type} calls itself", node=node.name)
            if key not in expanded:
                expanded[key] = _count(functions[key].node, functions, expanded, (*path, key), limits)
            total += expanded[key]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                total += _count(graph.node, functions, expanded, (*path, "subgraph"), limits)
        if total > limits.nodes:
            raise InvalidModel(f"more than {limits.nodes} nodes, functions expanded")
    return total
