"""The table of operators: for each, what it makes of shapes and types, and a numpy reference.

The reference serves tests and constant folding; it is never in the path of a running network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from coresident.errors import Error, InvalidModel, ResourceError, UnsupportedModel
from coresident.graph.counted import counted
from coresident.graph.graph import Fact, Graph, Node

Array = np.ndarray[Any, Any]
Infer = Callable[[Node, Sequence[Fact | None]], Sequence[Fact]]
Reference = Callable[[Node, Sequence[Array | None]], Sequence[Array]]


@dataclass(frozen=True)
class Operator:
    """An operator of the portable graph.

    Args:
        name: its type.
        infer: facts of the inputs (None: left out) -> facts of the outputs; raises InvalidModel where they
            contradict.
        reference: arrays of the inputs -> arrays of the outputs, as the ONNX specification says.
        operands: positions of the inputs that say how to move or how large a result is: their values must be
            known when the node is lowered.
        counts: whether `infer` itself sees to sizes that depend on the data (`graph.counted`).
    """

    name: str
    infer: Infer
    reference: Reference
    operands: tuple[int, ...] = ()
    counts: bool = False


OPERATORS: dict[str, Operator] = {}


def register(
    name: str, infer: Infer, reference: Reference, operands: Sequence[int] = (), *, counts: bool = False
) -> None:
    """Enter an operator in the table; each family of `operators/` does so for its own as it is imported."""
    assert name not in OPERATORS, f"operator {name} twice"
    OPERATORS[name] = Operator(name, infer, reference, tuple(operands), counts)


def operator(node: Node) -> Operator:
    """The operator of a node, or UnsupportedModel."""
    found = OPERATORS.get(node.op)
    if found is None:
        raise UnsupportedModel("an operator that is not supported", node=node.name, op=node.op)
    return found


def facts_of(node: Node, inputs: Sequence[Fact | None]) -> Sequence[Fact]:
    """The facts of a node's outputs, from those of its inputs.

    Raises:
        InvalidModel: they contradict.
        UnsupportedModel: a form of the operator that is not supported.
    """
    results = operator(node).infer(node, inputs)
    if not operator(node).counts and any(fact is not None and fact.counts for fact in inputs):
        return counted(node, inputs, results)
    return results


SMALL = 4096
"""Elements up to which `infer` evaluates what depends on constants alone: arithmetic on shapes, not on
weights."""


def _with_values(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> Sequence[Fact]:
    arrays = [None if fact is None else fact.value for fact in inputs]
    unknown = any(a is None and fact is not None for a, fact in zip(arrays, inputs))
    # Quantised weights are not arithmetic on shapes: passes are to see their bytes.
    if unknown or node.op == "DequantizeLinear" or all(fact.value is not None for fact in results):
        return results
    if sum(prod(max(size, 1) for size in fact.sizes) for fact in results) > SMALL:
        return results
    with np.errstate(all="ignore"):
        return [Fact.of(np.asarray(array)) for array in operator(node).reference(node, arrays)]


def inputs_of(node: Node, initializers: Mapping[str, Array], facts: Mapping[str, Fact]) -> list[Fact | None]:
    """The facts of a node's inputs, None for those left out."""
    return [
        None if not name else Fact.of(initializers[name]) if name in initializers else facts[name]
        for name in node.inputs
    ]


def inferred(node: Node, inputs: Sequence[Fact | None]) -> Sequence[Fact]:
    """The facts of a node's outputs, small values that are known among them.

    Raises:
        InvalidModel: shapes or types contradict; names the node.
        UnsupportedModel: a form of the operator that is not supported; names the node.
    """
    shapes = tuple(None if fact is None else fact.shape for fact in inputs)
    try:
        return _with_values(node, inputs, facts_of(node, inputs))
    except Error as error:
        raise error.at(node=node.name, op=node.op, shape=shapes) from None
    except (
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        raise InvalidModel(
            f"the inputs do not fit the operator: {error}", node=node.name, op=node.op, shape=shapes
        ) from error


def infer(graph: Graph) -> Graph:
    """The graph with facts for all its values; all shapes must be known (free dimensions bound).

    Facts of small values that depend on constants and shapes alone hold the value: exporters compute the
    shapes of a Reshape or Resize in the graph.

    Raises:
        InvalidModel: shapes or types contradict; names the node.
        ResourceError: a value of 2 ** 63 bytes or more.
    """
    facts = {name: graph.facts[name] for name in graph.inputs}
    for node in graph.nodes:
        results = inferred(node, inputs_of(node, graph.initializers, facts))
        for name, fact in zip(node.outputs, results):
            declared = graph.facts.get(name)
            if declared is not None and declared.dtype != fact.dtype:
                raise InvalidModel(
                    f"the output {name!r} is {fact.dtype}, but declared to be {declared.dtype}",
                    node=node.name,
                    op=node.op,
                )
            if name:
                facts[name] = fact
    for name, fact in facts.items():
        _check_addressable(name, fact)
    return graph.with_(facts=facts)


def _check_addressable(name: str, fact: Fact) -> None:
    """What numpy and 64-bit offsets can count; whether there is so much memory is asked later."""
    if prod(max(size, 1) for size in fact.sizes) * fact.dtype.itemsize >= 1 << 63:
        raise ResourceError(
            f"the value {name!r} needs more bytes of memory than addresses can tell", shape=fact.shape
        )


def inputs_to_bind(graph: Graph) -> tuple[str, ...]:
    """The inputs of a graph whose values its shapes depend on, in their order: the shape fed to a Reshape.

    A program is compiled for their values as for the sizes of the others. They have at most one dimension;
    where shapes depend on larger inputs, `infer` raises.
    """
    makers = graph.producers()
    found: set[str] = set()
    visited: set[str] = set()
    pending = [node.input(i) for node in graph.nodes for i in operator(node).operands]
    while pending:
        name = pending.pop()
        if not name or name in visited or name in graph.initializers:
            continue
        visited.add(name)
        if name in makers:
            # Shape and Size, and what else depends on shapes alone, have no values to wait for.
            pending += () if makers[name].op in FROM_SHAPES else makers[name].inputs
        elif len(graph.facts[name].shape) <= 1:
            found.add(name)
    return tuple(name for name in graph.inputs if name in found)


FROM_SHAPES = frozenset(("Shape", "Size", "EyeLike"))
"""Operators whose results depend on the shape of their input, not on its elements."""


def evaluate(graph: Graph, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run the whole graph by the references: the slow, independent answer that tests compare with.

    Returns:
        All values by name.
    """
    values: dict[str, Array] = {**graph.initializers, **feeds}
    for node in graph.nodes:
        with np.errstate(all="ignore"):
            results = operator(node).reference(node, [values[name] if name else None for name in node.inputs])
        values.update({name: np.asarray(array) for name, array in zip(node.outputs, results) if name})
    return values
