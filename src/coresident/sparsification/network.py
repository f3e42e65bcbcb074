"""The layers of a prepared network, and their weights as matrices.

A layer's weights are one or several *problems*: matrices [rows, columns] with y = W x for each output
position. There is one for each group of a convolution and, of a transposed one, for each phase of its
stride: outputs of one phase see the same taps. Columns are taps first (row-major over the kernel), then
input channels, so that a four-block, four input channels at one tap, lies in consecutive columns.

Source: ONNX Conv-22, ConvTranspose-22, Gemm-13 and MatMul-13.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import Array
from coresident.sparsification.preparation import LAYERS, bound, prepare

__all__ = ["Layer", "Problem", "blocks", "layers", "matrices", "prepare", "problems", "weight_of"]

FEW_CHANNELS = 8
"""A layer that reads fewer input channels in a group keeps its weights: they are few, and all matter."""

SKIPPED = "skipped, as asked"
"""Why a layer is not prunable that is to stay as it is."""

SMALL = 512
"""A layer with fewer weights keeps them."""

BLOCK = 4
"""Input channels of a four-block."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights, of a prepared network.

    Args:
        name: of its node.
        op: of its node.
        weight: initializer, as the operator takes it.
        bias: initializer, one number an output channel; "" where it depends on the input.
        input: value that it reads.
        output: value that it makes, bias added: of a MatMul, what the Add behind it makes.
        groups: of a convolution, 1 for others.
        macs: multiply-adds of one call at the sizes asked for.
        prunable: whether it is to lose weights.
        why: why not.
        shape: of the weights.
        channel_axis: of the output.
        node: as it stands in the graph.
    """

    name: str
    op: str
    weight: str
    bias: str
    input: str
    output: str
    groups: int
    macs: int
    prunable: bool
    why: str
    shape: tuple[int, ...]
    channel_axis: int
    node: Node

    @property
    def channels(self) -> int:
        """Output channels."""
        if self.op == "Conv":
            return self.shape[0]
        if self.op == "ConvTranspose":
            return self.shape[1] * self.groups
        return self.shape[0] if self.is_transposed_product else self.shape[1]

    @property
    def inputs_in_group(self) -> int:
        """Input channels that one output channel reads."""
        if self.op == "Conv":
            return self.shape[1]
        if self.op == "ConvTranspose":
            return self.shape[0] // self.groups
        return self.shape[1] if self.is_transposed_product else self.shape[0]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a convolution's window, () for products."""
        return self.shape[2:] if self.op in ("Conv", "ConvTranspose") else ()

    @property
    def size(self) -> int:
        """Weights."""
        return prod(self.shape)

    @property
    def is_transposed_product(self) -> bool:
        """Whether the weights are [outputs, inputs]."""
        return self.op == "Gemm" and bool(self.node.get("transB", 0))


@dataclass(frozen=True)
class Problem:
    """One matrix of a layer.

    Args:
        group: of the convolution.
        phase: of the outputs, one number a spatial dimension; () where the convolution is not transposed.
        taps: positions in the kernel, row-major; one empty position for products.
    """

    group: int
    phase: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]


