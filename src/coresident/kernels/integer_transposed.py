"""Transposed convolution of bytes: a convolution for each phase of the output, then the phases take turns."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.types import I32
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.windows import TransposedWindow
from coresident.kernels import cost, integer, integer_code
from coresident.kernels.frame import Shape
from coresident.kernels.integer_code import Choice
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_strips import Places
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.transposed import (
    as_channels,
    coarse,
    interleave,
    is_pixel_shuffle,
    phase_planes,
    phase_view,
    phase_weights,
    reach_of,
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


@dataclass(frozen=True)
class _Products:
    """The products of a transposed convolution, of one phase or of all.

    Args:
        source: the input, with what all phases read around it.
        point: its zero point.
        sizes: of a phase's output.
        out: what all phases make.
    """

    node: Node
    plan: Plan
    source: Tensor
    point: int
    out: Tensor
    sizes: tuple[int, ...]

    def shape(self, weights: np.ndarray[Any, Any]) -> Shape:
        groups, outputs, inputs, taps = weights.shape
        return Shape(self.source.shape[0], groups, inputs, outputs, taps, math.prod(self.sizes))

    def choose(
        self,
        weights: np.ndarray[Any, Any],
        target: Tensor,
        positions: tuple[tuple[int, ...], ...],
        merged: bool = False,
    ) -> Choice:
        """The cut that should be fastest.

        Args:
            weights: [groups, outputs, inputs, taps].
            positions: of the taps.
            merged: whether outputs are phases that take turns in pairs.
        """
        lanes = self.plan.target.lanes(I32)
        places = Places(positions, (1,) * len(self.sizes), self.source.layout, target.layout, (), lanes)
        return integer.choose(self.plan, self.shape(weights), weights, places, merged)

    def emit(
        self,
        weights: np.ndarray[Any, Any],
        bias: np.ndarray[Any, Any],
        target: Tensor,
        choice: Choice,
        epilogue: IntegerEpilogue,
        barrier: bool = True,
        merged: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        """Add the step that stores into `target`.

        Args:
            epilogue: with the numbers of `target`'s channels, or where phases are merged, of the output's.
        """
        sums = weights.sum(axis=(2, 3), dtype=np.int64).reshape(-1)
        dot = Dot.of(self.plan.target)
        start = integer.corrected(bias, sums, self.point, self.source.dtype, dot)
        shape = self.shape(weights)
        info = integer.describe(self.node, shape, weights, self.out, epilogue)
        integer_code.emit(
            self.plan, self.source, shape, choice, weights, start, target, epilogue, info, barrier, merged
        )


@lowers("ConvTransposeInteger", halo=halo, fill=integer.zero_point)
def transposed(node: Node, plan: Plan) -> None:
    """ConvTransposeInteger, which is to ConvTranspose (ONNX 22) what ConvInteger is to Conv."""
    out, graph = plan.tensor(node.outputs[0]), plan.graph
    if 0 in out.shape:
        return
    weights, bias = _constants(node, plan)
    epilogue = IntegerEpilogue.of(node, plan, 5, integer.most(weights, bias))
    if epilogue.tensors:
        raise UnsupportedModel("a transposed convolution can't add a tensor as it stores")
    w, point = _window(node, graph), integer.zero_point(node, graph)
    source = plan.planar(node.inputs[0], halo(node, graph), point)
    products = _Products(node, plan, source, point, out, _sizes(node, graph))
    phases = list(itertools.product(*map(range, w.strides)))
    planes = phase_planes(plan, source, (*out.shape[:2], len(phases), *products.sizes), out.dtype)
    if is_pixel_shuffle(w, out.shape[2:], source.shape[2:]):
        if _emit_shuffle(products, weights, bias, planes, w, epilogue):
            return
    else:
        _emit_phases(products, weights, bias, planes, w, epilogue)
    interleave(plan, planes, out, w.strides, phases)


def _emit_shuffle(
    products: _Products,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    planes: Tensor,
    w: TransposedWindow,
    epilogue: IntegerEpilogue,
) -> bool:
    """All phases, which read the same pixel, as channels of one convolution.

    Returns:
        Whether they are in the output, since they take turns as they are stored, rather than in `planes`.
        Tiles then end with rows, which may be slower than to put the phases together after.
    """
    rows, origin = as_channels(weights), ((0,) * len(products.sizes),)
    out, count, view = products.out, math.prod(w.strides), planes.layout
    layout = Layout(
        (out.shape[0], out.shape[1] * count, *products.sizes),
        (view.strides[0], *view.strides[2:]),
        view.origin,
        view.extent,
        ((0, 0),) * (2 + len(products.sizes)),
        view.slack,
    )
    apart, together = replace(planes, layout=layout), coarse(out, w)
    choice = products.choose(rows, apart, origin)
    in_turns = products.choose(rows, together, origin, merged=True)
    copying = cost.copy(cost.Machine.of(products.plan.target), out.layout.elements * out.dtype.itemsize)
    repeated = np.repeat(bias, count)
    if in_turns.cycles < choice.cycles + copying:
        merged = tuple(zip(w.strides[:-1], out.layout.strides[2:-1]))
        products.emit(rows, repeated, together, in_turns, epilogue, merged=merged)
        return True
    of_phases = replace(epilogue, channels=tuple(np.repeat(c, count) for c in epilogue.channels))
    products.emit(rows, repeated, apart, choice, of_phases)
    return False


def _emit_phases(
    products: _Products,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    planes: Tensor,
    w: TransposedWindow,
    epilogue: IntegerEpilogue,
) -> None:
    """A convolution for each phase, with the taps that reach it."""
    phases = list(itertools.product(*map(range, w.strides)))
    for index, phase in enumerate(phases):
        part, positions = phase_weights(weights, w, phase)
        target = phase_view(planes, index)
        choice = products.choose(part, target, positions)
        products.emit(part, bias, target, choice, epilogue, barrier=index == len(phases) - 1)


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
