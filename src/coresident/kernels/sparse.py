"""Sparse direct convolution: only the weights that are not zero are stored, read and multiplied.

For one tile of pixels and one output channel, each nonzero weight is broadcast and multiplied with the
vectors of pixels that its tap reads (Elsen et al., "Fast sparse ConvNets", 2020; Park et al., "Faster CNNs
with direct sparse convolutions", 2017, for kernels larger than one pixel). What binds is loading activations,
hence:

* input channels are taken in blocks whose part of the tile fits L1;
* rows of a block stand in the order of their number of nonzeros, so that branches on it are predicted;
* where 2 or 4 output channels share their pattern, each load serves them all;
* otherwise weights are loaded four at a time, and their offsets two at a time, a round ahead.

Measured without gain: copies of the tile, one for each column of taps, that no vector of crosses a line (they
fill L1 three times over); two rows abreast whose sums wait for each other's products; what waits between
blocks added after a block's products rather than before (they take what L2 takes to give and get them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.graph.graph import Graph, Node
from coresident.kernels import cost, sparse_profile, sparse_stripes, wired
from coresident.kernels.asking import lines_of
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import (
    Geometry,
    Tiles,
    can_run_flat,
    footprint,
    read_by_plane,
    segments,
    tiles_of_spans,
    window,
)
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.sparse_profile import Profile
from coresident.kernels.sparse_segments import Packing
from coresident.kernels.sparse_segments import cuts as cut_segments
from coresident.kernels.tiling import FEW_TASKS, Cut, cut, divided, evened, unevenness

MARGIN, SEGMENTS_MARGIN, SHORT_ROWS_MARGIN = 1.1, 1.0, 0.88
"""Measured over modelled cycles, relative to the dense kernel's (`bench/break_even.py`): of tiles of
neighbouring pixels, of segments of one row, and of several."""

CODE_MARGIN, FLAT_OVER_CODE, SEGMENTS_OVER_CODE, OTHER_SEGMENTS_OVER_CODE = 1.15, 0.80, 1.25, 1.1
"""The same of nonzeros in code; and measured over modelled cycles of a stream of them, relative to those of
code, where it meets neighbouring pixels and where segments: with strides or the least dense weights, other
ones."""

WHOLE_SEGMENTS_OVER_CODE = 0.8
"""The same where vectors are loaded whole: a stream then loads as many as it multiplies."""

INTEL_PACKED, INTEL_SEGMENTS_OVER_CODE = 1.3, 1.0
"""Where shuffles take a multiply-add's turn (`Target.shuffles_apart`): how much longer than on other CPUs
tiles of segments take, of a stream and of code; and `SEGMENTS_OVER_CODE`. Fitted on Emerald Rapids to all
layers of ResNet-50 with 80, 90 and 95 % zeros and of a 3-D U-Net, which is 1.1 times as fast so."""

LEAST_DENSE = 0.07
"""Share of nonzeros below which weights are of these."""

FEWEST_PRODUCTS = 2.0
"""For each load of pixels that lie far apart, below which streams are always faster."""

TASK = 1500.0
"""Cycles for a task to get its first chunk of code."""

FIRST_TILE = 0.14
"""Cycles for each byte of a thread's first tile, which chunks of code wait for."""

MOST_BYTES = 1 << 31
"""Of a picture's activations, that offsets in streams and code reach."""

BLOCKED_ZEROS = 0.6, 0.93
"""Share of zeros at which code is faster than all else where pixels lie in blocks."""

REFETCHED, FAR_PIXELS = 2.0, 1.3
"""Where pixels lie in blocks: how much longer than the model says code takes to come from L2 for the next
tile, and cycles more for each vector of a tile that is larger than a third of L2."""

PAGE = 4096
"""Bytes, of which pages of memory mostly are."""

SEGMENT_L1 = 2.0
"""Of the part of L1 that a tile's activations may fill: those that are packed."""


