"""What reconstruction needs to know of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coresident.graph.operator import Array
from coresident.sparsification.blas import in_threads

_WAITING = 4
"""Columns for each position that waits, at least."""

_ROWS = 512
"""Rows of a product."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of what the columns of one problem see.

    Args:
        count: positions that were seen.
        mean: float64 [columns].
        covariance: float32 [columns, columns], the mean of (x - mean) (x - mean)^T.
    """

    count: int
    mean: Array
    covariance: Array

    @property
    def second(self) -> Array:
        """float32 [columns, columns], the mean of x x^T."""
        whole: Array = self.covariance + np.outer(self.mean, self.mean).astype(np.float32)
        return whole


class MomentSums:
    """Sums from which moments are worked out, about the first batch's mean: where activations vary little
    around it, what differs would drown in the rounding of squares.

    Products wait until they are of many positions: one by one, it takes longer to add them up.

    Attributes:
        count: positions so far.
        pivot: float32 [columns], what `first` and second moments are about.
        first: float64 [columns], the sum of x - pivot.
    """

    def __init__(self) -> None:
        self.count = 0
        self.pivot: Array = np.zeros(0, np.float32)
        self.first: Array = np.zeros(0)
        self._second: Array = np.zeros((0, 0), np.float32)
        self._waiting: list[Array] = []

    def add(self, x: Array) -> Array:
        """Count some positions, float32 [columns, positions]; returns x - pivot."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the sums
            if not self.count:
                self.pivot = x.mean(axis=1, dtype=np.float64).astype(np.float32)
                self.first = np.zeros(len(x))
                self._second = np.zeros((len(x), len(x)), np.float32)
            moved: Array = x - self.pivot[:, None]
            self.first += moved.sum(axis=1, dtype=np.float64)
        self.count += x.shape[1]
        self._waiting.append(moved)
        if sum(each.shape[1] for each in self._waiting) * _WAITING >= len(x):
            self._multiply()
        return moved

    def _multiply(self) -> None:
        """Add up the products that wait: those of a row with the columns up to its own."""
        x = np.concatenate(self._waiting, axis=1) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting.clear()

        def some(rows: slice) -> None:
            with np.errstate(invalid="ignore", over="ignore"):
                self._second[rows, : rows.stop] += x[rows] @ x[: rows.stop].T

        in_threads(some, len(x), _ROWS)

    def moments(self) -> Moments:
        """What the sums come to; there is a position at least."""
        if self._waiting:
            self._multiply()
        for first in range(_ROWS, len(self._second), _ROWS):
            rows = slice(first, first + _ROWS)
            self._second[:first, rows] = self._second[rows, :first].T
        shift = self.first / self.count
        covariance = self._second / np.float32(self.count) - np.outer(shift, shift).astype(np.float32)
        return Moments(self.count, self.pivot + shift, covariance)
