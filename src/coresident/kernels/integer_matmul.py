"""Products of byte matrices with constant ones: lanes are columns and the weights stream past, unless so many
are zero that `integer_matmul_sparse.py` is faster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import integers
from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.integers import Dot
from coresident.codegen.math import to_memory, to_register
from coresident.codegen.types import I32, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.kernels import cost, integer_matmul_sparse
from coresident.kernels.integer import corrected, most, zero_point
from coresident.kernels.integer_epilogue import IntegerEpilogue
from coresident.kernels.integer_matmul_sparse import Blocks
from coresident.kernels.integer_stream import elements, safe_products
from coresident.kernels.layout import Layout
from coresident.kernels.loopnest import nest
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.vectors import load_first, pieces, share, store_first


@dataclass(frozen=True)
class _Tile:
    """A register tile.

    Args:
        rows: of A.
        vectors: of columns.
    """

    rows: int
    vectors: int


@dataclass(frozen=True)
class _Code:
    """The kernel under construction; addresses are of element 0.

    Args:
        sizes: rows, depth, columns.
        rounds: how many matrices of bytes the weights are the sum of.
        fits: whether sums of two products fit 16 bits, so that weights are multiplied as they are.
        blocks: the weights, where only blocks that are not zero are stored.
        extras: addresses of the epilogue's tensors and channel arrays.
        tensors: the result and the epilogue's.
        flip: whether bytes of the first matrix change their sign bit as they are read.
    """

    function: Function
    dot: Dot
    tile: _Tile
    sizes: tuple[int, int, int]
    rounds: int
    fits: bool
    blocks: Blocks | None
    a: Value
    y: Value
    weights: Value
    bias: Value
    epilogue: IntegerEpilogue
    extras: tuple[Value, ...]
    tensors: tuple[Tensor, ...]
    flip: bool

    @property
    def lanes(self) -> int:
        return self.function.target.lanes(I32)

    def group(self, group: Value) -> None:
        """All rows of one group of columns."""
        f, rows = self.function, self.sizes[0]
        whole = rows // self.tile.rows * self.tile.rows
        if whole:
            with f.loop(0, whole, self.tile.rows) as row:
                self._rows(group, row, self.tile.rows)
        with f.loop(whole, rows) as row:
            self._rows(group, row, 1)

    def _rows(self, group: Value, row: Value, count: int) -> None:
        f, vectors, lanes = self.function, self.tile.vectors, self.lanes
        _, depth, _ = self.sizes
        quads = -(-depth // 4)
        kind = I32.by(lanes)
        column = group * (vectors * lanes)
        starts = [f.load(kind, self.bias, column + v * lanes) for v in range(vectors)]
        if self.blocks is not None:
            sums = self.blocks.sums(f, group, [f.offset(self.a, (row + r) * depth) for r in range(count)])
            for r, total in enumerate(sums):
                self._finish(row + r, column, total + starts[0])
            return
        totals = [[f.var(start) for start in starts] for _ in range(count)]
        group_size = self.rounds * quads * vectors * lanes
        stream = f.offset(self.weights, group * group_size, I32)
        with f.loop(0, self.rounds) as turn, f.loop(0, quads) as quad:
            here = f.offset(stream, (turn * quads + quad) * (vectors * lanes), I32)
            xs = []
            for r in range(count):
                one = f.load(I32, f.offset(self.a, (row + r) * depth), quad, align=1)
                xs.append(f.splat(one ^ -0x7F7F7F80 if self.flip else one, kind))
            for v in range(vectors):
                weight = f.load(kind, here, v * lanes)
                parts = () if self.fits else self.dot.any_weights(f, weight)
                for r, x in enumerate(xs):
                    total = totals[r][v].get()
                    if self.fits:
                        totals[r][v].set(self.dot.add(f, total, [x], [weight]))
                    else:
                        totals[r][v].set(self.dot.add_any(f, total, x, parts))
        for r in range(count):
            for v in range(vectors):
                self._finish(row + r, column + v * lanes, totals[r][v].get())

    def _finish(self, row: Value, column: Value, total: Value) -> None:
        """The epilogue and the store of one vector, which may lie partly or wholly beyond the last column."""
        f, lanes, columns = self.function, self.lanes, self.sizes[2]
        rest = columns % lanes
        if rest == 0 and columns % (lanes * self.tile.vectors) == 0:
            self._store(row, column, total, lanes)
            return
        with f.when(column + lanes <= columns):
            self._store(row, column, total, lanes)
        if rest:
            with f.when(column.equals(columns - rest)):
                self._store(row, column, total, rest)

    def _store(self, row: Value, column: Value, total: Value, count: int) -> None:
        f, lanes, e = self.function, self.lanes, self.epilogue
        at = row * self.sizes[2] + column
        part = 0 if count == lanes else count
        loaded = [
            to_register(f, _first(f, t.dtype, lanes, pointer, at, part), t.dtype)
            for pointer, t in zip(self.extras, self.tensors[1:])
        ]
        channels = [
            to_register(f, f.load(of_dtype(array.dtype).by(lanes), pointer, column), array.dtype)
            for pointer, array in zip(self.extras[len(e.tensors) :], e.channels)
        ]
        result = e.apply(f, total, loaded, channels)
        if e.quantised is not None:
            _, point, dtype = e.quantised
            value = integers.saturated(f, [result.value], point, dtype == "int8")
        else:
            value = to_memory(f, result)
        store_first(f, value, self.y, at, part)


def _first(f: Function, dtype: np.dtype[Any], lanes: int, pointer: Value, at: Value, count: int) -> Value:
    """The first `count` lanes (0 for all), touching no other memory."""
    kind = of_dtype(dtype).by(lanes)
    if not count or dtype.itemsize >= 4 or f.target.has("avx512bw", "avx512vl"):
        return load_first(f, kind, pointer, at, count)
    base, result = f.offset(pointer, at, kind.scalar), f.constant(0, kind)
    for lane in range(count):
        result = f.insert(result, f.load(kind.scalar, base, lane), lane)
    return result


@lowers("MatMulInteger")
def product(node: Node, plan: Plan) -> None:
    """MatMulInteger (ONNX 10) with a constant matrix, with bias and the epilogue that fusion attached."""
    weights, bias = _constants(node, plan)
    out = plan.tensor(node.outputs[0])
    if 0 in out.shape:
        return
    depth, columns = weights.shape
    a_shape = plan.graph.facts[node.inputs[0]].sizes
    rows = math.prod(a_shape[:-1])
    y = out if out.layout.is_contiguous else plan.temporary(Layout.contiguous(out.shape), out.dtype)
    a = plan.contiguous(node.inputs[0])
    if a.storage.kind == "input" and depth % 4:
        # The last quad reads beyond the last row.
        inside = plan.temporary(Layout.contiguous(a.shape), a.dtype)
        nest(plan, inside, [a], None, {"op": "Copy", "kernel": "copy"})
        a = inside
    dot, lanes = Dot.of(plan.target), plan.target.lanes(I32)
    epilogue = IntegerEpilogue.of(node, plan, 5, most(weights.T, bias), axis=len(out.shape) - 1, planar=False)
    point = zero_point(node, plan.graph)
    start = corrected(bias, weights.sum(axis=0, dtype=np.int64), point, a.dtype, dot)
    machine = cost.Machine.of(plan.target)
    macs = rows * depth * columns
    tile = _tile(rows, columns, lanes)
    groups = -(-columns // (tile.vectors * lanes))
    cycles = max(macs / (16 if dot.held else 64), depth * columns / machine.l3_bytes) + 20.0 * rows * groups
    blocks = integer_matmul_sparse.pack(weights, dot, lanes, -(-columns // lanes) * lanes)
    fewer = integer_matmul_sparse.estimated_cycles(blocks, rows, lanes)
    sparse = fewer < cycles
    rounds: list[np.ndarray[Any, Any]] = []
    fits = not sparse and _fit(weights, dot)
    if not fits:
        start = start + dot.lacking(weights).sum(axis=0)
    start = start.astype(np.int32)
    if sparse:
        tile, cycles, groups = _Tile(tile.rows, 1), fewer, -(-columns // lanes)
        tables = [blocks.stream, blocks.steps, blocks.starts]
        plan.scratch(4 * lanes * tile.rows)
    else:
        rounds = _within(weights, dot)
        tables = [_stream(rounds, groups, tile.vectors * lanes)]
    padded = groups * tile.vectors * lanes
    tasks = pieces(plan.threads, groups, cycles)
    f = kernel(plan.target, "matmul_integer")
    tensors = (y, *epilogue.tensors)
    flip = (a.dtype == np.int8) != dot.signed
    extras = 3 + len(tables)
    code = _Code(
        f,
        dot,
        tile,
        (rows, depth, columns),
        len(rounds),
        fits,
        Blocks(word(f, 3), word(f, 4), word(f, 5), blocks.steps.shape[1], dot, flip) if sparse else None,
        word(f, 0),
        word(f, 1),
        word(f, 3),
        word(f, 2),
        epilogue,
        tuple(word(f, extras + i) for i in range(epilogue.words)),
        tensors,
        flip,
    )
    first, end = share(f, groups, tasks)
    with f.loop(first, end) as group:
        code.group(group)
    nonzeros = int(np.count_nonzero(weights))
    channels = [np.pad(c, (0, padded - columns)) for c in epilogue.channels]
    operands = [
        a.address,
        y.address,
        plan.constant(np.pad(start, (0, padded - columns))),
        *(plan.constant(table) for table in tables),
        *(t.address for t in epilogue.tensors),
        *(plan.constant(c) for c in channels),
    ]
    info = {
        "op": node.op,
        "shape": list(out.shape),
        "epilogue": epilogue.name,
        "macs": macs,
        "nonzero_macs": rows * nonzeros,
        "sparsity": 1 - nonzeros / max(1, weights.size),
        "kernel": f"integer {'sparse' if sparse else 'product'}, {dot.name}",
        "tile": f"{tile.rows} rows x {tile.vectors} vectors",
        "estimated_cycles": cycles,
    }
    if sparse:
        info["pattern"] = "blocks of 4 weights of a column"
    plan.step(f, operands, tasks, reads=[a, *epilogue.tensors], writes=[y], info=info)
    if y is not out:
        nest(plan, out, [y], None, {"op": "Copy", "kernel": "copy"})


def _constants(node: Node, plan: Plan) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The matrix less its zero points, [depth, columns] int16, and the bias."""
    names = [node.inputs[1], node.input(3), node.input(4)]
    weights, point, bias = (plan.graph.constant(name) if name else None for name in names)
    if weights is None or any(name and plan.graph.constant(name) is None for name in names):
        raise UnsupportedModel("the second matrix, its zero points and the bias must be constant")
    if weights.ndim < 2 or math.prod(weights.shape[:-2]) != 1:
        raise UnsupportedModel("the second operand must be one matrix", shape=weights.shape)
    whole = weights.reshape(weights.shape[-2:]).astype(np.int16)
    if point is not None:
        whole = whole - point.astype(np.int16).reshape(-1)
    columns = whole.shape[1]
    return whole, np.zeros(columns, np.int32) if bias is None else bias.astype(np.int32)


