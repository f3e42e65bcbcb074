"""Which cut of an integer convolution, and which way to multiply, should be fastest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.target import Target
from coresident.kernels import cost, integer_cost, integer_stream, integer_wired, wired
from coresident.kernels.frame import Shape
from coresident.kernels.integer_cost import QUAD
from coresident.kernels.integer_segments import segment_strips
from coresident.kernels.integer_stream import Count
from coresident.kernels.integer_strips import Places, Strips, evenly, flat_strips, pitched_strips, row_strips
from coresident.kernels.integer_tiles import Choice
from coresident.kernels.lowering import Plan
from coresident.kernels.spread import group_of, starts_of

MOST_VECTORS = {1: 10, 2: 6, 4: 2, 6: 2}
"""Vectors of a tile at most, for so many channels that share their loads, with 16 registers: beside the sums,
products, weights and activations need some."""

GATHERED = 0.5
"""Share of weights that are not zero above which to bring single ones together is never tried."""

FLAT_TOGETHER, PITCHED_TOGETHER = (1, 2, 3, 4, 6, 8, 12, 16, 32), (1, 2, 4, 8, 16, 64)
"""Tiles of a strip worth trying, of those that cross row ends: of the input, or of the output."""

ROWS, PIECES = (1, 2, 4, 7, 8, 14, 16, 28, 56), (1, 4, 16)
"""Rows of a strip worth trying, and parts of a row."""

DENSEST_CODE = 0.6
"""Share of entries above which they are never put into code."""


def choose(
    plan: Plan,
    shape: Shape,
    weights: np.ndarray[Any, Any],
    places: Places,
    merged: bool = False,
    by_plane: bool = False,
) -> Choice:
    """The cut that should be fastest.

    Args:
        merged: whether output channels are phases that take turns in pairs as they are stored.
        by_plane: whether the output is read plane by plane.
    """
    machine = cost.Machine.of(plan.target)
    ways: list[tuple[Dot, int, Count]] = []
    for dot in Dot.all(plan.target):
        for shared in (1,) if dot.held else (1, 2, 4, 6):
            if shared <= shape.outputs and not (merged and shared % 2):
                ways.append((dot, shared, integer_stream.count(weights[0], dot, shared)))
    gathering = Dot.gathering(plan.target)
    if not merged and np.count_nonzero(weights) < GATHERED * weights.size:
        ways.append((gathering, 1, integer_stream.count(weights[0], gathering, 1)))
    best: Choice | None = None
    least = math.inf
    by_code: list[tuple[int, int, cost.Chunks]] = []
    four = Dot.of(plan.target)
    if not merged and integer_wired.is_possible(plan.target, four, weights):
        entries = integer_wired.quads(weights) != 0
        if entries.mean() < DENSEST_CODE:
            by_code = list(wired.ways(entries, -(-shape.inputs // QUAD), plan.threads))
    scale = plan.target.registers // 16
    most = {shared: vectors * scale for shared, vectors in MOST_VECTORS.items()}
    quads = -(-shape.inputs // QUAD)
    for vectors in range(1, most[1] + 1):
        for strips in [*_cuts(places, vectors), *_segment_cuts(plan, places, vectors, quads)]:
            for dot, shared, count in ways:
                if vectors > (8 * scale if dot.gathers else most[shared]):
                    continue
                if strips.segments is not None and dot.channels != QUAD:
                    continue
                elements = -(-shape.inputs // dot.channels)
                for rows_first, block in _orders(machine, plan, shape, strips, dot, shared):
                    way = (strips, dot, shared, count, rows_first, block, len(places.extras), by_plane)
                    cycles = integer_cost.streamed(machine, plan, shape, *way, most=least)
                    if best is None or cycles < least:
                        best = Choice(strips, dot, shared, rows_first, elements, block, cycles, by_plane)
                        least = cycles
            for chunk_rows, block, chunks in by_code if vectors <= wired.MOST_VECTORS else ():
                extras = len(places.extras)
                cycles = integer_cost.coded(
                    machine, plan, shape, strips, chunk_rows, chunks, extras, by_plane, most=least
                )
                if cycles < least:
                    best = Choice(strips, four, 1, False, quads, block, cycles, by_plane, chunk_rows)
                    least = cycles
    assert best is not None
    return best


def _orders(
    machine: cost.Machine, plan: Plan, shape: Shape, strips: Strips, dot: Dot, shared: int
) -> list[tuple[bool, int]]:
    """Whether rows come first, and elements of a block: all, or as many as fit L1."""
    elements = -(-shape.inputs // dot.channels)
    orders = [(False, elements), (True, elements)]
    rates = integer_cost.Rates.of(plan, dot, strips)
    fits = int(rates.near * machine.l1_bytes / integer_cost.tile_bytes(plan, strips, dot, 1))
    # Rows that overlap would wait for each other's sums.
    if 0 < fits < elements and shape.outputs % shared == 0:
        orders.append((False, evenly(elements, fits)))
    return orders


def _cuts(places: Places, vectors: int) -> list[Strips]:
    """Ways to cut into tiles of so many vectors, each once; none where there are fewer."""
    width, (*outer, columns) = vectors * places.lanes, places.out.shape[2:]
    if places.flat:
        tiles, rest = divmod(places.flat_length, width)
        together = _parts(tiles + (rest > 0), FLAT_TOGETHER) if tiles else ()
        return [flat_strips(places, vectors, number) for number in together]
    found: list[Strips | None] = []
    if width <= places.pitched_length:
        tiles = len(starts_of(places.pitched_length, width))
        found += [pitched_strips(places, vectors, number) for number in _parts(tiles, PITCHED_TOGETHER)]
    if vectors <= -(-columns // places.lanes):
        tiles = len(starts_of(columns, width))
        found += [
            row_strips(places, vectors, rows, tiles) for rows in _parts(outer[-1] if outer else 1, ROWS)
        ]
        found += [row_strips(places, vectors, 1, pieces) for pieces in PIECES if pieces < tiles]
    return [strips for strips in found if strips is not None]


def _parts(count: int, sizes: Iterable[int]) -> Iterable[int]:
    """How many go together so that no part has more than one of the sizes, each once."""
    return dict.fromkeys(evenly(count, size) for size in sizes)


def _spreads(target: Target) -> bool:
    """Whether one instruction puts the bytes of a vector into any order."""
    return target.vector_bits == 512 and target.has("avx512vbmi")


def _segment_cuts(plan: Plan, places: Places, vectors: int, quads: int) -> list[Strips]:
    """Tiles of segments, where taps would be unaligned otherwise."""
    if not _spreads(plan.target) or all(a[-1] == 0 for a in places.positions):
        return []
    return segment_strips(places, vectors, quads, group_of(plan.target))
