"""What it costs to remove a unit of weights, a single one or a block, from a row whose others then adjust.

With A the columns that the row still has and w its weights, unit B costs w_B ([(H_AA)^-1]_BB)^-1 w_B
(optimal brain surgeon, Hassibi and Stork 1993). Inverses are taken part by part of A, many of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coresident.graph.operator import Array
from coresident.sparsification.cholesky import factorised
from coresident.sparsification.inverse_code import BLOCK, WIDEST, Inverses

_TOGETHER = 1 << 22
"""Columns that are worked on at a time, about."""


@dataclass(frozen=True, eq=False)
class Units:
    """What can be removed from rows, its columns in the order of channels, taps innermost: neighbours tell
    most of each other, and parts are made of neighbours.

    Args:
        order: units in this order.
        first: column of the rows that each of these begins with.
        sizes: columns of each; those of a unit lie together, at most 4.
        places: [units, 1 or 4], where its columns are among those of all in this order; as many as there are
            columns, for what it lacks.
        inverses: of parts of H in this order, so that what is picked for a row lies close together.
    """

    order: Array
    first: Array
    sizes: Array
    places: Array
    inverses: Inverses

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
        sizes = sizes[order]
        first = np.searchsorted(unit, order)
        within = np.arange(1 if sizes.max(initial=1) == 1 else BLOCK)
        there = within < sizes[:, None]
        places = np.where(there, (np.cumsum(sizes) - sizes)[:, None] + within, len(unit))
        columns = (first[:, None] + within)[there]
        return cls(order, first, sizes, places, Inverses.of(gram[columns[:, None], columns]))

    def costs(self, mask: Array, weights: Array, width: int) -> Array:
        """What removing each unit of each row would cost.

        Args:
            mask: bool [rows, columns], what is left; of a unit all or nothing.
            weights: float32 [rows, columns], solved for.
            width: columns of a part, about.

        Returns:
            float64 [rows, units]; of units that are gone, anything.

        Raises:
            InputError: H is not positive definite.
        """
        result = np.zeros((len(mask), len(self.sizes)))
        left = mask[:, self.first]
        ends = np.cumsum(left @ self.sizes)
        for begin, end in _spans(ends, _TOGETHER):
            row, unit = np.nonzero(left[begin:end])
            if row.size:
                row += begin
                result[row, self.order[unit]] = self._costs(row, unit, weights, width)
        return result

    def _costs(self, row: Array, unit: Array, weights: Array, width: int) -> Array:
        """Of some rows' units, in order."""
        part = self._parts(row, unit, min(width, WIDEST))
        size = np.bincount(part)
        at = np.arange(len(part)) - (np.cumsum(size) - size)[part]
        # Matrices that share a vector are of about one size.
        rank = np.empty(len(size), np.int64)
        rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
        task, lane = rank[part] // self.inverses.lanes, rank[part] % self.inverses.lanes
        slots, tasks = self.places.shape[1], -(-len(size) // self.inverses.lanes)
        sizes = np.zeros(tasks, np.int64)
        np.maximum.at(sizes, rank // self.inverses.lanes, -(-size * slots // BLOCK) * BLOCK)
        columns = np.full(
            (tasks, int(sizes.max()), self.inverses.lanes), len(self.inverses.gram) - 1, np.int32
        )
        slot = at[:, None] * slots + np.arange(slots)
        columns[task[:, None], slot, lane[:, None]] = self.places[unit]
        blocks = self.inverses.blocks(columns, sizes)
        values = self._values(row, unit, weights)
        if slots == 1:
            inverse = blocks[task, at // BLOCK, at % BLOCK, at % BLOCK, lane][:, None, None]
        else:
            inverse = blocks[task, at, :, :, lane]
        found, bad = _forms(inverse.astype(np.float64), values)
        for number in np.unique(part[bad]):
            some = part == number
            found[some] = self._exact(unit[some], values[some])
        return found

    def _parts(self, row: Array, unit: Array, width: int) -> Array:
        """Which part each of some units is in; units of a row follow each other."""
        number = row - row[0]
        units = np.bincount(number)
        columns = np.bincount(number, self.sizes[unit]).astype(np.int64)
        parts = np.minimum(-(-columns // width), units)
        at = np.arange(len(row)) - (np.cumsum(units) - units)[number]
        return np.asarray(
            (np.cumsum(parts) - parts)[number] + ((at + 1) * parts[number] - 1) // units[number]
        )

    def _values(self, row: Array, unit: Array, weights: Array) -> Array:
        """Weights of units, float64 [units, 1 or 4], zero for what they lack."""
        within = np.arange(self.places.shape[1])
        columns = np.minimum(self.first[unit][:, None] + within, weights.shape[1] - 1)
        there = within < self.sizes[unit][:, None]
        return np.where(there, weights[row[:, None], columns], 0).astype(np.float64)

    def _exact(self, unit: Array, values: Array) -> Array:
        """What a part's units cost, in float64, which does where float32 does not."""
        places = self.places[unit]
        there = places < len(self.inverses.gram) - 1
        factor = np.triu(factorised(self.inverses.gram, places[there])).astype(np.float64)
        half = np.linalg.inv(factor)
        inverse = half @ half.T
        ends = np.cumsum(there.sum(axis=1))
        costs = []
        for begin, end, value, real in zip(ends - there.sum(axis=1), ends, values, there):
            block = inverse[begin:end, begin:end]
            costs.append(float(value[real] @ np.linalg.solve(block, value[real])))
        return np.array(costs)


def _forms(matrices: Array, values: Array) -> tuple[Array, Array]:
    """The forms v^T M^-1 v, by elimination in all of them at a time, and which M is not positive definite.

    Args:
        matrices: float64 [count, n, n], symmetric; destroyed.
        values: float64 [count, n].
    """
    total, bad = np.zeros(len(values)), np.zeros(len(values), bool)
    left = values.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for k in range(values.shape[1]):
            pivot = matrices[:, k, k]
            bad |= ~((pivot > 0) & (pivot < np.inf))
            total += left[:, k] ** 2 / pivot
            factor = matrices[:, k + 1 :, k] / pivot[:, None]
            left[:, k + 1 :] -= factor * left[:, k : k + 1]
            matrices[:, k + 1 :, k + 1 :] -= factor[:, :, None] * matrices[:, k, None, k + 1 :]
    return total, bad


def _spans(ends: Array, most: int) -> Iterator[tuple[int, int]]:
    """Rows that have so many columns together, or one row.

    Args:
        ends: columns of all rows up to each.
    """
    begin = 0
    while begin < len(ends):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield begin, end
        begin = end
