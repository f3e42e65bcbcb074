"""Cycles of one core for integer convolutions, through a stream of entries or with entries as code."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from coresident.codegen.integers import Dot
from coresident.codegen.target import Target
from coresident.codegen.types import I32
from coresident.kernels import cost
from coresident.kernels.frame import Shape
from coresident.kernels.integer_stream import Count
from coresident.kernels.integer_strips import Strips
from coresident.kernels.lowering import Plan
from coresident.kernels.spread import GROUP, group_of
from coresident.kernels.tiling import divided, unevenness

QUAD = 4
"""Channels of an element of bytes."""

HALF_CROSSED = 4 / 3
"""Loads that a vector of segments is worth whose groups are half of what is loaded at once: one of three lies
in two lines."""

FEW = 4
"""Vectors of sums that do not hide how long one addition takes."""


@dataclass(frozen=True)
class Core:
    """What was fitted to a kind of core.

    Args:
        code, code_residual, code_pointwise, code_segments: measured over modelled cycles of entries in code,
            relative to those of a stream: of kernels larger than a pixel; of those of one pixel whose results
            meet a residual, and of others; and of larger ones that meet segments.
        code_pass: cycles more for each vector that a chunk is passed over.
        code_far: whether code waits for pixels that come from L2.
        segments, segments_few: how much longer streams of segments take: of more than `FEW` vectors of sums,
            and of these.
        shared: where channels share loads, those that each vector and weight counts for at least.
        shared_whole: how much less streams take that channels share over segments of groups of whole vectors.
        crossed: loads that a vector in two cache lines is worth, for kernels larger than a pixel.
        chain: cycles from an addition to a sum to the next one.
        gathered, gathered_rows: of single weights that are brought together, measured over modelled cycles:
            of kernels of one pixel, and of larger ones whose rows go through all tiles of a strip.
        gathered_far: what each cycle counts for in which the pixels of larger ones come from L2.
        shuffles: cycles to bring single weights of four channels together for four vectors, beside which what
            comes from L2 counts twice; 0 where other instructions bind.
    """

    code: float
    code_residual: float
    code_pointwise: float
    code_segments: float
    code_pass: float = 0.0
    code_far: bool = False
    segments: float = 1.0
    segments_few: float = 1.0
    shared: float = 0.0
    shared_whole: float = 1.0
    crossed: float = 1.5
    chain: float = 1.5
    gathered: float = 1.0
    gathered_rows: float = 1.0
    gathered_far: float = 0.0
    shuffles: float = 0.0

    @staticmethod
    def of(target: Target) -> Core:
        if not loads_whole(target):
            return HALVES
        return WHOLE if target.shuffles_apart else INTEL


HALVES = Core(code=0.85, code_residual=0.85, code_pointwise=0.72, code_segments=0.85)
"""Cores that load 256 bits at once, or have no wider vectors: of Zen 3 and Zen 4."""

WHOLE = Core(
    code=1.15,
    code_residual=0.85,
    code_pointwise=0.72,
    code_segments=1.15,
    code_pass=30.0,
    shared_whole=0.9,
    crossed=2.0,
    gathered=1.17,
    gathered_rows=1.2,
    gathered_far=0.75,
)
"""Cores that load 512 bits at once: of Zen 5. Chunks of 250 to 300 products took 1.1 to 1.2 times as long as
streams. Of neighbouring pixels, nearly all vectors lie in two lines: dense layers of 3x3 at 56 x 56 are 1.12
times as fast where four channels share loads, not two. Single weights are fitted to 36 cuts of each layer of
ResNet-50 with 90 % zeros, which is 1.1 times as fast so, and a U-Net 1.19 times."""

INTEL = replace(
    WHOLE,
    code=0.8855,
    code_residual=0.68,
    code_pointwise=0.576,
    code_segments=1.495,
    code_far=True,
    segments=1.04,
    segments_few=1.3,
    shared=1.8,
    chain=6.0,
    shuffles=18.0,
)
"""Those where shuffles take a multiply-add's turn (`Target.shuffles_apart`); a third pipe for loads spreads
the weights of code. Fitted on Emerald Rapids to all layers of ResNet-50, MobileNetV2 and a U-Net with 85 %
zeros in blocks and with 90 % anywhere. Tiles of 10 x 2, 8 x 2 and 3 x 4 take 1.08 times as long as of 4 x 4
and 3 x 6; ResNet-50 is 1.05 times as fast without them. With 90 % zeros anywhere it is 1.14 times as fast, as
most of it is code where bringing weights together takes eight shuffles. Segments of four vectors (512
channels of 3x3 at 7x7) take 210 to 230 us, single weights brought together 95, and 147 with a stride."""


@dataclass(frozen=True)
class Rates:
    """What a stream's loops take, fitted to layers measured with many cuts.

    Args:
        unaligned: loads that a vector in two cache lines counts as.
        word: loads that each weight, and an offset, counts as.
        far: share of the time from L2 that a vector costs which is not in L1.
        near, spread: of L1: activations from which on vectors are missed, and how many more until all are.
        row, vector, tensor: cycles at the end of a row; for each vector of it, and each vector that its
            epilogue reads.
        packing: cycles relative to instructions.
        large: how much more packing takes where a strip leaves no room in L2.
    """

    unaligned: float
    word: float
    far: float
    near: float
    spread: float
    row: float
    vector: float
    tensor: float
    packing: float
    large: float

    @staticmethod
    def of(plan: Plan, dot: Dot, strips: Strips) -> Rates:
        if strips.segments is not None:
            crossed = strips.segments.spread.group < group_of(plan.target)
            return _CROSSED if crossed else _SEGMENTS
        if cost.adds_at_once(plan.target, dot) and len(strips.taps) == 1:
            return _DIRECT
        return _usual(Core.of(plan.target).crossed)


_USUAL = Rates(1.5, 1.0, 0.2, 1.17, 1.33, 12.0, 3.0, 0.0, 1.5, 1.0)
"""Of Zen 3 and sums in 16 bits."""

_DIRECT = Rates(1.48, 0.43, 0.41, 0.58, 6.0, 0.6, 2.7, 3.8, 0.66, 0.83)
"""Of Zen 4, vpdpbusd of 512 bits and kernels of one pixel: for larger ones fits found nothing better than the
usual rates."""

_SEGMENTS = Rates(1.0, 0.6, 0.4, 1.17, 1.4, 6.2, 3.0, 0.0, 1.6, 1.0)
"""Of Zen 4, vpdpbusd and tiles of segments."""

_CROSSED = replace(_SEGMENTS, unaligned=HALF_CROSSED)
"""The same of smaller groups than vectors are loaded in."""


@cache
def _usual(crossed: float) -> Rates:
    """Where a vector in two cache lines counts as so many loads."""
    return replace(_USUAL, unaligned=crossed)


def loads_whole(target: Target) -> bool:
    """Whether vectors are loaded whole, not in halves."""
    return group_of(target) > GROUP


def tile_bytes(plan: Plan, strips: Strips, dot: Dot, elements: int) -> float:
    """Of packed pixels that a tile reads again and again."""
    reach = strips.vectors * plan.target.lanes(I32) * math.sqrt(max(1, len(strips.taps)))
    pixels = reach if strips.segments is None else strips.tile_pixels
    return dot.element_bytes * elements * pixels


def streamed(
    machine: cost.Machine,
    plan: Plan,
    shape: Shape,
    strips: Strips,
    dot: Dot,
    shared: int,
    stream: Count,
    rows_first: bool,
    block: int,
    extras: int,
    by_plane: bool,
    *,
    most: float = math.inf,
) -> float:
    """Of all of it, on one core, through a stream.

    Args:
        shared: output channels that have their entries together.
        stream: of the entries.
        rows_first, block, by_plane: as `Choice` has them (`channels_first`).
        extras: tensors that the epilogue reads.
        most: cycles from which on the answer may be infinite.
    """
    rates, core = Rates.of(plan, dot, strips), Core.of(plan.target)
    vectors, tiles = strips.vectors, len(strips.tiles)
    elements = -(-shape.inputs // dot.channels)
    rows = -(-shape.outputs // shared)
    unaligned = any(tap % 8 for tap in strips.taps) or not strips.flat
    pixels = vectors * (rates.unaligned if unaligned else 1.0)
    loads = dot.depth * (pixels + rates.word * (shared + 1)) / machine.loads
    if shared > 1:
        loads = max(loads, core.shared * dot.depth * (vectors + shared) / machine.loads)
    products = (dot.depth + (1 if dot.held else 0)) * vectors * shared / machine.fmas
    issue = (2 * dot.depth * vectors * shared + dot.depth * (vectors + 2 + shared)) / (machine.issue + 1)
    issue = max(issue, cost.integer_issue(machine, dot.arithmetic * vectors * shared))
    together = tiles / len(strips.strips)
    blocks = -(-elements // block)
    # What is read again and again: a tile's or the whole strip's pixels, and the stream or a row of it.
    strip_bytes = dot.element_bytes * elements * strips.span * strips.pieces
    near = strip_bytes if rows_first else tile_bytes(plan, strips, dot, block)
    missed = min(max(near - rates.near * machine.l1_bytes, 0.0) / (rates.spread * machine.l1_bytes), 1.0)
    far = rates.far * missed * vectors * plan.target.vector_bits / 8 / machine.l2_bytes
    # Each lane's sums are a chain of additions.
    step = max(loads, products, issue, core.chain * dot.depth) + dot.depth * far
    if vectors == 1 and cost.adds_at_once(plan.target, dot):
        # Each vector that comes from L2 is read for a few products alone, so that any delay shows.
        step *= 1.2
    if dot.gathers:
        fours = -(-vectors // 4)
        issue = cost.integer_issue(machine, fours * (8 + 4 * dot.arithmetic) + 1)
        # Shuffles and their loads hinder each other: a fifth to a third more than either takes was measured.
        step = 1.25 * max((fours * 4 * 1.5 + 5) / machine.loads, issue, 1.25 * far, 4.0)
        if len(strips.taps) == 1:
            step *= core.gathered
        else:
            step = step * (core.gathered_rows if rows_first else 1.0) + core.gathered_far * far
        if core.shuffles:
            step = max(step, core.shuffles * fours + 2 * far)
    ends = rates.row * blocks + (rates.vector + rates.tensor * extras) * vectors * shared
    # Sums that wait go to L2 and come back.
    ends += (blocks - 1) * vectors * shared * 2 * plan.target.vector_bits / 8 / machine.l2_bytes
    # A single flips what it meets, and its weights are made ready.
    single = max(
        (pixels + 2) / machine.loads + far,
        cost.integer_issue(machine, 4 * vectors + 3),
        4.0,
    )
    entries = stream.steps * dot.depth + stream.singles
    size = entries * ((8 if dot.gathers else 2) + 4 * shared)
    read = size / (machine.l2_bytes if size < machine.cache else machine.l3_bytes / 2)
    multiplied = stream.steps * step + stream.singles * single
    changes = stream.changes * math.sqrt(blocks)
    tile = multiplied + rows * ends + changes * machine.mispredict / (together if rows_first else 1)
    tile = max(tile, read / (together if rows_first else 1))
    if shared > 1 and strips.segments is not None and strips.segments.spread.group > GROUP:
        tile *= core.shared_whole
    if strips.segments is not None:
        tile *= core.segments if vectors * shared > FEW else core.segments_few
    packing = _packing(machine, strips, rates, elements, dot)
    count = len(strips.strips)
    total = shape.batch * shape.groups * (tiles * tile + packing + 300.0 * count)
    if total >= most:
        return math.inf
    work = divided(count, shape.batch * shape.groups, int(rows), plan.threads, total, by_plane)
    total += shape.batch * shape.groups * packing * (work.row_parts - 1)
    return total * unevenness(work, strips.sizes, plan.threads) + 300.0 * work.tasks


def coded(
    machine: cost.Machine,
    plan: Plan,
    shape: Shape,
    strips: Strips,
    chunk_rows: int,
    chunks: cost.Chunks,
    extras: int,
    by_plane: bool,
    *,
    most: float = math.inf,
) -> float:
    """The same with entries as instructions.

    Args:
        chunk_rows: output channels of a chunk.
        chunks: what they hold.
        most: as `streamed` takes it.
    """
    dot = Dot.of(plan.target)
    rates, core = Rates.of(plan, dot, strips), Core.of(plan.target)
    vectors, elements = strips.vectors, -(-shape.inputs // QUAD)
    # A packed strip's pixels are loaded for so many products that lines crossed do not show.
    pixels = tile_bytes(plan, strips, dot, elements // chunks.blocks) if core.code_far else 0.0
    tile = cost.wired_tile(machine, chunks, vectors, False, 0, True, pixels)
    tile += core.code_pass * vectors * chunks.parts * chunks.blocks
    margin = core.code_residual if extras else core.code_pointwise
    if len(strips.taps) > 1:
        margin = core.code if strips.segments is None else core.code_segments
    tile = margin * (tile + chunks.rows * (2.0 + (rates.vector + 1.5 + rates.tensor * extras) * vectors))
    packing = shape.groups * _packing(machine, strips, rates, elements, dot)
    count = len(strips.strips)
    again = (len(strips.tiles) - 1) * chunks.refetch(machine)
    total = shape.batch * (len(strips.tiles) * tile + again + packing + 300.0 * count)
    if total >= most:
        return math.inf
    work = divided(
        count, shape.batch * shape.groups, shape.outputs, plan.threads, total, by_plane, chunk_rows
    )
    # Who has other rows packs the same pixels, most of which another core has made.
    remote = cost.REMOTE_LINE * strips.packed * shape.groups * shape.inputs / 64
    total += shape.batch * (packing + remote) * (work.row_parts - 1)
    total = total * unevenness(work, strips.sizes, plan.threads) + 300.0 * work.tasks
    return total + chunks.fetch(machine) + chunks.fetched_again(machine, plan.threads, work.row_parts)


def _packing(machine: cost.Machine, strips: Strips, rates: Rates, elements: int, dot: Dot) -> float:
    """Of all strips of a picture's group."""
    packing = strips.packed * elements * (0.35 if strips.step == 1 else 0.6 if strips.step == 2 else 8.0)
    packing *= dot.element_bytes / 4
    packing += 12.0 * elements * strips.runs_packed
    # A strip of more than half of L2 comes back from L3, as does what it is packed from.
    strip_bytes = dot.element_bytes * elements * strips.span * strips.pieces
    beyond = min(max(strip_bytes - machine.cache / 2, 0.0) / (machine.cache / 6), 1.0)
    return packing * rates.packing * (1 + rates.large * beyond)
