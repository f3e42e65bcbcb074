"""Tiles of a sparse convolution of striped rows (`Layout.striped`): a few columns in each of a few rows, read
from where they lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.graph.graph import Graph, Node
from coresident.kernels import cost
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry, Tiles, footprint, halo, rectangles, window
from coresident.kernels.layout import Layout
from coresident.kernels.sparse_profile import Profile

STRIPED_ZEROS, FEW_CHANNELS = 0.72, 4
"""Share of zeros from which on streams are faster than all else where rows are striped (U-Nets on Zen 5: 0.96
to 1.06 times as fast at 70 %, 1.05 at 73 %, 1.13 at 96 %); and channels read or written, up to which all
kernels take about as long."""

MOST_IN_VOLUMES = 0.93
"""Share of zeros up to which that is so in volumes, whose outer columns are read anew for each depth (a 3-D
U-Net on Emerald Rapids: 1.19 times as fast at 80 and 90 %, 0.97 at 95 %)."""

NEAR_SUMS = 1.0
"""Cycles that a vector of sums takes less to wait where half of them fit L1 beside the block."""

STRIPE_READING, STRIPE_STORING, STRIPE_ADDING = 3.0, 6.0, 4.0
"""Cycles for L1 to get a line of a tile of striped rows, to store a vector of one, and to add another."""

CODE_MARGIN, MOST_VECTORS = 0.72, 16
"""Of code over such tiles, on cores that spread weights in a pipe of their own (`Target.shuffles_apart`):
measured over modelled cycles, relative to those of streams; and vectors of a tile at most. (U-Nets on Emerald
Rapids, layer by layer: code is 0.96 to 1.33 times as fast as streams at 90 % zeros, 1.10 times in the median,
1.15 times at 80 %.)"""

MOST_L1 = 2.0
"""Of the part of L1 that a tile's activations may fill."""

MOST_BYTES = 1 << 30
"""Of a picture's activations: offsets in streams reach twice as far, and there may be as many outer columns
as others."""


def gains_in_stripes(node: Node, graph: Graph) -> bool | None:
    """Whether striped rows suit a convolution (`Family.stripes`): kernels larger than a pixel then read whole
    vectors from where they lie. Where most is to be multiplied, other kernels than those that can read
    stripes are faster, unless it is little."""
    weights = graph.constant(node.inputs[1])
    if weights is None or node.get("group", 1) != 1:
        return None
    w, around = window(node, graph), halo(node, graph)
    before, after = (graph.facts[name].sizes[2:] for name in (node.inputs[0], node.outputs[0]))
    if before[-1] != after[-1] * w.strides[-1] or w.strides[-1] > 2 or max(around[-1]) > 1:
        return None
    if 4 * math.prod(graph.facts[node.inputs[0]].sizes[1:]) >= MOST_BYTES:
        return None
    zeros = 1 - int(np.count_nonzero(weights)) / max(weights.size, 1)
    if min(weights.shape[:2]) <= FEW_CHANNELS and w.strides[-1] == 1:
        return False
    if zeros < STRIPED_ZEROS:
        return None
    return math.prod(w.kernel) > 1 and (len(w.kernel) < 3 or zeros <= MOST_IN_VOLUMES)


def ways(
    target: Target,
    g: Geometry,
    shape: Shape,
    out: Layout,
    extras: Sequence[Layout],
    profiles: Mapping[int, Profile],
    suits: Callable[[Tiles], bool],
) -> Iterator[tuple[Tiles, int, float]]:
    """Tiles, input channels of a block that fits L1, and the cycles that they should take on one core.

    Args:
        extras: layouts of what the epilogue adds.
        profiles: of block sizes.
        suits: whether tiles suit what is to be done with results as well.
    """
    machine, lanes = cost.Machine.of(target), target.lanes(F32)
    for cutting, read in _tiles(target, g, out, extras, target.registers - 2, suits):
        for block, profile in profiles.items():
            if block * read > machine.l1_bytes * MOST_L1:
                continue
            rows, blocks = profile.rows, profile.blocks
            one = cost.packed_rows(machine, cutting.vectors, profile.each, rows, blocks, block * read)
            waiting = rows / blocks * cutting.vectors * 4 * lanes
            if block * read + waiting / 2 < target.l1_bytes:
                one -= NEAR_SUMS * cutting.vectors * (rows - rows / blocks)
            stored = shape.groups * shape.outputs * cutting.vectors
            one += stored * (STRIPE_STORING + STRIPE_ADDING * len(extras))
            one += shape.groups * shape.inputs * read / 64 * STRIPE_READING
            yield cutting, block, cutting.count * shape.batch * one


def ways_in_code(
    target: Target,
    g: Geometry,
    shape: Shape,
    out: Layout,
    extras: Sequence[Layout],
    chunks: Sequence[tuple[int, int, cost.Chunks]],
    suits: Callable[[Tiles], bool],
) -> Iterator[tuple[Tiles, int, int, float, cost.Chunks]]:
    """The same with nonzeros as code: tiles, rows of a chunk, input channels of a block, cycles, the chunks.

    Args:
        chunks: ways to cut weights (`wired.ways`).
    """
    machine = cost.Machine.of(target)
    for cutting, read in _tiles(target, g, out, extras, MOST_VECTORS, suits):
        for rows, most, profile in chunks:
            blocks = -(-shape.inputs // max(1, min(most, target.l1_bytes // read)))
            block = -(-shape.inputs // blocks)
            held = replace(profile, blocks=-(-shape.inputs // block))
            one = cost.wired_tile(machine, held, cutting.vectors, False, len(extras), False)
            one += shape.groups * shape.outputs * cutting.vectors * STRIPE_STORING
            one += shape.groups * shape.inputs * read / 64 * STRIPE_READING
            total = cutting.count * one + (cutting.count - 1) * held.refetch(machine)
            yield cutting, rows, block, (total * shape.batch + held.fetch(machine)) * CODE_MARGIN, held


def _tiles(
    target: Target,
    g: Geometry,
    out: Layout,
    extras: Sequence[Layout],
    most: int,
    suits: Callable[[Tiles], bool],
) -> Iterator[tuple[Tiles, int]]:
    """Tiles of `most` vectors, and the bytes that one reads of an input channel."""
    lanes, (*outer, width) = target.lanes(F32), out.shape[2:]
    sizes = (range(1, min(size, most) + 1) for size in (*outer, width // lanes))
    for *runs, across in itertools.product(*sizes):
        below = math.prod(runs)
        if across * below > most or across > 2 * below:
            continue
        cutting = rectangles(g.strides, out, extras, lanes, across, tuple(runs))
        if suits(cutting):
            yield cutting, 4 * footprint(g, across * lanes, runs)