def _fit(weights: np.ndarray[Any, Any], dot: Dot) -> bool:
    """Whether products by `Dot.add` are exact, as they always are with weights of 7 bits.

    With 8 bits a third of normal weights and none of uniform ones lie in blocks of two vectors that would be:
    to multiply those apart wins nothing.
    """
    whole = elements(np.ascontiguousarray(weights.T)[:, :, None], dot.channels)
    safe = safe_products(whole) if dot.held else whole
    return np.array_equal(np.clip(safe, dot.low, dot.high), whole)


def _within(weights: np.ndarray[Any, Any], dot: Dot) -> list[np.ndarray[Any, Any]]:
    """The weights as a sum of matrices of bytes."""
    parts: list[np.ndarray[Any, Any]] = []
    left = weights
    while not parts or np.any(left):
        parts.append(np.clip(left, dot.low, dot.high).astype(np.int8))
        left = left - parts[-1]
    return parts


def _stream(rounds: list[np.ndarray[Any, Any]], groups: int, wide: int) -> np.ndarray[Any, Any]:
    """Matrices of bytes as [groups of `wide` columns][rounds][quads][columns][4]."""
    depth, columns = rounds[0].shape
    packed = np.zeros((len(rounds), -(-depth // 4) * 4, groups * wide), np.int8)
    for part, matrix in zip(packed, rounds):
        part[:depth, :columns] = matrix
    return np.ascontiguousarray(packed.reshape(-1, 4, groups, wide).transpose(2, 0, 3, 1))


def _tile(rows: int, columns: int, lanes: int) -> _Tile:
    """Weights are read once for all rows of a tile."""
    together = 1 if rows == 1 else 2 if rows < 4 else 4
    return _Tile(together, max(1, min(4 if together == 1 else 2, -(-columns // lanes))))
