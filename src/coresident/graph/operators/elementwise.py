"""Element-wise operators: those of `graph.expression.ELEMENTWISE`, chains of them, and the variadic ones.

All but Clip and PRelu broadcast their inputs onto each other as numpy does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph import numpy_math
from coresident.graph.composite import Body, composite
from coresident.graph.expression import COMPARISONS, ELEMENTWISE, Expression
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import broadcast, floating, optional, required, same_type

Array = np.ndarray[Any, Any]

VARIADIC = frozenset(("Max", "Min"))
"""Operators of `ELEMENTWISE` with two operands whose nodes may have any number."""

LOGICAL = frozenset(("And", "Or", "Xor", "Not"))

ANY_NUMBER = frozenset(
    ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sign", "Pow", "Mod", "Max", "Min", "Relu", "Clip", "PRelu")
)
"""Arithmetic that integers have too; what is in no such set takes floating-point numbers only."""

ANY_TYPE = frozenset(("Identity", "Where", "Equal", "Cast"))
ORDERED = frozenset(("Less", "LessOrEqual", "Greater", "GreaterOrEqual"))


def attributes_of(node: Node) -> dict[str, Any]:
    """The attributes of a single element-wise node that its entry in `ELEMENTWISE` takes."""
    parameters = inspect.signature(ELEMENTWISE[node.op]).parameters
    return {name: value for name, value in node.attributes.items() if name in parameters}


def _operands(node: Node) -> int:
    """How many operands a single element-wise node takes; at least, where it is variadic."""
    if node.op in VARIADIC:
        return 1
    parameters = list(inspect.signature(ELEMENTWISE[node.op]).parameters.values())[1:]
    return len([p for p in parameters if p.kind is not p.KEYWORD_ONLY and p.default is p.empty])


def result_type(expression: Expression, dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The element type of an expression's result, from those of its inputs."""
    known = list(dtypes)
    for step in expression.steps:
        known.append(_step_type(step.op, [known[i] for i in step.arguments], dict(step.attributes)))
    return known[-1] if expression.steps else known[0]


def _step_type(op: str, dtypes: Sequence[np.dtype[Any]], attributes: dict[str, Any]) -> np.dtype[Any]:
    if op in COMPARISONS:
        return np.dtype(bool)
    if op == "Cast":
        to: str = attributes.get("to", "float32")
        return np.dtype(to)
    typed_by = {"Where": 1, "QuantizeLinear": 2, "DequantizeLinear": 1}
    return np.dtype(dtypes[typed_by.get(op, 0)])


def _check_types(op: str, facts: Sequence[Fact]) -> None:
    first = facts[0].dtype
    if op in LOGICAL and any(f.dtype.kind != "b" for f in facts):
        raise InvalidModel(f"bool is needed, not {', '.join(str(f.dtype) for f in facts)}")
    if op in ANY_NUMBER | ORDERED and first.kind not in "iuf":
        raise InvalidModel(f"a number is needed, not {first}", shape=facts[0].shape)
    if op not in LOGICAL | ANY_NUMBER | ANY_TYPE | ORDERED:
        floating(facts[0])
    if op == "Where":
        if first.kind != "b":
            raise InvalidModel(f"the condition must be bool, not {first}", shape=facts[0].shape)
        same_type(facts[1:])
    elif op != "Pow":
        same_type(facts)


def _infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    operands = [required(facts, i, "an operand") for i in range(len(facts))]
    needed = _operands(node)
    if len(operands) < needed or (node.op not in VARIADIC and len(operands) > needed):
        raise InvalidModel(f"{len(operands)} operands; {needed} are needed")
    _check_types(node.op, operands)
    shape = broadcast([f.sizes for f in operands])
    if node.op == "PRelu" and shape != operands[0].shape:
        raise InvalidModel(
            "the slope must broadcast onto the input, one way", shape=(operands[0].shape, operands[1].shape)
        )
    return [Fact(_step_type(node.op, [f.dtype for f in operands], dict(node.attributes)), shape)]


@np.errstate(all="ignore")
def _reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    operator, math = ELEMENTWISE[node.op], numpy_math.NumpyMath()
    operands = [required(arrays, i, "an operand") for i in range(len(arrays))]
    if node.op in VARIADIC:
        return [np.asarray(reduce(lambda a, b: operator(math, a, b), operands))]
    return [np.asarray(operator(math, *operands, **attributes_of(node)))]


def _clip_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the data")
    bounds = [f for f in (optional(facts, 1), optional(facts, 2)) if f is not None]
    _check_types("Clip", [x, *bounds])
    for bound in bounds:
        if any(size != 1 for size in bound.sizes):
            raise InvalidModel("a bound must be a scalar", shape=bound.shape)
    return [Fact(x.dtype, x.sizes)]


def _clip_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    low, high = optional(arrays, 1), optional(arrays, 2)
    bounds = [None if b is None else b.reshape(()) for b in (low, high)]
    return [np.asarray(ELEMENTWISE["Clip"](numpy_math.NumpyMath(), required(arrays, 0, "the data"), *bounds))]


def _expression_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    expression: Expression = node.attributes["expression"]
    operands = [required(facts, i, "an operand") for i in range(expression.inputs)]
    shape = broadcast([f.sizes for f in operands])
    return [Fact(result_type(expression, [f.dtype for f in operands]), shape)]


def _expression_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    expression: Expression = node.attributes["expression"]
    operands = [required(arrays, i, "an operand") for i in range(expression.inputs)]
    shape = broadcast([a.shape for a in operands])
    return [np.broadcast_to(numpy_math.evaluate(expression, operands), shape)]


def _sum_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    operands = [required(facts, i, "an operand") for i in range(max(len(facts), 1))]
    floating(operands[0])
    return [Fact(same_type(operands), broadcast([f.sizes for f in operands]))]


@np.errstate(all="ignore")
def _sum_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    operands = [required(arrays, i, "an operand") for i in range(len(arrays))]
    total = reduce(np.add, operands)
    if node.op == "Mean":
        total = total / np.asarray(len(operands)).astype(total.dtype)
    return [np.asarray(total)]


@composite("CastLike")
def _cast_like(body: Body) -> list[str]:
    x, like = body.inputs
    attributes = {**body.node.attributes, "to": body.dtype(like).name}
    return [body.add("Cast", x, **attributes)]


for _name in sorted(ELEMENTWISE.keys() - {"Clip", "QuantizeLinear", "DequantizeLinear"}):
    register(_name, _infer, _reference)
register("Clip", _clip_infer, _clip_reference)
register("Elementwise", _expression_infer, _expression_reference)
register("Sum", _sum_infer, _sum_reference)
register("Mean", _sum_infer, _sum_reference)
