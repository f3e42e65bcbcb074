"""`If` and `Loop` that the model itself decides: exporters leave such nodes where the choice is made.

1. The branch that is taken stands in the place of an `If` whose condition is a constant.
2. A `Loop` with a constant number of trips, and no condition of its own, gives way to its body, once a trip.
   What it collects in each trip is stacked.

Others stay, and are refused with the operators that are not supported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.limits import Limits
from coresident.onnx.proto import AttributeProto, GraphProto, NodeProto, TensorProto
from coresident.onnx.tensors import array_of

Array = np.ndarray[Any, Any]
Constants = Mapping[str, TensorProto]

EXPLANATIONS = {
    "If": "an If needs a constant condition",
    "Loop": "a Loop needs a constant number of trips and no condition of its own",
}
"""By operator, what is needed for it to go."""


def resolve(graph: GraphProto, opset: int, limits: Limits) -> None:
    """Replace every `If` and `Loop` that is decided by constants by the nodes of its subgraph, in place.

    Values of a subgraph get names that no other value has, led by the node's.

    Raises:
        InvalidModel: a condition that is no bool, a subgraph that does not fit its node, or loops of more
            nodes or bytes than the limits allow.
        UnsupportedModel: a sparse initializer.
    """
    if any(_is(node, op) for node in graph.node for op in EXPLANATIONS):
        _Resolver(graph, opset, limits).resolve(graph, {})


class _Resolver:
    """The graph that takes what subgraphs hold, and the names that are taken."""

    def __init__(self, root: GraphProto, opset: int, limits: Limits) -> None:
        self._root, self._opset, self._limits = root, opset, limits
        self._names = _names(root)
        self._numbers: Counter[str] = Counter()
        self._nodes, self._bytes = 0, 0

    def resolve(self, graph: GraphProto, outer: Constants) -> None:
        """Replace what is decided in one graph, whose surroundings have these constants."""
        constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
        nodes: list[NodeProto] = []
        for node in graph.node:
            for name in node.output:
                constants.pop(name, None)
            constants |= _held(node)
            try:
                if (branch := _taken(node, constants)) is not None:
                    nodes += self._branch(node, branch, constants)
                elif (trips := _trips(node, constants)) is not None:
                    nodes += self._unrolled(node, trips, constants)
                else:
                    nodes.append(node)
            except Error as error:
                raise error.at(node=_lead(node), op=node.op_type) from None
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)

    def _branch(self, node: NodeProto, branch: GraphProto, constants: Constants) -> Iterator[NodeProto]:
        self.resolve(branch, constants)
        renamed = self._hoisted(node, branch)
        yield from self._inside(node, branch, renamed)
        for source, target in zip(branch.output, node.output):
            if target:
                yield _identity(node, renamed.get(source.name, source.name), target)

    def _unrolled(self, node: NodeProto, trips: int, constants: Constants) -> Iterator[NodeProto]:
        body = _graph(node, "body")
        carried, true = list(node.input[2:]), self._constant(node, "condition", np.array(True))
        known = {**constants, **{tensor.name: tensor for tensor in body.initializer}}
        for value in body.input:
            known.pop(value.name, None)
        stacked: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
        if not trips and stacked:
            raise UnsupportedModel("a loop without trips that stacks values")
        shared = self._hoisted(node, body)
        for trip in range(trips):
            self._nodes += len(body.node) + 1
            self._bytes += body.ByteSize()
            if self._nodes > self._limits.nodes:
                raise InvalidModel(f"more than {self._limits.nodes} nodes, loops unrolled")
            if self._bytes > self._limits.model_bytes:
                raise InvalidModel(f"more than {self._limits.model_bytes} bytes, loops unrolled")
            copy = GraphProto.FromString(body.SerializeToString())
            number = self._constant(node, "trip", np.array(trip, np.int64))
            self.resolve(copy, {**known, body.input[0].name: number, body.input[1].name: true})
            given = zip(body.input, (number.name, true.name, *carried))
            renamed = {**shared, **{value.name: name for value, name in given}}
            yield from self._inside(node, copy, renamed)
            results = [renamed.get(value.name, value.name) for value in copy.output[1:]]
            carried = results[: len(carried)]
            for parts, name in zip(stacked, results[len(carried) :]):
                parts.append(name)
        for source, target in zip(carried, node.output):
            if target:
                yield _identity(node, source, target)
        for parts, target in zip(stacked, node.output[len(carried) :]):
            if target:
                yield from self._stacked(node, parts, target)

    def _hoisted(self, node: NodeProto, subgraph: GraphProto) -> dict[str, str]:
        """Move the initializers of a subgraph to the root; returns their new names."""
        renamed = {tensor.name: self._fresh(node, tensor.name) for tensor in subgraph.initializer}
        for tensor in subgraph.initializer:
            added = self._root.initializer.add()
            added.CopyFrom(tensor)
            added.name = renamed[tensor.name]
        return renamed

    def _inside(self, node: NodeProto, subgraph: GraphProto, renamed: dict[str, str]) -> Iterator[NodeProto]:
        """The nodes of a subgraph under names of their own, which are added to `renamed`."""
        own = (name for inner in subgraph.node for name in inner.output if name)
        renamed |= {name: self._fresh(node, name) for name in own}
        for value in (*subgraph.value_info, *subgraph.output):
            if value.name in renamed:
                declared = self._root.value_info.add()
                declared.CopyFrom(value)
                declared.name = renamed[value.name]
        for inner in subgraph.node:
            inner.input[:] = [renamed.get(name, name) for name in inner.input]
            inner.output[:] = [renamed.get(name, name) for name in inner.output]
            yield inner

    def _stacked(self, node: NodeProto, parts: list[str], target: str) -> Iterator[NodeProto]:
        """The values of all trips along a new first axis."""
        rows = []
        axes = self._constant(node, "axes", np.zeros(1, np.int64)) if self._opset >= 13 else None
        for part in parts:
            rows.append(self._fresh(node, f"{target}.row"))
            row = NodeProto(
                op_type="Unsqueeze", input=[part], output=[rows[-1]], name=f"{_lead(node)}/{target}"
            )
            if axes is not None:
                row.input.append(axes.name)
            else:
                row.attribute.add(name="axes", type=AttributeProto.INTS, ints=[0])
            yield row
        whole = NodeProto(op_type="Concat", input=rows, output=[target], name=f"{_lead(node)}/{target}")
        whole.attribute.add(name="axis", type=AttributeProto.INT, i=0)
        yield whole

    def _constant(self, node: NodeProto, what: str, value: Array) -> TensorProto:
        kind = TensorProto.BOOL if value.dtype == np.bool_ else TensorProto.INT64
        name = self._fresh(node, what)
        tensor = self._root.initializer.add(name=name, data_type=kind, dims=value.shape)
        tensor.raw_data = value.tobytes()
        return tensor

    def _fresh(self, node: NodeProto, name: str) -> str:
        stem = f"{_lead(node)}/{name}"
        name = stem
        while name in self._names:
            self._numbers[stem] += 1
            name = f"{stem}.{self._numbers[stem]}"
        self._names.add(name)
        return name


def _is(node: NodeProto, op: str) -> bool:
    return bool(node.op_type == op and node.domain in ("", "ai.onnx"))


def _lead(node: NodeProto) -> str:
    return str(node.name or next(iter(node.output), "") or node.op_type)


def _identity(node: NodeProto, source: str, target: str) -> NodeProto:
    return NodeProto(op_type="Identity", input=[source], output=[target], name=f"{_lead(node)}/{target}")


def _graph(node: NodeProto, name: str) -> GraphProto:
    """A subgraph of a node."""
    found = [a.g for a in node.attribute if a.name == name and a.type == AttributeProto.GRAPH]
    if len(found) != 1:
        raise InvalidModel(f"there is no {name}")
    if found[0].sparse_initializer:
        raise UnsupportedModel("a sparse initializer; only dense ones are supported")
    return found[0]


def _held(node: NodeProto) -> dict[str, TensorProto]:
    """What a `Constant` gives."""
    if not _is(node, "Constant") or len(node.output) != 1:
        return {}
    tensors = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
    return {node.output[0]: tensors[0]} if tensors else {}


def _scalar(tensor: TensorProto, kind: type[np.generic], what: str) -> Any:
    value = array_of(tensor, None, what)
    if value.dtype != kind or value.size != 1:
        raise InvalidModel(f"{what} is {value.dtype} of shape {list(value.shape)}, not one {kind.__name__}")
    return value.item()


def _taken(node: NodeProto, constants: Constants) -> GraphProto | None:
    """The branch of an `If` whose condition is known."""
    tensor = constants.get(node.input[0]) if _is(node, "If") and len(node.input) == 1 else None
    if tensor is None:
        return None
    wanted = "then_branch" if _scalar(tensor, np.bool_, "the condition") else "else_branch"
    branch = _graph(node, wanted)
    if len(branch.output) != len(node.output) or branch.input:
        raise InvalidModel(f"there is no {wanted} without inputs and with {len(node.output)} outputs")
    return branch


def _trips(node: NodeProto, constants: Constants) -> int | None:
    """How often a `Loop` runs, where that is known."""
    if not _is(node, "Loop") or len(node.input) < 2 or not node.input[0]:
        return None
    count, condition = (constants.get(name) for name in node.input[:2])
    if count is None or (node.input[1] and condition is None):
        return None
    body, carried = _graph(node, "body"), len(node.input) - 2
    if (
        len(body.input) != 2 + carried
        or len(body.output) != 1 + len(node.output)
        or len(node.output) < carried
    ):
        raise InvalidModel(
            f"the body has {len(body.input)} inputs and {len(body.output)} outputs; "
            f"{2 + carried} and {1 + len(node.output)} are needed",
        )
    trips = max(int(_scalar(count, np.int64, "the number of trips")), 0)
    if condition is not None and not _scalar(condition, np.bool_, "the condition"):
        trips = 0
    return trips if _goes_on(body) else None


def _goes_on(body: GraphProto) -> bool:
    """Whether the condition that a body returns is always true, given that it was."""
    constants = {tensor.name: tensor for tensor in body.initializer}
    source: dict[str, str] = {}
    for node in body.node:
        if _is(node, "Identity") and len(node.input) == len(node.output) == 1:
            source[node.output[0]] = node.input[0]
        constants |= _held(node)
    name = body.output[0].name
    for _ in range(len(source) + 1):
        name = source.get(name, name)
    if name == body.input[1].name:
        return True
    return name in constants and bool(_scalar(constants[name], np.bool_, "the condition"))


def _names(graph: GraphProto) -> set[str]:
    """Of all values, those of subgraphs among them."""
    found = {value.name for value in (*graph.input, *graph.initializer, *graph.output)}
    for node in graph.node:
        found.update(node.input, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _names(attribute.g)
    return found
