"""Minimal filters: a few output pixels of a small kernel by few multiplications.

Winograd's F(m, r) makes m output pixels of a kernel with r taps by m + r - 1 products, in both directions by
the square of that (A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", 2016):

    Y = AT [ (G w GT) * (BT x B) ] A        * element by element, and summed over input channels

Its matrices interpolate polynomials at some points. With those here, powers of two near one, rounding errors
are three (3 taps) and five times (4 taps) those of a direct convolution; with the usual 2 and -2 they are
much larger (B. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep
neural networks", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TILE = 4
"""Output pixels of a tile, in both directions."""


@dataclass(frozen=True, eq=False)
class Filter:
    """The matrices of F(4, taps).

    Args:
        taps: of the kernel, in both directions.
        inputs: BT, [window, window].
        kernels: G, [window, taps].
        outputs: AT, [4, window].
    """

    taps: int
    inputs: np.ndarray[Any, Any]
    kernels: np.ndarray[Any, Any]
    outputs: np.ndarray[Any, Any]

    @property
    def window(self) -> int:
        """Input pixels below a tile, in both directions."""
        return TILE + self.taps - 1

    @property
    def positions(self) -> int:
        """Of the products."""
        return self.window * self.window


def _filter(taps: int, points: Sequence[float]) -> Filter:
    """By interpolation at some points and at infinity (A. Toom 1963, S. Cook 1966)."""
    finite = len(points)
    inputs, kernels = np.zeros((finite + 1, finite + 1)), np.zeros((finite + 1, taps))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        inputs[i, :finite] = np.poly(others)[::-1]
        kernels[i] = point ** np.arange(taps) / np.prod([point - other for other in others])
    inputs[finite] = np.poly(points)[::-1]
    kernels[finite, -1] = 1
    outputs = np.zeros((TILE, finite + 1))
    outputs[:, :finite] = np.array(points, np.float64) ** np.arange(TILE)[:, None]
    outputs[-1, finite] = 1
    return Filter(taps, inputs, kernels, outputs)


FILTERS = {one.taps: one for one in (_filter(3, (0, 1, -1, 0.5, -2)), _filter(4, (0, 1, -1, 0.5, -0.5, 2)))}
"""By the taps of a kernel in both directions."""
