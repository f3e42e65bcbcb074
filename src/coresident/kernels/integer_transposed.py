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
from coresident.kernels import cost, integer, integer_choice, integer_code
from coresident.kernels.frame import Shape
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_strips import Places
from coresident.kernels.integer_tiles import Choice
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
class _Transposed:
    """A transposed convolution while it is lowered.

    Args:
        source: the input, with what all phases read around it.
        point: its zero point.
        window, sizes: of the convolution, and of a phase's output.
        weights: [groups, outputs, inputs, kernel...] int16, less their zero points.
        bias: [groups * outputs] int32.
        out, planes: the output, and its phases [N][C][phases][spatial...] by themselves.
    """

    node: Node
    plan: Plan
    source: Tensor
    point: int
    window: TransposedWindow
    sizes: tuple[int, ...]
    weights: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    epilogue: IntegerEpilogue
    out: Tensor
    planes: Tensor

    @property
    def phases(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*map(range, self.window.strides)))

    def lower(self) -> None:
        """Add its steps."""
        if is_pixel_shuffle(self.window, self.out.shape[2:], self.source.shape[2:]):
            if self._emit_shuffle():
                return
        else:
            self._emit_phases()
        interleave(self.plan, self.planes, self.out, self.window.strides, self.phases)

    def _emit_shuffle(self) -> bool:
        """All phases, which read the same pixel, as channels of one convolution.

        Returns:
            Whether they are in the output, since they take turns as they are stored, rather than in `planes`.
            Tiles then end with rows, which may be slower than to put the phases together after.
        """
        rows, origin = as_channels(self.weights), ((0,) * len(self.sizes),)
        out, count, view = self.out, len(self.phases), self.planes.layout
        layout = Layout(
            (out.shape[0], out.shape[1] * count, *self.sizes),
            (view.strides[0], *view.strides[2:]),
            view.origin,
            view.extent,
            ((0, 0),) * (2 + len(self.sizes)),
            view.slack,
        )
        apart, together = replace(self.planes, layout=layout), coarse(out, self.window)
        choice = self._choose(rows, apart, origin)
        in_turns = self._choose(rows, together, origin, merged=True)
        machine = cost.Machine.of(self.plan.target)
        copying = cost.copy(machine, out.layout.elements * out.dtype.itemsize)
        repeated = np.repeat(self.bias, count)
        if in_turns.cycles < choice.cycles + copying:
            merged = tuple(zip(self.window.strides[:-1], out.layout.strides[2:-1]))
            self._emit(rows, repeated, together, in_turns, self.epilogue, merged=merged)
            return True
        channels = tuple(np.repeat(c, count) for c in self.epilogue.channels)
        self._emit(rows, repeated, apart, choice, replace(self.epilogue, channels=channels))
        return False

    def _emit_phases(self) -> None:
        """A convolution for each phase, with the taps that reach it."""
        for index, phase in enumerate(self.phases):
            part, positions = phase_weights(self.weights, self.window, phase)
            target = phase_view(self.planes, index)
            choice = self._choose(part, target, positions)
            last = index == len(self.phases) - 1
            self._emit(part, self.bias, target, choice, self.epilogue, barrier=last)

    def _shape(self, weights: np.ndarray[Any, Any]) -> Shape:
        groups, outputs, inputs, taps = weights.shape
        return Shape(self.source.shape[0], groups, inputs, outputs, taps, math.prod(self.sizes))

    def _choose(
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
        return integer_choice.choose(self.plan, self._shape(weights), weights, places, merged)

    def _emit(
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
        shape = self._shape(weights)
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
    window, sizes, point = _window(node, graph), _sizes(node, graph), integer.zero_point(node, graph)
    source = plan.planar(node.inputs[0], halo(node, graph), point)
    planes = phase_planes(plan, source, (*out.shape[:2], math.prod(window.strides), *sizes), out.dtype)
    _Transposed(node, plan, source, point, window, sizes, weights, bias, epilogue, out, planes).lower()


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
