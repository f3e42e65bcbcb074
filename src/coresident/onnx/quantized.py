"""Quantised operators in one piece, rewritten as QuantizeLinear, DequantizeLinear and the operator between.

Those of ONNX (QLinearConv-10, QLinearMatMul-10) and those of ONNX Runtime's domain com.microsoft that its
quantisation tool and its optimiser write. Source: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.graph import Node
from coresident.onnx.upgrade import Rewriter

DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Signature:
    """How many inputs an operator of `DOMAIN` has, at least and at most, and its attributes."""

    least: int
    most: int
    attributes: frozenset[str] = frozenset()

    @staticmethod
    def of(least: int, most: int, attributes: str = "") -> Signature:
        return Signature(least, most, frozenset(attributes.split()))


SIGNATURES: dict[str, Signature] = {
    "QuantizeLinear": Signature.of(2, 3, "axis"),
    "DequantizeLinear": Signature.of(2, 3, "axis"),
    "QLinearAdd": Signature.of(7, 8),
    "QLinearMul": Signature.of(7, 8),
    "QLinearSigmoid": Signature.of(4, 5),
    "QLinearLeakyRelu": Signature.of(4, 5, "alpha"),
    "QLinearSoftmax": Signature.of(5, 5, "axis opset"),
    "QLinearGlobalAveragePool": Signature.of(5, 5, "channels_last"),
    "QLinearAveragePool": Signature.of(
        4, 5, "auto_pad ceil_mode channels_last count_include_pad kernel_shape pads strides"
    ),
    "QLinearReduceMean": Signature.of(4, 5, "axes keepdims"),
    "QLinearConcat": Signature.of(5, 1 << 30, "axis"),
    "QLinearWhere": Signature.of(9, 9),
    "QGemm": Signature.of(6, 9, "alpha transA transB"),
    "MatMulIntegerToFloat": Signature.of(4, 7),
    "DynamicQuantizeMatMul": Signature.of(3, 5),
}
"""The operators of `DOMAIN` that are read."""


def check_signature(node: Node) -> None:
    """Check the number of inputs and the attributes of a node of `DOMAIN`.

    Raises:
        InvalidModel: they are not the operator's.
    """
    signature = SIGNATURES[node.op]
    if not signature.least <= len(node.inputs) <= signature.most:
        raise InvalidModel(f"{len(node.inputs)} inputs; {signature.least} to {signature.most} are needed")
    if unknown := sorted(node.attributes.keys() - signature.attributes):
        known = ", ".join(sorted(signature.attributes)) or "none"
        raise InvalidModel(f"an attribute {unknown[0]!r}; the operator has {known}")


@dataclass
class _Expansion:
    """The nodes that take the place of one."""

    node: Node
    model: Rewriter
    nodes: list[Node] = field(default_factory=list)

    def add(
        self, op: str, inputs: Sequence[str], what: str, attributes: Mapping[str, Any] | None = None
    ) -> str:
        """A node of one output; returns its name. "" as `what` makes the result of the whole."""
        node = self.node
        name = self.model.fresh(f"{node.outputs[0]}.{what}") if what else node.outputs[0]
        label = f"{node.name}.{what}" if what else node.name
        self.nodes.append(Node(op, tuple(inputs), (name,), dict(attributes or {}), label))
        return name

    def dequantize(self, first: int, what: str, axis: int | None = None) -> str:
        """The input at `first`, whose scale and zero point follow it, as floats."""
        node = self.node
        return self.dequantized(node.input(first), node.input(first + 1), node.input(first + 2), what, axis)

    def dequantized(self, x: str, scale: str, point: str, what: str, axis: int | None = None) -> str:
        inputs = (x, scale, point) if point else (x, scale)
        return self.add("DequantizeLinear", inputs, what, {} if axis is None else {"axis": axis})

    def quantize(self, x: str, first: int, axis: int | None = None) -> list[Node]:
        """All nodes, the last of which quantises the result with the parameters at input `first`.

        A zero point that is left out is 0, of the type of the first input.
        """
        scale, point = self.node.input(first), self.node.input(first + 1)
        if not point:
            dtype = self.model.dtypes.get(self.node.inputs[0], np.dtype(np.uint8))
            point = self.model.constant(self.node, "zero_point", 0, dtype)
        self.add("QuantizeLinear", (x, scale, point), "", {} if axis is None else {"axis": axis})
        return self.nodes


def _channels_first(node: Node) -> None:
    if node.get("channels_last", 0):
        raise UnsupportedModel("channels_last=1; only channels first", node=node.name, op=node.op)


def _convolution(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    x, w = e.dequantize(0, "x"), e.dequantize(3, "w", axis=0)
    inputs = [x, w]
    if node.input(8):
        scale = e.add("Mul", (node.input(1), node.input(4)), "b_scale")
        inputs.append(e.dequantized(node.input(8), scale, "", "b", axis=0))
    return e.quantize(e.add("Conv", inputs, "float", node.attributes), 6)


def _matrix_product(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    a, b = e.dequantize(0, "a", axis=-2), e.dequantize(3, "b", axis=-1)
    return e.quantize(e.add("MatMul", (a, b), "float"), 6, axis=-2)


def _gemm(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    a, b = e.dequantize(0, "a"), e.dequantize(3, "b", axis=0 if node.get("transB", 0) else 1)
    inputs, alpha = [a, b], float(node.get("alpha", 1.0))
    if node.input(6):
        scale = e.add("Mul", (node.input(1), node.input(4)), "c_scale")
        if alpha != 1:
            scale = e.add("Mul", (scale, model.constant(node, "alpha", alpha, np.float32)), "c_scale_alpha")
        inputs.append(e.dequantized(node.input(6), scale, "", "c", axis=-1))
    if not node.input(7):
        e.add("Gemm", inputs, "", node.attributes)
        return e.nodes
    return e.quantize(e.add("Gemm", inputs, "float", node.attributes), 7)


def _binary(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    op = node.op.removeprefix("QLinear")
    return e.quantize(e.add(op, (e.dequantize(0, "a"), e.dequantize(3, "b")), "float"), 6)


def _unary(node: Node, model: Rewriter) -> list[Node]:
    _channels_first(node)
    e = _Expansion(node, model)
    attributes = {name: value for name, value in node.attributes.items() if name != "channels_last"}
    return e.quantize(e.add(node.op.removeprefix("QLinear"), (e.dequantize(0, "x"),), "float", attributes), 3)


def _softmax(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    axis = {"axis": node.get("axis", -1)}
    return e.quantize(e.add("Softmax", (e.dequantize(0, "x"),), "float", axis), 3)


def _mean(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    inputs = [e.dequantize(0, "x")]
    if node.get("axes"):
        inputs.append(model.constant(node, "axes", node.get("axes"), np.int64))
    return e.quantize(e.add("ReduceMean", inputs, "float", {"keepdims": node.get("keepdims", 1)}), 3)


def _concat(node: Node, model: Rewriter) -> list[Node]:
    if len(node.inputs) % 3 != 2:
        raise InvalidModel("each part needs a scale and a zero point", node=node.name, op=node.op)
    e = _Expansion(node, model)
    parts = [e.dequantize(first, f"x{first}") for first in range(2, len(node.inputs), 3)]
    return e.quantize(e.add("Concat", parts, "float", {"axis": node.get("axis", 1)}), 0)


def _where(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    chosen = e.add("Where", (node.inputs[0], e.dequantize(1, "x"), e.dequantize(4, "y")), "float")
    return e.quantize(chosen, 7)


def _integers_to_float(node: Node, model: Rewriter) -> list[Node]:
    a, b, a_scale, b_scale = node.inputs[:4]
    return _scaled(
        _Expansion(node, model), (a, b, node.input(4), node.input(5)), a_scale, b_scale, node.input(6)
    )


def _dynamic_product(node: Node, model: Rewriter) -> list[Node]:
    e = _Expansion(node, model)
    names = tuple(model.fresh(f"{node.outputs[0]}.{what}") for what in ("a", "a_scale", "a_zero_point"))
    e.nodes.append(Node("DynamicQuantizeLinear", node.inputs[:1], names, {}, f"{node.name}.a"))
    a, a_scale, a_point = names
    return _scaled(e, (a, node.inputs[1], a_point, node.input(3)), a_scale, node.inputs[2], node.input(4))


def _scaled(
    e: _Expansion, operands: tuple[str, str, str, str], a_scale: str, b_scale: str, bias: str
) -> list[Node]:
    total = e.add("MatMulInteger", operands, "sum")
    scale = e.add("Mul", (a_scale, b_scale), "scale")
    single = e.add("Cast", (total,), "single", {"to": "float32"})
    product = e.add("Mul", (single, scale), "product" if bias else "")
    if bias:
        e.add("Add", (product, bias), "")
    return e.nodes


EXPANSIONS = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _matrix_product,
    "QLinearAdd": _binary,
    "QLinearMul": _binary,
    "QLinearSigmoid": _unary,
    "QLinearLeakyRelu": _unary,
    "QLinearSoftmax": _softmax,
    "QLinearGlobalAveragePool": _unary,
    "QLinearAveragePool": _unary,
    "QLinearReduceMean": _mean,
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
    "QGemm": _gemm,
    "MatMulIntegerToFloat": _integers_to_float,
    "DynamicQuantizeMatMul": _dynamic_product,
}
"""Operator -> what writes it as several."""
