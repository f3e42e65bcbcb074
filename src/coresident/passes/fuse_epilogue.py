"""Element-wise work on the result of a convolution or matrix product, done while it is still in registers.

The host is a Conv, ConvTranspose, Gemm or MatMul of floats, or the like of bytes, whose result has one reader
and is no output of the graph; the reader is element-wise and keeps the shape, and the type of floats. It
becomes part of the host's attribute "epilogue" (an `Expression` whose input 0 is the host's own result); what
else it reads becomes further inputs of the host.

1. The reader reads only the result and constants that are scalars (kept with shape []) or vary along the
   channels (kept with shape [C, 1, ...] as they broadcast; [N] for Gemm and MatMul).
2. It also reads values of the result's own shape, as a residual connection does; `RESIDUALS` at most. Where
   two hosts are added the later one takes the sum, so that the earlier's result is there. A ConvTranspose
   takes none:
   it computes its output phase by phase, and a residual does not lie so.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.expression import Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import Array
from coresident.passes.fuse_elementwise import is_byte_function
from coresident.passes.fused import Fused
from coresident.passes.patch import Pass, Patch, View, rewrite

INTEGER_HOSTS = {"ConvInteger": 5, "ConvTransposeInteger": 5, "MatMulInteger": 5}
"""Those whose sums are int32; their epilogues may make other types of them."""

HOSTS = {"Conv": 3, "ConvTranspose": 3, "Gemm": 3, "MatMul": 2, **INTEGER_HOSTS}
"""Operators that can carry an epilogue, with the number of their own inputs."""

STORED = (np.float32, np.int32, np.uint8, np.int8)
"""Types that the epilogue of one of `INTEGER_HOSTS` may read and make."""

STEPS = 12
"""Operators in an epilogue at most."""

RESIDUALS = 2
"""Inputs of the result's own shape at most: each is a stream from memory beside the result."""

RESULT = ""
"""Stands for the host's own result among the inputs of an epilogue; no value has this name."""


def _constants_only(view: View, node: Node) -> Patch | None:
    return _patch(_absorb(view, node, residuals=0))


def _residuals_too(view: View, node: Node) -> Patch | None:
    return _patch(_absorb(view, node, residuals=RESIDUALS))


def _patch(answer: Patch | str) -> Patch | None:
    return answer if isinstance(answer, Patch) else None


def reasons(graph: Graph) -> dict[str, str]:
    """Why element-wise work of a graph that was fused is not done where its operand is made.

    Args:
        graph: with facts for all values.

    Returns:
        {first output of an element-wise node: why not}, for those that read the result of a host.
    """
    view = View(graph)
    found = {}
    for host in graph.nodes:
        if host.op not in HOSTS:
            continue
        why = _absorb(view, host, RESIDUALS)
        for reader in view.readers(host.outputs[0]):
            if isinstance(why, str) and Fused.of(reader) is not None:
                found[reader.outputs[0]] = f"not fused into {host.op} {host.name or host.outputs[0]}: {why}"
    return found


def _epilogue(node: Node) -> Fused:
    expression: Expression = node.get("epilogue", Expression(1))
    return Fused((RESULT, *node.inputs[HOSTS[node.op] :]), expression)


def _absorb(view: View, host: Node, residuals: int) -> Patch | str:
    """The patch that puts the reader of a host's result into the host, or why there is none."""
    if host.op not in HOSTS:
        return "it can carry nothing"
    result = host.outputs[0]
    reader = view.sole_reader(result)
    if reader is None:
        return f"its result has {len(view.readers(result)) + view.is_output(result)} readers"
    step = Fused.of(reader)
    if step is None:
        return "its reader is not element-wise"
    if is_byte_function(view, reader):
        return "a table is faster"
    if not _keeps(view, host, result, reader.outputs[0]):
        return "the shape or type changes"
    epilogue = _epilogue(host)
    if len(epilogue.expression.steps) + len(step.expression.steps) > STEPS:
        return f"more than {STEPS} operators"
    constants: dict[str, Array] = {}
    names: dict[str, str] = {}
    for name in step.inputs:
        operand = view.constant(name)
        if name == result or operand is None:
            names[name] = name
            continue
        small = _broadcast_small(host, operand, view.shape(result))
        if small is None or (host.op not in INTEGER_HOSTS and operand.dtype != view.dtype(result)):
            return f"a constant of shape {list(operand.shape)} varies along other axes than the channels"
        names[name] = name if small.shape == operand.shape else view.fresh(f"{name}.operand")
        if names[name] != name:
            constants[names[name]] = small
    shape = view.shape(result)
    whole = {name for name in step.inputs if name != result and view.constant(name) is None}
    if whole and host.op.startswith("ConvTranspose"):
        return "it can't read further values"
    if any(not _keeps(view, host, result, name) for name in whole):
        return "it reads a value of another shape"
    if any(not _may_wait(view, name, host, reader) for name in whole):
        return "it belongs to a later operator"
    before = {
        name for name in epilogue.inputs[1:] if view.shape(name) == shape and view.constant(name) is None
    }
    if whole and len(whole | before) > residuals:
        return f"it would read more than {residuals} further values"
    outer = Fused(tuple(names[name] for name in step.inputs), step.expression)
    merged = outer.after(result, epilogue)
    own = host.inputs[: HOSTS[host.op]]
    own += ("",) * (HOSTS[host.op] - len(own))
    node = host.with_(
        inputs=(*own, *merged.inputs[1:]) if merged.inputs[1:] else host.inputs,
        outputs=reader.outputs,
        attributes={**host.attributes, "epilogue": merged.expression},
    )
    return Patch((host, reader), (node,), constants)


def _keeps(view: View, host: Node, result: str, other: str) -> bool:
    """Whether the host's kernel can read or store a value beside its result."""
    if view.shape(other) != view.shape(result):
        return False
    if host.op in INTEGER_HOSTS:
        return view.dtype(other) in STORED
    return view.dtype(other) == view.dtype(result) and np.issubdtype(view.dtype(result), np.floating)


def _may_wait(view: View, name: str, host: Node, reader: Node) -> bool:
    """Whether the other value is no result of a later host that will take the reader itself."""
    other = view.maker(name)
    if other is None or other.op not in HOSTS or view.sole_reader(name) is not reader:
        return True
    return view.precedes(other, host) or len(_epilogue(other).expression.steps) >= STEPS


def _broadcast_small(host: Node, constant: Array, shape: tuple[int, ...]) -> Array | None:
    """The constant as an epilogue reads it, [] or [C, 1, ...]; None where it varies otherwise."""
    if constant.size == 1:
        return constant.reshape(())
    if constant.ndim > len(shape):
        return None
    axis = 1 if host.op.startswith("Conv") else len(shape) - 1
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if any(size != 1 for d, size in enumerate(full) if d != axis):
        return None
    return constant.reshape(full[axis:])


def _run(graph: Graph) -> Graph:
    # Constants first: a residual is then added to a result that has had its own activation.
    graph = rewrite(graph, "fuse_epilogue", (_constants_only,))
    return rewrite(graph, "fuse_epilogue", (_constants_only, _residuals_too))


PASS = Pass("fuse_epilogue", _run)
