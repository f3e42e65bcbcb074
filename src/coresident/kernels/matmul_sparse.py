"""Matrix products that read and multiply only the nonzeros of constant weights.

Few rows: columns of B that have similarly many nonzeros stand together, one a lane, each with its own list of
places in the row of A (SELL-C-sigma; M. Kreutzer et al., "A unified sparse matrix data format for efficient
general sparse matrix-vector multiplication", SIAM J. Sci. Comput. 36, 2014).
Many rows: A is copied with its rows side by side, and each nonzero is one broadcast times vectors of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coresident.codegen.builder import F32, I64, Function, Value, kernel, word
from coresident.codegen.target import Target
from coresident.codegen.types import I32, Type
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.lowering import Plan
from coresident.kernels.matmul_dense import pack_at_run_time, traffic
from coresident.kernels.product import Matrix, Output, Product, addresses
from coresident.kernels.vectors import transpose, unravel

Array = np.ndarray[Any, Any]


def sparsity(array: Array) -> float:
    """The share of zeros."""
    return float(np.mean(array == 0)) if array.size else 0.0


def _weights(p: Product) -> Array:
    assert p.weights is not None, "sparse products have constant weights"
    return p.weights


def _info(p: Product, name: str, tile: str) -> dict[str, Any]:
    weights = _weights(p)
    nonzeros = int(np.count_nonzero(weights))
    return {
        "kernel": name,
        "tile": tile,
        "macs": p.macs,
        "nonzero_macs": p.matrices * p.m * nonzeros,
        "sparsity": sparsity(weights),
        "pattern": "unstructured",
    }


# Few rows


class Lists:
    """Nonzeros by groups of `lanes` columns, sorted by their number within a window of columns.

    Args:
        weights: [k, n].
        lanes: columns of a group.
        window: columns that are sorted together, a multiple of `lanes`.
        stride: bytes from one k to the next in a row of A.

    Attributes:
        starts: int32[groups + 1], where each group's lists start, counted in lines of `lanes` entries.
        values: float32[lines, lanes], zeros at the ends of the shorter lists.
        places: uint16 or int32[lines, lanes], bytes from the start of a row of A.
        columns: int32[groups, lanes], column within the window; `window` where there is none.
    """

    def __init__(self, weights: Array, lanes: int, window: int, stride: int) -> None:
        k, n = weights.shape
        windows = -(-n // window)
        self.groups = window // lanes
        starts, values, places, columns = [0], [], [], []
        for w in range(windows):
            block = weights[:, w * window : (w + 1) * window]
            counts = np.count_nonzero(block, axis=0)
            order = np.argsort(-counts, kind="stable")
            for g in range(self.groups):
                members = order[g * lanes : (g + 1) * lanes]
                length = int(counts[members].max(initial=0))
                value = np.zeros((length, lanes), np.float32)
                place = np.zeros((length, lanes), np.int64)
                for lane, column in enumerate(members):
                    rows = np.flatnonzero(block[:, column])
                    value[: len(rows), lane] = block[rows, column]
                    place[: len(rows), lane] = rows
                    # Beyond its end a list reads what it has read: no other activation can make its sum NaN.
                    place[len(rows) :, lane] = rows[-1] if len(rows) else 0
                values.append(value)
                places.append(place * stride)
                columns.append([*members, *[window] * (lanes - len(members))])
                starts.append(starts[-1] + length)
        self.starts = np.array(starts, np.int32)
        self.values = np.concatenate(values) if values else np.zeros((0, lanes), np.float32)
        small = 0 <= stride * k < 1 << 16
        self.places = np.concatenate(places).astype(np.uint16 if small else np.int32)
        self.columns = np.array(columns, np.int32)


def estimate_gathered(target: Target, p: Product) -> float:
    """Cycles of one core, as measured on Zen 3: loads bind, of a place and of an activation for each row."""
    lanes = target.lanes(F32)
    nonzeros = int(np.count_nonzero(_weights(p)))
    tiles = p.m // 4 * [4] + [p.m % 4] * (p.m % 4 > 0)
    sums = sum(max(nonzeros * (0.4 + 0.58 * rows), traffic(target, nonzeros * 6)) for rows in tiles)
    return p.matrices * (sums + p.m * (p.n * 2 + 20 * -(-p.n // lanes)))


def _window(p: Product, plan: Plan, lanes: int) -> int:
    wanted = -(-p.n // (4 * plan.threads)) if plan.threads > 1 else p.n
    return min(max(-(-wanted // lanes), 4) * lanes, 4096)


def gathered(p: Product, plan: Plan) -> None:
    """Lower a product of few rows."""
    lanes = plan.target.lanes(F32)
    window = _window(p, plan, lanes)
    windows = -(-p.n // window)
    lists = Lists(_weights(p), lanes, window, p.a.column * 4)
    rows = min(p.m, 4)
    f = kernel(plan.target, "matmul_gathered", flushes=True)
    _gathered(f, p, lists, window, windows, rows)
    plan.scratch(rows * (window + lanes) * 4)
    constants = [plan.constant(a) for a in (lists.starts, lists.values, lists.places, lists.columns)]
    plan.step(
        f,
        [operand(p.a.tensor), *constants, *addresses(p)],
        p.matrices * windows,
        reads=[p.a.tensor, *(m.tensor for m in p.addends)],
        writes=[p.c.tensor],
        info=_info(p, "sparse matrix product, gathered", f"{rows} rows x {lanes} columns"),
    )


def _gathered(f: Function, p: Product, lists: Lists, window: int, windows: int, rows: int) -> None:
    lanes = lists.values.shape[1]
    which, index = (
        (f["task"] % windows, f["task"] // windows) if windows > 1 else (f.constant(0, I64), f["task"])
    )
    offsets = unravel(f, index, p.batch, *(m.batch for m in (p.a, p.c, *p.addends)))
    a = f.offset(element_0(f, 0, p.a.tensor), offsets[0], F32)
    starts, values, places, columns = (word(f, i) for i in range(1, 5))
    output = Output(f, p, 5, offsets[1:])
    pitch = window + lanes
    place_kind = Type("i", 8 * lists.places.dtype.itemsize)
    kind = F32.by(lanes)

    def line(row: Value, t: Value, totals: list[Any], count: int) -> None:
        weight = f.load(kind, values, t * lanes)
        at = f.offset(places, t * lanes, place_kind)
        found = [f.constant(0, kind)] * count
        for lane in range(lanes):
            place = f.offset(row, f.convert(f.load(place_kind, at, lane), I64, signed=place_kind.bits == 32))
            for r in range(count):
                found[r] = f.insert(found[r], f.load(F32, place, r * p.a.row), lane)
        for r in range(count):
            totals[r].set(f.fma(found[r], weight, totals[r].get()))

    def sums(row: Value, count: int) -> None:
        first = which * lists.groups
        with f.loop(first, first + lists.groups) as g:
            start = f.convert(f.load(I32, starts, g), I64)
            stop = f.convert(f.load(I32, starts, g + 1), I64)
            chains = [[f.var(0.0, kind) for _ in range(count)] for _ in range(2)]
            even = start + ((stop - start) & -2)
            with f.loop(start, even, 2) as t:
                line(row, t, chains[0], count)
                line(row, t + 1, chains[1], count)
            with f.when(even < stop):
                line(row, even, chains[0], count)
            totals = [x.get() + y.get() for x, y in zip(*chains)]
            for lane in range(lanes):
                column = f.convert(f.load(I32, columns, g * lanes + lane), I64)
                for r in range(count):
                    f.store(f.extract(totals[r], lane), f["scratch"], column + r * pitch)

    def finish(m: Value, count: int) -> None:
        first = which * window
        stop = f.constant(min(window, p.n), I64)
        if windows > 1 and p.n % window:
            stop = f.select(which.equals(windows - 1), f.constant(p.n % window, I64), stop)
        whole = stop & -lanes
        with f.loop(0, count) as r:
            with f.loop(0, whole, lanes) as column:
                total = f.load(kind, f["scratch"], r * pitch + column)
                output.write(total, output.at(m + r, first + column), 0, 0, lanes)
            if p.n % lanes:
                with f.when(whole < stop):
                    total = f.load(kind, f["scratch"], r * pitch + whole)
                    output.write(total, output.at(m + r, first + whole), 0, 0, p.n % lanes)

    whole = p.m // rows * rows
    with f.loop(0, whole, rows) as m:
        sums(f.offset(a, m * p.a.row, F32), rows)
        finish(m, rows)
    if p.m % rows:
        last = f.constant(whole, I64)
        sums(f.offset(a, last * p.a.row, F32), p.m % rows)
        finish(last, p.m % rows)


# Many rows


def estimate_planar(target: Target, p: Product) -> float:
    """Cycles of one core: a nonzero takes two loads and one for each vector of rows."""
    lanes = target.lanes(F32)
    nonzeros = int(np.count_nonzero(_weights(p)))
    vectors = _row_vectors(target, p)
    blocks = -(-p.m // (vectors * lanes))
    # A vector of rows is loaded from L1 where the block fits it, else from L2; measured on Zen 3.
    near = p.k * vectors * lanes * 4 <= target.l1_bytes
    each = 1 + vectors * 0.75 if near else 1.5 + vectors * 1.1
    far = traffic(target, nonzeros * 8) if nonzeros * 8 > target.l2_bytes else 0.0
    sums = nonzeros * each + far + p.n * 8
    return p.matrices * blocks * (sums + vectors * (p.n * 6 + p.k * lanes * 0.5))


def _row_vectors(target: Target, p: Product) -> int:
    """Vectors of rows in a block: what fits L1 with all k, at least 4, evenly spread over the blocks."""
    lanes = target.lanes(F32)
    fitting = target.l1_bytes * 3 // 4 // max(1, p.k * lanes * 4)
    total = -(-p.m // lanes)
    most = min(max(fitting, 4), 8 if target.registers <= 16 else 12)
    return -(-total // -(-total // most))


def planar(p: Product, plan: Plan) -> None:
    """Lower a product of many rows."""
    lanes, weights = plan.target.lanes(F32), _weights(p)
    vectors = _row_vectors(plan.target, p)
    width = vectors * lanes
    blocks = -(-p.m // width)
    turned = Matrix(p.a.tensor, p.a.batch, p.a.column, p.a.row)
    source = pack_at_run_time(plan, turned, p.batch, p.k, p.m, width, width)
    groups = -(-p.n // lanes)
    cuts = min(groups, max(1, -(-4 * plan.threads // (blocks * p.matrices)))) if plan.threads > 1 else 1
    columns, rows = np.nonzero(weights.T)
    starts = np.searchsorted(columns, np.arange(p.n + 1)).astype(np.int32)
    entries = np.empty((len(rows), 2), np.int32)
    entries[:, 0] = np.ascontiguousarray(weights.T[columns, rows], np.float32).view(np.int32)
    entries[:, 1] = rows * (width * 4)
    f = kernel(plan.target, "matmul_planar_sparse", flushes=True)
    _planar(f, p, source, vectors, cuts)
    plan.scratch(lanes * width * 4)
    plan.step(
        f,
        [operand(source.tensor), plan.constant(starts), plan.constant(entries), *addresses(p)],
        p.matrices * blocks * cuts,
        reads=[source.tensor, *(m.tensor for m in p.addends)],
        writes=[p.c.tensor],
        info=_info(p, "sparse matrix product, rows side by side", f"{vectors} vectors of rows"),
    )


def _planar(f: Function, p: Product, source: Matrix, vectors: int, cuts: int) -> None:
    kind = F32.by(f.target.lanes(F32))
    lanes, width = kind.lanes, vectors * kind.lanes
    blocks, groups = -(-p.m // width), -(-p.n // kind.lanes)
    cut, rest = f["task"] % cuts, f["task"] // cuts
    block, index = rest % blocks, rest // blocks
    offsets = unravel(f, index, p.batch, *(m.batch for m in (source, p.c, *p.addends)))
    x = f.offset(f.offset(element_0(f, 0, source.tensor), offsets[0], F32), block * (width * p.k), F32)
    starts, entries = word(f, 1), word(f, 2)
    output = Output(f, p, 3, offsets[1:])
    first = (cut * groups) // cuts * lanes
    stop = ((cut + 1) * groups) // cuts * lanes
    scratch = f["scratch"]

    def entry(at: Value, totals: list[Any]) -> None:
        weight = f.splat(f.load(F32, entries, at * 2), kind)
        place = f.offset(x, f.convert(f.load(I32, entries, at * 2 + 1), I64))
        for v, total in enumerate(totals):
            total.set(f.fma(f.load(kind, place, v * lanes), weight, total.get()))

    with f.loop(first, stop, lanes) as column:
        remaining = f.value(p.n, I64) - column
        with f.loop(0, f.select(remaining < lanes, remaining, lanes)) as j:
            start = f.convert(f.load(I32, starts, column + j), I64)
            end = f.convert(f.load(I32, starts, column + j + 1), I64)
            even = start + ((end - start) & -2)
            chains = [[f.var(0.0, kind) for _ in range(vectors)] for _ in range(2 if vectors <= 4 else 1)]
            with f.loop(start, even, 2) as at:
                entry(at, chains[0])
                entry(at + 1, chains[-1])
            with f.when(even < end):
                entry(even, chains[0])
            for v in range(vectors):
                total = chains[0][v].get() if len(chains) == 1 else chains[0][v].get() + chains[1][v].get()
                f.store(total, scratch, j * width + v * lanes)

        def rows(count: int, column: Value = column) -> None:
            with f.loop(0, width, lanes) as at:
                square = transpose(f, [f.load(kind, scratch, at + j * width) for j in range(lanes)])
                row = block * width + at
                places = output.at(row, column)
                if not p.heavy:
                    for i, total in enumerate(square):
                        if p.m % width == 0:
                            output.write(total, places, i, 0, count)
                            continue
                        with f.when(row + i < p.m):
                            output.write(total, places, i, 0, count)
                    return
                for j, total in enumerate(square):
                    f.store(total, scratch, at + j * width)
                limit = f.value(p.m, I64) - row
                with f.loop(0, f.select(limit < lanes, limit, lanes)) as member:
                    total = f.load(kind, scratch, at + member * width)
                    output.write(total, output.at(row + member, column), 0, 0, count)

        if p.n % lanes == 0:
            rows(lanes)
        elif p.n < lanes:
            rows(p.n)
        else:
            with f.either(remaining < lanes) as other:
                rows(p.n % lanes)
                with other():
                    rows(lanes)


KERNELS: tuple[tuple[Callable[[Target, Product], float], Callable[[Product, Plan], None]], ...] = (
    (estimate_gathered, gathered),
    (estimate_planar, planar),
)
"""(estimated cycles, lowering) of each."""
