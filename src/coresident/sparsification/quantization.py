"""Networks in eight bits: QuantizeLinear and DequantizeLinear put around the operators of a float network.

Activations are uint8 with one scale and zero point, weights int8 with a scale for each output channel and no
zero point, so that zeros stay zeros; biases are int32 with the product of both scales. Every engine that
reads ONNX makes the same of it; which values are quantised is said in `placement`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import Array
from coresident.sparsification.placement import channels, place
from coresident.sparsification.ranges import LEAST, Range

WeightBits = Literal[7, 8]

GREATEST: Mapping[int, int] = {8: 127, 7: 64}
"""Bits of a weight -> its greatest magnitude. Two products of a byte and 7 bits fit 16 bits together."""

WEIGHT_CANDIDATES = 25
"""Scales that are tried for the weights of a channel."""

ALIKE = 2.0
"""A value is given the parameters of the Concat that it goes into if their scales differ by this at most."""

MOST_BIAS = 1 << 30
"""Magnitude of an int32 bias: sums are added to it."""


def quantize(
    graph: Graph,
    ranges: Mapping[str, Range],
    *,
    skip: Collection[str] = (),
    weight_bits: WeightBits = 8,
) -> Graph:
    """The network with its layers and what lies between them in eight bits.

    Args:
        graph: prepared (`network.prepare`).
        ranges: of its values (`ranges.ranges`).
        skip: names of nodes that stay in floats.
        weight_bits: 7 for CPUs without dot products of bytes: engines that add products of bytes in pairs of
            16 bits are exact then.

    Returns:
        A graph of plain ONNX operators. Float values keep their names; the bytes of a
        value are "<value>.quantized".

    Raises:
        InputError: a range is missing.
    """
    placement = place(graph, skip)
    if missing := [name for name in placement.values if placement.sources[name] not in ranges]:
        raise InputError(f"no range of the value {missing[0]!r}, and {len(missing) - 1} others")
    chosen = {name: ranges[placement.sources[name]] for name in placement.values}
    # Last first: what joins a part that has joined a later whole takes the parameters of that.
    for part, whole in reversed(placement.joined):
        if float(chosen[whole].scale) <= ALIKE * float(chosen[part].scale):
            group = [name for name in chosen if placement.sources[name] == placement.sources[part]]
            chosen |= dict.fromkeys(group, chosen[whole])
    return _Writer(graph, chosen, frozenset(placement.layers), GREATEST[weight_bits]).written()


@dataclass
class _Writer:
    graph: Graph
    chosen: Mapping[str, Range]
    layers: frozenset[str]
    greatest: int
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    weights: dict[tuple[str, bytes], tuple[str, Array]] = field(default_factory=dict)

    def written(self) -> Graph:
        self.taken = {*self.graph.inputs, *self.graph.initializers}
        self.taken.update(name for node in self.graph.nodes for name in node.outputs)
        self.renamed: dict[str, str] = {}
        for name in self.graph.inputs:
            self._quantized(name)
        for node in self.graph.nodes:
            inputs = tuple(self.renamed.get(name, name) for name in node.inputs)
            if node.name in self.layers:
                inputs = self._layer(node, inputs)
            self.nodes.append(node.with_(inputs=inputs))
            for name in node.outputs:
                self._quantized(name)
        read = {name for node in self.nodes for name in node.inputs} | set(self.graph.outputs)
        constants = {name: array for name, array in self.graph.initializers.items() if name in read}
        return self.graph.with_(nodes=tuple(self.nodes), initializers=constants | self.constants)

    def _quantized(self, name: str) -> None:
        """Put both conversions behind a value that is to be bytes."""
        if name not in self.chosen:
            return
        scale = self._constant(f"{name}.scale", np.array(self.chosen[name].scale))
        point = self._constant(f"{name}.zero_point", np.array(self.chosen[name].zero_point))
        whole, back = self._fresh(f"{name}.quantized"), self._fresh(f"{name}.dequantized")
        self.nodes.append(Node("QuantizeLinear", (name, scale, point), (whole,), {}, f"{name}.quantize"))
        self.nodes.append(Node("DequantizeLinear", (whole, scale, point), (back,), {}, f"{name}.dequantize"))
        self.renamed[name] = back

    def _layer(self, node: Node, inputs: tuple[str, ...]) -> tuple[str, ...]:
        weights = self.graph.initializers[node.inputs[1]]
        axis = 0 if node.op == "Conv" or node.get("transB", 0) else 1
        count = channels(node, weights.shape)
        bias = self.graph.constant(node.input(2))
        scale = self.chosen[node.inputs[0]].scale
        least = np.zeros(weights.shape[axis])
        if bias is not None:
            # Groups of a transposed convolution share the scales of its weights.
            least = np.abs(bias.astype(np.float64)).reshape(-1, weights.shape[axis]).max(0)
            least = least / (float(scale) * MOST_BIAS)
        name, scales = self._weights(node, weights, axis, least)
        if bias is None:
            return (inputs[0], name, *inputs[2:])
        product = np.tile(scale * scales, count // weights.shape[axis])
        integers = np.rint(bias / product.astype(np.float64)).astype(np.int32)
        return (inputs[0], name, self._dequantized(f"{node.outputs[0]}.bias", integers, product, 0))

    def _weights(self, node: Node, weights: Array, axis: int, least: Array) -> tuple[str, Array]:
        """The name of the dequantised weights, and their scales; once for nodes that share them."""
        key = (node.inputs[1], least.tobytes())
        if key not in self.weights:
            found = weight_scales(weights, axis, self.greatest)
            # A channel of zeros is its bias alone, which is to have digits.
            scales = np.where(found > 0, np.maximum(found, least), np.where(least > 0, least * 1024, 1))
            scales = scales.astype(np.float32)
            shape = [-1 if d == axis else 1 for d in range(weights.ndim)]
            integers = np.rint(weights / scales.reshape(shape)).clip(-self.greatest, self.greatest)
            name = self._dequantized(node.inputs[1], integers.astype(np.int8), scales, axis)
            self.weights[key] = name, scales
        return self.weights[key]

    def _dequantized(self, stem: str, integers: Array, scales: Array, axis: int) -> str:
        whole = self._constant(f"{stem}.quantized", integers)
        scale = self._constant(f"{stem}.scale", scales)
        point = self._constant(f"{stem}.zero_point", np.zeros(scales.shape, integers.dtype))
        back = self._fresh(f"{stem}.dequantized")
        node = Node("DequantizeLinear", (whole, scale, point), (back,), {"axis": axis}, f"{stem}.dequantize")
        self.nodes.append(node)
        return back

    def _constant(self, stem: str, array: Array) -> str:
        name = self._fresh(stem)
        self.constants[name] = array
        return name

    def _fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}.{number}"
        self.taken.add(name)
        return name


def weight_scales(weights: Array, axis: int, greatest: int) -> Array:
    """The scale of each channel with the least error, sum of squares of rounded - exact.

    Args:
        weights: of a layer.
        axis: of the channels.
        greatest: magnitude of an integer.

    Returns:
        float64 [channels]; 0 for a channel of zeros.
    """
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.float64)
    widest = np.abs(rows).max(1, initial=0)
    # Below the least normal float32 a scale has no precision.
    empty = widest / greatest < np.finfo(np.float32).tiny / LEAST
    widest = np.where(empty, greatest, widest)
    best, scales = np.full(len(rows), np.inf), widest / greatest
    for share in np.linspace(1, 0.5, WEIGHT_CANDIDATES):
        scale = share * widest / greatest
        rounded = np.rint(rows / scale[:, None]).clip(-greatest, greatest) * scale[:, None]
        error = np.einsum("ij,ij->i", rounded - rows, rounded - rows)
        scales = np.where(error < best, scale, scales)
        best = np.minimum(error, best)
    return np.where(empty, 0, scales)
