"""Fold what is constant per channel into the weights and bias of a linear operator beside it.

1. Conv, ConvTranspose or Gemm (also MatMul, but for the shift), read by nothing but a BatchNormalization or
   an Add, Sub, Mul or Div with a constant per channel: scale and shift enter weights and bias.
2. MatMul of matrices, read by nothing but an Add of a constant per column: becomes a Gemm.
3. A Mul or Div by a constant per channel, read by nothing but a Conv: enters the weights. An Add or Sub does
   so, as bias, where the Conv does not pad: padding is zero, not the constant.
4. Any other BatchNormalization becomes a Mul and an Add.

The arithmetic is float64, rounded once. Zeros of the weights stay zeros: what is not finite is not folded.
Source: BatchNormalization-15, y = (x - mean) / sqrt(variance + epsilon) * scale + bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.graph.operators.windows import Window
from coresident.passes.constants import per_channel
from coresident.passes.patch import Patch, View, pattern_pass


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift; both float64 [channels] and finite."""

    scale: Array
    shift: Array


def _affine(view: View, node: Node, value: str, axis: int) -> Affine | None:
    """What `node` does to `value`, channel by channel along `axis`; None for anything else."""
    shape = view.shape(value)
    if not np.issubdtype(view.dtype(value), np.floating):
        return None
    ones, zeros = np.ones(shape[axis]), np.zeros(shape[axis])
    if node.op == "BatchNormalization":
        return _normalisation(view, node, shape[axis]) if axis == 1 and node.inputs[0] == value else None
    if node.op not in ("Add", "Sub", "Mul", "Div") or node.inputs.count(value) != 1:
        return None
    if view.shape(node.outputs[0]) != shape:
        return None
    first = node.inputs[0] == value
    constant = per_channel(view, node.inputs[1 if first else 0], len(shape), axis, shape[axis])
    if constant is None:
        return None
    if node.op == "Add":
        return _finite(ones, constant)
    if node.op == "Sub":
        return _finite(ones, -constant) if first else _finite(-ones, constant)
    if node.op == "Mul":
        return _finite(constant, zeros)
    return _finite(1 / constant, zeros) if first and np.all(constant) else None


def _normalisation(view: View, node: Node, channels: int) -> Affine | None:
    parameters = [view.constant(name) for name in node.inputs[1:5]]
    if not view.gives_one(node) or any(p is None or p.shape != (channels,) for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + node.get("epsilon", 1e-5))
        return _finite(scale, beta - mean * scale)


def _finite(scale: Array, shift: Array) -> Affine | None:
    return Affine(scale, shift) if np.all(np.isfinite(scale)) and np.all(np.isfinite(shift)) else None


def _into_producer(view: View, node: Node) -> Patch | None:
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or "epilogue" in node.attributes:
        return None
    result = node.outputs[0]
    rank = len(view.shape(result))
    reader = view.sole_reader(result)
    if reader is None or rank < 2:
        return None
    affine = _affine(view, reader, result, rank - 1 if node.op == "MatMul" else 1)
    weights = view.constant(node.inputs[1])
    bias = view.constant(node.input(2))
    if affine is None or weights is None or (node.input(2) and bias is None):
        return None
    if node.op == "MatMul" and (weights.ndim < 2 or np.any(affine.shift)):
        return None
    constants = {
        view.fresh(f"{node.inputs[1]}.folded"): (weights * _across(node, weights, affine)).astype(
            weights.dtype
        )
    }
    if node.op == "MatMul":
        return _replaced(node, reader, constants, {})
    scaled = np.zeros(1) if bias is None else node.get("beta", 1.0) * bias.astype(np.float64) * affine.scale
    folded = (scaled + affine.shift).astype(weights.dtype)
    if bias is not None or np.any(affine.shift):
        constants[view.fresh(f"{node.input(2) or result + '.bias'}.folded")] = folded
    return _replaced(node, reader, constants, {"beta": 1.0} if node.op == "Gemm" else {})


