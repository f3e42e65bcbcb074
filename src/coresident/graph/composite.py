"""Operators, or forms of them, that are written as other operators.

    @composite("MeanVarianceNormalization")
    def _mean_variance(body: Body) -> list[str]:
        x, = body.inputs
        ...
        return [body.add("Div", centred, deviation)]

is all that such an operator needs: inference and reference follow from its body, and `passes.expand` puts the
body in the node's place, so that it needs no kernel. A form of an operator that has kernels for others is
entered with `expands`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coresident.graph.graph import Fact, Node
from coresident.graph.operator import Array, facts_of, operator, register


class Body:
    """The nodes that stand for one, under construction; the facts of their values are known at once.

    Args:
        node: that is expanded.
        facts: of its inputs, None for one left out; values are there where they are constant.
        fresh: gives a name that no value has, for a stem.
    """

    def __init__(
        self, node: Node, facts: Sequence[Fact | None], fresh: Callable[[str], str] | None = None
    ) -> None:
        self.node = node
        self.inputs = node.inputs
        self.nodes: list[Node] = []
        self.initializers: dict[str, Array] = {}
        self._facts = {name: fact for name, fact in zip(node.inputs, facts) if fact is not None}
        numbers = itertools.count()
        self._fresh = fresh or (lambda stem: f"{stem}.{next(numbers)}")

    def input(self, index: int) -> str:
        """The name of an input of the node; "" where it is left out."""
        return self.node.input(index)

    def fact(self, name: str) -> Fact:
        """What is known of a value of the body or an input."""
        return self._facts[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of a value."""
        return self._facts[name].sizes

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of a value."""
        return self._facts[name].dtype

    def value(self, name: str) -> Array | None:
        """The value, where it is constant; None for one left out."""
        return self._facts[name].value if name else None

    def constant(self, value: object, dtype: np.dtype[Any] | type | None = None) -> str:
        """The name of a new constant."""
        array = np.asarray(value, dtype)
        name = self._fresh(f"{self.node.outputs[0]}.constant")
        self.initializers[name] = array
        self._facts[name] = Fact.of(array)
        return name

    def like(self, value: float, name: str) -> str:
        """The name of a new constant number, of the type of another value."""
        return self.constant(value, self.dtype(name))

    def counting(self, name: str, axis: int) -> str:
        """What holds how many elements there are along an axis, int64[1]; "" where that is the axis' size.

        It is made before this node where the data decides it (`graph.counted`).
        """
        found = dict(self.fact(name).counts).get(axis, "")
        if found:
            self._facts.setdefault(found, Fact(np.dtype(np.int64), (1,)))
        return found

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; returns its name."""
        return self.add_many(op, inputs, 1, **attributes)[0]

    def add_many(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Add a node; returns the names of its outputs."""
        names = tuple(self._fresh(f"{self.node.outputs[0]}.{op}") for _ in range(outputs))
        node = Node(op, tuple(inputs), names, attributes, self.node.name)
        facts = facts_of(node, [self._facts[name] if name else None for name in inputs])
        self.nodes.append(node)
        self._facts.update(zip(names, facts))
        return names

    def reshape(self, name: str, *shape: int) -> str:
        """Add a Reshape to these sizes, unless the value has them; they may hold zeros, and one -1."""
        if self.shape(name) == shape:
            return name
        return self.add("Reshape", name, self.constant(shape, np.int64), allowzero=1)

    def transpose(self, name: str, *order: int) -> str:
        """Add a Transpose."""
        return self.add("Transpose", name, perm=order)


Expansion = Callable[[Body], Sequence[str] | None]
"""Writes the body; answers with the names of the node's results ("" for one not wanted), or with None where
the node needs none."""

EXPANSIONS: dict[str, Expansion] = {}


def expands(op: str) -> Callable[[Expansion], Expansion]:
    """Enter what some forms of an operator are written as."""

    def enter(expansion: Expansion) -> Expansion:
        assert op not in EXPANSIONS, f"two expansions of {op}"
        EXPANSIONS[op] = expansion
        return expansion

    return enter


def composite(op: str, operands: Sequence[int] = ()) -> Callable[[Expansion], Expansion]:
    """Enter an operator that is always written as others.

    Args:
        op: its type.
        operands: as `operator.register` has it.
    """

    def enter(expansion: Expansion) -> Expansion:
        register(op, _infer, reference, operands, counts=True)
        return expands(op)(expansion)

    return enter


def expanded(
    node: Node, facts: Sequence[Fact | None], fresh: Callable[[str], str] | None = None
) -> tuple[Body, Sequence[str]] | None:
    """The body of a node and its results, if it has one.

    Args:
        node, facts, fresh: as `Body` takes them.

    Raises:
        InvalidModel, UnsupportedModel: from the body's operators.
    """
    expansion = EXPANSIONS.get(node.op)
    if expansion is None:
        return None
    body = Body(node, facts, fresh)
    results = expansion(body)
    return None if results is None else (body, results)


def _infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    found = expanded(node, facts)
    assert found is not None, f"{node.op} is always written as others"
    body, results = found
    # A result that is not wanted gets the first one's fact; nothing reads it.
    return [body.fact(name or results[0]) for name in results]


def reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """The results of a node that has a body, by the references of what it is written with."""
    found = expanded(node, [None if array is None else Fact.of(array) for array in arrays])
    assert found is not None
    body, results = found
    values = {name: array for name, array in zip(node.inputs, arrays) if array is not None}
    values |= body.initializers
    for each in body.nodes:
        made = operator(each).reference(each, [values[name] if name else None for name in each.inputs])
        values.update({name: np.asarray(array) for name, array in zip(each.outputs, made)})
    return [values[name or results[0]] for name in results]
