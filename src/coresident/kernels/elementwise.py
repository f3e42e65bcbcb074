"""Element-wise operators, single or fused, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from coresident.codegen.builder import Function
from coresident.codegen.math import CodeMath, Typed, typed_constant
from coresident.graph import numpy_math
from coresident.graph.expression import ELEMENTWISE, Expression
from coresident.graph.graph import Node
from coresident.graph.operators.elementwise import attributes_of
from coresident.kernels import tables
from coresident.kernels.loopnest import instructions, nest
from coresident.kernels.lowering import Plan, Tensor, lowers

BYTES = (np.dtype(np.uint8), np.dtype(np.int8))

Formula = Callable[[CodeMath, Sequence[Typed | None]], Typed]
"""The result from the node's inputs, None for one left out."""


@lowers(*sorted(ELEMENTWISE.keys() - {"Identity", "Max", "Min", "Clip"}))
def single(node: Node, plan: Plan) -> None:
    """One operator of `ELEMENTWISE`."""
    act, attributes = ELEMENTWISE[node.op], attributes_of(node)
    compute(node, plan, lambda math, values: act(math, *values, **attributes))


@lowers("Max", "Min")
def extremum(node: Node, plan: Plan) -> None:
    """Max and Min of any number of inputs; a NaN anywhere passes."""
    act = ELEMENTWISE[node.op]
    compute(node, plan, lambda math, values: reduce(lambda a, b: act(math, a, b), _all(values)))


@lowers("Sum", "Mean")
def total(node: Node, plan: Plan) -> None:
    """Sum and Mean of any number of inputs."""

    def formula(math: CodeMath, values: Sequence[Typed | None]) -> Typed:
        terms = _all(values)
        result = reduce(lambda a, b: a + b, terms)
        return math.divide(result, math.constant(len(terms), result)) if node.op == "Mean" else result

    compute(node, plan, formula)


@lowers("Clip")
def clip(node: Node, plan: Plan) -> None:
    """Clip with bounds left out or computed."""
    act = ELEMENTWISE["Clip"]
    compute(node, plan, lambda math, values: act(math, *values))


@lowers("Elementwise")
def fused(node: Node, plan: Plan) -> None:
    """A fused chain: attribute "expression" over the node's inputs."""
    expression: Expression = node.attributes["expression"]

    def formula(math: CodeMath, values: Sequence[Typed | None]) -> Typed:
        result: Typed = expression.evaluate(math, values)
        return result

    if not _by_table(node, plan, formula):
        compute(node, plan, formula, f"loopnest {expression}")


def _by_table(node: Node, plan: Plan, formula: Formula) -> bool:
    """Emit a costly function of one byte that gives a byte as a table; False for other nodes."""
    constants = [plan.graph.constant(name) for name in node.inputs]
    read = [i for i, constant in enumerate(constants) if constant is None or constant.size != 1]
    y = plan.tensor(node.outputs[0])
    if len(read) != 1 or constants[read[0]] is not None or y.dtype not in BYTES:
        return False
    x = plan.tensor(node.inputs[read[0]])
    if x.dtype not in BYTES:
        return False

    def vector(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
        known = [
            loaded[0] if c is None else typed_constant(f, c.reshape(()).item(), c.dtype.name, lanes)
            for c in constants
        ]
        return formula(CodeMath(f), known)

    if instructions(plan.target, vector, [x.dtype]) < tables.INSTRUCTIONS:
        return False
    every = np.arange(256, dtype=np.uint8).view(x.dtype)
    expression: Expression = node.attributes["expression"]
    table = numpy_math.evaluate(expression, [every if c is None else c.reshape(()) for c in constants])
    info = {"op": node.op, "nodes": [node.name], "kernel": f"table {expression}"}
    nest(plan, y, [x], tables.lookup(np.asarray(table)), info)
    return True


def _all(values: Sequence[Typed | None]) -> list[Typed]:
    return [value for value in values if value is not None]


def compute(node: Node, plan: Plan, formula: Formula, kernel: str = "loopnest") -> None:
    """Emit the node's only output as a formula of its inputs.

    Constants of one element are written into the code.
    """
    tensors: list[Tensor] = []
    places: list[Callable[[Function, Sequence[Typed], int], Typed | None]] = []

    def known(number: Any, dtype: str) -> Callable[[Function, Sequence[Typed], int], Typed]:
        return lambda f, loaded, lanes: typed_constant(f, number, dtype, lanes)

    def read(position: int) -> Callable[[Function, Sequence[Typed], int], Typed]:
        return lambda f, loaded, lanes: loaded[position]

    for name in node.inputs:
        constant = plan.graph.constant(name)
        if not name:
            places.append(lambda f, loaded, lanes: None)
        elif constant is not None and constant.size == 1:
            places.append(known(constant.reshape(()).item(), constant.dtype.name))
        else:
            places.append(read(len(tensors)))
            tensors.append(plan.tensor(name))

    def vector(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
        return formula(CodeMath(f), [place(f, loaded, lanes) for place in places])

    nest(
        plan,
        plan.tensor(node.outputs[0]),
        tensors,
        vector,
        {"op": node.op, "nodes": [node.name], "kernel": kernel},
    )
