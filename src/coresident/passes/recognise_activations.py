"""Activations that exporters spell out, under their own names.

Written as products, whose factors and constants may stand in any order and nesting:

1.        Clip(x + 3, 0, 6), times 1/6 -> HardSigmoid(x), alpha = 1/6, beta = 1/2
2. x times Clip(x + 3, 0, 6), times 1/6 -> HardSwish(x)
3. x times HardSigmoid(x) with alpha = 1/6, beta = 1/2 -> HardSwish(x)
4. x times Sigmoid(x) or Sigmoid(a x) -> Swish(x), alpha = 1 or a
5. x times Tanh(Softplus(x)) -> Mish(x)
6. x times 1 + Erf(x / sqrt(2)), times 1/2 -> Gelu(x)
7. x times 1 + Tanh(sqrt(2/pi) (x + 0.044715 x^3)), times 1/2 -> Gelu(x), approximate = "tanh"

Source: the function bodies of ONNX HardSwish-22, Mish-22, Gelu-20 and Swish-24.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.passes.patch import Patch, View, pattern_pass


@dataclass(frozen=True)
class Product:
    """Values multiplied with each other and with a number."""

    factors: tuple[str, ...]
    number: float


@dataclass(frozen=True)
class Gate:
    """x, times some other value, times `number`, is `op`(x)."""

    x: str
    number: float
    op: str
    attributes: dict[str, Any] = field(default_factory=dict)


def _product(view: View, node: Node, keep: tuple[str, ...] = (), depth: int = 4) -> Product:
    """The product that a Mul, Div or Pow computes; those below are taken apart too, but for `keep`."""
    if node.op == "Pow":
        return Product((node.inputs[0],) * int(view.scalar(node.inputs[1]) or 0), 1.0)
    shape = view.shape(node.outputs[0])
    factors: list[str] = []
    number = 1.0
    for name in node.inputs:
        scalar = view.scalar(name)
        if scalar is not None:
            number *= scalar if node.op == "Mul" else 1 / scalar
            continue
        maker = view.maker(name)
        if (
            maker is None
            or name in keep
            or not depth
            or view.shape(name) != shape
            or not _multiplies(view, maker)
        ):
            factors.append(name)
            continue
        inner = _product(view, maker, keep, depth - 1)
        factors += inner.factors
        number *= inner.number
    return Product(tuple(factors), number)


def _multiplies(view: View, node: Node | None) -> bool:
    if node is None:
        return False
    if node.op == "Div":
        return view.scalar(node.inputs[0]) is None and view.scalar(node.inputs[1]) not in (None, 0.0)
    if node.op == "Pow":
        return view.scalar(node.inputs[1]) in (2.0, 3.0)
    return node.op == "Mul"


def _near(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-4)


def _plus(view: View, name: str, number: float) -> str | None:
    """x, where the value is x + number."""
    node = view.maker(name)
    if node is None or node.op != "Add":
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        if _near(view.scalar(other), number) and view.scalar(x) is None:
            return x
    return None


def _of(view: View, name: str | None, op: str) -> str | None:
    """x, where the value is op(x)."""
    node = view.maker(name) if name is not None else None
    return node.inputs[0] if node is not None and node.op == op else None


def _times(view: View, name: str) -> tuple[str, float] | None:
    """(x, a), where the value is a * x."""
    node = view.maker(name)
    if node is None or node.op not in ("Mul", "Div") or not _multiplies(view, node):
        return None
    product = _product(view, node, keep=node.inputs)
    return (product.factors[0], product.number) if len(product.factors) == 1 else None


def _scaled(view: View, name: str | None, number: float) -> str | None:
    """x, where the value is number * x."""
    found = _times(view, name) if name is not None else None
    return found[0] if found is not None and _near(found[1], number) else None


def _gates(view: View, name: str) -> Iterator[Gate]:
    """The activations in which the value is the other factor."""
    node = view.maker(name)
    if node is None:
        return
    if node.op == "Clip" and view.scalar(node.input(1)) == 0 and view.scalar(node.input(2)) == 6:
        x = _plus(view, node.inputs[0], 3.0)
        if x is not None:
            yield Gate(x, 1 / 6, "HardSwish")
    elif node.op == "HardSigmoid":
        if _near(node.get("alpha", 0.2), 1 / 6) and _near(node.get("beta", 0.5), 0.5):
            yield Gate(node.inputs[0], 1.0, "HardSwish")
    elif node.op == "Sigmoid":
        yield Gate(node.inputs[0], 1.0, "Swish")
        scaled = _times(view, node.inputs[0])
        if scaled is not None:
            yield Gate(scaled[0], 1.0, "Swish", {"alpha": scaled[1]})
    elif node.op == "Tanh":
        x = _of(view, node.inputs[0], "Softplus")
        if x is not None:
            yield Gate(x, 1.0, "Mish")
    elif node.op == "Add":
        inner = _plus(view, name, 1.0)
        x = _scaled(view, _of(view, inner, "Erf"), math.sqrt(0.5))
        if x is not None:
            yield Gate(x, 0.5, "Gelu", {"approximate": "none"})
        x = _cubic(view, _scaled(view, _of(view, inner, "Tanh"), math.sqrt(2 / math.pi)))
        if x is not None:
            yield Gate(x, 0.5, "Gelu", {"approximate": "tanh"})


def _cubic(view: View, name: str | None) -> str | None:
    """x, where the value is x + 0.044715 x^3."""
    node = view.maker(name) if name is not None else None
    if node is None or node.op != "Add":
        return None
    for x, term in (node.inputs, node.inputs[::-1]):
        maker = view.maker(term)
        if maker is None or not _multiplies(view, maker):
            continue
        product = _product(view, maker, keep=(x,))
        if product.factors == (x, x, x) and _near(product.number, 0.044715):
            return x
    return None


def _activation(view: View, node: Node) -> Patch | None:
    if not _multiplies(view, node):
        return None
    for factor in _product(view, node).factors:
        for gate in _gates(view, factor):
            product = _product(view, node, keep=(gate.x, factor))
            if not _near(product.number, gate.number):
                continue
            if sorted(product.factors) == sorted((gate.x, factor)):
                return _named(view, node, gate.x, gate.op, gate.attributes)
            if product.factors == (factor,) and gate.number == 1 / 6:
                return _named(view, node, gate.x, "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})
    return None


def _named(view: View, node: Node, x: str, op: str, attributes: dict[str, Any]) -> Patch | None:
    target = node.outputs[0]
    if view.shape(x) != view.shape(target) or not np.issubdtype(view.dtype(x), np.floating):
        return None
    return Patch((node,), (Node(op, (x,), (target,), attributes, node.name),))


PASS = pattern_pass("recognise_activations", _activation)
