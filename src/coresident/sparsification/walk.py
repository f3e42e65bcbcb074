"""A walk through a network over all samples, piece by piece, while its weights change behind each piece.

What later nodes read of what is computed so far is kept for all samples, as far as there is memory, so that
the next piece begins there: the whole walk takes one pass through the network and compiles each piece once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coresident.graph.graph import Fact, Graph
from coresident.graph.operator import Array
from coresident.sparsification.execution import Engine, activations
from coresident.sparsification.statistics import Batches


class Walk:
    """Where a walk through one network stands.

    Args:
        batches: samples.
        engine: to run the network by.
        memory: bytes of values that may be kept.
    """

    def __init__(self, batches: Batches, engine: Engine, memory: int) -> None:
        self._batches, self._engine, self._memory = batches, engine, memory
        self._kept: list[dict[str, Array]] | None = None

    def values(self, graph: Graph, before: str, wanted: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values of the network, batch by batch; all batches must be taken.

        Args:
            graph: the network as it is now. Weights of nodes that stand before the node of an earlier call
                must be what they were then.
            before: name of a node, not before that of an earlier call: weights from it on may still change.
            wanted: names of values.

        Raises:
            ModelError: the piece can't be compiled.
            ResourceError: no memory.
        """
        piece, feeds = graph, list(self._batches()) if self._kept is None else self._kept
        if self._kept:
            facts = {name: Fact(a.dtype, ("",) * a.ndim) for name, a in self._kept[0].items()}
            piece = graph.with_(inputs=tuple(facts), facts=facts)
        alive = live(graph, before)
        kept: list[dict[str, Array]] | None = []
        size = 0
        for values in activations(piece, [*wanted, *alive], feeds, self._engine):
            size += sum(values[name].nbytes for name in alive)
            if kept is not None:
                kept.append({name: values[name] for name in alive})
            if size > self._memory:
                kept = None
            yield {name: values[name] for name in wanted}
        if kept is not None:
            self._kept = kept


def live(graph: Graph, before: str) -> list[str]:
    """What nodes read from one on, of the inputs and of what those before it make of them; what they make of
    constants alone stays with its reader."""
    place = next(i for i, node in enumerate(graph.nodes) if node.name == before)
    made = set(graph.inputs)
    for node in graph.nodes[:place]:
        if made.intersection(node.inputs):
            made.update(filter(None, node.outputs))
    read = dict.fromkeys(name for node in graph.nodes[place:] for name in node.inputs)
    return [name for name in read if name in made]
