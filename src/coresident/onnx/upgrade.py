"""Old forms of operators rewritten as the newest, so that nothing after the reader knows of opsets.

Source: the version histories in ONNX, docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.expression import COMPARISONS
from coresident.graph.graph import Node

Array = np.ndarray[Any, Any]

OLDEST_OPSET = 1
NEWEST_OPSET = 28
"""Opsets of the standard domain whose forms are known here."""


@dataclass
class Rewriter:
    """What an upgrade sees of the model, and where it puts the constants and names that it makes.

    Args:
        opset: of the standard domain, that the model was written for.
        initializers: constants by name; upgrades add to them.
        dtypes: element types of the values known so far; `rewrite` adds those of its outputs.
        ranks: numbers of dimensions, where the model declares them.
        names: all names of values; upgrades add to them.
        consumed: values that are read by a node or are outputs of the graph.
    """

    opset: int
    initializers: dict[str, Array]
    dtypes: dict[str, np.dtype[Any]]
    ranks: Mapping[str, int]
    names: set[str]
    consumed: frozenset[str] = field(default_factory=frozenset)

    def fresh(self, hint: str) -> str:
        """A name for a value, taken by none."""
        name, number = hint, 0
        while name in self.names:
            number += 1
            name = f"{hint}.{number}"
        self.names.add(name)
        return name

    def constant(self, node: Node, what: str, value: object, dtype: np.dtype[Any] | type) -> str:
        """The name of a new constant."""
        name = self.fresh(f"{node.outputs[0]}.{what}")
        self.initializers[name] = np.asarray(value, dtype)
        self.dtypes[name] = self.initializers[name].dtype
        return name

    def rewrite(self, node: Node) -> Sequence[Node]:
        """The node in its newest form; nodes must be given in topological order.

        Raises:
            InvalidModel: its attributes contradict.
            UnsupportedModel: a form that has no newest one.
        """
        # Before opset 6 operators could name the inputs whose memory they may overwrite.
        node = node.with_(attributes=_without(node, "consumed_inputs"))
        for before, upgrade in UPGRADES.get(node.op, ()):
            if self.opset < before:
                nodes = upgrade(node, self)
                break
        else:
            nodes = [node]
        for each in nodes:
            self.dtypes.update(
                {name: _dtype(each, i, self.dtypes) for i, name in enumerate(each.outputs) if name}
            )
        return nodes


Upgrade = Callable[[Node, Rewriter], Sequence[Node]]


def _dtype(node: Node, output: int, dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    if node.op in COMPARISONS or (node.op == "Dropout" and output == 1):
        return np.dtype(bool)
    if node.op in ("Shape", "Size", "ArgMax", "ArgMin") or (node.op in ("MaxPool", "TopK") and output == 1):
        return np.dtype(np.int64)
    if node.op == "Cast":
        return np.dtype(str(node.get("to", "float32")))
    if node.op in ("ConvInteger", "MatMulInteger"):
        return np.dtype(np.int32)
    if node.op in ("QuantizeLinear", "DynamicQuantizeLinear") and output != 1:
        return dtypes.get(node.input(2), np.dtype(str(node.get("output_dtype") or "uint8")))
    if node.op == "ConstantOfShape":
        return np.asarray(node.get("value", np.zeros(1, np.float32))).dtype
    if node.op == "EyeLike" and node.get("dtype"):
        return np.dtype(str(node.get("dtype")))
    source = {"Where": 1, "CastLike": 1, "DequantizeLinear": 1, "OneHot": 2}.get(node.op, 0)
    return dtypes.get(node.input(source), np.dtype(np.float32))


def _without(node: Node, *names: str) -> dict[str, Any]:
    return {name: value for name, value in node.attributes.items() if name not in names}


def _axes_to_input(node: Node, model: Rewriter) -> list[Node]:
    axes = node.get("axes")
    if axes is None:
        return [node]
    name = model.constant(node, "axes", axes, np.int64)
    return [node.with_(inputs=(node.input(0), name), attributes=_without(node, "axes"))]


def _split_to_input(node: Node, model: Rewriter) -> list[Node]:
    split = node.get("split")
    if split is None:
        return _split_evenly(node, model)
    name = model.constant(node, "split", split, np.int64)
    return [node.with_(inputs=(node.input(0), name), attributes=_without(node, "split"))]


def _split_evenly(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 18 the number of equal parts was that of the outputs."""
    if node.input(1):
        return [node]
    return [node.with_(attributes={**node.attributes, "num_outputs": len(node.outputs)})]