def gains_in_blocks(node: Node, graph: Graph, target: Target) -> bool:
    """Whether pixels in blocks suit a convolution (`Family.blocks`): one pixel reads one, code will do it."""
    weights = graph.constant(node.inputs[1])
    if weights is None or not wired.is_possible(target) or node.get("group", 1) != 1:
        return False
    w = window(node, graph)
    if math.prod(w.kernel) > 1 or any(w.pads_begin) or any(w.pads_end):
        return False
    least, most = BLOCKED_ZEROS
    zeros = 1 - int(np.count_nonzero(weights)) / max(weights.size, 1)
    return bool(least <= zeros <= most)


def _over_code(target: Target, stream: Choice, usual: bool) -> float:
    """Measured over modelled cycles of a stream, relative to those of code.

    Args:
        usual: whether pixels have no strides, and weights are not the least dense.
    """
    if stream.packing is None:
        return FLAT_OVER_CODE
    if not target.shuffles_apart:
        return INTEL_SEGMENTS_OVER_CODE
    if stream.packing.is_whole:
        return WHOLE_SEGMENTS_OVER_CODE
    return SEGMENTS_OVER_CODE if usual else OTHER_SEGMENTS_OVER_CODE


def _is_dense(nonzero: np.ndarray[Any, Any]) -> bool:
    """Whether weights are not of the least dense ones."""
    return bool(nonzero.mean() >= LEAST_DENSE)


def _meets(plan: Plan, tiles: Tiles, shape: Shape) -> bool:
    """Whether some threads share each tile, on cores where that wants to be told to kernels: a tile is read
    out of order, and on Intel's the lines that another core wrote then come late. Asked for in advance, and
    with one part of the rows for each thread, layers of 2048 channels at 7x7 with 90 % zeros take 90 us, not
    123 to 133 (Emerald Rapids)."""
    pieces = tiles.count * shape.batch * shape.groups
    return not plan.target.shuffles_apart and pieces < plan.threads and plan.threads % pieces == 0


def in_blocks(g: Geometry, out: Tensor, epilogue: Epilogue) -> bool:
    """Whether pixels lie in blocks somewhere, so that only code can do it."""
    return any(layout.block for layout in _layouts(g, out, epilogue))


