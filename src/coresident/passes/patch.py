"""How a pass edits a graph: rules look at one node at a time and answer with a patch, or with nothing.

    def double_negation(view: View, node: Node) -> Patch | None:
        if node.op != "Neg":
            return None
        inner = view.maker(node.inputs[0])
        if inner is None or inner.op != "Neg":
            return None
        return Patch(remove=(node,), renames={node.outputs[0]: inner.inputs[0]})

    PASS = pattern_pass("remove_double_negation", double_negation)

The view applies each patch at once, infers the facts of what it adds and drops what nobody reads any more,
so that a rule always sees the graph as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coresident.graph.graph import Fact, Graph, Node, sorted_nodes
from coresident.graph.operator import Array, facts_of


@dataclass(frozen=True)
class Patch:
    """A change to a graph that leaves the meaning of every value that stays.

    Args:
        remove: nodes taken away; nothing but the rest of the patch may then lack their outputs.
        add: nodes, in topological order; they may make values that removed nodes made.
        initializers: constants that the added nodes read, or that replace removed outputs.
        renames: {a value that goes: the value read in its stead}.
    """

    remove: tuple[Node, ...]
    add: tuple[Node, ...] = ()
    initializers: Mapping[str, Array] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """A named step of the pipeline: takes a graph with facts for all values and returns another."""

    name: str
    run: Callable[[Graph], Graph]


ALLOWANCE = 512 << 20
AMPLIFICATION = 8
"""Bytes of constants that a pass may compute: so many, and for each byte of the graph's constants so many."""


