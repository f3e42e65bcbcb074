"""Evaluate what does not depend on the inputs, by the operators' numpy references.

1. Values whose facts hold them, Shape and Size among them, become constants.
2. A node that reads only constants is evaluated, unless its results pass `LIMIT`, or those of all nodes
   what a model of its size may ask for (`View.may_compute`).

`ARITHMETIC` leaves DequantizeLinear alone: products with the weights that it makes may become products of
bytes. `CONSTANTS` is the second rule alone: what holds for all sizes of the inputs.

So the arithmetic on shapes that exporters leave behind (Shape, Gather, Unsqueeze, Concat before a Reshape)
disappears.
"""

from __future__ import annotations

import math

import numpy as np

from coresident.errors import Error, InvalidModel
from coresident.graph.graph import Node
from coresident.graph.operator import Array, operator
from coresident.passes.patch import Patch, Rule, View, pattern_pass

LIMIT = 64 << 20
"""Bytes of results up to which a node is evaluated; what is larger costs less to compute than to store."""


def _known_value(view: View, node: Node) -> Patch | None:
    if node.op == "Identity":
        return None
    values = {name: view.fact(name).value for name in node.outputs if name}
    known = {name: value for name, value in values.items() if value is not None}
    return _replaced(view, node, known) if len(known) == len(values) else None


def _constant_inputs(view: View, node: Node) -> Patch | None:
    inputs = [view.constant(name) for name in node.inputs]
    if any(value is None and name for value, name in zip(inputs, node.inputs)):
        return None
    if node.op == "Identity" and view.is_output(node.outputs[0]):
        return None
    facts = [view.fact(name) for name in node.outputs if name]
    if any(fact.counts for fact in facts):
        return None
    size = sum(math.prod(fact.sizes) * fact.dtype.itemsize for fact in facts)
    if size > LIMIT or not view.may_compute(size):
        return None
    try:
        with np.errstate(all="ignore"):
            results = operator(node).reference(node, inputs)
    except Error as error:
        raise error.at(node=node.name, op=node.op) from None
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise InvalidModel(
            f"the constants do not fit the operator: {error}", node=node.name, op=node.op
        ) from error
    return _replaced(view, node, {name: np.asarray(a) for name, a in zip(node.outputs, results) if name})


def _replaced(view: View, node: Node, values: dict[str, Array]) -> Patch:
    constants: dict[str, Array] = {}
    renames: dict[str, str] = {}
    for name, value in values.items():
        if view.is_output(name):
            renames[name] = view.fresh(f"{name}.constant")
        constants[renames.get(name, name)] = value
    return Patch((node,), (), constants, renames)


def _but_weights(rule: Rule) -> Rule:
    return lambda view, node: None if node.op == "DequantizeLinear" else rule(view, node)


ARITHMETIC = pattern_pass("fold_arithmetic", _but_weights(_known_value), _but_weights(_constant_inputs))
CONSTANTS = pattern_pass("fold_constant_inputs", _constant_inputs)
PASS = pattern_pass("fold_constants", _known_value, _constant_inputs)