def _layouts(g: Geometry, out: Tensor, epilogue: Epilogue) -> list[Layout]:
    """Of the input, the output and what the epilogue adds."""
    return [g.source.layout, out.layout, *(t.layout for t in epilogue.tensors)]


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        tiles: the cut of the pixels.
        shared: output channels that share a pattern.
        block: input channels in a block.
        cycles: as the cost model says.
        packing: of tiles of segments.
        channels_first: as `Cut` has it.
        chunk_rows: output channels of a chunk of code (`wired.py`); 0 where nonzeros are a stream.
        meets: whether threads read the same tile, each for rows of its own (`_meets`).
    """

    tiles: Tiles
    shared: int
    block: int
    cycles: float
    packing: Packing | None = None
    channels_first: bool = False
    chunk_rows: int = 0
    meets: bool = False

    def work(self, shape: Shape, threads: int) -> Cut:
        """The tasks."""
        rows, batch, unit = shape.outputs // self.shared, shape.batch * shape.groups, max(self.chunk_rows, 1)
        if self.packing is None:
            few = 1 if self.meets else FEW_TASKS
            work = cut(self.tiles.count, rows, batch, threads, self.cycles, unit, self.channels_first, few)
            return evened(work, threads)
        # Each part of the rows packs the same tile.
        work = divided(self.tiles.count, batch, rows, threads, self.cycles, row_unit=unit)
        return evened(work, threads)

    def together(self, shape: Shape, threads: int) -> float:
        """Cycles that all threads take until the last one is done."""
        return self.cycles * unevenness(self.work(shape, threads), self.tiles.sizes, threads)

    def __str__(self) -> str:
        flat = ", flat" if self.tiles.flat else ""
        segments = " of segments" if self.packing is not None else ""
        if self.packing is not None and not self.packing.in_one_row:
            segments += f" of {self.packing.segments.spread.rows} rows"
        if self.packing is not None and self.packing.steps > 1:
            segments += f" in {self.packing.steps} steps"
        runs = f" in {'x'.join(map(str, self.tiles.runs))} rows" if self.tiles.below > 1 else ""
        vectors = f"{self.tiles.vectors} vectors{segments}{runs}"
        rows = self.chunk_rows or self.shared
        return f"{vectors} x {rows} channels, blocks of {self.block}{flat}"

    def packed_channels(self, inputs: int) -> int:
        """Input channels that lie packed at a time."""
        return self.block if self.packing is None or self.packing.steps == 1 else inputs

    def offsets(self, inputs: int, g: Geometry) -> np.ndarray[Any, Any]:
        """[inputs, taps] bytes from an output pixel to what a channel's tap reads: of the planes, or of the
        packed channels of a block."""
        channels, taps, stride = np.arange(inputs), g.taps, g.channel_stride
        if self.packing is not None:
            channels = channels % self.packed_channels(inputs)
            taps, stride = self.packing.taps, self.packing.span
        offsets: np.ndarray[Any, Any] = 4 * (channels[:, None] * stride + np.array(taps)[None, :])
        return offsets.astype(np.int32)

    def lines(self, g: Geometry, lanes: int) -> list[int]:
        """What a tile reads of a channel, or in its next step: elements from the first to each line."""
        if self.packing is not None:
            return lines_of(self.packing.runs)
        vectors = max(self.tiles.vectors, self.tiles.rest_vectors) // self.tiles.below
        aligned = g.is_striped and 4 * lanes % 64 == 0
        return lines_of(segments(g, vectors * lanes, self.tiles.runs), aligned=aligned)

    def asked(self, g: Geometry, lanes: int, passes: int) -> tuple[list[int], list[int]]:
        """How the passes of a chunk ask for that: elements from the plane where each begins, and from there
        to the lines that it asks for."""
        if self.packing is not None:
            return self.packing.asked(passes)
        if g.is_striped:
            runs = segments(g, self.tiles.across * lanes, self.tiles.runs)
            return wired.asked([(start, (end - start) // 16) for start, end in runs], passes)
        return [lanes * v for v in range(passes)], lines_of(segments(g, lanes))


def choose(
    plan: Plan,
    g: Geometry,
    shape: Shape,
    weights: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    suits: Callable[[Tiles], bool] = lambda tiles: True,
) -> Choice | None:
    """The tile, block and sharing that should be fastest; None where pixels lie apart in the input's rows,
    and tiles of segments do not fit, or where channels are further apart than `MOST_BYTES`.

    Args:
        weights: [groups, outputs, inputs, taps].
        suits: whether tiles of striped rows suit what is to be done with results as well.
    """
    if 4 * shape.inputs * g.channel_stride >= MOST_BYTES:
        return None
    machine = cost.Machine.of(plan.target)
    lanes = plan.target.lanes(F32)
    extras = [t.layout for t in epilogue.tensors]
    nonzero = (weights != 0).reshape(-1, shape.inputs * shape.taps)
    registers = plan.target.registers - 2
    ways = [(False, 1)] if g.step == 1 else []
    if can_run_flat(g.strides, out.layout, extras, lanes):
        ways += [(True, spans) for spans in sorted({1, plan.threads})]
    vector_bytes, by_plane = 4 * lanes, read_by_plane(plan, out)
    best: Choice | None = None
    least = math.inf
    sharings = [s for s in (1, 2, 4) if s == 1 or shape.outputs % s == 0]
    profiles = sparse_profile.profiles(nonzero, shape.inputs, shape.taps, sharings)
    blocked = in_blocks(g, out, epilogue)
    for flat, spans in ways if not blocked else ():
        for vectors in range(1, registers + 1):
            cutting = tiles_of_spans(g.strides, out.layout, extras, lanes, vectors, flat, spans)
            if cutting is None or (cutting.full == 0 and vectors != cutting.rest_vectors):
                continue
            unaligned = not (flat or g.is_striped) or any(tap % lanes for tap in g.taps)
            reach = 4 * footprint(g, vectors * lanes)
            rest_reach = 4 * footprint(g, cutting.rest_vectors * lanes)
            for (shared, block), profile in profiles.items():
                if vectors * shared > registers - (shared > 1):
                    continue
                if profile.blocks > 1 and block * reach > 1.4 * machine.l1_bytes:
                    continue
                total = fills = 0.0
                for count, width, read in (
                    (cutting.full, vectors, reach),
                    (cutting.count - cutting.full, cutting.rest_vectors, rest_reach),
                ):
                    if not count:
                        continue
                    one = cost.sparse_rows(
                        machine,
                        width,
                        shared,
                        profile.each,
                        profile.rows,
                        profile.blocks,
                        profile.lengths,
                        len(extras),
                        unaligned,
                        block * read,
                        vector_bytes,
                    )
                    # Bringing the tile into L1.
                    fill = 1.5 * shape.groups * shape.inputs * read / machine.l2_bytes
                    one, fills = one + fill, fills + count * fill
                    stream = profile.nonzeros * 4 * (1 + shared)
                    rate = machine.l2_bytes if stream < machine.cache else machine.l3_bytes
                    total += count * max(one, stream / rate)
                total *= shape.batch * MARGIN
                if total >= least:
                    continue
                meets = not by_plane and _meets(plan, cutting, shape)
                choice = Choice(cutting, shared, block, total, channels_first=by_plane, meets=meets)
                taken = choice.together(shape, plan.threads)
                # Each part of the rows brings the tile into L1 anew.
                again = choice.work(shape, plan.threads).begun / cutting.count - 1
                taken += again * fills * shape.batch * MARGIN
                if spans < plan.threads and not by_plane:
                    # Threads meet within a tile: each reads of it what the other has made before.
                    meetings = shape.batch * (plan.threads - 1) * shape.groups
                    taken += meetings * shape.inputs * vectors * cost.REMOTE_LINE
                if taken < least:
                    best, least = choice, taken
    packed = _segments(plan, machine, g, shape, out, epilogue, profiles)
    if g.is_striped:
        of_blocks = {block: profile for (shared, block), profile in profiles.items() if shared == 1}
        ways_of_stripes = sparse_stripes.ways(plan.target, g, shape, out.layout, extras, of_blocks, suits)
        packed = (Choice(cutting, 1, block, cycles) for cutting, block, cycles in ways_of_stripes)
    for choice in packed if not blocked else ():
        if choice.cycles < least and (taken := choice.together(shape, plan.threads)) < least:
            best, least = choice, taken
    if wired.is_possible(plan.target) and not (g.is_striped and plan.target.shuffles_apart):
        if best is not None and not g.is_striped:
            least *= _over_code(plan.target, best, g.is_unstrided and _is_dense(nonzero))
        for choice, chunks in _in_code(plan, machine, g, shape, nonzero, ways, out, epilogue, suits):
            if choice.cycles >= least:
                continue
            taken = choice.together(shape, plan.threads)
            work = choice.work(shape, plan.threads)
            taken += chunks.fetched_again(machine, plan.threads, work.row_parts) + TASK * work.tasks
            if choice.packing is None:
                # Nothing has asked for the first tile.
                first = 4 * shape.inputs * footprint(g, choice.tiles.vectors * lanes)
                taken += plan.threads * FIRST_TILE * first
            if taken < least:
                best, least = choice, taken
    return best


def _segments(
    plan: Plan,
    machine: cost.Machine,
    g: Geometry,
    shape: Shape,
    out: Tensor,
    epilogue: Epilogue,
    profiles: Mapping[tuple[int, int], Profile],
) -> Iterator[Choice]:
    """Tiles of segments, with one block each that fits L1.

    Args:
        profiles: of (channels that share a pattern, block).
    """
    lanes, extras = plan.target.lanes(F32), [t.layout for t in epilogue.tensors]
    for cutting, packing in cut_segments(g, out.layout, extras, plan.target, plan.target.registers - 2):
        for (shared, block), profile in profiles.items():
            goes_on = packing.steps > 1
            block_bytes = 4 * block * packing.planes * packing.plane_span
            if shared > 1 or block_bytes > machine.l1_bytes * SEGMENT_L1:
                continue
            if goes_on and 4 * shape.inputs * packing.span > machine.cache:
                continue
            rows, blocks, each = profile.rows, profile.blocks, profile.each
            if packing.is_whole:
                one = cost.packed_rows(machine, cutting.vectors, each, rows, blocks, block_bytes)
            else:
                one = cost.sparse_rows(
                    machine,
                    cutting.vectors,
                    1,
                    each,
                    rows,
                    blocks,
                    profile.lengths,
                    len(extras),
                    False,
                    block_bytes,
                    4 * lanes,
                    packed=True,
                )
            one += shape.groups * packing.storing_cycles * shape.outputs
            one += shape.groups * packing.kept_cycles(machine.l2_bytes) * shape.inputs
            one = one * packing.steps + shape.groups * packing.cycles * shape.inputs
            margin = SEGMENTS_MARGIN if packing.is_whole or packing.in_one_row else SHORT_ROWS_MARGIN
            if not plan.target.shuffles_apart:
                margin *= INTEL_PACKED
            yield Choice(cutting, 1, block, cutting.count * shape.batch * margin * one, packing)


def _in_code(
    plan: Plan,
    machine: cost.Machine,
    g: Geometry,
    shape: Shape,
    nonzero: np.ndarray[Any, Any],
    ways: Sequence[tuple[bool, int]],
    out: Tensor,
    epilogue: Epilogue,
    suits: Callable[[Tiles], bool],
) -> Iterator[tuple[Choice, cost.Chunks]]:
    """Tiles of neighbouring pixels and of segments, with nonzeros as instructions, and these.

    Args:
        nonzero: [output channels, positions].
        ways: to cut into tiles: (whether runs cross row ends, spans).
        suits: as for `choose`.
    """
    lanes, extras = plan.target.lanes(F32), [t.layout for t in epilogue.tensors]
    split = nonzero.reshape(shape.groups, shape.outputs, -1)
    chunks = list(wired.ways(split, shape.inputs, plan.threads))
    if g.is_striped:
        found = sparse_stripes.ways_in_code(plan.target, g, shape, out.layout, extras, chunks, suits)
        for tiles, rows, block, cycles, profile in found:
            yield Choice(tiles, 1, block, cycles, chunk_rows=rows), profile
        return
    by_plane = read_by_plane(plan, out)
    cuts: list[tuple[Tiles, Packing | None]] = []
    layouts, blocked = _layouts(g, out, epilogue), in_blocks(g, out, epilogue)
    for flat, spans in ways:
        if blocked and not flat:
            continue
        for vectors in range(1, wired.MOST_VECTORS + 1):
            cutting = tiles_of_spans(g.strides, out.layout, extras, lanes, vectors, flat, spans)
            if cutting is not None and (cutting.full or vectors == cutting.rest_vectors):
                cuts.append((cutting.placed(layouts), None))
    # Where strides are packed phase by phase, streams pack fewer channels at a time.
    if (g.is_unstrided or _is_dense(nonzero)) and not blocked:
        cuts += cut_segments(g, out.layout, extras, plan.target, wired.MOST_VECTORS)
    for cutting, packing in cuts:
        unaligned = packing is None and not (cutting.flat and all(tap % lanes == 0 for tap in g.taps))
        for rows, block, profile in chunks:
            if packing is None and not blocked and profile.products < FEWEST_PRODUCTS * profile.loads:
                continue
            if packing is not None and 4 * block * packing.planes * packing.plane_span > machine.cache // 2:
                continue
            if packing is not None and packing.steps > 1 and 4 * shape.inputs * packing.span > machine.cache:
                continue
            pages = block * min(4 * g.channel_stride / PAGE, 1.0)
            total = 0.0
            for count, width in (
                (cutting.full, cutting.vectors),
                (cutting.count - cutting.full, cutting.rest_vectors),
            ):
                if packing is None:
                    read = 4 * block * footprint(g, width * lanes)
                    one = cost.wired_tile(machine, profile, width, unaligned, len(extras), True, read, pages)
                    if blocked and read > machine.cache / 3:
                        one += FAR_PIXELS * profile.loads * width
                else:
                    one = cost.wired_tile(machine, profile, width, unaligned, len(extras), False)
                    one += shape.groups * packing.storing_cycles * shape.outputs
                    one = one * packing.steps + shape.groups * packing.cycles * shape.inputs
                total += count * one
            total += (cutting.count - 1) * profile.refetch(machine) * (REFETCHED if blocked else 1.0)
            total = (total * shape.batch + profile.fetch(machine)) * CODE_MARGIN
            if packing is not None and not plan.target.shuffles_apart:
                total *= INTEL_PACKED
            first = by_plane and packing is None
            yield Choice(cutting, 1, block, total, packing, first, rows), profile
