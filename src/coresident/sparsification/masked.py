"""Least squares under masks: rows of weights of which only some may differ from zero.

For each row, the w that is zero outside its mask and minimises w H w^T / 2 - w b^T. Rows with few columns
left are solved by a Cholesky factorisation each; where that costs more, all rows together by preconditioned
conjugate gradients, whose work is products of whole matrices.

Source: conjugate gradients, Hestenes and Stiefel 1952.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from coresident.errors import InputError
from coresident.graph.operator import Array

_ITERATIONS = 60
"""Conjugate gradients at most."""

_SPEED = 4.0
"""How much faster a product of large matrices is, per operation, than factorising a small one."""

_CALL = 3e5
"""Operations that take as long as what surrounds a factorisation."""


def solve(
    gram: Array,
    target: Array,
    mask: Array,
    start: Array,
    tolerance: float = 1e-4,
    iterations: int = _ITERATIONS,
) -> Array:
    """Weights under masks.

    Args:
        gram: H, float32 [columns, columns], symmetric and positive definite.
        target: b, float32 [rows, columns].
        mask: bool [rows, columns], where weights may differ from zero.
        start: float32 [rows, columns], where iterations begin.
        tolerance: an iteration that lowers the sum of all rows' objectives by less than this part of what
            all before have is the last.
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
    return _together(gram, target, mask, start, tolerance, iterations)


def _by_row(gram: Array, target: Array, mask: Array) -> Array:
    result = np.zeros(mask.shape, np.float32)
    for row, alive in enumerate(mask):
        columns = np.flatnonzero(alive)
        if columns.size:
            factor = factorised(gram, columns)
            solution, _ = (lapack.spotrs if factor.dtype == np.float32 else lapack.dpotrs)(
                factor, target[row, columns].astype(factor.dtype)
            )
            result[row, columns] = solution
    return result


def _together(
    gram: Array, target: Array, mask: Array, start: Array, tolerance: float, iterations: int
) -> Array:
    inverse_diagonal = (mask / np.diagonal(gram)).astype(np.float32)
    weights = np.where(mask, start, np.float32(0))
    residual = (target - weights @ gram) * mask
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
        if gained <= tolerance * total:
            break
        keep = np.divide(power, previous, out=np.zeros_like(power), where=previous > 0)
        step = scaled + keep[:, None].astype(np.float32) * step
    return weights


def _dots(a: Array, b: Array) -> Array:
    dots: Array = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return dots


def factorised(gram: Array, columns: Array) -> Array:
    """The upper Cholesky factor of H restricted to some columns; in float64 where float32 does not do.

    Raises:
        InputError: it is not positive definite.
    """
    # LAPACK wants columns first; the transpose of a symmetric matrix is itself.
    part = gram.take(columns, axis=0).take(columns, axis=1).T
    factor, failed = lapack.spotrf(part, lower=0, clean=0, overwrite_a=0)
    if failed:
        factor, failed = lapack.dpotrf(part.astype(np.float64), lower=0, clean=0, overwrite_a=1)
    if failed:
        raise InputError("second moments are not positive definite: activations are not finite, or too large")
    return np.asarray(factor)


def inverted(factor: Array) -> Array:
    """The inverse from the factor of `factorised`, in its upper triangle; what is below is anything."""
    inverse, _ = (lapack.spotri if factor.dtype == np.float32 else lapack.dpotri)(factor, lower=0)
    return np.asarray(inverse)
