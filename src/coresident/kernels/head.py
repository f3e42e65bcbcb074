"""A 1x1 convolution with few outputs behind another convolution, summed while the other's results are in
registers: these are then stored nowhere. Networks that label pixels end so, on their largest planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Value
from coresident.codegen.types import F32
from coresident.graph.graph import Node
from coresident.kernels import geometry
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Sums
from coresident.kernels.lowering import Plan

MOST_OUTPUTS = 4
"""Of a head: its sums pass through L1 with each channel that is finished."""


@dataclass(frozen=True)
class Head:
    """The 1x1 convolution, and what it is behind.

    Args:
        before: the convolution whose results it reads.
        node: itself.
        weights: [outputs, channels] float32.
        bias: [outputs] float32.
        inner: what becomes of the other convolution's sums; of numbers alone.
    """

    before: Node
    node: Node
    weights: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    inner: Epilogue

    @staticmethod
    def behind(node: Node, plan: Plan) -> Head | None:
        """The head behind a convolution, if it has one that may be summed so."""
        head, graph = plan.reader(node.outputs[0]), plan.graph
        if head is None or head.op != "Conv" or head.inputs[0] != node.outputs[0]:
            return None
        constants = [graph.constant(name) for name in head.inputs[1:] if name]
        numbers = [graph.constant(name) for name in node.inputs[3:]]
        weights = graph.constant(head.inputs[1])
        if weights is None or any(array is None for array in constants):
            return None
        if weights.dtype != np.float32 or not 0 < len(weights) <= MOST_OUTPUTS or head.get("group", 1) > 1:
            return None
        before, after = (graph.facts[each.outputs[0]].sizes[2:] for each in (node, head))
        if any(k > 1 for k in weights.shape[2:]) or before != after:
            return None
        if any(geometry.window(head, graph).pads_begin):
            return None
        if any(array is None or array.size != 1 for array in numbers):
            return None
        bias = graph.constant(head.inputs[2]) if head.input(2) else None
        outputs = np.zeros(len(weights), np.float32) if bias is None else bias
        return Head(node, head, weights.reshape(len(weights), -1), outputs, Epilogue.of(node, plan, 3))


@dataclass(frozen=True)
class HeadSums(Sums):
    """Sums that a head adds up instead of storing them.

    Args:
        head: adds them.
        weights: address of its weights.
        added: of what it has added so far, output after output.
    """

    head: Head
    weights: Value
    added: Value

    def _prefetch(self, near: bool) -> None:
        """Nothing is written."""

    def store(self, totals: Sequence[Sequence[Value]]) -> None:
        f, vector, vectors = self.frame.function, self.frame.vector, self.here.vectors
        outputs, channels = self.head.weights.shape
        for channel, row in zip(self.channels, totals):
            finished = [self.head.inner.apply(f, total, (), ()) for total in row]
            for output in range(outputs):
                weight = f.splat(f.load(F32, self.weights, channel + output * channels), vector)
                for v, value in enumerate(finished):
                    place = (output * vectors + v) * vector.lanes
                    f.store(f.fma(value, weight, f.load(vector, self.added, place)), self.added, place)
