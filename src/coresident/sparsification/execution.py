"""Values inside a network, computed by the engine: the graph is cut to what they need, and they become its
outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.onnx.writer import serialize
from coresident.runtime.kernels import Kernels
from coresident.session import Session

_LEAST = 1 << 30


def spare_memory() -> int:
    """Bytes that may be used to save time: a quarter of what is free here, at least 1 GiB."""
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # other systems have no such names
        return _LEAST
    # A container's bound is less than the machine's memory, and counts what it uses already.
    with contextlib.suppress(OSError, ValueError):
        used, most = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("current", "max"))
        free = min(free, most - used)
    return max(free // 4, _LEAST)


@dataclass(frozen=True)
class Engine:
    """How the networks on the way are compiled and run. They differ in the numbers of their weights alone, or
    are parts of each other: kernels that one of them had are not compiled again.

    Args:
        threads: to run on.
        memory: bytes of values that may be held, so that they need not be computed again.
        kernels: compiled so far.
    """

    threads: int
    memory: int = 1 << 30
    kernels: Kernels = field(default_factory=Kernels)

    def session(
        self,
        graph: Graph,
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        skip_zeros: bool = True,
    ) -> Session:
        """A session of a network.

        Args:
            graph: of plain ONNX operators.
            shapes: that its inputs are to have instead of their own.
            skip_zeros: whether its code may depend on which weights are zero. Without, its kernels are those
                of the dense network.

        Raises:
            ModelError: it can't be compiled.
            ResourceError: no memory.
        """
        return Session(
            serialize(graph),
            self.threads,
            cache=False,
            background=False,
            treat_zeros_as_dense=not skip_zeros,
            shapes=shapes,
            kernels=self.kernels,
        )


def cut(graph: Graph, wanted: Sequence[str]) -> Graph:
    """The part of a graph that some values depend on, with these as its outputs.

    Args:
        graph: of plain ONNX operators; what is among its inputs is not computed, though nodes may make it.
        wanted: values that nodes make, each once.
    """
    needed = set(wanted)
    given = {*graph.inputs, ""}
    nodes = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs) - given:
            nodes.append(node)
            needed.update(filter(None, node.inputs))
    facts = {name: graph.facts[name] for name in graph.inputs if name in needed}
    facts |= {name: graph.facts[name] for name in wanted if name in graph.facts}
    return graph.with_(
        inputs=tuple(name for name in graph.inputs if name in needed),
        outputs=tuple(wanted),
        nodes=tuple(reversed(nodes)),
        initializers={name: array for name, array in graph.initializers.items() if name in needed},
        facts=facts,
    )


def activations(
    graph: Graph,
    wanted: Sequence[str],
    batches: Iterable[Mapping[str, Array]],
    engine: Engine,
) -> Iterator[dict[str, Array]]:
    """Values of a network, batch by batch.

    Args:
        graph: of plain ONNX operators; free dimensions take the sizes of the batches.
        wanted: names of values: inputs, constants, or what nodes make.
        batches: arrays for the graph's inputs.
        engine: to run the network by.

    Returns:
        For each batch, the values by name. Inputs and constants are the arrays given, not copies.

    Raises:
        InputError: a batch does not fit the inputs.
        ModelError: the part of the network can't be compiled.
        ResourceError: no memory.
    """
    made = {name for node in graph.nodes for name in node.outputs} - {"", *graph.inputs}
    computed = [name for name in dict.fromkeys(wanted) if name in made]
    given = [name for name in dict.fromkeys(wanted) if name not in made]
    if not computed:
        for batch in batches:
            yield {name: batch[name] if name in graph.inputs else graph.initializers[name] for name in given}
        return
    part = cut(graph, computed)
    with engine.session(part, skip_zeros=False) as session:
        for batch in batches:
            values = dict(zip(computed, session.run(None, {name: batch[name] for name in part.inputs})))
            for name in given:
                values[name] = batch[name] if name in graph.inputs else graph.initializers[name]
            yield values
