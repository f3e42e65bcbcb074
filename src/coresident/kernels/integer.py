"""Convolution of bytes: exact sums of products, and what follows them, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.target import Target
from coresident.codegen.types import I32
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.kernels import (
    cost,
    integer_code,
    integer_depthwise,
    integer_panel,
    integer_panel_code,
    integer_stream,
    integer_wired,
    wired,
)
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import halo, is_depthwise, read_by_plane, window
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_frame import NO_COLUMNS, Columns
from coresident.kernels.integer_segments import segment_strips
from coresident.kernels.integer_stream import Count
from coresident.kernels.integer_strips import Places, Strips, evenly, flat_strips, pitched_strips, row_strips
from coresident.kernels.integer_tiles import Choice
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.spread import GROUP, group_of
from coresident.kernels.tiling import divided, unevenness

MOST_VECTORS = {1: 10, 2: 6, 4: 2, 6: 2}
"""Vectors of a tile at most, for so many channels that share their loads, with 16 registers: beside the sums,
products, weights and activations need some."""

QUAD = 4
"""Channels of an element of bytes."""

GATHERED = 0.5
"""Share of weights that are not zero above which to bring single ones together is never tried."""

STREAM_MARGIN, DIRECT_MARGIN = 1.3, 1.08
"""Measured over modelled cycles of a stream of entries, relative to those of panels: of Zen 3 and sums in 16
bits, and of Zen 4 and vpdpbusd."""

DENSEST_CODE = 0.6
"""Share of entries above which they are never put into code."""

CODE_MARGIN, POINTWISE_CODE_MARGIN = 0.85, 0.72
"""Measured over modelled cycles of entries in code, relative to those of a stream; and of kernels of one
pixel whose results meet no residual."""

WHOLE_CODE_MARGIN, WHOLE_PASS = 1.15, 30.0
"""Where vectors are loaded whole: the same of code for larger kernels; and cycles more for each vector that a
chunk is passed over (chunks of 250 to 300 products took 1.1 to 1.2 times as long as streams)."""

WHOLE_SHARED_MARGIN, HALF_CROSSED, WHOLE_CROSSED = 0.9, 4 / 3, 2.0
"""Where vectors are loaded whole: the same of streams that channels share over segments of groups of whole
vectors; loads that a vector of groups of half a line is worth, as one of three lies in two lines; and those
that one of neighbouring pixels is worth, of which nearly all do (dense layers of 3x3 at 56 x 56 are 1.12
times as fast where four channels share loads, not two)."""

WHOLE_GATHERED, ROWS_GATHERED, FAR_GATHERED = 1.17, 1.2, 0.75
"""Where vectors are loaded whole, of single weights that are brought together: measured over modelled cycles
of kernels of one pixel; of larger ones whose rows go through all tiles of a strip; and what each cycle counts
for in which pixels come from L2. Fitted to 36 cuts of each layer of ResNet-50 with 90 % zeros, which is 1.1
times as fast so, and a U-Net 1.19 times."""

INTEL_CODE, INTEL_POINTWISE, INTEL_PACKED = 0.77, 0.8, 1.3
"""Where shuffles take a multiply-add's turn (`Target.shuffles_apart`): measured over modelled cycles of code,
relative to other CPUs, as a third pipe for loads spreads its weights there: of kernels larger than a pixel,
of one pixel, and of either where it meets segments. Fitted on Emerald Rapids to all layers of ResNet-50,
MobileNetV2 and a U-Net with 85 % zeros in blocks and with 90 % anywhere."""

INTEL_SEGMENTS, INTEL_LOADS, INTEL_CHAIN, INTEL_SHUFFLES = 1.04, 1.8, 6.0, 18.0
"""There, of streams: how much longer segments take; loads that each counts for where channels share them
(tiles of 10 x 2, 8 x 2 and 3 x 4 take 1.08 times as long as of 4 x 4 and 3 x 6; ResNet-50 is 1.05 times as
fast without them); cycles from an addition to a sum to the next one; and cycles to bring single weights of
four channels together for four vectors, in eight shuffles (ResNet-50 with 90 % zeros anywhere is 1.14 times
as fast, as most of it is code then), beside which what comes from L2 counts twice."""

SHORT_PLANE, WIDER = 6 * 64, 4
"""Bytes of a plane below which, and output channels for each input channel from which on, threads get
channels of their own. In minutes in which lines take longer from core to core, expanding layers at 14 x 14
take 32 to 35 us so on two threads, not 55 to 59 (40 on one), and ResNet-50 1.05 to 1.07 times less; in others
all take as long."""


@dataclass(frozen=True)
class _Rates:
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
    def of(plan: Plan, dot: Dot, strips: Strips) -> _Rates:
        if strips.segments is not None:
            crossed = strips.segments.spread.group < group_of(plan.target)
            return replace(_SEGMENTS, unaligned=HALF_CROSSED) if crossed else _SEGMENTS
        if cost.adds_at_once(plan.target, dot) and len(strips.taps) == 1:
            return _DIRECT
        return replace(_USUAL, unaligned=WHOLE_CROSSED) if _loads_whole(plan.target) else _USUAL


_USUAL = _Rates(1.5, 1.0, 0.2, 1.17, 1.33, 12.0, 3.0, 0.0, 1.5, 1.0)
"""Of Zen 3 and sums in 16 bits."""

_DIRECT = _Rates(1.48, 0.43, 0.41, 0.58, 6.0, 0.6, 2.7, 3.8, 0.66, 0.83)
"""Of Zen 4, vpdpbusd of 512 bits and kernels of one pixel: for larger ones fits found nothing better than the
usual rates."""

_SEGMENTS = _Rates(1.0, 0.6, 0.4, 1.17, 1.4, 6.2, 3.0, 0.0, 1.6, 1.0)
"""Of Zen 4, vpdpbusd and tiles of segments."""


def zero_point(node: Node, graph: Graph) -> int:
    """Of the input, which padding stands for.

    Raises:
        UnsupportedModel: it is computed in the network.
    """
    if not node.input(2):
        return 0
    point = graph.constant(node.input(2))
    if point is None:
        raise UnsupportedModel("the input's zero point must be constant; this one is computed by the network")
    return int(point.reshape(()))


def constant_weights(
    node: Node, plan: Plan, channel_axis: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights less their zero points, int16, and the bias, int32, zeros if there is none.

    Args:
        channel_axis: of the weights, along which zero points lie.

    Raises:
        UnsupportedModel: they are computed in the network.
    """
    names = [node.inputs[1], node.input(3), node.input(4)]
    weights, point, bias = (plan.graph.constant(name) if name else None for name in names)
    if weights is None or any(name and plan.graph.constant(name) is None for name in names):
        raise UnsupportedModel("weights, their zero points and bias must be constant")
    whole = weights.astype(np.int16)
    if point is not None:
        shape = [1] * weights.ndim
        if point.size > 1:
            shape[channel_axis] = point.size
        whole = whole - point.astype(np.int16).reshape(shape)
    outputs = plan.graph.facts[node.outputs[0]].sizes[1]
    return whole, np.zeros(outputs, np.int32) if bias is None else bias.astype(np.int32)


