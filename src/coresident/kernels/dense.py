"""Dense direct convolution, register-tiled: a few vectors of pixels by a few output channels.

For one tile of pixels, all groups of output channels follow each other, so the tile's activations stay in
the nearest
cache and the weights stream past, four channels side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.kernels import cost
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
from coresident.kernels.tiling import cut

GROUP = 4
"""Output channels packed side by side."""


@dataclass(frozen=True)
class Shape:
    """What a convolution multiplies.

    Args:
        batch: pictures.
        groups: of channels.
        inputs, outputs: channels of one group.
        taps: kernel positions.
        pixels: of one output plane.
    """

    batch: int
    groups: int
    inputs: int
    outputs: int
    taps: int
    pixels: int

    @property
    def macs(self) -> int:
        return self.batch * self.groups * self.inputs * self.outputs * self.taps * self.pixels


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        tiles: the cut of the pixels.
        row_groups, rest_groups: groups of output channels in a full tile and in one of the rest.
        block: input channels in a block: what they hold of a tile should fit L1.
        cycles: as the cost model says.
    """

    tiles: Tiles
    row_groups: int
    rest_groups: int
    block: int
    cycles: float


def choose(plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue) -> Choice:
    """The tile that should be fastest."""
    machine = cost.Machine.of(plan.target)
    lanes = plan.target.lanes(F32)
    extras = [t.layout for t in epilogue.tensors]
    limit = plan.target.registers - 4
    best: Choice | None = None
    flats = [True, False] if can_run_flat(g.strides, out.layout, extras, lanes) else [False]
    for flat in flats:
        for vectors in range(1, limit + 1):
            cutting = tiles(g.strides, out.layout, extras, lanes, vectors, flat)
            if cutting.full == 0 and vectors > cutting.rest_vectors:
                continue
            reach = 4 * footprint(g, vectors * lanes)
            sizes = block_sizes(shape.inputs)
            block = next((size for size in sizes if size * reach <= machine.l1_bytes), sizes[-1])
            block = min(shape.inputs, max(block, 16))
            blocks = -(-shape.inputs // block)
            depth = shape.inputs * shape.taps / blocks
            resident = block * reach <= machine.l1_bytes
            groups, cycles = _rows(machine, plan, vectors, shape.outputs, depth, limit, resident)
            rest_groups, rest_cycles = 1, 0.0
            if cutting.rest_vectors:
                rest = _rows(machine, plan, cutting.rest_vectors, shape.outputs, depth, limit, resident)
                rest_groups, rest_cycles = rest
            total = blocks * (cutting.full * cycles + (cutting.count - cutting.full) * rest_cycles)
            weights = 4 * shape.outputs * shape.inputs * shape.taps
            if weights > machine.cache:
                total = max(total, cutting.count * weights / machine.l3_bytes)
            total *= shape.batch * shape.groups
            if best is None or total < best.cycles:
                best = Choice(cutting, groups, rest_groups, block, total)
    assert best is not None
    return best


def _rows(
    machine: cost.Machine, plan: Plan, vectors: int, outputs: int, depth: float, limit: int, resident: bool
) -> tuple[int, float]:
    """For a tile of so many vectors: the channel groups to take at once, and the cycles for all channels."""
    size = plan.target.vector_bits // 8
    best = (1, float("inf"))
    whole, rest = divmod(outputs, GROUP)
    most = max(1, limit // (vectors * GROUP))
    for groups in range(1, most + 1):
        if groups > max(1, whole):
            break
        rows = min(GROUP * groups, outputs)
        if vectors * min(GROUP, outputs) > limit:
            break
        many, few = divmod(whole, groups)
        cycles = many * cost.dense_tile(machine, vectors, rows, depth, size, resident)
        cycles += few * cost.dense_tile(machine, vectors, GROUP, depth, size, resident)
        if rest:
            cycles += cost.dense_tile(machine, vectors, rest, depth, size, resident)
        if cycles < best[1]:
            best = (groups, cycles)
    return best


def pack(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[groups, outputs, inputs, taps] -> for each group [outputs / 4][inputs][taps][4], then the channels
    left over."""
    parts = []
    for w in weights:
        whole = len(w) // GROUP * GROUP
        parts.append(w[:whole].reshape(-1, GROUP, *w.shape[1:]).transpose(0, 2, 3, 1).reshape(-1))
        parts.append(w[whole:].transpose(1, 2, 0).reshape(-1))
    return np.concatenate(parts).astype(np.float32)


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
    f = kernel(plan.target, "conv_dense")
    lanes = plan.target.lanes(F32)
    vector = F32.by(lanes)
    t = choice.tiles
    whole, rest_rows = divmod(shape.outputs, GROUP)
    units = whole + bool(rest_rows)
    work = cut(t.count, units, shape.batch * shape.groups, plan.threads, choice.cycles, choice.row_groups)
    masked = t.flat and any(map(any, out.layout.halo))
    x, w, b, y, table = (word(f, i) for i in range(5))
    extra = [word(f, 5 + i) for i in range(epilogue.words)]
    outer, inner = factor_taps(g.taps)
    mask = word(f, 6 + epilogue.words) if masked else None
    taps = Taps(inner, word(f, 5 + epilogue.words) if len(outer) > 1 else None)
    part, first_row, last_row, first_tile, last_tile = work.part(f)
    picture, group = part / shape.groups, part % shape.groups
    channel_base = group * shape.outputs
    depth = shape.inputs * shape.taps
    x = f.offset(x, picture * g.batch_stride + group * (shape.inputs * g.channel_stride), F32)
    w = f.offset(w, group * (shape.outputs * depth), F32)
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
    columns = t.table.shape[1]

    blocks = -(-shape.inputs // choice.block)
    if blocks > 1:
        plan.scratch(work.row_chunk * GROUP * max(t.vectors, t.rest_vectors) * vector.bytes)

    def rows_loop(tile_x: Value, offsets: Sequence[Value], vectors: int, last: int, groups: int) -> None:
        with f.loop(0, blocks) as block:
            block_rows(block, tile_x, offsets, vectors, last, groups)

    def block_rows(
        block: Value, tile_x: Value, offsets: Sequence[Value], vectors: int, last: int, groups: int
    ) -> None:
        def micro(unit: Value, rows: int) -> None:
            part = Part(
                block,
                choice.block,
                blocks,
                f.offset(f["scratch"], (unit - first_row) * (GROUP * vectors * lanes), F32),
            )
            _micro(
                f,
                g,
                shape,
                output,
                tile_x,
                w,
                b,
                unit,
                channel_base,
                offsets,
                vectors,
                rows,
                last,
                part,
                taps,
            )

        end = f.minimum(last_row, whole)
        many = f.var(first_row)
        if groups > 1:
            stop = end - (groups - 1)
            with f.loop(first_row, stop, groups) as unit:
                micro(unit, GROUP * groups)
                many.set(unit + groups)
        if whole:
            with f.loop(many.get(), end) as unit:
                micro(unit, GROUP)
        if rest_rows:
            with f.when(last_row > whole):
                micro(f.constant(whole, I64), rest_rows)

    with f.loop(first_tile, last_tile) as tile:
        offsets = [f.convert(f.load(I32, table, tile * columns + c), I64) for c in range(columns)]
        tile_x = f.offset(x, offsets[0], F32)
        cases: list[Callable[[], None]] = []
        if t.full:
            cases.append(lambda: rows_loop(tile_x, offsets[1:], t.vectors, t.full_last, choice.row_groups))
        if t.count > t.full:
            cases.append(
                lambda: rows_loop(tile_x, offsets[1:], t.rest_vectors, t.rest_last, choice.rest_groups)
            )
        if len(cases) == 1:
            cases[0]()
        else:
            with f.either(tile < t.full) as otherwise:
                cases[0]()
                with otherwise():
                    cases[1]()

    operands = [
        g.source.address,
        plan.constant(pack(weights)),
        plan.constant(bias.astype(np.float32)),
        out.address,
        plan.constant(t.table),
        *epilogue.operands(plan),
        plan.constant(np.array(outer, np.int32)),
    ]
    if masked:
        operands.append(plan.constant(border_mask(g.strides, out.shape[2:], _run_length(t, lanes))))
    info = {
        **info,
        "kernel": "dense",
        "tile": _shown(choice),
        "estimated_cycles": choice.cycles,
    }
    plan.step(
        f, operands, work.tasks, reads=[g.source, *epilogue.tensors], writes=[out], barrier=barrier, info=info
    )


def _shown(choice: Choice) -> str:
    """The tile, for people."""
    flat = ", flat" if choice.tiles.flat else ""
    return (
        f"{choice.tiles.vectors} vectors x {GROUP * choice.row_groups} channels, "
        f"blocks of {choice.block}{flat}"
    )


def _run_length(t: Tiles, lanes: int) -> int:
    return t.vector_steps * lanes


@dataclass(frozen=True)
class Taps:
    """The taps as the code meets them: unrolled, or the inner ones unrolled in a loop over the outer ones.

    Args:
        inner: offsets of those unrolled, relative to an outer one.
        outer: address of the outer ones' offsets (int32), None where all are unrolled.
    """

    inner: tuple[int, ...]
    outer: Value | None


UNROLLED_TAPS = 12
"""Taps unrolled at most: with 27 or 49 of them LLVM takes seconds, and the loop costs nothing beside 12
sums."""


def factor_taps(taps: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(outer, inner) offsets whose sums are the taps, in order; as many inner ones as may be unrolled."""
    if len(taps) <= UNROLLED_TAPS:
        return (0,), taps
    for n in range(UNROLLED_TAPS, 0, -1):
        if len(taps) % n:
            continue
        rows = np.array(taps).reshape(-1, n)
        if (rows - rows[:, :1] == rows[0] - rows[0, 0]).all():
            return tuple(int(r) for r in rows[:, 0]), tuple(int(i) for i in rows[0] - rows[0, 0])
    raise AssertionError("one inner tap always fits")


@dataclass(frozen=True)
class Part:
    """The block of input channels that is added, and where sums wait between blocks.

    Args:
        index: of the block, I64.
        channels: in a block.
        blocks: in all.
        waiting: address of the sums, output channel by output channel.
    """

    index: Value
    channels: int
    blocks: int
    waiting: Value


def _micro(
    f: Function,
    g: Geometry,
    shape: Shape,
    output: Output,
    x: Value,
    w: Value,
    b: Value,
    unit: Value,
    channel_base: Value,
    offsets: Sequence[Value],
    vectors: int,
    rows: int,
    last: int,
    part: Part,
    taps: Taps,
) -> None:
    """`rows` output channels from group `unit` on, for one tile."""
    vector = output.vector
    lanes = vector.lanes
    depth = shape.inputs * shape.taps
    channel = channel_base + unit * GROUP
    totals = [
        [f.var(value) for _ in range(vectors)]
        for value in (f.splat(f.load(F32, b, channel + r), vector) for r in range(rows))
    ]
    packed = min(rows, GROUP)
    streams = [f.offset(w, (unit + s) * (depth * GROUP), F32) for s in range(-(-rows // GROUP))]
    if part.blocks > 1:
        with f.when(part.index > 0):
            for r in range(rows):
                for v in range(vectors):
                    totals[r][v].set(f.load(vector, part.waiting, (r * vectors + v) * lanes))
    # Unroll over channels where there are few taps, so that the loop itself costs little.
    sizes = {part.channels, shape.inputs % part.channels or part.channels}
    unroll = next(u for u in (4, 2, 1) if (all(n % u == 0 for n in sizes) and u * shape.taps <= 16) or u == 1)
    start = part.index * part.channels

    def add(at_x: Value, at_w: Sequence[Value], taps: Sequence[int]) -> None:
        for k, tap in enumerate(taps):
            pixels = [f.load(vector, at_x, tap + v * lanes) for v in range(vectors)]
            for r in range(rows):
                weight = f.splat(f.load(F32, at_w[r // GROUP], k * packed + r % GROUP), vector)
                for v in range(vectors):
                    totals[r][v].set(f.fma(pixels[v], weight, totals[r][v].get()))

    with f.loop(start, f.minimum(start + part.channels, shape.inputs), unroll) as c:
        for u in range(unroll):
            at_x = f.offset(x, c * g.channel_stride + u * g.channel_stride, F32)
            at_w = [f.offset(s, c * (shape.taps * packed) + u * shape.taps * packed, F32) for s in streams]
            if taps.outer is None:
                add(at_x, at_w, g.taps)
                continue
            with f.loop(0, shape.taps // len(taps.inner)) as o:
                near = f.offset(at_x, f.convert(f.load(I32, taps.outer, o), I64), F32)
                add(near, [f.offset(a, o * (len(taps.inner) * packed), F32) for a in at_w], taps.inner)

    def finish() -> None:
        for r in range(rows):
            output.store(f, channel + r, [total.get() for total in totals[r]], offsets, last)

    if part.blocks == 1:
        finish()
        return
    with f.either(part.index.equals(part.blocks - 1)) as otherwise:
        finish()
        with otherwise():
            for r in range(rows):
                for v in range(vectors):
                    f.store(totals[r][v].get(), part.waiting, (r * vectors + v) * lanes)
