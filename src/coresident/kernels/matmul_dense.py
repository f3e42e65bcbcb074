"""The dense matrix product: a tile of C stays in registers, A is broadcast onto vectors of B's columns.

B is read as panels [panels][K][V * lanes]: constant weights are packed so when compiled, an operand whose
columns do not lie side by side is copied so at run time, and one whose columns do is read where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import F32, Function, Value, Variable, kernel
from coresident.codegen.target import Target
from coresident.kernels import movement
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.product import Matrix, Output, Product, addresses
from coresident.kernels.vectors import load_first, unravel

Array = np.ndarray[Any, Any]

CHAINS = 8
"""Independent sums that hide the latency of a fused multiply-add (4 cycles, two a cycle)."""


MOST_ROWS = 8
"""Rows of A walked at once: each takes an address register."""

FEW_ROWS = 4
"""Rows of A below which the weights' way from memory binds."""

AHEAD = 2048
"""Bytes of weights asked for in advance then: hardware prefetchers stop at the end of each page of 4 KiB."""

KEPT = 16 << 10
"""Bytes of sums that wait in L1 for a long epilogue."""


@dataclass(frozen=True)
class Tile:
    """What one register tile computes.

    Args:
        rows: of C.
        vectors: of columns of C.
        chains: sums kept for each of them, over different k.
    """

    rows: int
    vectors: int
    chains: int

    @staticmethod
    def of(rows: int, vectors: int) -> Tile:
        return Tile(rows, vectors, max(1, CHAINS // (rows * vectors)))

    @property
    def cycles(self) -> float:
        """For one k: two multiply-adds or two loads a cycle, twice as long for the vectors of B, from L2."""
        return max(self.rows * self.vectors / 2, self.vectors + self.rows / 2) + 0.2

    def __str__(self) -> str:
        return f"{self.rows} rows x {self.vectors} vectors"


def _cover(size: int, tile: int) -> list[int]:
    return [tile] * (size // tile) + ([size % tile] if size % tile else [])


def choose_tile(target: Target, m: int, n: int, threads: int) -> Tile:
    """The tile that needs the fewest cycles for an m x n result."""
    columns = -(-n // target.lanes(F32))
    # A broadcast takes a register unless it is a memory operand (AVX-512).
    spare = target.registers - (0 if target.vector_bits == 512 else 1)
    # A few rows are bound by the weights' way from memory: panels for all threads come first.
    widest = max(2, columns // (2 * threads)) if m < FEW_ROWS and threads > 1 else columns
    best, fewest = Tile.of(1, 1), math.inf
    for vectors in range(1, min(columns, widest, 12) + 1):
        for rows in range(1, min(m, MOST_ROWS) + 1):
            if rows * vectors + vectors > spare:
                break
            cycles = sum(
                Tile.of(r, v).cycles * count * others
                for r, count in _counts(m, rows)
                for v, others in _counts(columns, vectors)
            )
            if m < FEW_ROWS and threads > 1:
                # The thread that has most of the panels is waited for.
                panels = -(-columns // vectors)
                cycles *= -(-panels // threads) * threads * vectors / columns
            # Equal otherwise: the larger tile reads less.
            if cycles < fewest * (1 - 1e-9) or (
                cycles < fewest * 1.02 and rows * vectors > best.rows * best.vectors
            ):
                best, fewest = Tile.of(rows, vectors), cycles
    return best


def _counts(size: int, tile: int) -> list[tuple[int, int]]:
    whole, rest = divmod(size, tile)
    return [(tile, whole)] * (whole > 0) + [(rest, 1)] * (rest > 0)


def estimate(target: Target, p: Product) -> float:
    """Cycles of one core for the dense product."""
    lanes = target.lanes(F32)
    tile = choose_tile(target, p.m, p.n, 1)
    columns = -(-p.n // lanes)
    once = sum(
        Tile.of(r, v).cycles * count * others
        for r, count in _counts(p.m, tile.rows)
        for v, others in _counts(columns, tile.vectors)
    )
    # Measured: up to 88 % of the peak.
    compute = p.matrices * once * p.k * 1.15
    return max(compute, traffic(target, p.k * p.n * 4))


def traffic(target: Target, size: int) -> float:
    """Cycles to read so many bytes of weights once, from L2 if they fit it and from further away if not."""
    return size / (20 if size < target.l2_bytes else 16)


def dense(p: Product, plan: Plan, why: Sequence[str]) -> None:
    """Lower a product with every weight multiplied."""
    tile = choose_tile(plan.target, p.m, p.n, plan.threads)
    lanes = plan.target.lanes(F32)
    width = tile.vectors * lanes
    panels = -(-p.n // width)
    # Rows of one task: their part of A fits half of L2 while all panels pass; fewer where threads would idle.
    rows = max(tile.rows, plan.target.l2_bytes // 2 // (4 * max(p.k, 1)) // tile.rows * tile.rows)
    if p.heavy:
        rows = min(rows, max(1, KEPT // (4 * width * tile.rows)) * tile.rows)
    if plan.threads > 1:
        wanted = 4 * plan.threads
        blocks = max(1, -(-wanted // max(1, panels * p.matrices)))
        rows = min(rows, max(tile.rows, -(-p.m // blocks // tile.rows) * tile.rows))
    blocks = -(-p.m // rows)
    right, packed = _right(p, plan, width)
    f = kernel(plan.target, "matmul_dense", flushes=True)
    panel, rest = f["task"] % panels, f["task"] // panels
    _panel(f, p, right, tile, panel, rest, rows, packed)
    if p.heavy:
        plan.scratch(rows * width * 4)
    info: dict[str, Any] = {
        "kernel": "dense matrix product",
        "tile": str(tile),
        "macs": p.macs,
        "nonzero_macs": p.macs,
        "sparsity": 0.0 if p.weights is None else float(np.mean(p.weights == 0)) if p.weights.size else 0.0,
        "why": list(why),
    }
    plan.step(
        f,
        [operand(p.a.tensor), operand(right.tensor), *addresses(p)],
        p.matrices * blocks * panels,
        reads=[p.a.tensor, right.tensor, *(m.tensor for m in p.addends)],
        writes=[p.c.tensor],
        info=info,
    )


def _right(p: Product, plan: Plan, width: int) -> tuple[Matrix, bool]:
    """B as the kernel reads it, and whether that is in panels; its rows are then those of one panel."""
    lanes = plan.target.lanes(F32)
    if p.weights is not None:
        packed = pack(p.weights, width, lanes)
        address = plan.constant(packed)
        tensor = Tensor("", np.dtype(np.float32), Layout.contiguous(packed.shape), address)
        return Matrix(tensor, (0,) * len(p.batch), width, 1), True
    if p.b.column == 1 or p.n == 1:
        return p.b, False
    return pack_at_run_time(plan, p.b, p.batch, p.k, p.n, width, lanes), True


def pack(weights: Array, width: int, lanes: int) -> Array:
    """[k, n] -> panels [k][width] one after another; the last is only as wide as its vectors need.

    Args:
        weights: [k, n].
        width: of a panel, a multiple of `lanes`; zeros fill the last vector.
    """
    n = weights.shape[1]
    panels = []
    for start in range(0, n, width):
        part = weights[:, start : start + width]
        missing = -part.shape[1] % lanes
        panels.append(np.pad(part, ((0, 0), (0, missing))).ravel())
    return np.concatenate(panels).astype(np.float32) if panels else np.zeros(0, np.float32)


def pack_at_run_time(
    plan: Plan, source: Matrix, batch: Sequence[int], k: int, n: int, width: int, unit: int
) -> Matrix:
    """A copy of [k, n] matrices in panels [k][width]; the last is cut to a multiple of `unit` columns.

    Lanes beyond the last column hold anything. The result's rows are those of one panel.
    """
    varying = [(size, stride) for size, stride in zip(batch, source.batch) if stride]
    whole, rest = divmod(n, width)
    last = -(-rest // unit) * unit
    step = k * (whole * width + last)
    outer: list[int] = []
    for size, _ in reversed(varying):
        outer.insert(0, step)
        step *= size
    buffer = plan.temporary(Layout.contiguous((step,)), np.float32)
    for count, columns, first, padded in (
        (whole, width, 0, width),
        (min(rest, 1), rest, whole * width, last),
    ):
        if not count:
            continue
        shape = (*(size for size, _ in varying), count, k, columns)
        strides = (*(stride for _, stride in varying), width * source.column, source.row, source.column)
        read = source.tensor.layout.view(shape, strides, first * source.column)
        write = buffer.layout.view(shape, (*outer, width * k, padded, 1), first * k)
        info = {"op": "Copy", "kernel": "copy to panels"}
        movement.copy(plan, replace(source.tensor, layout=read), replace(buffer, layout=write), info)
    steps = iter(outer)
    return Matrix(buffer, tuple(next(steps) if stride else 0 for stride in source.batch), width, 1)


def _panel(
    f: Function, p: Product, right: Matrix, tile: Tile, panel: Value, rest: Value, rows: int, packed: bool
) -> None:
    """One block of rows times one panel; `rest` counts blocks of rows, then the batch."""
    lanes = f.target.lanes(F32)
    width = tile.vectors * lanes
    panels, blocks = -(-p.n // width), -(-p.m // rows)
    block, index = (rest % blocks, rest // blocks) if blocks > 1 else (f.constant(0, rest.type), rest)
    matrices = (p.a, right, p.c, *p.addends)
    offsets = unravel(f, index, p.batch, *(m.batch for m in matrices))
    a = f.offset(element_0(f, 0, p.a.tensor), offsets[0], F32)
    b = f.offset(element_0(f, 1, right.tensor), offsets[1], F32)
    b = f.offset(b, panel * (width * p.k if packed else width), F32)
    output = Output(f, p, 2, offsets[2:])
    start = block * rows
    rest_columns = p.n - (panels - 1) * width

    def columns(count: int) -> None:
        vectors = -(-count // lanes)
        step = vectors * lanes if packed and vectors != tile.vectors else right.row
        source = replace(right, row=step)
        whole = p.m // tile.rows * tile.rows

        def tile_at(row: Value, size: int) -> None:
            totals = _totals(f, p, source, Tile.of(size, vectors), a, b, row, count, packed)
            if p.heavy:
                _keep(f, totals, (row - start) * (vectors * lanes))
            else:
                _write(f, totals, output, row, panel * width, count)

        if whole:
            stop = f.constant(whole, start.type) if blocks == 1 else _smaller(f, start + rows, whole)
            with f.loop(start, stop, tile.rows) as m:
                tile_at(m, tile.rows)
        if p.m % tile.rows:
            with f.when(block.equals(blocks - 1)):
                tile_at(f.constant(whole, start.type), p.m % tile.rows)
        if p.heavy:
            _write_kept(f, output, start, _smaller(f, start + rows, p.m), panel * width, count)

    if rest_columns == width:
        columns(width)
    elif panels == 1:
        columns(rest_columns)
    else:
        with f.either(panel < panels - 1) as other:
            columns(width)
            with other():
                columns(rest_columns)


def _smaller(f: Function, a: Value, b: int) -> Value:
    return f.select(a < b, a, b)


def _totals(
    f: Function,
    p: Product,
    right: Matrix,
    tile: Tile,
    a: Value,
    b: Value,
    row: Value,
    count: int,
    packed: bool,
) -> list[list[Value]]:
    """A tile of sums, rows of vectors: `count` columns, of which the last vector may be partly beyond C."""
    kind = F32.by(f.target.lanes(F32))
    lanes = kind.lanes
    sums = [
        [[f.var(0.0, kind) for _ in range(tile.vectors)] for _ in range(tile.rows)]
        for _ in range(tile.chains)
    ]
    a = f.offset(a, row * p.a.row, F32) if p.a.row else a
    last = count - (tile.vectors - 1) * lanes

    def step(k: Value | int, chain: int) -> None:
        columns = []
        for v in range(tile.vectors):
            full = packed or v < tile.vectors - 1
            columns.append(load_first(f, kind, b, k * right.row + v * lanes, lanes if full else last, 1))
        for r in range(tile.rows):
            scale = f.splat(f.load(F32, a, k * p.a.column + r * p.a.row), kind)
            for v in range(tile.vectors):
                total = sums[chain][r][v]
                total.set(f.fma(columns[v], scale, total.get()))

    unroll = max(tile.chains, 4 if tile.rows * tile.vectors <= 8 else 2)
    whole = p.k // unroll * unroll
    if whole:
        with f.loop(0, whole, unroll) as k:
            if packed and p.m < FEW_ROWS:
                for line in range(0, 4 * unroll * tile.vectors * lanes, 64):
                    f.prefetch(b, k * (4 * right.row) + AHEAD + line)
            for u in range(unroll):
                step(k + u, u % tile.chains)
    for u in range(p.k - whole):
        step(whole + u, u % tile.chains)
    return [[_sum(f, [chain[r][v] for chain in sums]) for v in range(tile.vectors)] for r in range(tile.rows)]


def _sum(f: Function, chains: Sequence[Variable]) -> Value:
    values = [chain.get() for chain in chains]
    while len(values) > 1:
        values = [x + y for x, y in zip(values[0::2], values[1::2])] + values[len(values) & ~1 :]
    return values[0]


def _write(
    f: Function, totals: Sequence[Sequence[Value]], output: Output, row: Value, column: Value, count: int
) -> None:
    """A tile's epilogue and stores."""
    lanes = f.target.lanes(F32)
    places = output.at(row, column)
    for r, line in enumerate(totals):
        for v, total in enumerate(line):
            output.write(total, places, r, v * lanes, min(lanes, count - v * lanes))


def _keep(f: Function, totals: Sequence[Sequence[Value]], first: Value) -> None:
    """Sums stored from an element of scratch on."""
    lanes = f.target.lanes(F32)
    place = f.offset(f["scratch"], first, F32)
    for r, line in enumerate(totals):
        for v, total in enumerate(line):
            f.store(total, place, (r * len(line) + v) * lanes)


def _write_kept(f: Function, output: Output, start: Value, stop: Value, column: Value, count: int) -> None:
    """A long epilogue, once in the code and behind all tiles: inside their loop LLVM holds its constants in
    registers around the products, and spills sums at each of them (2.4 times slower)."""
    kind = F32.by(f.target.lanes(F32))
    lanes = kind.lanes
    width = -(-count // lanes) * lanes
    whole = count // lanes * lanes

    def rows(at: Value | int, size: int) -> None:
        with f.loop(start, stop) as row:
            total = f.load(kind, f["scratch"], (row - start) * width + at)
            output.write(total, output.at(row, column + at), 0, 0, size)

    if whole:
        with f.loop(0, whole, lanes) as at:
            rows(at, lanes)
    if count > whole:
        rows(whole, count - whole)