class View:
    """A graph with facts, indexed, while rules rewrite it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[Node] = []
        self._makers: dict[str, Node] = {}
        self._readers: dict[str, dict[Node, None]] = {}
        self._initializers = dict(graph.initializers)
        self._allowance = ALLOWANCE + AMPLIFICATION * sum(a.nbytes for a in graph.initializers.values())
        constants = graph.initializers.keys() - set(graph.inputs)
        self._facts = {name: fact for name, fact in graph.facts.items() if name not in constants}
        self._counted = {name for name, fact in self._facts.items() if fact.counts}
        self._outputs = frozenset(graph.outputs)
        self._taken = {*graph.inputs, *graph.initializers, *graph.facts}
        for node in graph.nodes:
            self._link(node, len(self._nodes))
        self._drop_unread(self._makers)

    def maker(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs, constants and ""."""
        return self._makers.get(name)

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value, each once."""
        return tuple(self._readers.get(name, ()))

    def sole_reader(self, name: str) -> Node | None:
        """The one node that reads a value which is no output of the graph; None otherwise."""
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def is_output(self, name: str) -> bool:
        """Whether the graph hands the value out."""
        return name in self._outputs

    def gives_one(self, node: Node) -> bool:
        """Whether nothing reads any output of the node but the first."""
        return not any(
            name and (self._readers.get(name) or self.is_output(name)) for name in node.outputs[1:]
        )

    def precedes(self, first: Node, second: Node) -> bool:
        """Whether `first` stands before `second` in the order of execution."""
        return self._nodes.index(first) < self._nodes.index(second)

    def constant(self, name: str) -> Array | None:
        """The value, where it is constant."""
        return self._initializers.get(name) if name else None

    def scalar(self, name: str) -> float | None:
        """The number, where the value is a constant of one element."""
        constant = self.constant(name)
        return float(constant.reshape(())) if constant is not None and constant.size == 1 else None

    def fact(self, name: str) -> Fact:
        """What is known of a value."""
        constant = self._initializers.get(name)
        return Fact.of(constant) if constant is not None else self._facts[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of a value."""
        return self.fact(name).sizes

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of a value."""
        return self.fact(name).dtype

    def fresh(self, stem: str) -> str:
        """A name that no value has yet."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}.{number}"
        self._taken.add(name)
        return name

    def may_compute(self, size: int) -> bool:
        """Whether a pass may compute constants of so many bytes more, which a model of few bytes may ask for;
        if so, they count from now on."""
        if size > self._allowance:
            return False
        self._allowance -= size
        return True

    def first_outputs(self) -> list[str]:
        """One output of each node, in topological order."""
        self._nodes = list(sorted_nodes(self._nodes, (*self._graph.inputs, *self._initializers)))
        return [next(filter(None, node.outputs)) for node in self._nodes]

    def apply(self, patch: Patch) -> None:
        """Make the change."""
        place = self._nodes.index(patch.remove[-1]) + 1
        replaced = {name: self._facts[name] for node in patch.remove for name in node.outputs if name}
        self._initializers.update(patch.initializers)
        self._taken.update(patch.initializers)
        for node in patch.remove:
            for name in filter(None, node.outputs):
                del self._makers[name]
        for offset, node in enumerate(patch.add):
            self._link(node, place + offset)
            self._infer(node, replaced)
        for node in patch.remove:
            self._unlink(node)
        for old, new in patch.renames.items():
            self._rename(old, new)
        for name in replaced:
            if name not in self._makers:
                self._facts.pop(name, None)
        self._drop_unread(name for node in patch.remove for name in node.inputs)

    def graph(self) -> Graph:
        """The graph as it now is: nodes in order, the constants that are read, facts of all values."""
        kept = {
            name: a
            for name, a in self._initializers.items()
            if self._readers.get(name) or name in self._outputs
        }
        nodes = sorted_nodes(self._nodes, (*self._graph.inputs, *kept))
        return self._graph.with_(nodes=nodes, initializers=kept, facts=dict(self._facts))

    def _link(self, node: Node, place: int) -> None:
        self._nodes.insert(place, node)
        for name in filter(None, node.outputs):
            self._makers[name] = node
            self._taken.add(name)
        for name in filter(None, node.inputs):
            self._readers.setdefault(name, {})[node] = None

    def _unlink(self, node: Node) -> None:
        self._nodes.remove(node)
        for name in node.outputs:
            if self._makers.get(name) is node:
                del self._makers[name]
        for name in filter(None, node.inputs):
            self._readers[name].pop(node, None)

    def _infer(self, node: Node, before: Mapping[str, Fact]) -> None:
        facts = facts_of(node, [self.fact(name) if name else None for name in node.inputs])
        for name, fact in zip(node.outputs, facts):
            if not name:
                continue
            old = before.get(name)
            assert old is None or (old.dtype, old.shape) == (fact.dtype, fact.shape), (
                f"{node.op} changes {name}"
            )
            self._facts[name] = fact
            if fact.counts:
                self._counted.add(name)

    def _rename(self, old: str, new: str) -> None:
        if old not in self._outputs:
            self._reroute(old, new)
            return
        maker = self._makers.get(new)
        if maker is None or new in self._outputs:
            # An output keeps its name; inputs, constants and other outputs keep theirs too.
            self._link(Node("Identity", (new,), (old,), name=old), len(self._nodes))
            self._facts[old] = self.fact(new)
            return
        self._replace(
            maker, maker.with_(outputs=tuple(old if name == new else name for name in maker.outputs))
        )
        self._facts[old] = self._facts.pop(new)
        if self._facts[old].counts:
            self._counted.add(old)
        self._reroute(new, old)

    def _reroute(self, old: str, new: str) -> None:
        for name in self._counted:
            # What counts the elements of others is read by their facts.
            fact = self._facts.get(name)
            if fact is not None and any(counting == old for _, counting in fact.counts):
                counts = tuple((axis, new if each == old else each) for axis, each in fact.counts)
                self._facts[name] = replace(fact, counts=counts)
        for reader in self.readers(old):
            self._replace(
                reader, reader.with_(inputs=tuple(new if name == old else name for name in reader.inputs))
            )

    def _replace(self, old: Node, new: Node) -> None:
        place = self._nodes.index(old)
        self._unlink(old)
        self._link(new, place)

    def _drop_unread(self, names: Iterable[str]) -> None:
        stack = list(names)
        while stack:
            node = self._makers.get(stack.pop())
            if node is None or any(self._readers.get(name) or name in self._outputs for name in node.outputs):
                continue
            self._unlink(node)
            for name in filter(None, node.outputs):
                self._facts.pop(name, None)
            stack.extend(node.inputs)


Rule = Callable[[View, Node], Patch | None]
"""Looks at one node; answers with the change that it starts, or None."""


def pattern_pass(name: str, *rules: Rule) -> Pass:
    """The pass that applies the rules, earlier ones first, to every node until none fires."""
    return Pass(name, lambda graph: rewrite(graph, name, rules))


def rewrite(graph: Graph, name: str, rules: Iterable[Rule]) -> Graph:
    """Apply rules to a fixed point.

    Args:
        graph: with facts for all values (`infer`).
        name: of the pass, for the error.
        rules: earlier ones first.

    Raises:
        RuntimeError: the rules undo each other; an error of the pass, not of the graph.
    """
    view = View(graph)
    rules = tuple(rules)
    allowance = 1000 + 100 * len(graph.nodes)
    changed = True
    while changed:
        changed = False
        for value in view.first_outputs():
            while patch := _first_patch(view, value, rules):
                view.apply(patch)
                changed = True
                allowance -= 1
                if allowance < 0:
                    raise RuntimeError(f"pass {name} finds no end at value {value!r}")
    return view.graph()


def _first_patch(view: View, value: str, rules: Iterable[Rule]) -> Patch | None:
    node = view.maker(value)
    if node is None:
        return None
    for rule in rules:
        patch = rule(view, node)
        if patch is not None:
            return patch
    return None
