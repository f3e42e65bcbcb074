"""What cost models want to know of a sparse layer's nonzeros: how they fall into blocks of input channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.kernels.geometry import block_sizes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Profile:
    """The nonzeros of rows, of one output channel each or of a few that share their pattern, block by block.

    Args:
        rows: of all blocks.
        blocks: of input channels.
        nonzeros: positions where a row's channels have any.
        lengths: how many different numbers of nonzeros rows of a block have, of all blocks together.
    """

    rows: int
    blocks: int
    nonzeros: int
    lengths: int

    @property
    def each(self) -> float:
        """Nonzeros of a row."""
        return self.nonzeros / self.rows


def profiles(
    nonzero: Array, inputs: int, taps: int, sharings: Iterable[int]
) -> dict[tuple[int, int], Profile]:
    """{(output channels that share a pattern, input channels of a block): profile}, larger blocks first.

    Args:
        nonzero: [output channels, inputs * taps], whether a weight is not zero.
        inputs: input channels.
        taps: positions of an input channel.
    """
    found: dict[tuple[int, int], Profile] = {}
    for shared in sharings:
        before = _before(nonzero, shared)
        for block in block_sizes(inputs):
            bounds = [*range(0, inputs * taps, block * taps), inputs * taps]
            counts = np.diff(before[:, bounds], axis=1)
            changes = np.diff(np.sort(counts, axis=0), axis=0)
            lengths = counts.shape[1] + int(np.count_nonzero(changes))
            found[shared, block] = Profile(counts.size, counts.shape[1], int(counts.sum()), lengths)
    return found


def _before(nonzero: Array, shared: int) -> Array:
    """[rows of `shared` channels, positions + 1] int32: how many positions before each have a nonzero in any
    of the row's channels."""
    rows, columns = nonzero.shape
    padded = np.zeros((-(-rows // shared) * shared, columns), bool)
    padded[:rows] = nonzero
    before = np.zeros((len(padded) // shared, columns + 1), np.int32)
    np.cumsum(padded.reshape(-1, shared, columns).any(axis=1), axis=1, out=before[:, 1:])
    return before
