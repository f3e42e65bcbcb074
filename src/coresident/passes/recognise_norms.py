"""Layer norms that exporters spell out, under their own name.

1. (x - m) / sqrt(mean((x - m)^2) + epsilon), m the mean of x, both over the last axes
   -> LayerNormalization(x), with a scale of 1. The square may be a power or a product.
2. LayerNormalization(x) times a constant over the same axes -> with that scale.
3. LayerNormalization(x) without bias, plus a constant over the same axes -> with that bias.

Source: the function body of ONNX LayerNormalization-17.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.passes.constants import integers
from coresident.passes.patch import Patch, View, pattern_pass

Array = np.ndarray[Any, Any]


def _mean(view: View, name: str) -> tuple[str, int] | None:
    """x and the first of the axes, where the value is the mean of x over the last axes, which are kept."""
    node = view.maker(name)
    if node is None or node.op != "ReduceMean" or not node.get("keepdims", 1):
        return None
    rank = len(view.shape(node.inputs[0]))
    axes = integers(view, node.input(1)) if node.input(1) else None
    found = sorted(axis % rank for axis in axes) if axes and rank else []
    if not found or found != list(range(found[0], rank)):
        return None
    return node.inputs[0], found[0]


def _square(view: View, name: str) -> str | None:
    """x, where the value is its square."""
    node = view.maker(name)
    if node is None:
        return None
    if node.op == "Pow" and view.scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    return node.inputs[0] if node.op == "Mul" and node.inputs[0] == node.inputs[1] else None


def _made_by(view: View, name: str, op: str) -> Node | None:
    node = view.maker(name)
    return node if node is not None and node.op == op else None


def _layer_norm(view: View, node: Node) -> Patch | None:
    if node.op != "Div":
        return None
    centred, root = _made_by(view, node.inputs[0], "Sub"), _made_by(view, node.inputs[1], "Sqrt")
    sum_ = _made_by(view, root.inputs[0], "Add") if root is not None else None
    if centred is None or sum_ is None:
        return None
    x, mean = centred.inputs[0], _mean(view, centred.inputs[1])
    for variance, small in (sum_.inputs, sum_.inputs[::-1]):
        epsilon, square = view.scalar(small), _mean(view, variance)
        if epsilon is None or square is None or mean is None or mean != (x, square[1]):
            continue
        if _square(view, square[0]) != centred.outputs[0] or view.dtype(x).kind != "f":
            continue
        scale = view.fresh(f"{node.outputs[0]}.scale")
        ones = np.ones(view.shape(x)[mean[1] :], view.dtype(x))
        attributes = {"axis": mean[1], "epsilon": epsilon}
        named = Node("LayerNormalization", (x, scale), node.outputs, attributes, node.name)
        return Patch((node,), (named,), initializers={scale: ones})
    return None


def _scaled(view: View, node: Node) -> Patch | None:
    """The constant that a norm is multiplied with, or that is added to it, as the norm's own."""
    if node.op not in ("Mul", "Add"):
        return None
    for name, other in (node.inputs, node.inputs[::-1]):
        norm, constant = _made_by(view, name, "LayerNormalization"), view.constant(other)
        if norm is None or constant is None or view.sole_reader(name) is not node or len(norm.outputs) > 1:
            continue
        shape = view.shape(norm.inputs[0])
        value = _over(constant, shape[int(norm.get("axis", -1)) % len(shape) :])
        old = view.constant(norm.inputs[1])
        if value is None or old is None or value.dtype != old.dtype or (norm.input(2) and node.op == "Add"):
            continue
        made = view.fresh(f"{node.outputs[0]}.{'scale' if node.op == 'Mul' else 'bias'}")
        bias = view.constant(norm.input(2))
        if node.op == "Add":
            inputs, constants = (*norm.inputs[:2], made), {made: value}
        elif norm.input(2):
            if bias is None:
                continue
            moved = view.fresh(f"{node.outputs[0]}.bias")
            inputs, constants = (norm.inputs[0], made, moved), {made: old * value, moved: bias * value}
        else:
            inputs, constants = (norm.inputs[0], made), {made: old * value}
        return Patch((norm, node), (norm.with_(inputs=inputs, outputs=node.outputs),), initializers=constants)
    return None


def _over(constant: Array, shape: tuple[int, ...]) -> Array | None:
    """The constant over exactly these last axes; None where it has others."""
    own = constant.shape[max(constant.ndim - len(shape), 0) :]
    if constant.size != np.prod(own) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1])):
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(own), shape))


PASS = pattern_pass("recognise_norms", _layer_norm, _scaled)
