"""Which weights of a layer to remove, and what the others become, so that its output changes least.

With H the covariance of what a row of weights reads (bias solved for, so means do not count), a change D of
the weights changes the output by D H D^T in the mean square. Removing weight j of a row whose other weights w
then adjust costs w_j^2 / [(H_AA)^-1]_jj, with A the columns that the row still has; removing block B costs
w_B ([(H_AA)^-1]_BB)^-1 w_B. Weights go a chunk at a time, the cheapest of the whole layer first, and after
each chunk all rows are solved again (`masked.solve`). So masks are nested: one way through all sparsities.

Where the inverses of a large layer cost too much they are taken block by block of a row's columns, channels
that lie together with all their taps; solving again never is.

Sources: Hassibi and Stork 1993 (optimal brain surgeon); Frantar and Alistarh 2022, arXiv 2208.11580 (exact,
by layer and in blocks). Chunks with exact solutions between are cheaper by an order and lose a few percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from coresident.errors import InputError
from coresident.graph.operator import Array
from coresident.sparsification.blas import in_threads, one_thread
from coresident.sparsification.masked import solve
from coresident.sparsification.moments import Moments
from coresident.sparsification.removal import Units

Pattern = Literal["unstructured", "4block"]
PATTERNS: tuple[Pattern, ...] = ("unstructured", "4block")

DAMPING = 0.01
"""Added to the diagonal of H, in units of its mean."""

_EMPTY = 1e-7
"""A column with less variance, in units of the mean one, is constant: its weights are the bias's business."""


@dataclass(frozen=True)
class Effort:
    """How much work reconstruction may be.

    Args:
        chunk: part of the weights that goes between two solutions.
        operations: that the inverses of one layer may take on the way; their width follows from it.
        width: of the inverses at least.
    """

    chunk: float
    operations: float
    width: int


EFFORTS = {
    "fast": Effort(0.4, 2e10, 64),
    "default": Effort(0.15, 8e10, 96),
    "max": Effort(0.06, 2e12, 384),
}


@dataclass(frozen=True, eq=False)
class Level:
    """A layer at one sparsity; a tuple holds an array for each problem.

    Args:
        sparsity: asked for.
        masks: bool [rows, columns], which weights are left.
        weights: float32 [rows, columns], zero outside the masks.
        biases: float32 [rows], what to add to the biases.
        error: mean square change of the layer's output, in units of the output's variance (of its mean square
            where moments are not centred).
    """

    sparsity: float
    masks: tuple[Array, ...]
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    error: float

    @property
    def removed(self) -> float:
        """The part of the weights that is gone."""
        return 1 - sum(int(mask.sum()) for mask in self.masks) / sum(mask.size for mask in self.masks)


def levels(
    weights: Sequence[Array],
    moments: Sequence[Moments],
    blocks: Sequence[Array],
    sparsities: Sequence[float],
    pattern: Pattern,
    effort: str = "default",
    *,
    taps: Sequence[int] | None = None,
    centred: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Level, ...]:
    """A layer at several sparsities, their masks nested.

    Args:
        weights: float32 [rows, columns] of each problem (`network.matrices`).
        moments: of what the columns see.
        blocks: the four-block of each column (`network.blocks`).
        sparsities: parts of the weights to remove, ascending, each below 1.
        pattern: whether single weights go or whole four-blocks.
        effort: of `EFFORTS`.
        taps: of each problem: its columns are taps times channels.
        centred: whether the bias makes up for changes of the mean; not where several problems share a bias,
            as the phases of a transposed convolution do.
        advance: called after each level.

    Returns:
        A level for each sparsity. Where weights or blocks cannot be cut so, it is the next lower one; weights
        of constant columns go first, at no cost.

    Raises:
        InputError: no data, or moments that are not finite.
        ValueError: sparsities that do not ascend, or an unknown effort or pattern.
    """
    _check(sparsities, pattern)
    if effort not in EFFORTS:
        raise ValueError(f"effort {effort!r} is none of {', '.join(EFFORTS)}")
    counts = taps or (1,) * len(weights)
    found = []
    with one_thread():
        path = _Path(weights, moments, blocks, pattern, centred, counts, EFFORTS[effort])
        for sparsity in sparsities:
            path.go_to(sparsity)
            found.append(path.level(sparsity))
            advance()
    return tuple(found)