def layers(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None, skip: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """The layers of a network, in graph order.

    Args:
        graph: prepared (`prepare`).
        shapes: of the inputs; needed where the graph has free dimensions.
        skip: layers to leave alone: names of nodes or of their weights, or "re:" and a regular expression
            that such a name begins with.

    Returns:
        All layers with constant weights. Not prunable are those that are skipped, the first (that read few
        channels), the last ones on the way to each output, depthwise and narrow grouped convolutions, small
        ones, those whose weights are not float32, and those that share their weights with other nodes.

    Raises:
        InputError: something to skip that matches no layer; sizes that are missing.
        ModelError: sizes that do not fit each other.
    """
    known = bound(graph, shapes)
    readings = Counter(name for node in graph.nodes for name in node.inputs)
    readings.update(graph.outputs)
    readers = graph.consumers()
    found = []
    for node in graph.nodes:
        weights = graph.constant(node.input(1))
        if node.op not in LAYERS or weights is None or (node.op == "MatMul" and weights.ndim != 2):
            continue
        output, bias = node.outputs[0], node.input(2)
        if node.op == "MatMul":
            output, bias = _added(readers.get(output, []), output, graph, weights.shape[1])
        rank = len(known.facts[output].shape)
        layer = Layer(
            name=node.name,
            op=node.op,
            weight=node.inputs[1],
            bias=bias if _is_bias(graph, bias) else "",
            input=node.inputs[0],
            output=output,
            groups=int(node.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1,
            macs=0,
            prunable=True,
            why="",
            shape=weights.shape,
            channel_axis=rank - 1 if node.op == "MatMul" else 1,
            node=node,
        )
        made = prod(known.facts[node.input(0) if node.op == "ConvTranspose" else output].sizes)
        per_element = layer.inputs_in_group * prod(layer.kernel)
        if node.op == "ConvTranspose":
            per_element = layer.channels // layer.groups * prod(layer.kernel)
        found.append(replace(layer, macs=made * per_element))
    reasons = _reasons(graph, found, readings)
    for layer in _matching(found, skip):
        reasons[layer.name] = SKIPPED
    return tuple(
        replace(each, prunable=each.name not in reasons, why=reasons.get(each.name, "")) for each in found
    )


def _added(readers: Sequence[Node], value: str, graph: Graph, columns: int) -> tuple[str, str]:
    if len(readers) != 1 or readers[0].op != "Add":
        return value, ""
    other = next((name for name in readers[0].inputs if name != value), "")
    constant = graph.constant(other)
    return (
        (readers[0].outputs[0], other)
        if constant is not None and constant.shape == (columns,)
        else (value, "")
    )


def _is_bias(graph: Graph, name: str) -> bool:
    return graph.constant(name) is not None


def _reasons(graph: Graph, found: Sequence[Layer], readings: Mapping[str, int]) -> dict[str, str]:
    last = last_layers(graph, found)
    reasons: dict[str, str] = {}
    for layer in found:
        why = ""
        if graph.initializers[layer.weight].dtype != np.float32:
            why = f"its weights are {graph.initializers[layer.weight].dtype}"
        elif readings[layer.weight] > 1:
            why = "it shares its weights with other nodes"
        elif layer.groups > 1 and layer.inputs_in_group == 1:
            why = "depthwise"
        elif layer.inputs_in_group < FEW_CHANNELS:
            why = f"{layer.inputs_in_group} input channels" + (" a group" if layer.groups > 1 else "")
        elif layer.name in last:
            why = "the last layer before an output"
        elif layer.size < SMALL:
            why = f"{layer.size} weights"
        elif not layer.macs:
            why = "no data reaches it"
        elif not layer.bias:
            why = "its bias depends on the input"
        if why:
            reasons[layer.name] = why
    return reasons


def last_layers(graph: Graph, found: Sequence[Layer]) -> set[str]:
    """Names of the layers behind which no other layer stands."""
    # The expectation over bins of a box edge (YOLOv8's DFL) is written as a convolution; it is no layer of
    # the network's own.
    own = {
        layer.name
        for layer in found
        if not np.array_equal(graph.initializers[layer.weight].ravel(), np.arange(layer.size))
    }
    leads: set[str] = set()
    last = set(own)
    for node in reversed(graph.nodes):
        on = any(name in leads for name in node.outputs)
        if on:
            last.discard(node.name)
        if on or node.name in own:
            leads.update(filter(None, node.inputs))
    return last


def _matching(found: Sequence[Layer], skip: Sequence[str]) -> list[Layer]:
    matched = []
    for pattern in skip:
        if pattern.startswith("re:"):
            try:
                expression = re.compile(pattern[3:])
            except re.error as error:
                raise InputError(f"{pattern!r} is no regular expression: {error}") from error
            hits = [a for a in found if expression.match(a.name) or expression.match(a.weight)]
        else:
            hits = [a for a in found if pattern in (a.name, a.weight)]
        if not hits:
            names = ", ".join(layer.name for layer in found)
            raise InputError(f"no layer matches {pattern!r}, which is to be skipped; the layers are {names}")
        matched += hits
    return matched


def problems(layer: Layer) -> tuple[Problem, ...]:
    """The matrices of a layer: groups first, then phases in row-major order, those without taps left out."""
    positions = tuple(product(*(range(size) for size in layer.kernel)))
    if layer.op != "ConvTranspose":
        return tuple(Problem(group, (), positions) for group in range(layer.groups))
    rank = len(layer.kernel)
    strides = tuple(layer.node.get("strides") or (1,) * rank)
    dilations = tuple(layer.node.get("dilations") or (1,) * rank)
    phases: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for position in positions:
        phase = tuple(p * d % s for p, d, s in zip(position, dilations, strides))
        phases.setdefault(phase, []).append(position)
    return tuple(
        Problem(group, phase, tuple(phases[phase]))
        for group in range(layer.groups)
        for phase in sorted(phases)
    )


def matrices(layer: Layer, weight: Array) -> tuple[Array, ...]:
    """The weights as matrices, in the order of `problems`.

    Args:
        layer: whose they are.
        weight: as the operator takes them.

    Returns:
        float32 [rows, columns] each, C-contiguous and their own memory.
    """
    view = _by_tap(layer, np.asarray(weight))
    return tuple(
        np.array(view[p.group][:, _flat(layer, p)], np.float32, order="C").reshape(view.shape[1], -1)
        for p in problems(layer)
    )


def weight_of(layer: Layer, parts: Sequence[Array], like: Array) -> Array:
    """The weights as the operator takes them: the inverse of `matrices`.

    Args:
        layer: whose they are.
        parts: [rows, columns] each, in the order of `problems`.
        like: an array of the shape and type wanted.
    """
    result = np.zeros_like(like, order="C")
    view = _by_tap(layer, result)
    for problem, part in zip(problems(layer), parts, strict=True):
        view[problem.group][:, _flat(layer, problem)] = part.reshape(view.shape[1], -1, view.shape[3])
    return result


def blocks(layer: Layer) -> tuple[Array, ...]:
    """The four-block that each column lies in: four consecutive input channels of a group at one tap; where
    they do not divide into fours, the last block of each tap is shorter.

    Returns:
        int64 [columns] for each problem, numbered from 0 without gaps, not decreasing.
    """
    channels = layer.inputs_in_group
    of_tap = np.arange(channels) // BLOCK
    each = -(-channels // BLOCK)
    return tuple(
        (np.arange(len(problem.taps))[:, None] * each + of_tap).ravel().astype(np.int64)
        for problem in problems(layer)
    )


def _by_tap(layer: Layer, weight: Array) -> Array:
    """A view [groups, rows, taps, inputs] of contiguous weights."""
    if layer.op == "Conv":
        shape = (layer.groups, layer.channels // layer.groups, layer.inputs_in_group, prod(layer.kernel))
        return weight.reshape(shape).transpose(0, 1, 3, 2)
    if layer.op == "ConvTranspose":
        shape = (layer.groups, layer.inputs_in_group, layer.channels // layer.groups, prod(layer.kernel))
        return weight.reshape(shape).transpose(0, 2, 3, 1)
    rows = weight if layer.is_transposed_product else weight.T
    return rows[None, :, None, :]


def _flat(layer: Layer, problem: Problem) -> Array:
    """The problem's taps as numbers in the row-major kernel."""
    if not layer.kernel:
        return np.zeros(1, np.int64)
    flat: Array = np.ravel_multi_index(np.array(problem.taps).T, layer.kernel)
    return flat
