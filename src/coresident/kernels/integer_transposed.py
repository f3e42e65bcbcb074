"""Transposed convolution of bytes: a convolution for each phase of the output, then the phases take turns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.types import I32
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.windows import TransposedWindow
from coresident.kernels import integer, integer_code
from coresident.kernels.frame import Shape
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_strips import Places
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.transposed import (
    as_channels,
    interleave,
    is_pixel_shuffle,
    phase_planes,
    reach_of,
    taps_of,
)


def _window(node: Node, graph: Graph) -> TransposedWindow:
    weights = graph.fact(node.inputs[1])
    assert weights is not None
    return TransposedWindow.of(node, graph.facts[node.inputs[0]].sizes[2:], weights.sizes[2:])


def _sizes(node: Node, graph: Graph) -> tuple[int, ...]:
    """Of a phase's output."""
    spatial = graph.facts[node.outputs[0]].sizes[2:]
    return tuple(-(-o // s) for o, s in zip(spatial, _window(node, graph).strides))


def halo(node: Node, graph: Graph) -> tuple[tuple[int, int], ...]:
    """What a transposed convolution reads around its input."""
    x_spatial = graph.facts[node.inputs[0]].sizes[2:]
    return reach_of(_window(node, graph), _sizes(node, graph), x_spatial)


@lowers("ConvTransposeInteger", halo=halo, fill=integer.zero_point)
def transposed(node: Node, plan: Plan) -> None:
    """ConvTransposeInteger, which is to ConvTranspose (ONNX 22) what ConvInteger is to Conv."""
    out = plan.tensor(node.outputs[0])
    if 0 in out.shape:
        return
    weights, bias = _constants(node, plan)
    epilogue = IntegerEpilogue.of(node, plan, 5, integer.most(weights, bias))
    if epilogue.tensors:
        raise UnsupportedModel("a transposed convolution can't add a tensor as it stores")
    groups, per_group, inputs = weights.shape[:3]
    graph = plan.graph
    w, sizes, point = _window(node, graph), _sizes(node, graph), integer.zero_point(node, graph)
    source = plan.planar(node.inputs[0], halo(node, graph), point)
    phases = list(itertools.product(*map(range, w.strides)))
    planes = phase_planes(plan, source, (out.shape[0], out.shape[1], len(phases), *sizes), out.dtype)
    lanes = plan.target.lanes(I32)
    spatial, rank = out.shape[2:], len(sizes)

    def emit(
        positions: tuple[tuple[int, ...], ...],
        part: np.ndarray[Any, Any],
        start: np.ndarray[Any, Any],
        target: Tensor,
        tail: IntegerEpilogue,
        last: bool,
    ) -> None:
        shape = Shape(out.shape[0], groups, inputs, part.shape[1], part.shape[-1], math.prod(sizes))
        places = Places(positions, (1,) * rank, source.layout, target.layout, (), lanes)
        sums = part.reshape(-1, inputs * part.shape[-1]).sum(axis=1, dtype=np.int64)
        info = integer.describe(node, shape, part, out, epilogue)
        choice = integer.choose(plan, shape, part, places)
        corrected = integer.corrected(start, sums, point, source.dtype, Dot.of(plan.target))
        integer_code.emit(plan, source, shape, choice, part, corrected, target, tail, info, barrier=last)

    if is_pixel_shuffle(w, spatial, source.shape[2:]):
        # All phases read the same pixel: they are channels of one convolution.
        repeated = replace(epilogue, channels=tuple(np.repeat(c, len(phases)) for c in epilogue.channels))
        view = planes.layout
        shape = (out.shape[0], out.shape[1] * len(phases), *sizes)
        layout = replace(
            view, shape=shape, strides=(view.strides[0], *view.strides[2:]), halo=((0, 0),) * (2 + rank)
        )
        rows = as_channels(weights)
        emit(
            ((0,) * rank,), rows, np.repeat(bias, len(phases)), replace(planes, layout=layout), repeated, True
        )
        interleave(plan, planes, out, w.strides, phases)
        return
    for index, phase in enumerate(phases):
        found = list(itertools.product(*(taps_of(w, d, p) for d, p in enumerate(phase))))
        picked = [weights[(slice(None),) * 3 + tuple(k for k, _ in position)] for position in found]
        part = np.stack(picked, axis=-1) if picked else np.zeros((groups, per_group, inputs, 1), np.int16)
        positions = tuple(tuple(t for _, t in position) for position in found) or ((0,) * rank,)
        view = planes.layout
        layout = Layout(
            (*out.shape[:2], *sizes),
            (*view.strides[:2], *view.strides[3:]),
            view.origin + index * view.strides[2],
            view.extent,
            ((0, 0),) * (2 + rank),
            view.slack,
        )
        emit(positions, part, bias, replace(planes, layout=layout), epilogue, index == len(phases) - 1)
    interleave(plan, planes, out, w.strides, phases)


def _constants(node: Node, plan: Plan) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights less their zero points, [groups, outputs, inputs, kernel...] int16, and the bias."""
    names = [node.inputs[1], node.input(3), node.input(4)]
    weights, point, bias = (plan.graph.constant(name) if name else None for name in names)
    if weights is None or any(name and plan.graph.constant(name) is None for name in names):
        raise UnsupportedModel("weights, their zero points and bias must be constant")
    groups, outputs = node.get("group", 1), weights.shape[1]
    split = weights.astype(np.int16).reshape(groups, -1, outputs, *weights.shape[2:]).swapaxes(1, 2)
    if point is not None:
        shape = (groups, outputs) if point.size > 1 else (1, 1)
        split = split - point.astype(np.int16).reshape(*shape, *(1,) * (split.ndim - 2))
    total = groups * outputs
    return split, np.zeros(total, np.int32) if bias is None else bias.astype(np.int32)
