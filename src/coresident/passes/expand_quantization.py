"""One form of quantisation: QuantizeLinear and DequantizeLinear of three inputs that broadcast as numpy's do.

1. Their scales and zero points take the shape that broadcasts onto the data, along whatever axis or by blocks
   they go; a zero point left out is written; numbers that are all the same become one.
2. DynamicQuantizeLinear becomes the least and greatest element, and arithmetic on them.
3. ConvInteger and MatMulInteger whose zero point of the data is computed take none: what it adds to each sum,
   itself times the sum of the weights, is subtracted. A convolution then pads with it beforehand.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.graph.operators.quantization import parameter_shape, quantised_type, spread
from coresident.graph.operators.windows import Window
from coresident.passes.patch import Patch, View, pattern_pass


def _is_plain(view: View, node: Node) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear is in the form that rule 1 makes."""
    if len(node.inputs) != 3 or (node.attributes and node.attributes != {"axis": 0}):
        return False
    single = len(view.shape(node.inputs[0])) == 1 and bool(node.attributes)
    ranks = [len(view.shape(name)) for name in node.inputs[1:]]
    return all(rank == 0 or rank > 1 or single for rank in ranks)


def _plain(view: View, node: Node) -> Patch | None:
    if node.op not in ("QuantizeLinear", "DequantizeLinear") or _is_plain(view, node):
        return None
    data, target = view.shape(node.inputs[0]), node.outputs[0]
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    dtype = view.dtype(node.inputs[0])
    if node.op == "QuantizeLinear":
        dtype = quantised_type(node, view.dtype(node.inputs[2]) if node.input(2) else None)
    operands = []
    for name, what in ((node.inputs[1], "scale"), (node.input(2), "zero_point")):
        known = view.constant(name)
        plain = view.fresh(f"{target}.{what}")
        operands.append(plain)
        if not name:
            constants[plain] = np.zeros((), dtype)
        elif known is not None:
            constants[plain] = _parameter(node, data, known)
        elif node.get("block_size"):
            nodes += _repeated(view, node, name, plain, constants)
        else:
            constants[f"{plain}.shape"] = np.array(_shape(node, data, view.shape(name)), np.int64)
            nodes.append(Node("Reshape", (name, f"{plain}.shape"), (plain,), {}, node.name))
    attributes = {"axis": 0} if len(data) == 1 else {}
    wanted = node.get("output_dtype") if node.op == "DequantizeLinear" else None
    casts = bool(wanted) and np.dtype(wanted) != view.dtype(node.inputs[1])
    result = view.fresh(f"{target}.uncast") if casts else target
    nodes.append(Node(node.op, (node.inputs[0], *operands), (result,), attributes, node.name))
    if casts:
        nodes.append(Node("Cast", (result,), (target,), {"to": str(np.dtype(wanted))}, node.name))
    return Patch((node,), tuple(nodes), constants)


def _shape(node: Node, data: tuple[int, ...], parameter: tuple[int, ...]) -> tuple[int, ...]:
    shape = parameter_shape(node, data, parameter)
    return (1, *shape) if len(shape) == 1 < len(data) else shape


def _repeated(view: View, node: Node, name: str, target: str, constants: dict[str, Array]) -> list[Node]:
    """The nodes that repeat a computed parameter for each element of its blocks."""
    data, parameter = view.shape(node.inputs[0]), view.shape(name)
    axis, block = int(node.get("axis", 1)) % len(data), int(node.attributes["block_size"])
    before, after = parameter[: axis + 1], parameter[axis + 1 :]
    steps = (
        ("Reshape", (*before, 1, *after)),
        ("Expand", (*before, block, *after)),
        ("Reshape", (*before[:-1], before[-1] * block, *after)),
    )
    nodes: list[Node] = []
    for i, (op, shape) in enumerate(steps):
        constants[f"{target}.shape{i}"] = np.array(shape, np.int64)
        nodes.append(Node(op, (name, f"{target}.shape{i}"), (f"{target}.step{i}",), {}, node.name))
        name = f"{target}.step{i}"
    ends = {"starts": 0, "ends": data[axis], "axes": axis}
    constants |= {f"{target}.{what}": np.array([number], np.int64) for what, number in ends.items()}
    nodes.append(Node("Slice", (name, *(f"{target}.{what}" for what in ends)), (target,), {}, node.name))
    return nodes


def _parameter(node: Node, data: tuple[int, ...], parameter: Array) -> Array:
    full = spread(node, data, parameter)
    if full.size and (full == full.flat[0]).all():
        return np.asarray(full.flat[0])
    return full[None] if full.ndim == 1 < len(data) else full