def _k_to_input(node: Node, model: Rewriter) -> list[Node]:
    name = model.constant(node, "k", [node.get("k", 0)], np.int64)
    return [node.with_(inputs=(node.input(0), name), attributes=_without(node, "k"))]


def _clip_to_inputs(node: Node, model: Rewriter) -> list[Node]:
    dtype = _dtype(node, 0, model.dtypes)
    low, high = (
        model.constant(node, what, node.get(what), dtype) if node.get(what) is not None else ""
        for what in ("min", "max")
    )
    return [node.with_(inputs=(node.input(0), low, high), attributes={})]


def _pad_to_inputs(node: Node, model: Rewriter) -> list[Node]:
    numbers = node.get("pads", node.get("paddings"))
    if numbers is None:
        raise InvalidModel("the attribute pads is missing", node=node.name, op=node.op)
    pads = model.constant(node, "pads", numbers, np.int64)
    value = model.constant(node, "value", node.get("value", 0.0), _dtype(node, 0, model.dtypes))
    kept = _without(node, "pads", "paddings", "value")
    return [node.with_(inputs=(node.input(0), pads, value), attributes=kept)]


def _shape_to_input(node: Node, model: Rewriter) -> list[Node]:
    name = model.constant(node, "shape", node.get("shape", ()), np.int64)
    return [node.with_(inputs=(node.input(0), name), attributes={})]