def corrected(
    bias: np.ndarray[Any, Any], sums: np.ndarray[Any, Any], point: int, dtype: np.dtype[Any], dot: Dot
) -> np.ndarray[Any, Any]:
    """The bias less what the input's zero point adds to the sums.

    Args:
        sums: [outputs] of the weights of each output channel.
        dtype: of the input, whose bytes may be packed with their sign changed.
    """
    moved = point + (128 if dtype == np.int8 else 0) - (128 if dot.signed else 0)
    return (bias.astype(np.int64) - moved * sums.astype(np.int64)).astype(np.int32)


def most(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> float:
    """That the magnitude of a sum can be.

    Args:
        weights: [outputs, ...], less their zero points.
        bias: [outputs].
    """
    size = np.abs(weights).reshape(len(bias), -1).sum(axis=1, dtype=np.int64)
    # It wraps beyond 32 bits, as ONNX has it.
    return float(min((255 * size + np.abs(bias.astype(np.int64))).max(initial=0), 1 << 31))


@lowers("ConvInteger", halo=halo, fill=zero_point, flat=True)
def convolution(node: Node, plan: Plan) -> None:
    """ConvInteger (ONNX 10), with bias and the epilogue that fusion attached."""
    weights, bias = constant_weights(node, plan)
    groups = node.get("group", 1)
    outputs, inputs = weights.shape[:2]
    out = plan.tensor(node.outputs[0])
    if 0 in out.shape:
        return
    point = zero_point(node, plan.graph)
    source = plan.planar(node.inputs[0], halo(node, plan.graph), point)
    epilogue = IntegerEpilogue.of(node, plan, 5, most(weights, bias))
    taps = math.prod(weights.shape[2:])
    shape = Shape(out.shape[0], groups, inputs, outputs // groups, taps, math.prod(out.shape[2:]))
    dot = Dot.of(plan.target)
    split = weights.reshape(groups, outputs // groups, inputs, taps)
    info = describe(node, shape, weights, out, epilogue)
    places = Places.of(
        window(node, plan.graph),
        source.layout,
        out.layout,
        tuple(t.layout for t in epilogue.tensors),
        plan.target.lanes(I32),
    )
    start = corrected(
        bias, weights.sum(axis=tuple(range(1, weights.ndim)), dtype=np.int64), point, source.dtype, dot
    )
    if is_depthwise(node, plan.graph):
        start = (bias - point * weights.reshape(outputs, taps).sum(axis=1, dtype=np.int64)).astype(np.int32)
        flat = weights.reshape(outputs, taps)
        integer_depthwise.emit(node, plan, source, flat, start, out, epilogue, info)
        return
    shape, split, places, columns = _fold_columns(shape, split, places)
    by_plane = read_by_plane(plan, out) or _meets_in_lines(shape, out)
    choice = choose(plan, shape, split, places, by_plane=by_plane)
    panels = integer_panel.choose(plan, shape, split, places)
    margin = DIRECT_MARGIN if cost.adds_at_once(plan.target, choice.dot) else STREAM_MARGIN
    if panels is not None and panels.cycles < margin * choice.cycles:
        integer_panel_code.emit(
            plan, source, shape, panels, split, start, out, epilogue, info, columns=columns
        )
        return
    integer_code.emit(plan, source, shape, choice, split, start, out, epilogue, info, columns=columns)


def _meets_in_lines(shape: Shape, out: Tensor) -> bool:
    """Whether threads should make channels of their own rather than pixels: of planes of few lines they would
    write to the same ones, and there is little to read for each of them."""
    plane = out.layout.strides[1] * out.dtype.itemsize
    return plane < SHORT_PLANE and shape.outputs >= WIDER * shape.inputs


def _fold_columns(
    shape: Shape, weights: np.ndarray[Any, Any], places: Places
) -> tuple[Shape, np.ndarray[Any, Any], Places, Columns]:
    """The columns of a kernel as input channels, where elements are fewer then: 3 channels and 7 columns fill
    6 elements rather than 7 that each lack a channel.

    Args:
        weights: [groups, outputs, inputs, taps].
    """
    same = shape, weights, places, NO_COLUMNS
    lines = list(dict.fromkeys(position[:-1] for position in places.positions))
    count = len(places.positions) // len(lines)
    firsts = [places.positions[i][-1] for i in range(count)]
    apart = firsts[1] - firsts[0] if count > 1 else 0
    wanted = [(*line, firsts[0] + i * apart) for line in lines for i in range(count)]
    if shape.inputs % QUAD == 0 or count == 1 or list(places.positions) != wanted:
        return same
    groups, outputs, inputs, taps = weights.shape
    folded = weights.reshape(groups, outputs, inputs, taps // count, count).swapaxes(3, 4)
    folded = np.ascontiguousarray(folded).reshape(groups, outputs, inputs * count, taps // count)
    before, after = (
        np.count_nonzero(integer_stream.elements(w[0], QUAD).any(axis=2)) for w in (weights, folded)
    )
    if after >= before:
        return same
    columns = Columns(count, apart * places.source.strides[-1])
    positions = tuple((*line, firsts[0]) for line in lines)
    narrow = replace(shape, inputs=inputs * count, taps=taps // count)
    return narrow, folded, replace(places, positions=positions), columns


def describe(
    node: Node, shape: Shape, weights: np.ndarray[Any, Any], out: Tensor, epilogue: IntegerEpilogue
) -> dict[str, Any]:
    """What `analyze` shows of an integer convolution, whichever kernel computes it."""
    nonzeros = int(np.count_nonzero(weights))
    return {
        "op": node.op,
        "shape": list(out.shape),
        "kernel_shape": list(weights.shape),
        "epilogue": epilogue.name,
        "macs": shape.macs,
        "nonzero_macs": shape.batch * shape.pixels * nonzeros,
        "sparsity": 1 - nonzeros / max(1, weights.size),
        "why": [],
    }


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
            if strips.vectors != vectors:
                continue
            for dot, shared, count in ways:
                if vectors > (8 * scale if dot.gathers else most[shared]):
                    continue
                if strips.segments is not None and dot.channels != QUAD:
                    continue
                elements = -(-shape.inputs // dot.channels)
                for rows_first, block in _orders(machine, plan, shape, strips, dot, shared):
                    way = (strips, dot, shared, count, rows_first, block, len(places.extras), by_plane)
                    cycles = _cycles(machine, plan, shape, *way)
                    if best is None or cycles < best.cycles:
                        best = Choice(strips, dot, shared, rows_first, elements, block, cycles, by_plane)
            for chunk_rows, block, chunks in by_code if vectors <= wired.MOST_VECTORS else ():
                extras = len(places.extras)
                cycles = _code_cycles(machine, plan, shape, strips, chunk_rows, chunks, extras, by_plane)
                if best is None or cycles < best.cycles:
                    best = Choice(strips, four, 1, False, quads, block, cycles, by_plane, chunk_rows)
    assert best is not None
    return best


def _orders(
    machine: cost.Machine, plan: Plan, shape: Shape, strips: Strips, dot: Dot, shared: int
) -> list[tuple[bool, int]]:
    """Whether rows come first, and elements of a block: all, or as many as fit L1."""
    elements = -(-shape.inputs // dot.channels)
    orders = [(False, elements), (True, elements)]
    rates = _Rates.of(plan, dot, strips)
    fits = int(rates.near * machine.l1_bytes / _tile_bytes(plan, strips, dot, 1))
    # Rows that overlap would wait for each other's sums.
    if 0 < fits < elements and shape.outputs % shared == 0:
        orders.append((False, evenly(elements, fits)))
    return orders


def _tile_bytes(plan: Plan, strips: Strips, dot: Dot, elements: int) -> float:
    """Of packed pixels that a tile reads again and again."""
    reach = strips.vectors * plan.target.lanes(I32) * math.sqrt(max(1, len(strips.taps)))
    pixels = reach if strips.segments is None else strips.tile_pixels
    return dot.element_bytes * elements * pixels


def _cuts(places: Places, vectors: int) -> list[Strips]:
    if places.flat:
        return [flat_strips(places, vectors, together) for together in (1, 2, 3, 4, 6, 8, 12, 16, 32)]
    pitched = [pitched_strips(places, vectors, together) for together in (1, 2, 4, 8, 16, 64)]
    rows = [row_strips(places, vectors, rows, 1 << 30) for rows in (1, 2, 4, 7, 8, 14, 16, 28, 56)]
    found = [strips for strips in pitched if strips is not None]
    return [*found, *rows, *(row_strips(places, vectors, 1, pieces) for pieces in (1, 4, 16))]


def _loads_whole(target: Target) -> bool:
    """Whether vectors are loaded whole, not in halves."""
    return group_of(target) > GROUP


def _spreads(target: Target) -> bool:
    """Whether one instruction puts the bytes of a vector into any order."""
    return target.vector_bits == 512 and target.has("avx512vbmi")


def _segment_cuts(plan: Plan, places: Places, vectors: int, quads: int) -> list[Strips]:
    """Tiles of segments, where taps would be unaligned otherwise."""
    if not _spreads(plan.target) or all(a[-1] == 0 for a in places.positions):
        return []
    return segment_strips(places, vectors, quads, group_of(plan.target))


def _cycles(
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
) -> float:
    """Of all of it, on one core."""
    rates = _Rates.of(plan, dot, strips)
    vectors, tiles = strips.vectors, len(strips.tiles)
    elements = -(-shape.inputs // dot.channels)
    rows = -(-shape.outputs // shared)
    unaligned = any(tap % 8 for tap in strips.taps) or not strips.flat
    pixels = vectors * (rates.unaligned if unaligned else 1.0)
    loads = dot.depth * (pixels + rates.word * (shared + 1)) / machine.loads
    if shared > 1 and not plan.target.shuffles_apart:
        loads = max(loads, INTEL_LOADS * dot.depth * (vectors + shared) / machine.loads)
    products = (dot.depth + (1 if dot.held else 0)) * vectors * shared / machine.fmas
    issue = (2 * dot.depth * vectors * shared + dot.depth * (vectors + 2 + shared)) / (machine.issue + 1)
    issue = max(issue, cost.integer_issue(machine, dot.arithmetic * vectors * shared))
    together = tiles / len(strips.strips)
    blocks = -(-elements // block)
    # What is read again and again: a tile's or the whole strip's pixels, and the stream or a row of it.
    tile_bytes = _tile_bytes(plan, strips, dot, block)
    strip_bytes = dot.element_bytes * elements * strips.span * strips.pieces
    near = strip_bytes if rows_first else tile_bytes
    missed = min(max(near - rates.near * machine.l1_bytes, 0.0) / (rates.spread * machine.l1_bytes), 1.0)
    far = rates.far * missed * vectors * plan.target.vector_bits / 8 / machine.l2_bytes
    # Each lane's sums are a chain of additions.
    chain = 1.5 if plan.target.shuffles_apart else INTEL_CHAIN
    step = max(loads, products, issue, chain * dot.depth) + dot.depth * far
    if vectors == 1 and cost.adds_at_once(plan.target, dot):
        # Each vector that comes from L2 is read for a few products alone, so that any delay shows.
        step *= 1.2
    if dot.gathers:
        fours = -(-vectors // 4)
        issue = cost.integer_issue(machine, fours * (8 + 4 * dot.arithmetic) + 1)
        # Shuffles and their loads hinder each other: a fifth to a third more than either takes was measured.
        step = 1.25 * max((fours * 4 * 1.5 + 5) / machine.loads, issue, 1.25 * far, 4.0)
        if _loads_whole(plan.target) and len(strips.taps) == 1:
            step *= WHOLE_GATHERED
        elif _loads_whole(plan.target):
            step = step * (ROWS_GATHERED if rows_first else 1.0) + FAR_GATHERED * far
        if not plan.target.shuffles_apart:
            step = max(step, INTEL_SHUFFLES * fours + 2 * far)
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
    streamed = entries * ((8 if dot.gathers else 2) + 4 * shared)
    read = streamed / (machine.l2_bytes if streamed < machine.cache else machine.l3_bytes / 2)
    multiplied = stream.steps * step + stream.singles * single
    changes = stream.changes * math.sqrt(blocks)
    tile = multiplied + rows * ends + changes * machine.mispredict / (together if rows_first else 1)
    tile = max(tile, read / (together if rows_first else 1))
    if shared > 1 and strips.segments is not None and strips.segments.spread.group > GROUP:
        tile *= WHOLE_SHARED_MARGIN
    if strips.segments is not None and not plan.target.shuffles_apart:
        tile *= INTEL_SEGMENTS
    packing = _packing(machine, strips, rates, elements, dot)
    count = len(strips.strips)
    total = shape.batch * shape.groups * (tiles * tile + packing + 300.0 * count)
    work = divided(count, shape.batch * shape.groups, int(rows), plan.threads, total, by_plane)
    total += shape.batch * shape.groups * packing * (work.row_parts - 1)
    return total * unevenness(work, strips.sizes, plan.threads) + 300.0 * work.tasks


def _code_cycles(
    machine: cost.Machine,
    plan: Plan,
    shape: Shape,
    strips: Strips,
    chunk_rows: int,
    chunks: cost.Chunks,
    extras: int,
    by_plane: bool,
) -> float:
    """The same with entries as instructions."""
    dot = Dot.of(plan.target)
    rates = _Rates.of(plan, dot, strips)
    vectors, elements = strips.vectors, -(-shape.inputs // QUAD)
    # A packed strip's pixels are loaded for so many products that lines crossed do not show, nor, but
    # on Intel, that they come from L2.
    pixels = 0.0 if plan.target.shuffles_apart else _tile_bytes(plan, strips, dot, elements // chunks.blocks)
    tile = cost.wired_tile(machine, chunks, vectors, False, 0, True, pixels)
    margin = CODE_MARGIN if extras or len(strips.taps) > 1 else POINTWISE_CODE_MARGIN
    if _loads_whole(plan.target):
        margin = WHOLE_CODE_MARGIN if len(strips.taps) > 1 else margin
        tile += WHOLE_PASS * vectors * chunks.parts * chunks.blocks
    if not plan.target.shuffles_apart:
        beside = INTEL_POINTWISE if len(strips.taps) == 1 else INTEL_CODE
        margin *= INTEL_PACKED if strips.segments is not None else beside
    tile = margin * (tile + chunks.rows * (2.0 + (rates.vector + 1.5 + rates.tensor * extras) * vectors))
    packing = shape.groups * _packing(machine, strips, rates, elements, dot)
    count = len(strips.strips)
    again = (len(strips.tiles) - 1) * chunks.refetch(machine)
    total = shape.batch * (len(strips.tiles) * tile + again + packing + 300.0 * count)
    work = divided(
        count, shape.batch * shape.groups, shape.outputs, plan.threads, total, by_plane, chunk_rows
    )
    # Who has other rows packs the same pixels, most of which another core has made.
    remote = cost.REMOTE_LINE * strips.packed * shape.groups * shape.inputs / 64
    total += shape.batch * (packing + remote) * (work.row_parts - 1)
    total = total * unevenness(work, strips.sizes, plan.threads) + 300.0 * work.tasks
    return total + chunks.fetch(machine) + chunks.fetched_again(machine, plan.threads, work.row_parts)


def _packing(machine: cost.Machine, strips: Strips, rates: _Rates, elements: int, dot: Dot) -> float:
    """Of all strips of a picture's group."""
    packing = strips.packed * elements * (0.35 if strips.step == 1 else 0.6 if strips.step == 2 else 8.0)
    packing *= dot.element_bytes / 4
    packing += 12.0 * elements * float((strips.strips[:, 1] - strips.strips[:, 0]).sum())
    # A strip of more than half of L2 comes back from L3, as does what it is packed from.
    strip_bytes = dot.element_bytes * elements * strips.span * strips.pieces
    beyond = min(max(strip_bytes - machine.cache / 2, 0.0) / (machine.cache / 6), 1.0)
    return packing * rates.packing * (1 + rates.large * beyond)
