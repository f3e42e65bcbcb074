"""Put the bodies of composite operators in their place (`graph.composite`), and of those in the bodies."""

from __future__ import annotations

from coresident.graph.composite import expanded
from coresident.graph.graph import Node
from coresident.passes.patch import Patch, View, pattern_pass


def _body(view: View, node: Node) -> Patch | None:
    found = expanded(node, [view.fact(name) if name else None for name in node.inputs], view.fresh)
    if found is None:
        return None
    body, results = found
    renames = {out: made for out, made in zip(node.outputs, results) if out}
    return Patch((node,), tuple(body.nodes), body.initializers, renames)


PASS = pattern_pass("expand", _body)