def _cast_by_name(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 6 the type was named: "FLOAT", "INT64"."""
    named = str(node.get("to", "")).lower()
    dtype = {"float": "float32", "double": "float64"}.get(named, named)
    if dtype not in _CAST_TYPES:
        raise UnsupportedModel(f"a cast to {named!r}", node=node.name, op=node.op)
    return [node.with_(attributes={"to": dtype})]


_CAST_TYPES = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def _tile_once(node: Node, model: Rewriter) -> list[Node]:
    raise UnsupportedModel("Tile along one axis, as before opset 6", node=node.name, op=node.op)


def _selu_constants(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 6 the constants had fewer digits."""
    return [node.with_(attributes={"alpha": 1.6732, "gamma": 1.0507, **node.attributes})]


def _slice_to_inputs(node: Node, model: Rewriter) -> list[Node]:
    operands = [
        model.constant(node, what, node.get(what), np.int64) if node.get(what) is not None else ""
        for what in ("starts", "ends", "axes")
    ]
    return [node.with_(inputs=(node.input(0), *operands), attributes={})]


def _resize(node: Node, model: Rewriter, scales: str) -> Node:
    """Upsample and Resize-10 divide coordinates by the scale and round down."""
    attributes = {
        "mode": "linear" if node.get("mode", "nearest") in ("linear", "bilinear") else "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return node.with_(op="Resize", inputs=(node.input(0), "", scales), attributes=attributes)


def _resize_10(node: Node, model: Rewriter) -> list[Node]:
    return [_resize(node, model, node.input(1))]


def _upsample(node: Node, model: Rewriter) -> list[Node]:
    scales = node.input(1)
    if not scales:
        if node.get("scales") is None:
            raise InvalidModel("scales are missing", node=node.name, op=node.op)
        scales = model.constant(node, "scales", node.get("scales"), np.float32)
    return [_resize(node, model, scales)]


def _dropout(node: Node, model: Rewriter) -> list[Node]:
    return [node.with_(inputs=node.inputs[:1], attributes={})]


def _batch_normalization(node: Node, model: Rewriter) -> list[Node]:
    if not node.get("spatial", 1):
        raise UnsupportedModel(
            "BatchNormalization with spatial=0, a mean for each pixel", node=node.name, op=node.op
        )
    if any(name in model.consumed for name in node.outputs[1:]):
        raise UnsupportedModel(
            "BatchNormalization in training mode; export the model for inference", node=node.name, op=node.op
        )
    return [node.with_(outputs=node.outputs[:1], attributes=_without(node, "spatial", "is_test", "momentum"))]


def _softmax_2d(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 13 the data was seen as a matrix: sizes before axis multiplied, and those from it on."""
    axis = int(node.get("axis", 1))
    if axis == -1:
        return [node.with_(attributes={"axis": -1})]
    x, y = node.inputs[0], node.outputs[0]
    matrix, result, shape = (model.fresh(f"{y}.{what}") for what in ("matrix", "rows", "shape"))
    return [
        Node("Flatten", (x,), (matrix,), {"axis": axis}, f"{node.name}.flatten"),
        node.with_(inputs=(matrix,), outputs=(result,), attributes={"axis": -1}),
        Node("Shape", (x,), (shape,), {}, f"{node.name}.shape"),
        Node("Reshape", (result, shape), (y,), {"allowzero": 1}, f"{node.name}.reshape"),
    ]


def _aligned(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 7 the second operand could be aligned with any axis of the first."""
    axis = node.get("axis")
    if not node.get("broadcast", 0) or axis is None:
        return [node.with_(attributes=_without(node, "broadcast", "axis"))]
    rank, own = model.ranks.get(node.inputs[0]), model.ranks.get(node.inputs[1])
    if rank is None or own is None:
        raise UnsupportedModel(
            f"broadcasting from axis {axis} of an input of which the model declares no shape",
            node=node.name,
            op=node.op,
        )
    return _unsqueezed(node, model, rank - axis % max(rank, 1) - own)


def _slope(node: Node, model: Rewriter) -> list[Node]:
    """Before opset 7 the slope of PRelu was one number, or one a channel."""
    rank, own = model.ranks.get(node.inputs[0]), model.ranks.get(node.inputs[1])
    constant = model.initializers.get(node.inputs[1])
    if constant is not None and constant.size == 1:
        return [node]
    if rank is None or own is None:
        raise UnsupportedModel(
            "a slope a channel of an input of which the model declares no shape",
            node=node.name,
            op=node.op,
        )
    return _unsqueezed(node, model, rank - 1 - own)


def _unsqueezed(node: Node, model: Rewriter, count: int) -> list[Node]:
    """The node with this many dimensions of size 1 put behind those of its second operand."""
    plain = node.with_(attributes=_without(node, "broadcast", "axis"))
    if count <= 0:
        return [plain]
    operand = model.fresh(f"{node.outputs[0]}.operand")
    axes = model.constant(node, "axes", range(-count, 0), np.int64)
    return [
        Node("Unsqueeze", (node.inputs[1], axes), (operand,), {}, f"{node.name}.unsqueeze"),
        plain.with_(inputs=(node.inputs[0], operand)),
    ]


def _plain_gemm(node: Node, model: Rewriter) -> list[Node]:
    return [node.with_(attributes=_without(node, "broadcast"))]


ALWAYS = NEWEST_OPSET + 1

UPGRADES: dict[str, tuple[tuple[int, Upgrade], ...]] = {
    "Squeeze": ((13, _axes_to_input),),
    "Unsqueeze": ((13, _axes_to_input),),
    "ReduceSum": ((13, _axes_to_input),),
    **{
        f"Reduce{kind}": ((18, _axes_to_input),)
        for kind in ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
    "Split": ((13, _split_to_input), (18, _split_evenly)),
    "Reshape": ((5, _shape_to_input),),
    "Cast": ((6, _cast_by_name),),
    "Tile": ((6, _tile_once),),
    "Selu": ((6, _selu_constants),),
    "TopK": ((10, _k_to_input),),
    "Clip": ((11, _clip_to_inputs),),
    "Pad": ((11, _pad_to_inputs),),
    "Slice": ((10, _slice_to_inputs),),
    "Resize": ((11, _resize_10),),
    "Upsample": ((ALWAYS, _upsample),),
    "Dropout": ((12, _dropout),),
    "BatchNormalization": ((14, _batch_normalization),),
    "Softmax": ((13, _softmax_2d),),
    "LogSoftmax": ((13, _softmax_2d),),
    "Hardmax": ((13, _softmax_2d),),
    "Gemm": ((7, _plain_gemm),),
    "PRelu": ((7, _slope),),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Less", "Greater"), ((7, _aligned),)
    ),
}
"""Operator -> (opset before which it had another form, what brings that to the newest), oldest first."""