def magnitude(
    weights: Sequence[Array],
    moments: Sequence[Moments],
    blocks: Sequence[Array],
    sparsities: Sequence[float],
    pattern: Pattern,
    *,
    centred: bool = True,
) -> tuple[Level, ...]:
    """The baseline: the smallest weights of the layer, or blocks with the smallest sum of squares, are
    removed and all else is left alone.

    Args, Returns, Raises: as `levels`.
    """
    _check(sparsities, pattern)
    problems = _problems(weights, moments, blocks, pattern, centred)
    found = []
    for sparsity in sparsities:
        masks = [np.ones(p.weights.shape, bool) for p in problems]
        scores = [p.of_units(p.weights.astype(np.float64) ** 2) for p in problems]
        _remove(problems, masks, scores, sparsity, 1.0)
        kept = [np.where(mask, p.weights, np.float32(0)) for p, mask in zip(problems, masks)]
        nothing = tuple(np.zeros(len(mask), np.float32) for mask in masks)
        with one_thread():
            error = _error(problems, kept)
        found.append(Level(sparsity, tuple(masks), tuple(kept), nothing, error))
    return tuple(found)


def refit(
    weights: Sequence[Array], moments: Sequence[Moments], masks: Sequence[Array], *, centred: bool = True
) -> Level:
    """The best weights under given masks.

    Args, Raises: as `levels`; masks are bool [rows, columns].
    """
    none = [np.arange(w.shape[1]) for w in weights]
    problems = _problems(weights, moments, none, "unstructured", centred)
    with one_thread():
        solved = [
            solve(p.damped, p.weights @ p.damped, mask, p.weights, p.weights)
            for p, mask in zip(problems, masks, strict=True)
        ]
        sparsity = 1 - sum(int(mask.sum()) for mask in masks) / max(sum(mask.size for mask in masks), 1)
        return _level(problems, masks, solved, sparsity)


def _check(sparsities: Sequence[float], pattern: Pattern) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r} is none of {', '.join(PATTERNS)}")
    if any(not 0 <= s < 1 for s in sparsities) or any(b <= a for a, b in pairwise(sparsities)):
        raise ValueError(f"sparsities must ascend and lie in [0, 1): {list(sparsities)}")


class _Problem:
    """One matrix, what its columns see, and the units that can be removed from each row: single columns, or
    blocks of them. Unit numbers do not decrease from column to column."""

    def __init__(
        self, weights: Array, moments: Moments, blocks: Array, pattern: Pattern, centred: bool
    ) -> None:
        if not moments.count:
            raise InputError("no data has reached the layer")
        self.weights = np.ascontiguousarray(weights, np.float32)
        self.mean = moments.mean if centred else np.zeros(len(moments.mean))
        self.hessian = moments.covariance if centred else moments.second
        diagonal = np.diagonal(self.hessian).astype(np.float64)
        if not np.all(np.isfinite(self.hessian)):
            raise InputError("activations are not finite, or too large")
        scale = float(diagonal.mean())
        self.damped = self.hessian.copy()
        self.damped[np.diag_indices(len(diagonal))] += np.float32(DAMPING * scale if scale > 0 else 1)
        units = np.arange(len(diagonal)) if pattern == "unstructured" else blocks
        self.starts = np.flatnonzero(np.diff(units, prepend=-1))
        self.unit = np.cumsum(np.diff(units, prepend=units[0] if len(units) else 0) > 0)
        self.sizes = np.bincount(self.unit, minlength=len(self.starts))
        self.empty = np.maximum.reduceat(diagonal, self.starts) <= _EMPTY * scale

    def power_of(self, weights: Array) -> float:
        """Mean square of what weights make of the columns, over all rows together."""
        sums = np.zeros(len(weights))

        def some(rows: slice) -> None:
            sums[rows] = np.einsum("ij,ij->i", weights[rows] @ self.hessian, weights[rows], dtype=np.float64)

        in_threads(some, len(weights), 128)
        return float(sums.sum())

    @cached_property
    def power(self) -> float:
        """The same of the weights that there were."""
        return self.power_of(self.weights)

    def of_units(self, columns: Array) -> Array:
        """Sums over the columns of each unit, [rows, units]."""
        return np.asarray(np.add.reduceat(columns, self.starts, axis=1))


def _problems(
    weights: Sequence[Array],
    moments: Sequence[Moments],
    blocks: Sequence[Array],
    pattern: Pattern,
    centred: bool,
) -> list[_Problem]:
    return [_Problem(w, m, b, pattern, centred) for w, m, b in zip(weights, moments, blocks, strict=True)]


