"""The check between passes: whether a graph is sound, and still the same network as before."""

from __future__ import annotations

from coresident.graph.graph import Graph
from coresident.graph.operator import infer


def verify(before: Graph, after: Graph, name: str) -> None:
    """Check what a pass made.

    Args:
        before, after: with facts.
        name: of the pass.

    Raises:
        RuntimeError: a value made twice, read before it is made, without a fact or with one that inference
            contradicts; inputs or outputs whose names, types or shapes changed. An error of the pass.
    """
    if (before.inputs, before.outputs) != (after.inputs, after.outputs):
        raise RuntimeError(f"pass {name} changed the names of the inputs or outputs")
    known = {*after.inputs, *after.initializers}
    if len(known) != len(after.inputs) + len(after.initializers):
        raise RuntimeError(f"after pass {name} an input is also a constant")
    for node in after.nodes:
        unknown = [value for value in node.inputs if value and value not in known]
        if unknown:
            raise RuntimeError(f"after pass {name} node {node.name!r} reads {unknown} before they are made")
        twice = [value for value in node.outputs if value in known]
        if twice:
            raise RuntimeError(f"after pass {name} node {node.name!r} makes {twice} again")
        known.update(value for value in node.outputs if value)
    if missing := set(after.outputs) - known:
        raise RuntimeError(f"after pass {name} nothing makes {sorted(missing)}")
    inferred = infer(after)
    for value in known - set(after.initializers):
        if value not in after.facts:
            raise RuntimeError(f"after pass {name} nothing is known of {value!r}")
        for expected in (inferred, *((before,) if value in before.facts else ())):
            old, new = expected.facts[value], after.facts[value]
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                raise RuntimeError(
                    f"after pass {name} value {value!r} is {new.dtype}{new.shape}, not {old.dtype}{old.shape}"
                )
