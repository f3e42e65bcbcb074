"""Convolution of bytes: exact sums of products, and what follows them, in one pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.types import I32
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.kernels import (
    cost,
    integer_choice,
    integer_code,
    integer_depthwise,
    integer_panel,
    integer_panel_code,
    integer_stream,
)
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import halo, is_depthwise, read_by_plane, window
from coresident.kernels.integer_cost import QUAD
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_frame import NO_COLUMNS, Columns
from coresident.kernels.integer_strips import Places
from coresident.kernels.lowering import Plan, Tensor, lowers

STREAM_MARGIN, DIRECT_MARGIN = 1.3, 1.08
"""Measured over modelled cycles of a stream of entries, relative to those of panels: of Zen 3 and sums in 16
bits, and of Zen 4 and vpdpbusd."""

SHORT_PLANE, WIDER = 6 * 64, 4
"""Bytes of a plane below which, and output channels for each input channel from which on, threads get
channels of their own. In minutes in which lines take longer from core to core, expanding layers at 14 x 14
take 32 to 35 us so on two threads, not 55 to 59 (40 on one), and ResNet-50 1.05 to 1.07 times less; in others
all take as long."""


def zero_point(node: Node, graph: Graph) -> int:
    """Of the input, which padding stands for.

    Raises:
        UnsupportedModel: it is computed in the network.
    """
    if not node.input(2):
        return 0
    point = graph.constant(node.input(2))
    if point is None:
        raise UnsupportedModel("the input's zero point must be constant; this one is computed by the network")
    return int(point.reshape(()))


def constant_weights(
    node: Node, plan: Plan, channel_axis: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights less their zero points, int16, and the bias, int32, zeros if there is none.

    Args:
        channel_axis: of the weights, along which zero points lie.

    Raises:
        UnsupportedModel: they are computed in the network.
    """
    names = [node.inputs[1], node.input(3), node.input(4)]
    weights, point, bias = (plan.graph.constant(name) if name else None for name in names)
    if weights is None or any(name and plan.graph.constant(name) is None for name in names):
        raise UnsupportedModel("weights, their zero points and bias must be constant")
    whole = weights.astype(np.int16)
    if point is not None:
        shape = [1] * weights.ndim
        if point.size > 1:
            shape[channel_axis] = point.size
        whole = whole - point.astype(np.int16).reshape(shape)
    outputs = plan.graph.facts[node.outputs[0]].sizes[1]
    return whole, np.zeros(outputs, np.int32) if bias is None else bias.astype(np.int32)


def corrected(
    bias: np.ndarray[Any, Any], sums: np.ndarray[Any, Any], point: int, dtype: np.dtype[Any], dot: Dot
) -> np.ndarray[Any, Any]:
    """The bias less what the input's zero point adds to the sums.

    Args:
        sums: [outputs] of the weights of each output channel.
        dtype: of the input, whose bytes may be packed with their sign changed.
    """
    moved = point + (128 if dtype == np.int8 else 0) - (128 if dot.signed else 0)
    return (bias.astype(np.int64) - moved * sums.astype(np.int64)).astype(np.int32)


