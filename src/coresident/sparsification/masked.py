"""Least squares under masks: rows of weights of which only some may differ from zero.

For each row, the w that is zero outside its mask and minimises w H w^T / 2 - w b^T. Rows with few columns
left are solved by a Cholesky factorisation each; where that costs more, all rows together by preconditioned
conjugate gradients, whose work is products of whole matrices.

Source: conjugate gradients, Hestenes and Stiefel 1952.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.operator import Array
from coresident.sparsification.blas import in_threads
from coresident.sparsification.cholesky import factorised, solved

_ITERATIONS = 60
"""Conjugate gradients at most."""

_SPEED = 4.0
"""How much faster a product of large matrices is, per operation, than factorising a small one."""

_TOGETHER = 128
"""Rows that iterate together."""

_CALL = 3e5
"""Operations that take as long as what surrounds a factorisation."""


def solve(
    gram: Array,
    target: Array,
    mask: Array,
    start: Array,
    free: Array,
    tolerance: float = 1e-3,
    iterations: int = _ITERATIONS,
) -> Array:
    """Weights under masks.

    Args:
        gram: H, float32 [columns, columns], symmetric and positive definite.
        target: b, float32 [rows, columns].
        mask: bool [rows, columns], where weights may differ from zero.
        start: float32 [rows, columns], where iterations begin.
        free: float32 [rows, columns], about the solution without masks: tells how much there is to gain.
        tolerance: an iteration that lowers the objectives of some rows by less than this part of what they
            were at the start above those of `free` is the last.
        iterations: at most.

    Returns:
        float32 [rows, columns].

    Raises:
        InputError: H is not positive definite.
    """
    rows, columns = mask.shape
    alive = mask.sum(axis=1).astype(np.float64)
    direct = _SPEED * (np.sum(alive**3) / 3 + _CALL * rows)
    iterative = 2.0 * rows * columns**2 * min(iterations, 20)
    if direct < iterative or columns < 64:
        return _by_row(gram, target, mask)
    result = np.zeros(mask.shape, np.float32)

    def together(some: slice) -> None:
        result[some] = _together(
            gram, target[some], mask[some], start[some], free[some], tolerance, iterations
        )

    in_threads(together, rows, _TOGETHER)
    return result


def _by_row(gram: Array, target: Array, mask: Array) -> Array:
    result = np.zeros(mask.shape, np.float32)

    def one_by_one(some: slice) -> None:
        for row in range(some.start, some.stop):
            columns = np.flatnonzero(mask[row])
            if columns.size:
                result[row, columns] = solved(factorised(gram, columns), target[row, columns])

    in_threads(one_by_one, len(mask), 8)
    return result


def _together(
    gram: Array,
    target: Array,
    mask: Array,
    start: Array,
    free: Array,
    tolerance: float,
    iterations: int,
) -> Array:
    inverse_diagonal = (mask / np.diagonal(gram)).astype(np.float32)
    weights = np.where(mask, start, np.float32(0))
    residual = target - weights @ gram
    distance = float(_dots(free - weights, residual).sum())
    residual *= mask
    step = residual * inverse_diagonal
    power = _dots(residual, step)
    total = 0.0
    for _ in range(iterations):
        product = (step @ gram) * mask
        curvature = _dots(step, product)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)
        weights += length[:, None].astype(np.float32) * step
        residual -= length[:, None].astype(np.float32) * product
        gained = float((length * power).sum())
        total += gained
        scaled = residual * inverse_diagonal
        previous, power = power, _dots(residual, scaled)
        if gained <= tolerance * max(distance, total):
            break
        keep = np.divide(power, previous, out=np.zeros_like(power), where=previous > 0)
        step = scaled + keep[:, None].astype(np.float32) * step
    return weights


def _dots(a: Array, b: Array) -> Array:
    dots: Array = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return dots
