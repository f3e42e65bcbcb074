"""Which layers suffer most from eight bits, and which stay in floats so that the network does not.

The loss of a network in which a few layers alone are in eight bits is theirs. Layers are tried in groups of
neighbours; the worst group is halved and tried again, so that the few that matter are found by few networks:
each has to be compiled and run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coresident.graph.graph import Graph
from coresident.sparsification.placement import place
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.quantization import WeightBits, quantize
from coresident.sparsification.ranges import Range

GROUPS = 6
"""Groups of layers to begin with."""

TRIES = 24
"""Networks that are tried, at most."""


@dataclass(frozen=True)
class Sensitivity:
    """What eight bits cost in some layers.

    Args:
        layers: names of nodes.
        loss: of the network in which they alone are in eight bits.
    """

    layers: tuple[str, ...]
    loss: float


@dataclass(frozen=True, eq=False)
class Kept:
    """A quantised network of which some layers are not.

    Args:
        graph: the network.
        floating: names of the nodes that stay in floats beside those skipped, worst first.
        loss: of the network.
    """

    graph: Graph
    floating: tuple[str, ...]
    loss: float


def sensitivity(
    graph: Graph,
    ranges: Mapping[str, Range],
    loss: Callable[[Graph], float],
    *,
    skip: Collection[str] = (),
    weight_bits: WeightBits = 8,
    tries: int = TRIES,
    progress: Progress = NO_PROGRESS,
) -> tuple[Sensitivity, ...]:
    """What eight bits cost, worst layers first.

    Args:
        graph: prepared.
        ranges: of its values.
        loss: how far a network is from what it should be, 0 for one in floats (`Agreement.loss`).
        skip: names of nodes that stay in floats anyway.
        weight_bits: of the integers.
        tries: networks to try at most; at least `GROUPS`.
        progress: advances by each network.

    Returns:
        Groups that have all the layers that would be quantised, by loss for each layer; of one layer each
        where tries sufficed.
    """
    layers = place(graph, skip).layers
    progress.stage("layers that suffer from eight bits", tries)

    def tried(group: Sequence[str]) -> Sensitivity:
        others = set(layers).difference(group)
        found = loss(quantize(graph, ranges, skip={*skip, *others}, weight_bits=weight_bits))
        progress.advance(note=group[0])
        return Sensitivity(tuple(group), found)

    groups = [tried(group) for group in _cut(layers, GROUPS)]
    left = max(tries, GROUPS) - len(groups)
    while left >= 2:
        worst = max((g for g in groups if len(g.layers) > 1), key=lambda g: g.loss, default=None)
        if worst is None:
            break
        groups.remove(worst)
        groups += [tried(half) for half in _cut(worst.layers, 2)]
        left -= 2
    return tuple(sorted(groups, key=lambda g: -g.loss / len(g.layers)))


def _cut(layers: Sequence[str], count: int) -> list[Sequence[str]]:
    """At most so many groups of neighbours, of about the same size."""
    bounds = [len(layers) * i // count for i in range(count + 1)]
    return [layers[a:b] for a, b in pairwise(bounds) if b > a]


def keep_worst(
    graph: Graph,
    ranges: Mapping[str, Range],
    order: Sequence[Sensitivity],
    loss: Callable[[Graph], float],
    most: float,
    *,
    skip: Collection[str] = (),
    weight_bits: WeightBits = 8,
    progress: Progress = NO_PROGRESS,
) -> Kept:
    """The network in eight bits but for as few of the worst layers as keep the loss in bounds.

    Args:
        graph, ranges, loss, skip, weight_bits: as for `sensitivity`.
        order: of the layers, worst first.
        most: loss that is allowed.
        progress: advances by each network.

    Returns:
        All layers in floats where nothing less does.
    """
    progress.stage("layers that stay in floats", 0)
    tried: dict[int, Kept] = {}

    def kept(count: int) -> Kept:
        if count not in tried:
            floating = tuple(name for group in order[:count] for name in group.layers)
            made = quantize(graph, ranges, skip={*skip, *floating}, weight_bits=weight_bits)
            tried[count] = Kept(made, floating, loss(made))
            progress.advance(note=f"{len(floating)} layers")
        return tried[count]

    if kept(0).loss <= most:
        return kept(0)
    too_few, enough = 0, 1
    while enough < len(order) and kept(enough).loss > most:
        too_few, enough = enough, min(2 * enough, len(order))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if kept(middle).loss <= most:
            enough = middle
        else:
            too_few = middle
    return kept(enough)
