"""The table of operators: for each, what it makes of shapes and types, and a numpy reference.

The reference serves tests and constant folding; it is never in the path of a running network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from coresident.errors import Error, InvalidModel, UnsupportedModel
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
    """

    name: str
    infer: Infer
    reference: Reference


OPERATORS: dict[str, Operator] = {}


def register(name: str, infer: Infer, reference: Reference) -> None:
    """Enter an operator in the table; each family of `operators/` does so for its own as it is imported."""
    assert name not in OPERATORS, f"operator {name} twice"
    OPERATORS[name] = Operator(name, infer, reference)


def operator(node: Node) -> Operator:
    """The operator of a node, or UnsupportedModel."""
    found = OPERATORS.get(node.op)
    if found is None:
        raise UnsupportedModel("an operator that is not supported", node=node.name, op=node.op)
    return found


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


def infer(graph: Graph) -> Graph:
    """The graph with facts for all its values; all shapes must be known (free dimensions bound).

    Facts of small values that depend on constants and shapes alone hold the value: exporters compute the
    shapes of a Reshape or Resize in the graph.

    Raises:
        InvalidModel: shapes or types contradict; names the node.
    """
    facts = {name: graph.facts[name] for name in graph.inputs}
    for node in graph.nodes:
        inputs = [
            None
            if not name
            else Fact.of(graph.initializers[name])
            if name in graph.initializers
            else facts[name]
            for name in node.inputs
        ]
        shapes = tuple(None if fact is None else fact.shape for fact in inputs)
        try:
            results = _with_values(node, inputs, operator(node).infer(node, inputs))
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
    return graph.with_(facts=facts)


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
