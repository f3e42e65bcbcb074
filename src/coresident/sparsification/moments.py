"""What reconstruction needs to know of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coresident.graph.operator import Array


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

    Attributes:
        count: positions so far.
        pivot: float32 [columns], what `first` and `second` are about.
        first: float64 [columns], the sum of x - pivot.
        second: float32 [columns, columns], the sum of (x - pivot) (x - pivot)^T.
    """

    def __init__(self) -> None:
        self.count = 0
        self.pivot: Array = np.zeros(0, np.float32)
        self.first: Array = np.zeros(0)
        self.second: Array = np.zeros((0, 0), np.float32)

    def add(self, x: Array) -> Array:
        """Count some positions, float32 [columns, positions]; returns x - pivot."""
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the sums
            begins = not self.count
            if begins:
                self.pivot = x.mean(axis=1, dtype=np.float64).astype(np.float32)
            moved: Array = x - self.pivot[:, None]
            first, second = moved.sum(axis=1, dtype=np.float64), moved @ moved.T
        self.count += x.shape[1]
        self.first = first if begins else self.first + first
        self.second = second if begins else self.second + second
        return moved

    def moments(self) -> Moments:
        """What the sums come to; there is a position at least."""
        shift = self.first / self.count
        covariance = self.second / np.float32(self.count) - np.outer(shift, shift).astype(np.float32)
        return Moments(self.count, self.pivot + shift, covariance)
