"""Weights under a mask that make, of what a layer reads now, what it should make.

Where a ReLU follows, it matters only that what should be below zero is: such targets move to whatever is made
below zero, and the fit is repeated. Each round lowers the error behind the ReLU, and the freedom goes to the
elements that show.

Source of the nonlinear fit: Zhang, Zou, He and Sun 2015, arXiv 1505.06798 (section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification.blas import product
from coresident.sparsification.masked import solve
from coresident.sparsification.moments import MomentSums
from coresident.sparsification.network import Layer

DAMPING = 0.1
"""Of a change of the weights, in units of the mean diagonal of H."""

ROUNDS = 6
"""Fits of a layer before a ReLU."""


@dataclass
class Pairs:
    """What a problem's columns see, x, and what its rows are to make of it, y, without the bias: moments, and
    the values too where they are kept."""

    keeps: bool = False
    sums: MomentSums = field(default_factory=MomentSums)
    y: Array | float = 0.0
    yx: Array | float = 0.0
    moved: list[Array] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Samples."""
        return self.sums.count

    def add(self, x: Array, y: Array) -> None:
        """Count samples: x [columns, samples], y [rows, samples]."""
        if not x.shape[1]:
            return
        moved = self.sums.add(x)
        if self.keeps:
            self.moved.append(moved)
            self.wanted.append(y)
        else:
            self.y = self.y + y.sum(axis=1, dtype=np.float64)
            self.yx = self.yx + y @ moved.T


def is_rectified(graph: Graph, value: str) -> bool:
    """Whether all that reads a value are ReLUs, or clips from zero on."""
    if value in graph.outputs:
        return False
    readers = graph.consumers().get(value, [])
    return bool(readers) and all(
        node.op == "Relu"
        or (node.op == "Clip" and (low := graph.constant(node.input(1))) is not None and float(low) == 0)
        for node in readers
    )


def fitted(
    layer: Layer, pairs: Pairs, now: Array, original: Array, bias: Array, *, centred: bool
) -> tuple[Array, Array]:
    """The weights, and what is to be added to the dense layer's bias.

    Args:
        layer: for messages.
        pairs: what it reads and should make.
        now: float32 [rows, columns]; its zeros stay, and it is what changes are damped towards.
        original: the dense weights.
        bias: of the rows, in the dense layer; above its negative, results show behind the ReLU.
        centred: whether the bias takes up the means.

    Returns:
        float32 [rows, columns] and float64 [rows].

    Raises:
        InputError: values that are not finite; names the layer.
    """
    moments = pairs.sums.moments()
    gram = moments.covariance if centred else moments.second
    if not np.all(np.isfinite(gram)):
        raise _not_finite(layer)
    # Products with y are about the pivot.
    about = moments.mean - pairs.sums.pivot if centred else -pairs.sums.pivot.astype(np.float64)
    scale = float(np.diagonal(gram).mean())
    damping = np.float32(DAMPING * scale if scale > 0 else 1)
    gram[np.diag_indices(len(gram))] += damping

    def solved(y: Array, yx: Array, start: Array) -> tuple[Array, Array]:
        target = yx / np.float32(pairs.count) - np.outer(y, about).astype(np.float32)
        if not np.all(np.isfinite(target)):
            raise _not_finite(layer)
        weights = solve(gram, target + damping * now, now != 0, start, original)
        return weights, y - weights @ moments.mean

    if not pairs.keeps:
        return solved(np.asarray(pairs.y) / pairs.count, np.asarray(pairs.yx), now)
    moved, wanted = np.concatenate(pairs.moved, axis=1), np.concatenate(pairs.wanted, axis=1)
    floor = -bias[:, None].astype(np.float32)
    hidden = wanted <= floor
    target, weights = wanted, now
    for _ in range(ROUNDS):
        weights, shift = solved(target.mean(axis=1, dtype=np.float64), product(target, moved.T), weights)
        made = product(weights, moved) + (shift + weights @ pairs.sums.pivot)[:, None].astype(np.float32)
        target = np.where(hidden, np.minimum(made, floor), wanted)
    return weights, shift


def _not_finite(layer: Layer) -> InputError:
    return InputError("the activations around the layer are not finite", node=layer.name, op=layer.op)
