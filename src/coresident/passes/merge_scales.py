"""The scale of a QuantizeLinear joins the constants that made its operand.

    QuantizeLinear(x * a, s)  ->  QuantizeLinear(x * (a / s), 1)

1. So through Mul and Div by constants, DequantizeLinear, Add and Sub of values that can all be rescaled,
   Relu, LeakyRelu, Clip, Max and Min, average pools and linear Resizes; all but DequantizeLinear are read by
   nothing else.

2. A Mul by constants of a Mul by constants of a Cast, all but the last read by nothing else, becomes one: the
   scale of a product of integers, and that of a normalisation behind it.

What runtimes compute for QLinear operators is the product with such a quotient; the result differs from that
of a division where that lies within a rounding error of a tie.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.passes.patch import Patch, View, pattern_pass
from coresident.passes.quantization import parameters

LINEAR = frozenset(("Relu", "LeakyRelu", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"))
"""Operators of one value that commute with a positive factor."""

DEPTH = 8
"""Operators that a scale passes at most."""


@dataclass
class _Division:
    """The nodes and constants that compute a value over a scale; grows as operators are passed."""

    view: View
    scale: np.float32
    add: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    passed: list[Node] = field(default_factory=list)

    def of(self, name: str, reader: Node, depth: int = 0) -> str | None:
        """The name of the value over the scale, or None."""
        constant = self.view.constant(name)
        if constant is not None:
            return self._constant(name, constant)
        maker = self.view.maker(name)
        if maker is None or depth > DEPTH:
            return None
        if maker.op == "DequantizeLinear":
            scale = self.view.constant(maker.inputs[1]) if len(maker.inputs) == 3 else None
            over = None if scale is None else self._constant(maker.inputs[1], scale)
            return None if over is None else self._again(maker, (maker.inputs[0], over, maker.inputs[2]))
        if self.view.sole_reader(name) is not reader:
            return None
        inputs = self._operands(maker, depth)
        if inputs is None:
            return None
        self.passed.append(maker)
        return self._again(maker, inputs)

    def _operands(self, node: Node, depth: int) -> tuple[str, ...] | None:
        """The inputs with which a node gives its value over the scale."""
        if node.op in LINEAR or (node.op == "Resize" and node.get("mode") in ("linear", "cubic")):
            if node.op == "Resize" and node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
                return None
            first = self.of(node.inputs[0], node, depth + 1)
            return None if first is None else (first, *node.inputs[1:])
        if node.op == "Mul":
            return self._factor(node)
        if node.op == "Div":
            constant = self.view.constant(node.inputs[1])
            first = self.of(node.inputs[0], node, depth + 1) if constant is not None else None
            return None if first is None else (first, node.inputs[1])
        if node.op in ("Add", "Sub", "Max", "Min", "Clip"):
            found = [self.of(name, node, depth + 1) if name else "" for name in node.inputs]
            return None if any(name is None for name in found) else tuple(n for n in found if n is not None)
        return None

    def _factor(self, node: Node) -> tuple[str, ...] | None:
        for index in (0, 1):
            constant = self.view.constant(node.inputs[index])
            over = None if constant is None else self._constant(node.inputs[index], constant)
            if over is not None:
                return tuple(over if i == index else name for i, name in enumerate(node.inputs))
        for index in (0, 1):
            maker = self.view.maker(node.inputs[index])
            if maker is not None and maker.op == "DequantizeLinear":
                over = self.of(node.inputs[index], node)
                if over is not None:
                    return tuple(over if i == index else name for i, name in enumerate(node.inputs))
        return None

    def _constant(self, name: str, constant: Array) -> str | None:
        if constant.dtype != np.float32:
            return None
        with np.errstate(all="ignore"):
            over = np.asarray(constant / self.scale)
        if not np.all(np.isfinite(over) | ~np.isfinite(constant)):
            return None
        if np.any((over == 0) & (constant != 0)):
            return None
        new = self.view.fresh(f"{name}.over")
        self.constants[new] = over
        return new

    def _again(self, node: Node, inputs: tuple[str, ...]) -> str:
        name = self.view.fresh(f"{node.outputs[0]}.over")
        self.add.append(node.with_(inputs=inputs, outputs=(name,)))
        return name


def _merge(view: View, node: Node) -> Patch | None:
    found = parameters(view, node, "QuantizeLinear")
    if found is None or not found.per_tensor or found.scale == 1 or view.constant(node.inputs[0]) is not None:
        return None
    if view.dtype(node.inputs[0]) != np.float32:
        return None
    division = _Division(view, np.float32(found.scale))
    over = division.of(node.inputs[0], node)
    if over is None:
        return None
    one = view.fresh(f"{node.inputs[1]}.one")
    division.constants[one] = np.array(1, np.float32)
    quantize = node.with_(inputs=(over, one, node.inputs[2]))
    return Patch((node,), (*division.add, quantize), division.constants)


def _factors(view: View, node: Node) -> tuple[str, Array] | None:
    """What a Mul by a constant multiplies, and the constant."""
    if node.op != "Mul":
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        constant = view.constant(other)
        if constant is not None and constant.dtype == np.float32 and view.constant(value) is None:
            return value, constant
    return None


def _product_of_products(view: View, node: Node) -> Patch | None:
    outer = _factors(view, node)
    inner_node = None if outer is None else view.maker(outer[0])
    inner = None if inner_node is None else _factors(view, inner_node)
    if outer is None or inner is None or view.sole_reader(outer[0]) is not node:
        return None
    cast = view.maker(inner[0])
    if cast is None or cast.op != "Cast" or view.shape(inner[0]) != view.shape(node.outputs[0]):
        return None
    both = view.fresh(f"{node.outputs[0]}.factor")
    product = Node("Mul", (inner[0], both), node.outputs, {}, node.name)
    return Patch((node,), (product,), {both: np.asarray(inner[1] * outer[1])})


PASS = pattern_pass("merge_scales", _product_of_products, _merge)
