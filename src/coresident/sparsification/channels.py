"""Which axes of a network's constants must be reordered together, so that it computes the same.

The channels of a value (its axis 1) are one or several *segments*: what one layer makes, one after the other
where values were joined. Segments that meet in a sum, say, are one, as are those that nothing but
element-wise operators, pools and the like lie between. A segment is free where all that reads it or makes it
is known here: of free segments any order of channels will do, if rows of weights that make them, columns that
read them, and constants that are applied to them are all brought to it.

Not free are inputs and outputs, and whatever meets an operator that is not known here: a Split, say, a
grouped convolution, or a Reshape that mixes channels with positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import FROM_SHAPES, Array

_POOLS = frozenset(("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"))
_NORMS = {"BatchNormalization": (1, 2, 3, 4), "InstanceNormalization": (1, 2)}
"""Operators that keep channels, and the positions of their constants for each."""
_REDUCTIONS = frozenset(f"Reduce{name}" for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare"))
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True)
class Axis:
    """An axis of a constant that channels lie along.

    Args:
        constant: initializer.
        axis: of it.
        segments: along it, one after the other.
    """

    constant: str
    axis: int
    segments: tuple[int, ...]


@dataclass(frozen=True)
class Channels:
    """Segments of channels.

    Args:
        sizes: channels of each segment.
        free: segments whose channels may be reordered.
        axes: of constants, all that must follow.
    """

    sizes: tuple[int, ...]
    free: frozenset[int]
    axes: tuple[Axis, ...]

    def reordered(self, graph: Graph, orders: Mapping[int, Array]) -> Graph:
        """The network with channels in another order; computes what it computed, but for rounding.

        Args:
            orders: of free segments: the channel, of those before, that each now is. int [channels].
        """
        constants = dict(graph.initializers)
        for axis in self.axes:
            if orders.keys().isdisjoint(axis.segments):
                continue
            first, places = 0, []
            for segment in axis.segments:
                size = self.sizes[segment]
                places.append(first + orders.get(segment, np.arange(size)))
                first += size
            taken = np.take(constants[axis.constant], np.concatenate(places), axis.axis)
            constants[axis.constant] = np.ascontiguousarray(taken)
        return graph.with_(initializers=constants)


def channels(graph: Graph, fixed: Iterable[str] = ()) -> Channels:
    """The channels of a network.

    Args:
        graph: prepared, with facts for all its values (`preparation.bound`).
        fixed: names of nodes whose constants are not to change.
    """
    flow = _Flow(graph, frozenset(fixed))
    for node in graph.nodes:
        flow.add(node)
    return flow.channels()


Segments = tuple[int, ...]


class _Flow:
    """Follows channels through a network, in the order of its nodes."""

    def __init__(self, graph: Graph, fixed: frozenset[str]) -> None:
        self._graph, self._fixed = graph, fixed
        self._readings = Counter(name for node in graph.nodes for name in node.inputs)
        self._readings.update(graph.outputs)
        self._of: dict[str, Segments] = {}
        self._sizes: list[int] = []
        self._same: list[int] = []
        self._held: set[int] = set()
        self._axes: list[Axis] = []

    def channels(self) -> Channels:
        for name in self._graph.outputs:
            self._hold(name)
        roots = [self._root(segment) for segment in range(len(self._sizes))]
        held = {roots[segment] for segment in self._held}
        axes = [Axis(a.constant, a.axis, tuple(roots[s] for s in a.segments)) for a in self._axes]
        return Channels(tuple(self._sizes), frozenset(roots) - held, tuple(axes))

    def add(self, node: Node) -> None:
        if node.op in FROM_SHAPES:
            return
        made = None if node.name in self._fixed else self._made(node)
        if made is None:
            for name in node.inputs:
                self._hold(name)
            return
        self._of[node.outputs[0]] = made

    def _made(self, node: Node) -> Segments | None:
        """The segments of what a node makes; None where its channels are to stay."""
        if not node.input(0) or not node.outputs[0] or any(node.outputs[1:]):
            return None
        if len(self._shape(node.outputs[0])) < 2:
            return None
        if node.op in ("Conv", "ConvTranspose"):
            return self._convolution(node)
        if node.op in ("Gemm", "MatMul"):
            return self._product(node)
        if node.op == "Concat":
            return self._concat(node)
        if node.op in ELEMENTWISE:
            return self._elementwise(node)
        if node.op in _NORMS:
            own = self._segments(node.inputs[0])
            return own if self._tied([(node.input(i), 0, own) for i in _NORMS[node.op]]) else None
        return self._segments(node.inputs[0]) if self._keeps(node) else None

    def _keeps(self, node: Node) -> bool:
        """Whether channels come out of a node as they go in."""
        before, after = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        if len(before) < 2 or before[1] != after[1]:
            return False
        if node.op in _POOLS:
            return True
        if node.op == "Resize":
            return len(node.inputs) < 2 or not node.input(1)
        if node.op == "Pad":
            widths = self._graph.constant(node.input(1))
            rank = len(before)
            return (
                not node.input(3)
                and widths is not None
                and len(widths) == 2 * rank
                and not widths[1]
                and not widths[rank + 1]
            )
        if node.op in _REDUCTIONS:
            # Of what a reduction over channels leaves none is left, or one.
            axes = self._graph.constant(node.input(1))
            given = node.get("axes") if axes is None else axes.ravel().tolist()
            return bool(given) and all(axis % len(before) >= 2 for axis in given)
        if node.op in _RESHAPES:
            return before[:2] == after[:2]
        return False

    def _convolution(self, node: Node) -> Segments | None:
        weights = self._graph.constant(node.inputs[1])
        if weights is None or self._graph.constant(node.inputs[0]) is not None:
            return None
        read, groups = self._segments(node.inputs[0]), int(node.get("group", 1))
        if groups == 1:
            reads, makes = (1, 0) if node.op == "Conv" else (0, 1)
            made: Segments = (self._segment(weights.shape[makes]),)
            ties = [(node.inputs[1], reads, read), (node.inputs[1], makes, made)]
        elif groups == weights.shape[0] == sum(self._sizes[s] for s in read) and weights.shape[1] == 1:
            made, ties = read, [(node.inputs[1], 0, read)]
        else:
            return None
        return made if self._tied([*ties, (node.input(2), 0, made)]) else None

    def _product(self, node: Node) -> Segments | None:
        weights = self._graph.constant(node.inputs[1])
        plain = len(self._shape(node.inputs[0])) == 2 and not node.get("transA", 0)
        if (
            weights is None
            or weights.ndim != 2
            or not plain
            or self._graph.constant(node.inputs[0]) is not None
        ):
            return None
        reads, makes = (1, 0) if node.get("transB", 0) else (0, 1)
        made = (self._segment(weights.shape[makes]),)
        ties = [
            (node.inputs[1], reads, self._segments(node.inputs[0])),
            (node.inputs[1], makes, made),
        ]
        bias = self._graph.constant(node.input(2))
        if node.input(2) and (bias is None or bias.shape != weights.shape[makes : makes + 1]):
            return None
        return made if self._tied([*ties, (node.input(2), 0, made)]) else None

    def _concat(self, node: Node) -> Segments | None:
        rank = len(self._shape(node.outputs[0]))
        if any(self._graph.constant(name) is not None for name in node.inputs):
            return None
        parts = [self._segments(name) for name in node.inputs]
        if int(node.get("axis", 0)) % rank == 1:
            return tuple(segment for part in parts for segment in part)
        return self._met(parts)

    def _elementwise(self, node: Node) -> Segments | None:
        shape = self._shape(node.outputs[0])
        rank, count = len(shape), shape[1]
        parts: list[Segments] = []
        ties: list[tuple[str, int]] = []
        for name in filter(None, node.inputs):
            own = self._shape(name)
            axis = len(own) - rank + 1
            if axis < 0 or own[axis] == 1 != count:
                continue
            if self._graph.constant(name) is not None:
                ties.append((name, axis))
            elif axis == 1:
                parts.append(self._segments(name))
            else:
                return None
        met = self._met(parts) if parts else None
        if met is None:
            return None
        return met if self._tied([(name, axis, met) for name, axis in ties]) else None

    def _met(self, parts: Sequence[Segments]) -> Segments | None:
        """Segments that lie upon each other made the same; None where they begin and end elsewhere."""
        sizes = {tuple(self._sizes[segment] for segment in part) for part in parts}
        if len(sizes) != 1:
            return None
        for part in parts[1:]:
            for one, other in zip(parts[0], part):
                self._same[self._root(other)] = self._root(one)
        return parts[0]

    def _tied(self, ties: Sequence[tuple[str, int, Segments]]) -> bool:
        """Note that axes of constants follow segments; False where one can't."""
        named = [tie for tie in ties if tie[0]]
        for name, axis, segments in named:
            constant = self._graph.constant(name)
            if constant is None or self._readings[name] != 1 or axis >= constant.ndim:
                return False
            if constant.shape[axis] != sum(self._sizes[segment] for segment in segments):
                return False
        self._axes += [Axis(*tie) for tie in named]
        return True

    def _segments(self, name: str) -> Segments:
        """Of a value that nothing is known of, one that is not free."""
        if name not in self._of:
            self._of[name] = (self._segment(self._shape(name)[1]),)
            self._held.update(self._of[name])
        return self._of[name]

    def _segment(self, size: int) -> int:
        self._sizes.append(size)
        self._same.append(len(self._same))
        return len(self._same) - 1

    def _hold(self, name: str) -> None:
        self._held.update(self._of.get(name, ()))

    def _root(self, segment: int) -> int:
        while self._same[segment] != segment:
            segment = self._same[segment]
        return segment

    def _shape(self, name: str) -> tuple[int, ...]:
        constant = self._graph.constant(name)
        return constant.shape if constant is not None else self._graph.facts[name].sizes
