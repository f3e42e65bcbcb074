"""Sparse direct convolution: only the weights that are not zero are stored, read and multiplied.

For one tile of pixels and one output channel, each nonzero weight is broadcast and multiplied with the
vectors of
pixels that its tap reads (Elsen et al., "Fast sparse ConvNets", 2020; Park et al., "Faster CNNs with direct
sparse
convolutions", 2017, for kernels larger than one pixel). What binds is loading activations, hence:

* input channels are taken in blocks whose part of the tile fits L1;
* rows of a block stand in the order of their number of nonzeros, and the code jumps into an unrolled
  sequence for the
  odd ones: the jump repeats and is predicted, where the varying exit of a loop would not be;
* where 2 or 4 output channels share their pattern, each load serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import cost
from coresident.kernels.dense import Shape
from coresident.kernels.epilogue import Epilogue, Output
from coresident.kernels.geometry import (
    Geometry,
    Tiles,
    block_sizes,
    border_mask,
    can_run_flat,
    footprint,
    tiles,
)
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import Cut, cut

UNROLL = 8
"""Nonzeros in one round of the inner loop; what is left of a row, up to one less, is jumped into."""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        tiles: the cut of the pixels.
        shared: output channels that share a pattern.
        block: input channels in a block.
        cycles: as the cost model says.
    """

    tiles: Tiles
    shared: int
    block: int
    cycles: float


