"""The portable graph. Nodes and graphs are values: a pass takes one and returns another.

The operators are ONNX's, in their newest form (the importer upgrades older ones), plus those that fusion
makes (`passes/`). Names of values are unique; nodes stand in topological order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coresident.errors import InvalidModel

Dimension = int | str
"""A size, or the name of one that is bound at the call ("" for one without a name)."""


@dataclass(frozen=True, eq=False)
class Fact:
    """What is known of a value.

    Args:
        dtype: its element type.
        shape: its sizes; a string is a free dimension.
        value: the array itself, where it is constant.
        counts: (axis, name of a value) for dimensions whose size depends on the data (`graph.counted`): the
            size in the shape is the largest possible, the value holds how many elements there are.
    """

    dtype: np.dtype[Any]
    shape: tuple[Dimension, ...]
    value: np.ndarray[Any, Any] | None = None
    counts: tuple[tuple[int, str], ...] = ()

    @staticmethod
    def of(array: np.ndarray[Any, Any]) -> Fact:
        """The fact of a constant."""
        return Fact(array.dtype, array.shape, array)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, all of it known."""
        if not all(isinstance(d, int) for d in self.shape):
            raise InvalidModel("a free dimension where a size is needed", shape=self.shape)
        return tuple(int(d) for d in self.shape)


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an operator.

    Args:
        op: operator type, as ONNX names it ("Conv").
        inputs: names of values; "" stands for an optional input left out.
        outputs: names of values; "" for one not wanted.
        attributes: int, float, str, tuples of these, numpy arrays, or what a fusing pass attaches.
        name: for people; where an importer found none, its first output.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def input(self, index: int) -> str:
        """The input's name, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def with_(self, **changes: Any) -> Node:
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network.

    Args:
        inputs, outputs: names of values, in order.
        nodes: in topological order.
        initializers: constants by name.
        facts: by name, for the inputs at least; `infer` completes them.
        name: for people.
        metadata: what the model's makers tell its users, such as names of classes; nothing here reads it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    initializers: Mapping[str, np.ndarray[Any, Any]]
    facts: Mapping[str, Fact]
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Graph:
        return replace(self, **changes)

    def fact(self, name: str) -> Fact | None:
        """What is known of a value; None for one left out."""
        if not name:
            return None
        constant = self.initializers.get(name)
        return Fact.of(constant) if constant is not None else self.facts[name]

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value, where it is constant."""
        return self.initializers.get(name) if name else None

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, once for each reading; values nobody reads have no entry."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    readers.setdefault(name, []).append(node)
        return readers


def sorted_nodes(nodes: Iterable[Node], known: Iterable[str]) -> tuple[Node, ...]:
    """The nodes in topological order, otherwise as they stood.

    Args:
        nodes: in any order.
        known: values that exist before any node runs.

    Raises:
        InvalidModel: a value that nothing makes, or a cycle.
    """
    nodes = list(nodes)
    maker = {out: i for i, node in enumerate(nodes) for out in node.outputs if out}
    exists = set(known) | {""}
    order: list[Node] = []
    state = [0] * len(nodes)
    for root in range(len(nodes)):
        stack = [(root, False)]
        while stack:
            i, finish = stack.pop()
            if finish:
                state[i] = 2
                order.append(nodes[i])
                continue
            if state[i]:
                continue
            state[i] = 1
            stack.append((i, True))
            for name in reversed(nodes[i].inputs):
                if name in exists or (name in maker and state[maker[name]] == 2):
                    continue
                if name not in maker:
                    raise InvalidModel(
                        f"value {name!r} is made by nothing", node=nodes[i].name, op=nodes[i].op
                    )
                if state[maker[name]] == 1:
                    raise InvalidModel("the graph has a cycle", node=nodes[i].name, op=nodes[i].op)
                stack.append((maker[name], False))
    return tuple(order)
