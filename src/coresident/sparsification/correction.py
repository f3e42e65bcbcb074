"""What a sparse network's layers still lack beside the dense network's, put right in weights and biases.

Layers are corrected a few at a time, in graph order, each time with what the network as corrected so far
computes: so later layers make up for what earlier ones still do otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification.blas import one_thread
from coresident.sparsification.execution import Engine, activations
from coresident.sparsification.fitting import Pairs, fitted, is_rectified
from coresident.sparsification.network import Layer, matrices, problems, weight_of
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.statistics import Batches, Sampler, pictures
from coresident.sparsification.unfolding import columns
from coresident.sparsification.walk import Walk

SHRINKAGE = 0.1
"""How far channels' scales are drawn to 1: the variance, in units of the layer's mean one, that is added to
the channel's own."""

KEPT = 512 << 20
"""Bytes of a layer's samples up to which they are kept, for fits that know of the ReLU behind the layer."""

STAGES = 64
"""Groups of layers that are corrected together. Those of one group may all make up for the same error before
them: the fewer they are, the better."""


def resolve(
    dense: Graph,
    sparse: Graph,
    layers: Sequence[Layer],
    batches: Batches,
    *,
    engine: Engine,
    seed: int = 0,
    stages: int = STAGES,
    memory: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Graph:
    """The sparse network with the weights that are left solved again, for what its layers read in it.

    With x what a layer reads in the sparse network and y what it made, from other inputs, in the dense one,
    each row of weights w becomes the least-squares fit of y by w x under its mask, bias included, or of what
    is left of both behind a ReLU (`fitting`); a change of the weights is damped.

    Args:
        dense: prepared.
        sparse: the same network with other weights; weights that are zero stay zero.
        layers: to correct, in graph order; those that share weights or have no bias of their own are passed
            over.
        batches: samples.
        engine: to run the networks by.
        seed: of the choice of positions.
        stages: groups of layers; one that is later sees what earlier ones have become.
        memory: bytes of moments at a time, and of values that are kept from one stage to the next of each
            network; None for what the engine has.
        progress: told of each layer.

    Raises:
        InputError: no samples, or activations that are not finite; names the node.
        ModelError: the network can't be compiled.
    """
    chosen = [layer for layer in layers if is_own(sparse, layer)]
    if not chosen:
        return sparse
    count = pictures(batches)
    memory = engine.memory if memory is None else memory
    progress.stage("solving again", len(chosen))
    before, after = Walk(batches, engine, memory), Walk(batches, engine, memory)
    for group in _stages(chosen, stages, memory):
        samplers = {layer.name: Sampler(layer, seed, count) for layer in group}
        sums = {
            layer.name: [Pairs(_keeps(dense, layer, samplers[layer.name].most)) for _ in problems(layer)]
            for layer in group
        }
        originals = {layer.name: matrices(layer, dense.initializers[layer.weight]) for layer in group}
        inputs, first = [layer.input for layer in group], group[0].name
        for wanted, found in zip(
            before.values(dense, first, inputs), after.values(sparse, first, inputs), strict=True
        ):
            with one_thread():
                for layer in group:
                    for number, places in enumerate(samplers[layer.name].drawn(found[layer.input].shape)):
                        x = columns(layer, number, found[layer.input], places)
                        seen = columns(layer, number, wanted[layer.input], places)
                        sums[layer.name][number].add(x, originals[layer.name][number] @ seen)
        with one_thread():
            for layer in group:
                sparse = _solved(dense, sparse, layer, sums.pop(layer.name))
                progress.advance(note=layer.name)
    return sparse


def repair(
    dense: Graph,
    now: Graph,
    layers: Sequence[Layer],
    batches: Batches,
    *,
    engine: Engine,
    stages: int = STAGES,
    scales: bool = True,
    memory: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Graph:
    """The network with the mean of each layer's output channels made that of the dense one.

    Args:
        dense: prepared.
        now: the same network with other weights, or quantised (`quantization.quantize`).
        layers: to correct, in graph order; those without a bias of their own are passed over.
        batches: samples.
        engine: to run the networks by.
        stages: groups of layers; one that is later sees what earlier ones have become.
        scales: whether standard deviations are matched too, drawn towards 1 for channels that vary little:
            by a factor on the weights. Not where a layer is quantised. (Least squares make channels vary
            less; after `resolve` this takes back what it won.)
        memory: bytes of values that are kept from one stage to the next; None for what the engine has.
        progress: told of each layer.

    Raises:
        InputError: no samples, or activations that are not finite; names the node.
        ModelError: the network can't be compiled.
    """
    chosen = [layer for layer in layers if _bias_of(now, layer) is not None]
    if not chosen:
        return now
    pictures(batches)
    progress.stage("repairing statistics", len(chosen))
    before = _channels(dense, chosen, batches, engine)
    walk = Walk(batches, engine, engine.memory if memory is None else memory)
    for group in _stages(chosen, stages, None):
        after = {layer.name: _Channels(layer) for layer in group}
        for values in walk.values(now, group[0].name, [layer.output for layer in group]):
            for layer in group:
                after[layer.name].add(values[layer.output])
        for layer in group:
            now = _repaired(now, layer, before[layer.name], after[layer.name], scales)
            progress.advance(note=layer.name)
    return now


def _channels(
    graph: Graph, layers: Sequence[Layer], batches: Batches, engine: Engine
) -> dict[str, _Channels]:
    """Statistics of the layers' outputs over the samples."""
    found = {layer.name: _Channels(layer) for layer in layers}
    for values in activations(graph, [layer.output for layer in layers], batches(), engine):
        for layer in layers:
            found[layer.name].add(values[layer.output])
    return found


def is_own(graph: Graph, layer: Layer) -> bool:
    """Whether a layer's weights and bias are floats, and weights that no other node reads."""
    read = [name for node in graph.nodes for name in node.inputs]
    weight = graph.initializers.get(layer.weight)
    return (
        weight is not None
        and weight.dtype == np.float32
        and read.count(layer.weight) == 1
        and layer.bias in graph.initializers
    )


def _keeps(graph: Graph, layer: Layer, samples: int) -> bool:
    """Whether a fit of a layer goes by the samples, not by their moments alone."""
    if not (_is_centred(layer) and is_rectified(graph, layer.output)):
        return False
    sizes = [
        len(problem.taps) * layer.inputs_in_group + layer.channels // layer.groups
        for problem in problems(layer)
    ]
    return 4 * samples * sum(sizes) <= KEPT


def _stages(layers: Sequence[Layer], count: int, memory: int | None) -> list[list[Layer]]:
    most = -(-len(layers) // max(count, 1))
    groups: list[list[Layer]] = [[]]
    held = 0
    for layer in layers:
        size = sum(4 * (len(problem.taps) * layer.inputs_in_group) ** 2 for problem in problems(layer))
        if groups[-1] and (len(groups[-1]) >= most or (memory is not None and held + size > memory)):
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _solved(dense: Graph, sparse: Graph, layer: Layer, sums: Sequence[Pairs]) -> Graph:
    weight = sparse.initializers[layer.weight]
    parts, shifts = [], []
    free = matrices(layer, dense.initializers[layer.weight])
    biases = dense.initializers[layer.bias].reshape(layer.groups, -1)
    for problem, now, original, pairs in zip(
        problems(layer), matrices(layer, weight), free, sums, strict=True
    ):
        if not pairs.count:
            parts.append(now)
            shifts.append(np.zeros(len(now)))
            continue
        bias = biases[problem.group]
        found, shift = fitted(layer, pairs, now, original, bias, centred=_is_centred(layer))
        parts.append(found)
        shifts.append(shift)
    changed = dense.initializers[layer.bias] + _of_channels(layer, shifts)
    new = {layer.weight: weight_of(layer, parts, weight), layer.bias: changed.astype(np.float32)}
    return sparse.with_(initializers={**sparse.initializers, **new})


def _is_centred(layer: Layer) -> bool:
    """Whether each problem has biases of its own, which the phases of a transposed convolution share."""
    return len({problem.phase for problem in problems(layer)}) == 1


def _of_channels(layer: Layer, rows: Sequence[Array]) -> Array:
    """A number for each row of each problem, as one for each output channel: means over the phases."""
    return np.asarray(np.reshape(rows, (layer.groups, -1, len(rows[0]))).mean(axis=1).ravel())


class _Channels:
    """Mean and variance of the channels of a layer's output."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._count = 0
        self._first: Array | float = 0.0
        self._second: Array | float = 0.0

    def add(self, y: Array) -> None:
        axes = tuple(axis for axis in range(y.ndim) if axis != self._layer.channel_axis)
        self._count += y.size // max(y.shape[self._layer.channel_axis], 1)
        self._first = self._first + y.sum(axis=axes, dtype=np.float64)
        self._second = self._second + np.square(y).sum(axis=axes, dtype=np.float64)
        if not np.all(np.isfinite(self._first)):
            raise InputError(
                "the activations that the layer makes are not finite",
                node=self._layer.name,
                op=self._layer.op,
            )

    @property
    def mean(self) -> Array:
        return np.asarray(self._first) / max(self._count, 1)

    @property
    def variance(self) -> Array:
        return np.asarray(np.maximum(np.asarray(self._second) / max(self._count, 1) - self.mean**2, 0))


def _repaired(graph: Graph, layer: Layer, before: _Channels, after: _Channels, scales: bool) -> Graph:
    if not scales or not is_own(graph, layer):
        return _with_bias(graph, layer, np.ones(layer.channels), before.mean - after.mean)
    drawn = SHRINKAGE * float(after.variance.mean())
    divisor = after.variance + drawn
    scale = np.divide(
        np.sqrt(before.variance * after.variance) + drawn,
        divisor,
        out=np.ones_like(divisor),
        where=divisor > 0,
    )
    weight = graph.initializers[layer.weight]
    rows = scale.reshape(layer.groups, -1)
    parts = [
        part * rows[problem.group][:, None].astype(np.float32)
        for problem, part in zip(problems(layer), matrices(layer, weight), strict=True)
    ]
    scaled = {**graph.initializers, layer.weight: weight_of(layer, parts, weight)}
    # y = w x + b becomes scale w x + b', with the mean of the dense network.
    shift = before.mean - scale * after.mean
    return _with_bias(graph.with_(initializers=scaled), layer, scale, shift)


@dataclass(frozen=True)
class _Bias:
    """Where a layer's bias is: a constant, and what an integer of it is worth; 1 for floats."""

    name: str
    scale: Array


def _bias_of(graph: Graph, layer: Layer) -> _Bias | None:
    if not layer.bias:
        return None
    makers = graph.producers()
    for node in graph.nodes:
        if node.name == layer.name and (maker := makers.get(node.input(2))) is not None:
            constant = graph.constant(maker.input(0))
            scale = graph.constant(maker.input(1))
            if maker.op == "DequantizeLinear" and constant is not None and scale is not None:
                return _Bias(maker.inputs[0], scale.astype(np.float64))
    is_read = any(layer.bias in node.inputs for node in graph.nodes)
    return _Bias(layer.bias, np.ones(1)) if is_read and layer.bias in graph.initializers else None


def _with_bias(graph: Graph, layer: Layer, factor: Array, shift: Array) -> Graph:
    """The bias times a factor plus a shift, both [channels]."""
    found = _bias_of(graph, layer)
    assert found is not None, layer.name
    old = graph.initializers[found.name]
    new = old * factor + shift / found.scale
    if np.issubdtype(old.dtype, np.integer):
        bounds = np.iinfo(old.dtype)
        new = np.rint(new).clip(bounds.min, bounds.max)
    return graph.with_(initializers={**graph.initializers, found.name: new.astype(old.dtype)})
