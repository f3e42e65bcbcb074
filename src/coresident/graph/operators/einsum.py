"""Einsum, written as transpositions, sums and matrix products. Source: ONNX Einsum-12."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.composite import Body, composite


@dataclass(frozen=True)
class _Term:
    """A value and the label of each of its dimensions."""

    name: str
    labels: str


@composite("Einsum")
def _einsum(body: Body) -> list[str]:
    inputs, output = _labels(str(body.node.get("equation", "")), [len(body.shape(n)) for n in body.inputs])
    terms = [_Term(name, labels) for name, labels in zip(body.inputs, inputs)]
    _check_sizes(body, terms, output)
    total = _summed(body, terms[0], {*output, *"".join(inputs[1:])})
    for i, term in enumerate(terms[1:], 1):
        later = {*output, *"".join(inputs[i + 1 :])}
        total = _product(body, total, _summed(body, term, later | set(total.labels)), later)
    order = [total.labels.index(label) for label in output]
    return [
        body.transpose(total.name, *order) if order != sorted(order) else body.add("Identity", total.name)
    ]


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The labels of each input and of the output; those behind "..." get Greek ones.

    Raises:
        InvalidModel: the equation does not fit the inputs.
        UnsupportedModel: a label is repeated within one operand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs, hidden = left.split(","), 0
    if len(inputs) != len(ranks):
        raise InvalidModel(f"equation {equation!r} is for {len(inputs)} inputs, not {len(ranks)}")
    for i, (labels, rank) in enumerate(zip(inputs, ranks)):
        count = rank - len(labels.replace("...", ""))
        if count < 0 or (count and "..." not in labels):
            raise InvalidModel(f"{labels!r} of equation {equation!r} is not for {rank} dimensions")
        hidden = max(hidden, count if "..." in labels else 0)
        inputs[i] = labels.replace("...", _hidden(count))
    if not arrow:
        once = sorted({c for c in left if c.isalpha() and left.count(c) == 1})
        right = ("..." if hidden else "") + "".join(once)
    output = right.replace("...", _hidden(hidden))
    for labels in (*inputs, output):
        if labels and not labels.isalpha():
            raise InvalidModel(f"equation {equation!r} has other signs than letters")
        if len(set(labels)) != len(labels):
            raise UnsupportedModel(f"equation {equation!r}: a label twice in one operand (a diagonal)")
    if not set(output) <= set("".join(inputs)):
        raise InvalidModel(f"equation {equation!r} has labels in its result that no input has")
    return inputs, output


def _hidden(count: int) -> str:
    """Labels, from the last, of dimensions that have none; equations have ASCII letters only."""
    return "".join(chr(0x3B1 + i) for i in reversed(range(count)))


def _check_sizes(body: Body, terms: Sequence[_Term], output: str) -> None:
    sizes: dict[str, int] = {}
    for term in terms:
        for label, size in zip(term.labels, body.shape(term.name)):
            if sizes.setdefault(label, size) != size:
                raise UnsupportedModel(
                    f"dimension {label!r} has sizes {sizes[label]} and {size}; equal ones are supported"
                )


def _summed(body: Body, term: _Term, kept: set[str]) -> _Term:
    """The term summed over the dimensions that nothing else names."""
    axes = [d for d, label in enumerate(term.labels) if label not in kept]
    if not axes:
        return term
    name = body.add("ReduceSum", term.name, body.constant(axes, np.int64), keepdims=0)
    return _Term(name, "".join(label for label in term.labels if label in kept))


def _product(body: Body, a: _Term, b: _Term, kept: set[str]) -> _Term:
    """The product of two terms, summed over what both have and nothing later names."""
    shared = [c for c in a.labels if c in b.labels]
    batch, inner = [c for c in shared if c in kept], [c for c in shared if c not in kept]
    rows, columns = ([c for c in t.labels if c not in shared] for t in (a, b))
    sizes = dict(zip(a.labels + b.labels, body.shape(a.name) + body.shape(b.name)))

    def matrix(term: _Term, *groups: Sequence[str]) -> str:
        order = [term.labels.index(c) for group in groups for c in group]
        turned = body.transpose(term.name, *order) if order != sorted(order) else term.name
        return body.reshape(turned, *(prod(sizes[c] for c in group) for group in groups))

    product = body.add("MatMul", matrix(a, batch, rows, inner), matrix(b, batch, inner, columns))
    labels = "".join((*batch, *rows, *columns))
    return _Term(body.reshape(product, *(sizes[c] for c in labels)), labels)
