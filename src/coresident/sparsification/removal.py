"""What it costs to remove a unit of weights, a single one or a block, from a row whose others then adjust.

With A the columns that the row still has and w its weights, unit B costs w_B ([(H_AA)^-1]_BB)^-1 w_B
(optimal brain surgeon, Hassibi and Stork 1993). Inverses are taken part by part of A, and those of some rows
together: one by one, what surrounds them takes longer than they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from coresident.graph.operator import Array
from coresident.sparsification.blas import in_threads
from coresident.sparsification.cholesky import inverses

_ROWS = 8
"""Rows whose inverses are taken together."""


@dataclass(frozen=True, eq=False)
class Units:
    """What can be removed from rows, its columns in the order of channels, taps innermost: neighbours tell
    most of each other, and parts are made of neighbours.

    Args:
        columns: of the rows, in this order; those of a unit lie together.
        unit: of each of them.
        sizes: columns of each unit.
        gram: H in this order, so that what is picked for a row lies close together.
    """

    columns: Array
    unit: Array
    sizes: Array
    gram: Array

    @classmethod
    def of(cls, unit: Array, sizes: Array, gram: Array, taps: int) -> Units:
        """Units in the rows' own order.

        Args:
            unit: of each column, not decreasing.
            sizes: columns of each unit.
            gram: H, float32 [columns, columns], positive definite.
            taps: columns are taps times channels.
        """
        order = np.arange(len(sizes)).reshape(taps, -1).T.ravel()
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        columns = np.argsort(place[unit], kind="stable")
        return cls(columns, unit[columns], sizes, gram[columns[:, None], columns])

    def costs(self, mask: Array, weights: Array, width: int) -> Array:
        """What removing each unit of each row would cost.

        Args:
            mask: bool [rows, columns], what is left; of a unit all or nothing.
            weights: float32 [rows, columns], solved for.
            width: columns of a part, about.

        Returns:
            float64 [rows, units]; of units that are gone, anything.
        """
        alive, values = mask[:, self.columns], weights[:, self.columns]
        result = np.zeros((len(mask), len(self.sizes)))

        def together(some: slice) -> None:
            numbers, parts = [], []
            for number in range(some.start, some.stop):
                found = self._parts(np.flatnonzero(alive[number]), width)
                parts += found
                numbers += [number] * len(found)
            if not parts:
                return
            # Parts are padded to one width by columns that depend on nothing.
            lengths = np.array([len(part) for part in parts])
            valid = np.arange(lengths.max()) < lengths[:, None]
            chosen = np.zeros(valid.shape, np.int64)
            chosen[valid] = np.concatenate(parts)
            grams = self.gram[chosen[:, :, None], chosen[:, None, :]]
            part, place = np.nonzero(~valid)
            grams[part, place, :] = grams[part, :, place] = 0
            grams[part, place, place] = 1
            unit = np.where(valid, self.unit[chosen], -1)
            part, place = np.nonzero((np.diff(unit, prepend=-1, axis=1) != 0) & valid)
            rows, first = np.array(numbers), unit[part, place]
            held = values[rows[:, None], chosen]
            result[rows[part], first] = _costs(inverses(grams), held, part, place, self.sizes[first])

        in_threads(together, len(mask), _ROWS)
        return result

    def _parts(self, columns: Array, width: int) -> list[Array]:
        """Columns in parts of whole units."""
        firsts = np.flatnonzero(np.diff(self.unit[columns], prepend=-1))
        count = -(-columns.size // width)
        edges = np.append(firsts, columns.size)[np.linspace(0, len(firsts), count + 1).astype(int)]
        return [columns[begin:end] for begin, end in pairwise(edges.tolist()) if end > begin]


def _costs(inverse: Array, weights: Array, part: Array, place: Array, sizes: Array) -> Array:
    """What each of some units costs, float64 [units].

    Args:
        inverse: [parts, columns, columns], upper triangles.
        weights: [parts, columns].
        part: each unit's.
        place: of its first column there.
        sizes: its columns.
    """
    largest = int(sizes.max())
    if largest == 1:
        return np.asarray(weights[part, place].astype(np.float64) ** 2 / inverse[part, place, place])
    columns = np.minimum(place[:, None] + np.arange(largest), weights.shape[1] - 1)
    valid = np.arange(largest) < sizes[:, None]
    low, high = (f(columns[:, :, None], columns[:, None, :]) for f in (np.minimum, np.maximum))
    both = valid[:, :, None] & valid[:, None, :]
    blocks = np.where(both, inverse[part[:, None, None], low, high], np.eye(largest)).astype(np.float64)
    values = np.where(valid, weights[part[:, None], columns], 0).astype(np.float64)
    return np.asarray(np.einsum("ni,ni->n", values, np.linalg.solve(blocks, values[:, :, None])[:, :, 0]))
