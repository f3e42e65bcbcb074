"""Sizes that depend on the data: NonZero finds so many, NonMaxSuppression keeps so many.

Such a dimension has its largest possible size in the shape, and the fact names the value that holds how many
of its elements there are (`Fact.counts`); what lies beyond is anything. Operators that work on each index of
the dimension by itself pass it on, and the results of a program are cut to the count; all others are refused,
because they would take what lies beyond for data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from coresident.errors import UnsupportedModel
from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Fact, Node

Counts = dict[int, str]
"""Axis -> the value that holds how many elements there are."""
Rule = Callable[[Node, Sequence[Fact | None], Sequence[Fact]], list[Counts]]
"""What an operator makes of counted inputs: the counts of each output; raises UnsupportedModel."""

RULES: dict[str, Rule] = {}


def counted(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Fact]:
    """The facts of the results with their counts, for a node with inputs whose sizes depend on the data.

    Raises:
        UnsupportedModel: the operator would take elements that are not there for data.
    """
    rule = RULES.get(node.op)
    if rule is None:
        raise UnsupportedModel("an operator on a value whose size depends on the data is not supported")
    return [
        replace(fact, counts=tuple(sorted(counts.items())), value=None if counts else fact.value)
        for fact, counts in zip(results, rule(node, inputs, results))
    ]


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return enter


def _refused(what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{what} of a dimension whose size depends on the data is not supported")


def _of(fact: Fact | None) -> Counts:
    return dict(fact.counts) if fact is not None else {}


def _only(inputs: Sequence[Fact | None], index: int) -> Counts:
    """The counts of one input, where no other has any."""
    if any(fact is not None and fact.counts for i, fact in enumerate(inputs) if i != index):
        raise _refused("this use")
    return _of(inputs[index])


@_rule(*ELEMENTWISE, "Elementwise", "Sum", "Mean", "Dropout")
def _elementwise(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    shapes = [fact.sizes for fact in inputs if fact is not None]
    rank = max(map(len, shapes))
    found: Counts = {}
    for fact in inputs:
        for axis, name in _of(fact).items():
            if found.setdefault(axis + rank - len(fact.shape if fact else ()), name) != name:
                raise _refused("broadcasting")
    for axis, name in found.items():
        for fact in inputs:
            own = axis - rank + len(fact.shape) if fact is not None else -1
            if fact is not None and own >= 0 and fact.sizes[own] != 1 and _of(fact).get(own) != name:
                raise _refused("broadcasting")
    return [found] * len(results)


@_rule("CastLike")
def _cast_like(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    return [_of(inputs[0])]


@_rule("Transpose")
def _transpose(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    counts, rank = _only(inputs, 0), len(results[0].shape)
    order = list(node.get("perm", range(rank - 1, -1, -1)))
    return [{order.index(axis): name for axis, name in counts.items()}]


@_rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """A counted dimension may move, but not be cut or joined with another."""
    old, new, found = required_sizes(inputs[0]), results[0].sizes, {}
    for axis, name in _only(inputs, 0).items():
        same = [
            d
            for d, size in enumerate(new)
            if (size, prod(new[:d]), prod(new[d + 1 :]))
            == (old[axis], prod(old[:axis]), prod(old[axis + 1 :]))
        ]
        if not same:
            raise _refused("a new shape")
        found[same[0]] = name
    return [found]


def required_sizes(fact: Fact | None) -> tuple[int, ...]:
    """The sizes of an input that is there."""
    assert fact is not None
    return fact.sizes


@_rule("Slice", "Split", "Pad", "Expand", "Tile")
def _whole(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """Along other dimensions alone: those that keep their size from the front are left as they are."""
    counts, old = _only(inputs, 0), required_sizes(inputs[0])
    split_along = int(node.get("axis", 0)) % max(len(old), 1) if node.op == "Split" else None
    for fact in results:
        shift = len(fact.shape) - len(old)
        if any(axis == split_along or fact.sizes[axis + shift] != old[axis] for axis in counts):
            raise _refused(node.op)
    if node.op == "Slice" and any(fact is not None and _reverses(fact) for fact in inputs[4:5]):
        raise _refused("a negative step in front")
    return [{axis + len(fact.shape) - len(old): name for axis, name in counts.items()} for fact in results]


def _reverses(steps: Fact) -> bool:
    return steps.value is None or bool((steps.value < 0).any())


@_rule("Concat")
def _concat(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    axis = int(node.get("axis", 0)) % len(results[0].shape)
    counts = [_of(fact) for fact in inputs]
    if axis in counts[0] or any(one != counts[0] for one in counts):
        raise _refused("Concat")
    return [counts[0]]


@_rule("Gather")
def _gather(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """Counted indices give as many slices; a counted dimension that is indexed is gone."""
    data, indices = inputs
    axis = int(node.get("axis", 0)) % len(required_sizes(data))
    rank = len(required_sizes(indices))
    found = {axis + d: name for d, name in _of(indices).items()}
    found |= {d if d < axis else d + rank - 1: name for d, name in _of(data).items() if d != axis}
    return [found]


@_rule("GatherElements")
def _gather_elements(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """Along another dimension than the counted ones, which data and indices have in common."""
    data, indices = (_of(fact) for fact in inputs[:2])
    axis = int(node.get("axis", 0)) % max(len(results[0].shape), 1)
    sizes = [required_sizes(fact) for fact in inputs[:2]]
    if data != indices or axis in data or any(sizes[0][d] != sizes[1][d] for d in data):
        raise _refused("indexing")
    return [data]


@_rule("OneHot")
def _one_hot(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    axis = int(node.get("axis", -1)) % len(results[0].shape)
    return [{d + (d >= axis): name for d, name in _only(inputs, 0).items()}]


@_rule("Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK")
def _along(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """Along another dimension than the counted ones; ArgMax may drop it."""
    counts, rank = _only(inputs, 0), len(required_sizes(inputs[0]))
    axis = int(node.get("axis", 0 if node.op.startswith("Arg") else -1)) % max(rank, 1)
    if axis in counts:
        raise _refused(node.op)
    kept = len(results[0].shape) == rank
    found = {d if kept or d < axis else d - 1: name for d, name in counts.items()}
    return [found] * len(results)


@_rule(*(f"Reduce{kind}" for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare")))
def _reduce(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    counts, old = _only(inputs, 0), required_sizes(inputs[0])
    axes = inputs[1].value if len(inputs) > 1 and inputs[1] is not None else None
    gone = {int(a) % len(old) for a in axes.ravel()} if axes is not None and axes.size else set()
    if not gone and not node.get("noop_with_empty_axes", 0):
        gone = set(range(len(old)))
    if gone & counts.keys():
        raise _refused(node.op)
    keep = bool(node.get("keepdims", 1))
    return [{d if keep else d - sum(a < d for a in gone): name for d, name in counts.items()}]


@_rule("RoiAlign")
def _regions(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """As many results as regions."""
    if _of(inputs[0]):
        raise _refused("pictures")
    named = {name for fact in inputs[1:3] for name in _of(fact).values()}
    if len(named) != 1:
        raise _refused("regions and their pictures")
    return [{0: named.pop()}]


@_rule("MatMul", "Gemm", "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
def _rows(node: Node, inputs: Sequence[Fact | None], results: Sequence[Fact]) -> list[Counts]:
    """As many results as rows, or pictures of a batch, in the first input."""
    counts = _only(inputs, 0)
    rank = len(required_sizes(inputs[0]))
    if counts.keys() - {0} or rank != len(results[0].shape) or rank < 2 or node.get("transA", 0):
        raise _refused(node.op)
    return [counts] * len(results)
