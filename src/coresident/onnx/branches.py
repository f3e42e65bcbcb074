"""`If` with a condition that the model itself holds: exporters leave such nodes where the choice is made.

The branch that is taken stands in the node's place. An `If` whose condition is computed stays, and is refused
with the other operators that are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.onnx.proto import AttributeProto, GraphProto, NodeProto, TensorProto
from coresident.onnx.tensors import array_of

Array = np.ndarray[Any, Any]


def choose(graph: GraphProto) -> None:
    """Replace every `If` of a graph whose condition is constant by the nodes of its branch, in place.

    Values of a branch get names that no other value has, led by the node's.

    Raises:
        InvalidModel: a condition that is no bool, or a branch that does not fit its node.
        UnsupportedModel: a sparse initializer.
    """
    if any(_is(node, "If") for node in graph.node):
        _choose(graph, graph, {}, _names(graph))


def _choose(graph: GraphProto, root: GraphProto, outer: Mapping[str, TensorProto], used: set[str]) -> None:
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if _is(node, "Constant") and len(node.output) == 1:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    constants[node.output[0]] = attribute.t
        branch = None
        if _is(node, "If") and len(node.input) == 1:
            tensor = constants.get(node.input[0])
            branch = None if tensor is None else _taken(node, tensor)
        if branch is None:
            nodes.append(node)
            continue
        _choose(branch, root, constants, used)
        nodes += _inlined(node, branch, root, used)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _is(node: NodeProto, op: str) -> bool:
    return bool(node.op_type == op and node.domain in ("", "ai.onnx"))


def _taken(node: NodeProto, condition: TensorProto) -> GraphProto:
    name = node.name or next(iter(node.output), "")
    try:
        value = array_of(condition, None, "the condition")
        if value.dtype != np.bool_ or value.size != 1:
            raise InvalidModel(f"the condition is {value.dtype} of shape {list(value.shape)}, not one bool")
        wanted = "then_branch" if value.item() else "else_branch"
        branches = [a.g for a in node.attribute if a.name == wanted and a.type == AttributeProto.GRAPH]
        if len(branches) != 1 or len(branches[0].output) != len(node.output) or branches[0].input:
            raise InvalidModel(f"there is no {wanted} without inputs and with {len(node.output)} outputs")
        if branches[0].sparse_initializer:
            raise UnsupportedModel("a sparse initializer; only dense ones are supported")
    except Error as error:
        raise error.at(node=name, op="If") from None
    return branches[0]


def _inlined(node: NodeProto, branch: GraphProto, root: GraphProto, used: set[str]) -> Iterator[NodeProto]:
    """The nodes of a branch under names of their own, and those that hand its outputs on."""
    lead = node.name or next(iter(node.output), "If")
    own = [*(t.name for t in branch.initializer), *(name for inner in branch.node for name in inner.output)]
    renamed = {name: _fresh(f"{lead}/{name}", used) for name in own if name}
    for tensor in branch.initializer:
        added = root.initializer.add()
        added.CopyFrom(tensor)
        added.name = renamed[tensor.name]
    for value in (*branch.value_info, *branch.output):
        if value.name in renamed:
            declared = root.value_info.add()
            declared.CopyFrom(value)
            declared.name = renamed[value.name]
    for inner in branch.node:
        _rename(inner, renamed)
        yield inner
    for source, target in zip(branch.output, node.output):
        if target:
            yield NodeProto(
                op_type="Identity",
                input=[renamed.get(source.name, source.name)],
                output=[target],
                name=f"{lead}/{target}",
            )


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    node.input[:] = [renamed.get(name, name) for name in node.input]
    node.output[:] = [renamed.get(name, name) for name in node.output]


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "'"
    used.add(name)
    return name


def _names(graph: GraphProto) -> set[str]:
    """Of all values, those of subgraphs among them."""
    found = {value.name for value in (*graph.input, *graph.initializer, *graph.output)}
    for node in graph.node:
        found.update(node.input, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _names(attribute.g)
    return found
