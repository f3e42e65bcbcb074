"""Before sizes are worked out: give sizes that the data decides as few names as there are.

1. Of nodes that find elements (NonZero and the like), one with the inputs and attributes of an earlier one
   hands on that one's outputs: a mask that indexes several arrays is searched once for each by exporters.
2. Max, Min, Sum and Mean of one value are that value.
3. Expand of a value to its own shape is that value; exporters write it of each index.
4. What nobody reads goes.

Runs on graphs without facts: two searches would have two counts, and what meets of them be refused.
"""

from __future__ import annotations

from coresident.graph.graph import Graph, Node

FINDERS = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression"))
_OF_ONE = frozenset(("Max", "Min", "Sum", "Mean", "Identity"))


def share_finders(graph: Graph) -> Graph:
    """The graph with a count for each size that the data decides; as it is where it decides none."""
    if not any(node.op in FINDERS for node in graph.nodes):
        return graph
    same: dict[str, str] = {}
    found: dict[tuple[str, tuple[str, ...], str], Node] = {}
    measured: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(same.get(name, name) for name in node.inputs)
        node = node.with_(inputs=inputs)
        nodes.append(node)
        key = node.op, inputs, repr(sorted(node.attributes.items()))
        if node.op == "Shape" and not node.attributes.get("start") and "end" not in node.attributes:
            measured[node.outputs[0]] = inputs[0]
        elif (node.op in _OF_ONE and len(inputs) == 1) or (
            node.op == "Expand" and measured.get(inputs[1]) == inputs[0]
        ):
            same[node.outputs[0]] = inputs[0]
        elif node.op in FINDERS and len(found.setdefault(key, node).outputs) >= len(node.outputs):
            same |= {old: new for old, new in zip(node.outputs, found[key].outputs) if old and new}
    read = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if read.intersection(node.outputs):
            kept.append(node)
            read.update(node.inputs)
    return graph.with_(nodes=tuple(reversed(kept)))
