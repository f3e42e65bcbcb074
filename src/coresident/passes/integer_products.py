"""Products of dequantised bytes become products of bytes.

1. Conv and ConvTranspose of DequantizeLinear of bytes, per tensor, and DequantizeLinear of constant bytes,
   per tensor or output channel: ConvInteger and ConvTransposeInteger, whose sums are cast and scaled.
2. Gemm and MatMul with such operands: MatMulInteger; the scale of the constant is per tensor or column.
3. A bias that is DequantizeLinear of int32 with the product's own scale is added to the sums; another one
   follows the scale.
4. Products that stay in floats in a network with quantised values take the attribute "remark", which says
   why.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Graph, Node
from coresident.graph.numpy_math import NumpyMath
from coresident.graph.operator import Array
from coresident.passes.patch import Pass, Patch, View, rewrite
from coresident.passes.quantization import (
    Quantised,
    along,
    byte_tensor,
    dequantised,
    not_bytes,
    spread_behind,
)

_SAME_SCALE = 1e-6
"""Relative difference of scales that were rounded on different ways."""


def _weights(view: View, name: str, axis: int) -> tuple[Quantised, Array, Array] | str:
    """Constant bytes, with scale and zero point as [] or one number an element of `axis`; or why not."""
    found = dequantised(view, name)
    if found is None:
        return f"its weights are {not_bytes(view, name)}"
    array = view.constant(found.source)
    if array is None or found.dtype not in (np.uint8, np.int8):
        return "its weights are not constant bytes"
    scale = along(found.scale, array.ndim, axis, array.shape[axis])
    point = along(found.zero_point, array.ndim, axis, array.shape[axis])
    if scale is None or point is None:
        return "its weights are quantised along other axes than the output channels"
    return found, scale, point


def _bias(view: View, name: str, scale: Array, channels: int) -> tuple[Array | None, Array | None] | None:
    """A bias [channels] as int32 to be added to the sums, or as float32 to be added to their multiples.

    Returns:
        None where it is computed, or is not one number a channel.
    """
    quantised = dequantised(view, name)
    if quantised is None:
        constant = view.constant(name)
    else:
        whole = view.constant(quantised.source)
        if whole is None:
            return None
        own = np.broadcast_to(quantised.scale.reshape(-1), (channels,))
        product = np.broadcast_to(scale, (channels,))
        same = np.all(np.abs(own - product) <= _SAME_SCALE * np.abs(product))
        if whole.dtype == np.int32 and not quantised.zero_point.any() and whole.size == channels and same:
            return whole.reshape(channels), None
        constant = NumpyMath().dequantize(whole, quantised.scale, quantised.zero_point)
    if constant is None or constant.dtype != np.float32 or constant.size not in (1, channels):
        return None
    return None, np.broadcast_to(constant.reshape(-1), (channels,))


def _scaled(
    view: View, node: Node, product: Node, scale: Array, bias: Array | None, constants: dict[str, Array]
) -> Patch:
    """The patch that casts and scales the sums of `product`; scale and bias broadcast onto them."""
    target = node.outputs[0]
    single, factor = view.fresh(f"{target}.single"), view.fresh(f"{target}.scale")
    constants[factor] = scale.astype(np.float32)
    scaled = view.fresh(f"{target}.scaled") if bias is not None else target
    nodes = [
        product,
        Node("Cast", product.outputs, (single,), {"to": "float32"}, node.name),
        Node("Mul", (single, factor), (scaled,), {}, node.name),
    ]
    if bias is not None:
        shift = view.fresh(f"{target}.bias")
        constants[shift] = bias.astype(np.float32)
        nodes.append(Node("Add", (scaled, shift), (target,), {}, node.name))
    return Patch((node,), tuple(nodes), constants)


def _convolution(view: View, node: Node) -> Patch | str | None:
    if node.op not in ("Conv", "ConvTranspose"):
        return None
    x = byte_tensor(view, node.inputs[0])
    if x is None:
        return f"its input is {not_bytes(view, node.inputs[0])}"
    found = _weights(view, node.inputs[1], 0 if node.op == "Conv" else 1)
    if isinstance(found, str):
        return found
    weights, scale, point = found
    target = node.outputs[0]
    rank, channels = len(view.shape(target)), view.shape(target)[1]
    if node.op == "ConvTranspose" and node.get("group", 1) > 1:
        group = int(node.get("group", 1))
        scale, point = (np.tile(a, group) if a.ndim else a for a in (scale, point))
    factor = x.scale * scale
    whole, shift = None, None
    if node.input(2):
        bias = _bias(view, node.inputs[2], factor, channels)
        if bias is None:
            return "its bias is computed while the network runs"
        whole, shift = bias
    constants: dict[str, Array] = {}
    operands = _operands(view, target, x, weights, point, whole, constants)
    total = view.fresh(f"{target}.sum")
    product = Node(f"{node.op}Integer", operands, (total,), node.attributes, node.name)
    behind = rank - 2
    shift = None if shift is None else spread_behind(shift, behind)
    return _scaled(view, node, product, spread_behind(factor, behind), shift, constants)


def _operands(
    view: View,
    target: str,
    x: Quantised,
    weights: Quantised,
    point: Array,
    bias: Array | None,
    constants: dict[str, Array],
) -> tuple[str, ...]:
    """The inputs of an integer product; what is zero is left out."""
    names = [x.source, weights.source]
    extra = (("x_zero_point", x.zero_point), ("w_zero_point", point), ("bias", bias))
    for what, array in extra:
        if array is None or not array.any():
            names.append("")
            continue
        names.append(view.fresh(f"{target}.{what}"))
        constants[names[-1]] = array
    while not names[-1]:
        names.pop()
    return tuple(names)


def _matrix(view: View, node: Node) -> Patch | str | None:
    if node.op not in ("MatMul", "Gemm"):
        return None
    a = byte_tensor(view, node.inputs[0])
    if a is None:
        return f"its first operand is {not_bytes(view, node.inputs[0])}"
    transposed = node.op == "Gemm" and bool(node.get("transB", 0))
    rank = len(view.shape(node.inputs[1]))
    if rank != 2:
        return "its second operand is not one matrix"
    found = _weights(view, node.inputs[1], 0 if transposed else rank - 1)
    if isinstance(found, str):
        return found
    weights, scale, point = found
    target = node.outputs[0]
    columns = view.shape(target)[-1]
    alpha, beta = (float(node.get(name, 1.0)) for name in ("alpha", "beta"))
    factor = a.scale * scale * np.float32(alpha)
    whole, shift = None, None
    if node.input(2):
        bias = _bias(view, node.inputs[2], factor / np.float32(beta), columns) if beta else (None, None)
        if bias is None:
            return "its bias is computed while the network runs, or differs from row to row"
        whole, shift = bias
    constants: dict[str, Array] = {}
    names = list(_operands(view, target, a, weights, point, whole, constants))
    nodes: list[Node] = []
    for index, turned in ((0, node.op == "Gemm" and node.get("transA", 0)), (1, transposed)):
        if turned:
            source, names[index] = names[index], view.fresh(f"{names[index]}.transposed")
            nodes.append(Node("Transpose", (source,), (names[index],), {"perm": (1, 0)}, node.name))
    product = Node("MatMulInteger", tuple(names), (view.fresh(f"{target}.sum"),), {}, node.name)
    shift = None if shift is None else shift * np.float32(beta)
    patch = _scaled(view, node, product, factor, shift, constants)
    return Patch(patch.remove, (*nodes, *patch.add), patch.initializers)


RULES = (_convolution, _matrix)


def _becomes_integer(view: View, node: Node) -> Patch | None:
    answers = (rule(view, node) for rule in RULES)
    return next((answer for answer in answers if isinstance(answer, Patch)), None)


def _remarked(view: View, node: Node) -> Node:
    reason = next((answer for rule in RULES if isinstance(answer := rule(view, node), str)), None)
    if reason is None:
        return node
    return node.with_(attributes={**node.attributes, "remark": f"computed in floats: {reason}"})


def _run(graph: Graph) -> Graph:
    if not any(node.op == "DequantizeLinear" for node in graph.nodes):
        return graph
    graph = rewrite(graph, "integer_products", (_becomes_integer,))
    view = View(graph)
    return graph.with_(nodes=tuple(_remarked(view, node) for node in graph.nodes))


PASS = Pass("integer_products", _run)