def _dynamic(view: View, node: Node) -> Patch | None:
    if node.op != "DynamicQuantizeLinear":
        return None
    x, stem = node.inputs[0], node.outputs[0]
    names = [view.fresh(f"{stem}.{output}") for output in ("y", "scale", "zero_point")]
    y, scale, point = (wanted or name for wanted, name in zip((*node.outputs, "", ""), names))
    parts: list[Node] = []
    constants: dict[str, Array] = {}

    def number(value: float, dtype: str = "float32") -> str:
        name = view.fresh(f"{stem}.constant")
        constants[name] = np.array(value, dtype)
        return name

    def add(op: str, *inputs: str, to: str = "", **attributes: object) -> str:
        name = to or view.fresh(f"{stem}.{op.lower()}")
        parts.append(Node(op, inputs, (name,), attributes, node.name))
        return name

    zero = number(0)
    low = add("Min", add("ReduceMin", x, keepdims=0), zero)
    high = add("Max", add("ReduceMax", x, keepdims=0), zero)
    share = add("Div", add("Sub", high, low), number(255))
    # All zeros: any scale does.
    add("Where", add("Equal", share, zero), number(1), share, to=scale)
    nearest = add("Round", add("Div", add("Neg", low), scale))
    held = add("Clip", nearest, zero, number(255))
    parts.append(Node("Cast", (held,), (point,), {"to": "uint8"}, node.name))
    add("QuantizeLinear", x, scale, point, to=y)
    return Patch((node,), tuple(parts), constants)


def _computed_point(view: View, node: Node) -> Patch | None:
    if node.op not in ("ConvInteger", "MatMulInteger") or not node.input(2):
        return None
    point = node.inputs[2]
    if view.constant(point) is not None:
        return None
    weights, offset = view.constant(node.inputs[1]), view.constant(node.input(3))
    if weights is None or (node.input(3) and offset is None) or len(node.inputs) > 4:
        return None  # The whole is written with floats, zero points and all (`operators.integer_products`).
    x, target = node.inputs[0], node.outputs[0]
    wide = weights.astype(np.int64)
    if offset is not None and node.op == "ConvInteger":
        wide = wide - offset.reshape(-1, *(1,) * (wide.ndim - 1) if offset.size > 1 else ())
    elif offset is not None:
        wide = wide - offset
    axes = tuple(range(1, wide.ndim)) if node.op == "ConvInteger" else (max(wide.ndim - 2, 0),)
    sums = wide.sum(axis=axes)
    if node.op == "ConvInteger":
        sums = sums.reshape(-1, *(1,) * (wide.ndim - 2))
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    attributes = dict(node.attributes)
    if node.op == "ConvInteger":
        window = Window.of(node, view.shape(x)[2:], weights.shape[2:])
        if any((*window.pads_begin, *window.pads_end)):
            pads, padded = view.fresh(f"{x}.pads"), view.fresh(f"{x}.padded")
            constants[pads] = np.array((0, 0, *window.pads_begin, 0, 0, *window.pads_end), np.int64)
            nodes.append(Node("Pad", (x, pads, point), (padded,), {"mode": "constant"}, node.name))
            x = padded
        attributes = {k: v for k, v in attributes.items() if k not in ("pads", "auto_pad")}
    total, number, share, columns = (
        view.fresh(f"{target}.{what}") for what in ("sum", "point", "share", "weights")
    )
    constants[columns] = sums.astype(np.int32)
    nodes += [
        node.with_(inputs=(x, node.inputs[1], "", node.input(3)), outputs=(total,), attributes=attributes),
        Node(
            "Cast", (_row_points(view, node, point, nodes, constants),), (number,), {"to": "int32"}, node.name
        ),
        Node("Mul", (number, columns), (share,), {}, node.name),
        Node("Sub", (total, share), (target,), {}, node.name),
    ]
    return Patch((node,), tuple(nodes), constants)


def _row_points(view: View, node: Node, point: str, nodes: list[Node], constants: dict[str, Array]) -> str:
    """The zero point as it broadcasts onto the sums."""
    shape = view.shape(point)
    if shape in ((), (1,)) or len(shape) > 1:
        return point
    column, size = view.fresh(f"{point}.column"), view.fresh(f"{point}.shape")
    constants[size] = np.array((-1, 1), np.int64)
    nodes.append(Node("Reshape", (point, size), (column,), {}, node.name))
    return column


PASS = pattern_pass("expand_quantization", _plain, _dynamic, _computed_point)
