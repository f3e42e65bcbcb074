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
        second: float32 [columns, columns], the mean of x x^T, not centred.
    """

    count: int
    mean: Array
    second: Array

    @property
    def covariance(self) -> Array:
        """float32 [columns, columns], the mean of (x - mean) (x - mean)^T."""
        centred: Array = self.second - np.outer(self.mean, self.mean).astype(np.float32)
        return centred