def _across(node: Node, weights: Array, affine: Affine) -> Array:
    """The scale of the output channels, shaped to multiply the weights."""
    if node.op == "Conv":
        return affine.scale.reshape(-1, *(1,) * (weights.ndim - 1))
    if node.op == "ConvTranspose":
        # [C, M / group, kernel...]: each group of input channels makes its own output channels.
        group = node.get("group", 1)
        by_group = np.repeat(affine.scale.reshape(group, weights.shape[1]), weights.shape[0] // group, axis=0)
        return by_group.reshape(*by_group.shape, *(1,) * (weights.ndim - 2))
    return affine.scale[:, None] if node.get("transB", 0) else affine.scale


def _replaced(node: Node, reader: Node, constants: dict[str, Array], changes: dict[str, float]) -> Patch:
    inputs = (node.inputs[0], *constants)
    merged = node.with_(inputs=inputs, outputs=reader.outputs[:1], attributes={**node.attributes, **changes})
    return Patch((node, reader), (merged,), constants)


def _matrix_bias(view: View, node: Node) -> Patch | None:
    if node.op != "MatMul" or "epilogue" in node.attributes:
        return None
    a, b, result = *node.inputs, node.outputs[0]
    reader = view.sole_reader(result)
    if reader is None or reader.op != "Add" or len(view.shape(a)) != 2 or len(view.shape(b)) != 2:
        return None
    affine = _affine(view, reader, result, 1)
    if affine is None:
        return None
    name = view.fresh(f"{result}.bias")
    gemm = Node("Gemm", (a, b, name), reader.outputs, {}, node.name)
    return Patch((node, reader), (gemm,), {name: affine.shift.astype(view.dtype(result))})


def _into_consumer(view: View, node: Node) -> Patch | None:
    if node.op != "Conv":
        return None
    source = view.maker(node.inputs[0])
    weights, bias = view.constant(node.inputs[1]), view.constant(node.input(2))
    if source is None or view.sole_reader(node.inputs[0]) is not node or weights is None:
        return None
    if node.input(2) and bias is None:
        return None
    value = next((name for name in source.inputs if view.constant(name) is None), "")
    if not value or source.op == "BatchNormalization":
        return None
    affine = _affine(view, source, value, 1)
    if affine is None:
        return None
    window = Window.of(node, view.shape(node.inputs[0])[2:], weights.shape[2:])
    if np.any(affine.shift) and any((*window.pads_begin, *window.pads_end)):
        return None
    group = node.get("group", 1)
    shape = (weights.shape[0], weights.shape[1], *(1,) * (weights.ndim - 2))
    scale, shift = (
        np.repeat(values.reshape(group, -1), weights.shape[0] // group, axis=0).reshape(shape)
        for values in (affine.scale, affine.shift)
    )
    constants = {view.fresh(f"{node.inputs[1]}.folded"): (weights * scale).astype(weights.dtype)}
    if np.any(shift):
        total = (weights * shift).sum(axis=tuple(range(1, weights.ndim))) + (0 if bias is None else bias)
        constants[view.fresh(f"{node.input(2) or node.outputs[0] + '.bias'}.folded")] = total.astype(
            weights.dtype
        )
    inputs = (value, *constants, *node.inputs[1 + len(constants) :])
    return Patch((source, node), (node.with_(inputs=inputs),), constants)


def _normalisation_alone(view: View, node: Node) -> Patch | None:
    if node.op != "BatchNormalization":
        return None
    source, target = node.inputs[0], node.outputs[0]
    shape, dtype = view.shape(source), view.dtype(source)
    affine = _normalisation(view, node, shape[1]) if len(shape) > 1 else None
    if affine is None:
        return None
    scaled, scale, shift = (view.fresh(f"{target}.{part}") for part in ("scaled", "scale", "shift"))
    across = (-1, *(1,) * (len(shape) - 2))
    constants = {
        scale: affine.scale.astype(dtype).reshape(across),
        shift: affine.shift.astype(dtype).reshape(across),
    }
    multiply = Node("Mul", (source, scale), (scaled,), {}, node.name)
    add = Node("Add", (scaled, shift), (target,), {}, node.name)
    return Patch((node,), (multiply, add), constants)


PASS = pattern_pass("fold_batch_norm", _into_producer, _matrix_bias, _into_consumer, _normalisation_alone)