def union_counts(nonzero: np.ndarray[Any, Any], shared: int, block: int, taps: int) -> np.ndarray[Any, Any]:
    """[rows of `shared` channels, blocks]: how many positions have a nonzero in any of the row's channels."""
    rows, columns = nonzero.shape
    padded = np.zeros((-(-rows // shared) * shared, columns), bool)
    padded[:rows] = nonzero
    union = padded.reshape(-1, shared, columns).any(axis=1)
    starts = np.arange(0, columns, block * taps)
    return np.add.reduceat(union, starts, axis=1, dtype=np.int64)


def choose(
    plan: Plan, g: Geometry, shape: Shape, weights: np.ndarray[Any, Any], out: Tensor, epilogue: Epilogue
) -> Choice:
    """The tile, block and sharing that should be fastest.

    Args:
        weights: [groups, outputs, inputs, taps].
    """
    machine = cost.Machine.of(plan.target)
    lanes = plan.target.lanes(F32)
    extras = [t.layout for t in epilogue.tensors]
    nonzero = (weights != 0).reshape(-1, shape.inputs * shape.taps)
    registers = plan.target.registers - 2
    flats = [True, False] if can_run_flat(g.strides, out.layout, extras, lanes) else [False]
    vector_bytes = 4 * lanes
    best: Choice | None = None
    sharings = [s for s in (1, 2, 4) if s == 1 or shape.outputs % s == 0]
    profiles: dict[tuple[int, int], tuple[np.ndarray[Any, Any], float]] = {}
    for shared in sharings:
        for block in block_sizes(shape.inputs):
            counts = union_counts(nonzero, shared, block, shape.taps)
            changes = sum(len(np.unique(column)) for column in counts.T)
            profiles[shared, block] = (counts, float(changes))
    for flat in flats:
        for vectors in range(1, registers + 1):
            cutting = tiles(g.strides, out.layout, extras, lanes, vectors, flat)
            if cutting.full == 0 and vectors != cutting.rest_vectors:
                continue
            unaligned = not flat or any(tap % lanes for tap in g.taps)
            reach = 4 * footprint(g, vectors * lanes)
            for (shared, block), (counts, changes) in profiles.items():
                if vectors * shared > registers - (shared > 1):
                    continue
                blocks = counts.shape[1]
                resident = block * reach <= machine.l1_bytes
                if blocks > 1 and not resident and block != shape.inputs:
                    continue
                stored = float(counts.sum())
                total = 0.0
                for count, width in (
                    (cutting.full, vectors),
                    (cutting.count - cutting.full, cutting.rest_vectors),
                ):
                    if not count:
                        continue
                    rows = counts.size
                    one = cost.sparse_rows(
                        machine,
                        width,
                        shared,
                        stored / rows,
                        rows,
                        changes,
                        unaligned,
                        resident,
                        vector_bytes,
                    )
                    # Bringing the tile into L1, partly hidden behind arithmetic.
                    one += 0.5 * shape.groups * shape.inputs * reach / machine.l2_bytes
                    stream = stored * 4 * (1 + shared)
                    rate = machine.l2_bytes if stream < machine.cache else machine.l3_bytes
                    total += count * max(one, stream / rate)
                total *= shape.batch
                if best is None or total < best.cycles:
                    best = Choice(cutting, shared, block, total)
    assert best is not None
    return best


@dataclass(frozen=True)
class Packed:
    """The nonzeros in the order in which the kernel meets them.

    Args:
        stream: int32 words, for each nonzero its offset in bytes, then `shared` float32 weights.
        rows: [.., 2] int32: the first output channel of a row and its number of nonzeros, in order of that
            number
            within each (chunk of rows, block).
        starts: [groups, chunks, blocks] int64: where each begins in `stream`, in words.
    """

    stream: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]


def pack(weights: np.ndarray[Any, Any], g: Geometry, choice: Choice, work: Cut) -> Packed:
    """Order and compress the weights [groups, outputs, inputs, taps]."""
    groups, _, inputs, taps = weights.shape
    shared, block = choice.shared, choice.block
    offsets = (4 * (np.arange(inputs)[:, None] * g.channel_stride + np.array(g.taps)[None, :])).astype(
        np.int32
    )
    streams: list[np.ndarray[Any, Any]] = []
    rows: list[np.ndarray[Any, Any]] = []
    starts: list[int] = []
    at = 0
    for group in weights:
        by_row = group.reshape(-1, shared, inputs, taps)
        for first in range(0, len(by_row), work.row_chunk):
            chunk = by_row[first : first + work.row_chunk]
            for c in range(0, inputs, block):
                part = chunk[:, :, c : c + block]
                used = (part != 0).any(axis=1)
                counts = used.sum(axis=(1, 2))
                order = np.argsort(-counts, kind="stable")
                row, channel, tap = np.nonzero(used[order])
                words = np.empty((len(row), 1 + shared), np.int32)
                words[:, 0] = offsets[c + channel, tap]
                words[:, 1:] = part[order][row, :, channel, tap].astype(np.float32).view(np.int32)
                streams.append(words.reshape(-1))
                rows.append(np.stack([(first + order) * shared, counts[order]], axis=1).astype(np.int32))
                starts.append(at)
                at += words.size
    blocks = -(-inputs // block)
    stream = np.concatenate([*streams, np.zeros(UNROLL * (1 + shared), np.int32)])
    return Packed(stream, np.concatenate(rows), np.array(starts, np.int64).reshape(groups, -1, blocks))


def emit(
    plan: Plan,
    g: Geometry,
    shape: Shape,
    choice: Choice,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
    barrier: bool = True,
) -> None:
    """Add the convolution's step.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        barrier: False if the next step does not depend on it.
    """
    f = kernel(plan.target, "conv_sparse")
    lanes = plan.target.lanes(F32)
    vector = F32.by(lanes)
    t, shared = choice.tiles, choice.shared
    row_count = shape.outputs // shared
    work = cut(t.count, row_count, shape.batch * shape.groups, plan.threads, choice.cycles)
    packed = pack(weights, g, choice, work)
    blocks = packed.starts.shape[2]
    masked = t.flat and any(map(any, out.layout.halo))
    x, stream, rows, starts, b, y, table = (word(f, i) for i in range(7))
    extra = [word(f, 7 + i) for i in range(epilogue.words)]
    mask = word(f, 7 + epilogue.words) if masked else None
    part, first_row, last_row, first_tile, last_tile = work.part(f)
    picture, group = part / shape.groups, part % shape.groups
    chunk = first_row / work.row_chunk
    channel_base = group * shape.outputs
    x = f.offset(x, picture * g.batch_stride + group * (shape.inputs * g.channel_stride), F32)
    y = f.offset(y, picture * out.layout.strides[0], F32)
    tensors = [f.offset(p, picture * e.layout.strides[0], F32) for p, e in zip(extra, epilogue.tensors)]
    output = Output(
        epilogue,
        (y, *tensors),
        tuple(extra[len(epilogue.tensors) :]),
        (out.layout.strides[1], *(e.layout.strides[1] for e in epilogue.tensors)),
        mask,
        vector,
    )
    if blocks > 1:
        plan.scratch(work.row_chunk * shared * t.vectors * vector.bytes)
    # The rows of a (group, chunk) stand block after block.
    row_table = f.offset(rows, (group * row_count + first_row) * (2 * blocks), I32)
    here = last_row - first_row
    columns = t.table.shape[1]

    def tile_rows(tile_x: Value, offsets: Sequence[Value], vectors: int, last: int) -> None:
        with f.loop(0, blocks) as block:
            begin = f.load(I64, starts, (group * packed.starts.shape[1] + chunk) * blocks + block)
            position = f.var(f.offset(stream, begin, I32))
            with f.loop(0, here) as r:
                described = f.offset(row_table, (block * here + r) * 2, I32)
                channel = f.convert(f.load(I32, described), I64)
                count = f.convert(f.load(I32, described, 1), I64)
                partial = f.offset(f["scratch"], (channel - first_row * shared) * (vectors * lanes), F32)
                totals = [
                    [
                        f.var(f.splat(f.load(F32, b, channel_base + channel + s), vector))
                        for _ in range(vectors)
                    ]
                    for s in range(shared)
                ]
                if blocks == 1:
                    for s in range(shared):
                        output.prefetch(f, channel_base + channel + s, vectors, offsets)
                else:
                    with f.when(block > 0):
                        for s in range(shared):
                            for v in range(vectors):
                                totals[s][v].set(f.load(vector, partial, (s * vectors + v) * lanes))
                _nonzeros(f, tile_x, position, count, totals, vector)

                def finish(totals: Sequence[Sequence[Any]] = totals, channel: Value = channel) -> None:
                    for s in range(shared):
                        values = [total.get() for total in totals[s]]
                        output.store(f, channel_base + channel + s, values, offsets, last)

                def keep(totals: Sequence[Sequence[Any]] = totals, partial: Value = partial) -> None:
                    for s in range(shared):
                        for v in range(vectors):
                            f.store(totals[s][v].get(), partial, (s * vectors + v) * lanes)

                if blocks == 1:
                    finish()
                else:
                    with f.either(block.equals(blocks - 1)) as otherwise:
                        finish()
                        with otherwise():
                            keep()

    with f.loop(first_tile, last_tile) as tile:
        offsets = [f.convert(f.load(I32, table, tile * columns + c), I64) for c in range(columns)]
        tile_x = f.offset(x, offsets[0], F32)
        cases: list[Callable[[], None]] = []
        if t.full:
            cases.append(lambda: tile_rows(tile_x, offsets[1:], t.vectors, t.full_last))
        if t.count > t.full:
            cases.append(lambda: tile_rows(tile_x, offsets[1:], t.rest_vectors, t.rest_last))
        if len(cases) == 1:
            cases[0]()
        else:
            with f.either(tile < t.full) as otherwise:
                cases[0]()
                with otherwise():
                    cases[1]()

    operands = [
        g.source.address,
        plan.constant(packed.stream),
        plan.constant(packed.rows),
        plan.constant(packed.starts),
        plan.constant(bias.astype(np.float32)),
        out.address,
        plan.constant(t.table),
        *epilogue.operands(plan),
    ]
    if masked:
        operands.append(plan.constant(border_mask(g.strides, out.shape[2:], t.vector_steps * lanes)))
    info = {
        **info,
        "kernel": "sparse",
        "pattern": "unstructured" if shared == 1 else f"shared by {shared} output channels",
        "shared": shared,
        "tile": _shown(choice),
        "estimated_cycles": choice.cycles,
    }
    plan.step(
        f, operands, work.tasks, reads=[g.source, *epilogue.tensors], writes=[out], barrier=barrier, info=info
    )


def _shown(choice: Choice) -> str:
    """The tile, for people."""
    flat = ", flat" if choice.tiles.flat else ""
    return f"{choice.tiles.vectors} vectors x {choice.shared} channels, blocks of {choice.block}{flat}"


def _nonzeros(
    f: Function, x: Value, position: Any, count: Value, totals: Sequence[Sequence[Any]], vector: Any
) -> None:
    """Add `count` nonzeros from the stream to the totals, and move the position past them."""
    shared, size = len(totals), 4 * (1 + len(totals))

    def one(at: Value, index: int) -> None:
        offset = f.convert(f.load(I32, at, index * (1 + shared)), I64)
        pixel = f.offset(x, offset)
        weights = [f.splat(f.load(F32, at, index * (1 + shared) + 1 + s), vector) for s in range(shared)]
        for v in range(len(totals[0])):
            loaded = f.load(vector, pixel, v * vector.lanes)
            for s in range(shared):
                totals[s][v].set(f.fma(loaded, weights[s], totals[s][v].get()))

    with f.loop(0, count >> 3):
        at = position.get()
        for index in range(UNROLL):
            one(at, index)
        position.set(f.offset(at, UNROLL * size))
    left = count & (UNROLL - 1)
    # Step i of the unrolled sequence reads the nonzero that lies UNROLL - 1 - i before the end of the row.
    end = f.offset(position.get(), left * size)
    for step in f.switch_down(left, UNROLL - 1):
        one(end, step - (UNROLL - 1))
    position.set(end)