def most(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> float:
    """That the magnitude of a sum can be.

    Args:
        weights: [outputs, ...], less their zero points.
        bias: [outputs].
    """
    size = np.abs(weights).reshape(len(bias), -1).sum(axis=1, dtype=np.int64)
    # It wraps beyond 32 bits, as ONNX has it.
    return float(min((255 * size + np.abs(bias.astype(np.int64))).max(initial=0), 1 << 31))


@lowers("ConvInteger", halo=halo, fill=zero_point, flat=True)
def convolution(node: Node, plan: Plan) -> None:
    """ConvInteger (ONNX 10), with bias and the epilogue that fusion attached."""
    weights, bias = constant_weights(node, plan)
    groups = node.get("group", 1)
    outputs, inputs = weights.shape[:2]
    out = plan.tensor(node.outputs[0])
    if 0 in out.shape:
        return
    point = zero_point(node, plan.graph)
    source = plan.planar(node.inputs[0], halo(node, plan.graph), point)
    epilogue = IntegerEpilogue.of(node, plan, 5, most(weights, bias))
    taps = math.prod(weights.shape[2:])
    shape = Shape(out.shape[0], groups, inputs, outputs // groups, taps, math.prod(out.shape[2:]))
    dot = Dot.of(plan.target)
    split = weights.reshape(groups, outputs // groups, inputs, taps)
    info = describe(node, shape, weights, out, epilogue)
    places = Places.of(
        window(node, plan.graph),
        source.layout,
        out.layout,
        tuple(t.layout for t in epilogue.tensors),
        plan.target.lanes(I32),
    )
    start = corrected(
        bias, weights.sum(axis=tuple(range(1, weights.ndim)), dtype=np.int64), point, source.dtype, dot
    )
    if is_depthwise(node, plan.graph):
        start = (bias - point * weights.reshape(outputs, taps).sum(axis=1, dtype=np.int64)).astype(np.int32)
        flat = weights.reshape(outputs, taps)
        integer_depthwise.emit(node, plan, source, flat, start, out, epilogue, info)
        return
    shape, split, places, columns = _fold_columns(shape, split, places)
    by_plane = read_by_plane(plan, out) or _meets_in_lines(shape, out)
    choice = integer_choice.choose(plan, shape, split, places, by_plane=by_plane)
    panels = integer_panel.choose(plan, shape, split, places)
    margin = DIRECT_MARGIN if cost.adds_at_once(plan.target, choice.dot) else STREAM_MARGIN
    if panels is not None and panels.cycles < margin * choice.cycles:
        integer_panel_code.emit(
            plan, source, shape, panels, split, start, out, epilogue, info, columns=columns
        )
        return
    integer_code.emit(plan, source, shape, choice, split, start, out, epilogue, info, columns=columns)


def _meets_in_lines(shape: Shape, out: Tensor) -> bool:
    """Whether threads should make channels of their own rather than pixels: of planes of few lines they would
    write to the same ones, and there is little to read for each of them."""
    plane = out.layout.strides[1] * out.dtype.itemsize
    return plane < SHORT_PLANE and shape.outputs >= WIDER * shape.inputs


def _fold_columns(
    shape: Shape, weights: np.ndarray[Any, Any], places: Places
) -> tuple[Shape, np.ndarray[Any, Any], Places, Columns]:
    """The columns of a kernel as input channels, where elements are fewer then: 3 channels and 7 columns fill
    6 elements rather than 7 that each lack a channel.

    Args:
        weights: [groups, outputs, inputs, taps].
    """
    same = shape, weights, places, NO_COLUMNS
    lines = list(dict.fromkeys(position[:-1] for position in places.positions))
    count = len(places.positions) // len(lines)
    firsts = [places.positions[i][-1] for i in range(count)]
    apart = firsts[1] - firsts[0] if count > 1 else 0
    wanted = [(*line, firsts[0] + i * apart) for line in lines for i in range(count)]
    if shape.inputs % QUAD == 0 or count == 1 or list(places.positions) != wanted:
        return same
    groups, outputs, inputs, taps = weights.shape
    folded = weights.reshape(groups, outputs, inputs, taps // count, count).swapaxes(3, 4)
    folded = np.ascontiguousarray(folded).reshape(groups, outputs, inputs * count, taps // count)
    before, after = (
        np.count_nonzero(integer_stream.elements(w[0], QUAD).any(axis=2)) for w in (weights, folded)
    )
    if after >= before:
        return same
    columns = Columns(count, apart * places.source.strides[-1])
    positions = tuple((*line, firsts[0]) for line in lines)
    narrow = replace(shape, inputs=inputs * count, taps=taps // count)
    return narrow, folded, replace(places, positions=positions), columns


def describe(
    node: Node, shape: Shape, weights: np.ndarray[Any, Any], out: Tensor, epilogue: IntegerEpilogue
) -> dict[str, Any]:
    """What `analyze` shows of an integer convolution, whichever kernel computes it."""
    nonzeros = int(np.count_nonzero(weights))
    return {
        "op": node.op,
        "shape": list(out.shape),
        "kernel_shape": list(weights.shape),
        "epilogue": epilogue.name,
        "macs": shape.macs,
        "nonzero_macs": shape.batch * shape.pixels * nonzeros,
        "sparsity": 1 - nonzeros / max(1, weights.size),
        "why": [],
    }
