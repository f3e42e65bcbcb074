"""Second moments of what each layer reads, over samples and sampled output positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification.blas import one_thread
from coresident.sparsification.execution import Engine, activations
from coresident.sparsification.moments import Moments, MomentSums
from coresident.sparsification.network import Layer, Problem, problems
from coresident.sparsification.unfolding import columns, positions

__all__ = ["Batches", "Moments", "Sampler", "collect", "pictures"]

Batches = Callable[[], Iterable[Mapping[str, Array]]]
"""Gives arrays for the graph's inputs, batch by batch; the same ones each time it is called."""

POSITIONS = 49
"""Output positions of a picture that are looked at, if it has so many."""

SAMPLES, PER_COLUMN = 32_000, 8
"""More than `POSITIONS` are, where all pictures together would give fewer samples than these, or fewer for a
column."""


def collect(
    graph: Graph,
    layers: Sequence[Layer],
    batches: Batches,
    *,
    engine: Engine,
    seed: int = 0,
    memory: int = 1 << 30,
) -> Iterator[tuple[Layer, tuple[Moments, ...]]]:
    """The moments of layers' inputs, one layer after the other.

    Samples are gone through once for each group of layers whose moments fit the memory together.

    Args:
        graph: prepared.
        layers: of it; in graph order, so that a group needs no more of the network than it must.
        batches: samples.
        engine: to run the network by.
        seed: of the choice of positions; which are chosen does not depend on the other layers.
        memory: bytes of moments that are collected at a time.

    Returns:
        A layer and the moments of each of its problems.

    Raises:
        InputError: no samples, or activations that are not finite; names the node.
        ModelError: the network can't be compiled.
    """
    if not layers:
        return
    count = pictures(batches)
    for group in _groups(layers, memory):
        sums = {layer.name: [_Sums(layer, i) for i in range(len(problems(layer)))] for layer in group}
        samplers = {layer.name: Sampler(layer, seed, count) for layer in group}
        for values in activations(graph, [layer.input for layer in group], batches(), engine):
            with one_thread():
                for layer in group:
                    x = values[layer.input]
                    for number, chosen in enumerate(samplers[layer.name].drawn(x.shape)):
                        sums[layer.name][number].add(columns(layer, number, x, chosen))
        for layer in group:
            with one_thread():
                found = tuple(each.moments() for each in sums.pop(layer.name))
            yield layer, found


def pictures(batches: Batches) -> int:
    """How many samples there are.

    Raises:
        InputError: none.
    """
    count = sum(max((int(a.shape[0]) for a in batch.values() if a.ndim), default=1) for batch in batches())
    if not count:
        raise InputError("no samples to calibrate with; at least one is needed")
    return count


class Sampler:
    """Chooses output positions of a layer, the same ones each time that it is made and asked.

    Args:
        layer: the layer.
        seed: of the choice.
        count: of pictures that there will be.

    Attributes:
        most: samples that it gives, about, or fewer where pictures are small.
    """

    def __init__(self, layer: Layer, seed: int, count: int) -> None:
        self._layer = layer
        digest = np.frombuffer(layer.name.encode() + bytes(-len(layer.name.encode()) % 4), np.uint32)
        self._random = np.random.default_rng([seed, *digest.tolist()])
        size = max(len(problem.taps) for problem in problems(layer)) * layer.inputs_in_group
        self._positions = max(POSITIONS, ceil(max(SAMPLES, PER_COLUMN * size) / count))
        self.most = self._positions * count

    def drawn(self, shape: Sequence[int]) -> list[Array]:
        """Positions for each problem (`unfolding.columns`), of an input of this shape."""
        of_phase: dict[tuple[int, ...], Array] = {}
        found = []
        for number, problem in enumerate(problems(self._layer)):
            if problem.phase not in of_phase:
                of_phase[problem.phase] = self._some(problem, positions(self._layer, number, shape), shape)
            found.append(of_phase[problem.phase])
        return found

    def _some(self, problem: Problem, total: int, shape: Sequence[int]) -> Array:
        count = int(shape[0]) if self._layer.kernel or len(shape) > 2 else 1
        each = total // max(count, 1)
        wanted = self._positions if self._layer.kernel or len(shape) > 2 else total
        if each <= wanted or total % max(count, 1):
            return np.arange(total)
        chosen = [self._random.choice(each, wanted, replace=False) + i * each for i in range(count)]
        return np.concatenate(chosen)


class _Sums:
    """Of one problem of a layer."""

    def __init__(self, layer: Layer, number: int) -> None:
        self._layer, self._number, self._sums = layer, number, MomentSums()

    def add(self, x: Array) -> None:
        if not x.shape[1]:
            return
        self._sums.add(x)
        if not np.all(np.isfinite(self._sums.first)):
            raise self._error("not finite")

    def moments(self) -> Moments:
        if not self._sums.count:
            size = len(problems(self._layer)[self._number].taps) * self._layer.inputs_in_group
            return Moments(0, np.zeros(size), np.zeros((size, size), np.float32))
        found = self._sums.moments()
        if not np.all(np.isfinite(found.covariance)):
            raise self._error("too large")
        return found

    def _error(self, what: str) -> InputError:
        return InputError(
            f"the activations that the layer reads are {what}", node=self._layer.name, op=self._layer.op
        )


def _bytes(layer: Layer) -> int:
    return sum(4 * (len(problem.taps) * layer.inputs_in_group) ** 2 for problem in problems(layer))


def _groups(layers: Sequence[Layer], memory: int) -> list[list[Layer]]:
    groups: list[list[Layer]] = [[]]
    held = 0
    for layer in layers:
        if groups[-1] and held + _bytes(layer) > memory:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += _bytes(layer)
    return groups
