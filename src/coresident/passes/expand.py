"""Put the bodies of composite operators in their place (`graph.composite`), and of those in the bodies."""

from __future__ import annotations

from collections.abc import Iterator

from coresident.graph.composite import expanded
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import Array, inferred, inputs_of
from coresident.passes.patch import Pass


class _Expansion:
    """The graph that is made, node by node in topological order, with facts for all values so far."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.initializers: dict[str, Array] = dict(graph.initializers)
        self.facts: dict[str, Fact] = {name: graph.facts[name] for name in graph.inputs}
        self._taken = {*graph.facts, *graph.initializers}

    def add(self, node: Node) -> None:
        """The node, or what it is written as."""
        facts = inputs_of(node, self.initializers, self.facts)
        found = expanded(node, facts, self._fresh)
        if found is None:
            self.nodes.append(node)
            self.facts.update({name: fact for name, fact in zip(node.outputs, inferred(node, facts)) if name})
            return
        body, results = found
        self.initializers.update(body.initializers)
        names: dict[str, str] = {}
        copies = []
        made = {name for each in body.nodes for name in each.outputs}
        for output, result in zip(node.outputs, results):
            if output and result in made and result not in names:
                names[result] = output
            elif output:
                copies.append((output, result))
        for each in _renamed(body.nodes, names):
            self.add(each)
        for output, result in copies:
            self.add(Node("Identity", (names.get(result, result),), (output,), {}, node.name))

    def _fresh(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}.{number}"
        self._taken.add(name)
        return name


def _renamed(nodes: list[Node], names: dict[str, str]) -> Iterator[Node]:
    for node in nodes:
        inputs, outputs = (tuple(names.get(n, n) for n in each) for each in (node.inputs, node.outputs))
        yield node.with_(inputs=inputs, outputs=outputs)


def _run(graph: Graph) -> Graph:
    if all(expanded(node, [graph.fact(name) for name in node.inputs]) is None for node in graph.nodes):
        return graph
    expansion = _Expansion(graph)
    for node in graph.nodes:
        expansion.add(node)
    return graph.with_(
        nodes=tuple(expansion.nodes), initializers=expansion.initializers, facts=expansion.facts
    )


PASS = Pass("expand", _run)