def _remove(
    problems: Sequence[_Problem],
    masks: Sequence[Array],
    scores: Sequence[Array],
    sparsity: float,
    chunk: float,
) -> bool:
    """Remove the units with the lowest scores for their size, of all problems together.

    Args:
        masks: changed in place.
        scores: [rows, units] of each problem; of units that are gone, anything.
        sparsity: that is not to be exceeded.
        chunk: part of the weights that are left that may go, but always one unit.

    Returns:
        Whether anything was removed.
    """
    total = sum(mask.size for mask in masks)
    alive = sum(int(mask.sum()) for mask in masks)
    surplus = alive - round(total * (1 - sparsity))
    candidates, sizes = [], []
    for p, mask, score in zip(problems, masks, scores):
        left = mask[:, p.starts]
        candidates.append(np.where(left, score / p.sizes, np.inf).ravel())
        sizes.append(np.broadcast_to(p.sizes, left.shape).ravel())
    ranked, width = np.concatenate(candidates), np.concatenate(sizes)
    most = min(surplus, max(int(alive * chunk), 1))
    # No more units go than columns may.
    order = np.arange(len(ranked))
    if 0 < most < len(ranked):
        order = np.sort(np.argpartition(ranked, most - 1)[:most])
    order = order[np.argsort(ranked[order], kind="stable")]
    order = order[: int(np.isfinite(ranked[order]).sum())]
    reached = np.cumsum(width[order])
    count = int(np.searchsorted(reached, most, side="right"))
    if not count and order.size and width[order[0]] <= surplus:
        count = 1
    chosen = np.zeros(len(ranked), bool)
    chosen[order[:count]] = True
    first = 0
    for p, mask in zip(problems, masks):
        size = len(mask) * len(p.starts)
        gone = chosen[first : first + size].reshape(len(mask), -1)
        first += size
        mask &= ~gone[:, p.unit]
    return count > 0


def _error(problems: Sequence[_Problem], weights: Sequence[Array]) -> float:
    change = sum(p.power_of(p.weights - now) for p, now in zip(problems, weights))
    power = sum(p.power for p in problems)
    return max(change, 0.0) / power if power > 0 else 0.0


def _level(
    problems: Sequence[_Problem], masks: Sequence[Array], weights: Sequence[Array], sparsity: float
) -> Level:
    biases = tuple(
        ((p.weights.astype(np.float64) - now) @ p.mean).astype(np.float32)
        for p, now in zip(problems, weights)
    )
    return Level(
        sparsity, tuple(mask.copy() for mask in masks), tuple(weights), biases, _error(problems, weights)
    )


class _Path:
    """One way from the dense layer to the sparsest."""

    def __init__(
        self,
        weights: Sequence[Array],
        moments: Sequence[Moments],
        blocks: Sequence[Array],
        pattern: Pattern,
        centred: bool,
        taps: Sequence[int],
        effort: Effort,
    ) -> None:
        self._problems = _problems(weights, moments, blocks, pattern, centred)
        self._effort = effort
        self._units = [
            Units.of(p.unit, p.sizes, p.damped, count) for p, count in zip(self._problems, taps, strict=True)
        ]
        self._masks = [np.ones(p.weights.shape, bool) for p in self._problems]
        for p, mask in zip(self._problems, self._masks):
            mask &= ~p.empty[p.unit]
        self._targets = [p.weights @ p.damped for p in self._problems]
        self._weights = [
            np.where(mask, p.weights, np.float32(0)) for p, mask in zip(self._problems, self._masks)
        ]
        self._solved = True
        # On the way, alive weights sum up to 1 / chunk times all of them.
        size = sum(p.weights.size for p in self._problems)
        self._width = max(effort.width, int((effort.operations * effort.chunk / max(size, 1)) ** 0.5))

    def go_to(self, sparsity: float) -> None:
        total = sum(mask.size for mask in self._masks)
        least = round(total * (1 - sparsity))
        while sum(int(mask.sum()) for mask in self._masks) > least:
            self._solve(1e-2, 8)
            scores = [
                units.costs(mask, now, self._width)
                for units, mask, now in zip(self._units, self._masks, self._weights)
            ]
            if not _remove(self._problems, self._masks, scores, sparsity, self._effort.chunk):
                break
            self._solved = False

    def level(self, sparsity: float) -> Level:
        self._solved = False
        self._solve(1e-3, 60)
        return _level(self._problems, self._masks, [w.copy() for w in self._weights], sparsity)

    def _solve(self, tolerance: float, iterations: int) -> None:
        if self._solved:
            return
        for i, p in enumerate(self._problems):
            self._weights[i] = solve(
                p.damped, self._targets[i], self._masks[i], self._weights[i], p.weights, tolerance, iterations
            )
        self._solved = True
