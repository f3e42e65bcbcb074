"""Diagonals of the inverses of many small matrices, each of them in a lane of the vectors: one factorises as
fast as sixteen do, and LAPACK keeps an eighth of a core's arithmetic busy at such sizes.

Each matrix is picked from one large one, A = H[columns, columns]. With A = L L^T (Cholesky) and V = L^-1, the
inverse is V^T V, of which only blocks on the diagonal are added up. Both are worked out by blocks of 4 x 4
elements, their sums in registers.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from coresident.codegen import driver, llvm
from coresident.codegen.builder import Function, Value, Variable, kernel, word
from coresident.codegen.target import Target
from coresident.codegen.types import F32, I32, I64, PTR
from coresident.compiler import host_target
from coresident.graph.operator import Array
from coresident.runtime import cpu
from coresident.runtime.executor import Executor
from coresident.runtime.program import Port, Program, Step, Word

BLOCK = 4
"""Rows and columns of a block."""

WIDEST = 1024
"""Columns of a matrix at most, that those of all lanes take 34 MB a thread and no more."""

_ENTRIES = BLOCK * BLOCK


@dataclass(frozen=True, eq=False)
class Inverses:
    """Inverses of parts of one matrix.

    Args:
        gram: float32 [n + 1, n + 1], the matrix, symmetric, and zeros in the last row and column.
        target: of this machine.
        threads: to run on.
    """

    gram: Array
    target: Target
    threads: int

    @classmethod
    def of(cls, gram: Array) -> Inverses:
        """Of a float32 matrix [n, n], on all cores of this process."""
        padded = np.zeros((len(gram) + 1, len(gram) + 1), np.float32)
        padded[:-1, :-1] = gram
        return cls(padded, host_target(), cpu.usable_cores().count)

    @property
    def lanes(self) -> int:
        """Matrices that are worked on at a time."""
        return self.target.lanes(F32)

    def blocks(self, columns: Array, sizes: Array) -> Array:
        """Blocks on the diagonals of inverses.

        Args:
            columns: int32 [tasks, width, lanes], which ones make up the matrix of each lane; n for one that
                depends on no other and is 1 on the diagonal. The width is a multiple of 4, at most `WIDEST`.
            sizes: int64 [tasks], multiples of 4: columns that the matrices of a task have, at most the width.

        Returns:
            float32 [tasks, width / 4, 4, 4, lanes], symmetric blocks; of those beyond the size anything, and
            of matrices that are not positive definite, as float32 has it, some that are not numbers.

        Raises:
            ResourceError: no memory.
        """
        tasks, width, lanes = columns.shape
        count = width // BLOCK
        blocks = count * (count + 1) // 2 + count
        inputs = {"gram": self.gram, "columns": columns, "sizes": sizes}
        words: list[Word] = [*(("input", i) for i in range(len(inputs))), ("output", 0)]
        words += [("integer", len(self.gram) - 1), ("integer", width)]
        program = Program(
            inputs=tuple(Port(name, str(array.dtype), array.shape) for name, array in inputs.items()),
            outputs=(Port("blocks", "float32", (tasks, count, BLOCK, BLOCK, lanes)),),
            steps=(Step(_NAME, tuple(words), tasks),),
            objects=_objects(self.target),
            constants=b"",
            arena_bytes=0,
            scratch_bytes=8 * BLOCK * lanes + blocks * _ENTRIES * 4 * lanes,
            target=self.target.key,
            features=tuple(sorted(self.target.features)),
        )
        executor = Executor(program, min(self.threads, tasks))
        try:
            (found,) = executor.run(list(inputs.values()))
        finally:
            executor.close()
        return found


_NAME = "inverse_blocks"


@functools.cache
def _objects(target: Target) -> tuple[bytes, ...]:
    function = _Writer(target).function()
    return driver.object_code(target), llvm.compile_object(llvm.module_text([function]), target)


class _Writer:
    """Writes the kernel. Of both triangles, a block holds its columns one after the other, 4 vectors each."""

    def __init__(self, target: Target) -> None:
        self._f = kernel(target, _NAME)
        self._lanes = target.lanes(F32)
        self._vector = F32.by(self._lanes)
        # With 16 registers the sums of half a block are what fits.
        self._together = BLOCK if target.registers >= 32 else BLOCK // 2

    def function(self) -> Function:
        f, lanes = self._f, self._lanes
        width = word(f, 5, I64)
        task = f["task"]
        self._gram, self._size = word(f, 0), word(f, 4, I64)
        self._columns = f.offset(word(f, 1), task * width * lanes, I32)
        count = f.load(I64, word(f, 2), task, align=8) / BLOCK
        result = f.offset(word(f, 3), task * width * (BLOCK * lanes), F32)
        self._rows = f["scratch"]
        self._factor = f.offset(f["scratch"], 8 * BLOCK * lanes)
        blocks = width / BLOCK
        self._inverse = f.offset(self._factor, (blocks * (blocks + 1) / 2) * (_ENTRIES * lanes), F32)
        with f.loop(0, count) as i:
            self._remember_rows(i)
            row = self._block_row(i)
            with f.loop(0, i) as j:
                self._below(i, j, row)
            self._on_diagonal(i, row)
        with f.loop(0, count) as j:
            self._inverse_column(j, count, f.offset(result, j * (_ENTRIES * lanes), F32))
        return f

    # Where things are

    def _block_row(self, i: Value) -> Value:
        return self._f.offset(self._factor, (i * (i + 1) / 2) * (_ENTRIES * self._lanes), F32)

    def _block(self, row: Value, j: Value) -> Value:
        return self._f.offset(row, j * (_ENTRIES * self._lanes), F32)

    def _load(self, block: Value, r: int, c: int) -> Value:
        return self._f.load(self._vector, block, (c * BLOCK + r) * self._lanes, align=self._vector.bytes)

    def _store(self, value: Value, block: Value, r: int, c: int) -> None:
        self._f.store(value, block, (c * BLOCK + r) * self._lanes, align=self._vector.bytes)

    # H, lane by lane

    def _remember_rows(self, i: Value) -> None:
        """Write down where the rows of H begin that the lanes have in block row i."""
        f = self._f
        for place in range(BLOCK * self._lanes):
            column = f.load(I32, self._columns, i * (BLOCK * self._lanes) + place)
            address = f.offset(self._gram, f.convert(column, I64) * (self._size + 1), F32)
            f.store(address, f.offset(self._rows, 8 * place), align=8)

    def _picked(self, j: Value, r: int, c: int) -> Value:
        """Element (r, c) of the block of H in the remembered rows and block column j."""
        f = self._f
        value = f.splat(0.0, self._vector)
        for lane in range(self._lanes):
            row = f.load(PTR, f.offset(self._rows, 8 * (r * self._lanes + lane)), align=8)
            column = f.load(I32, self._columns, j * (BLOCK * self._lanes) + (c * self._lanes + lane))
            value = f.insert(value, f.load(F32, row, f.convert(column, I64)), lane)
        return value

    # Sums of products

    def _products(
        self, left: Value, right: Value, depth: Value, columns: range, skip: bool
    ) -> list[list[Value]]:
        """Sums over `depth` columns of left[r] * right[c], by row and column.

        Args:
            right: walked along like `left`, as a row of blocks is.
            skip: whether what lies above the diagonal is not needed.
        """
        f, lanes = self._f, self._lanes
        sums: dict[tuple[int, int], Variable] = {
            (r, c): f.var(f.splat(0.0, self._vector))
            for r, c in itertools.product(range(BLOCK), columns)
            if r >= c or not skip
        }
        with f.loop(0, depth) as k:
            at = k * (BLOCK * lanes)
            a, b = f.offset(left, at, F32), f.offset(right, at, F32)
            rows = [self._load(a, r, 0) for r in range(BLOCK)]
            for c in columns:
                factor = self._load(b, c, 0)
                for r in range(BLOCK):
                    if (r, c) in sums:
                        sums[r, c].set(f.fma(rows[r], factor, sums[r, c].get()))
        nothing = f.splat(0.0, self._vector)
        return [[sums[r, c].get() if (r, c) in sums else nothing for c in columns] for r in range(BLOCK)]

    # L

    def _below(self, i: Value, j: Value, row: Value) -> None:
        """Block (i, j) of L, i > j."""
        f = self._f
        other, place = self._block_row(j), self._block(row, j)
        diagonal = self._block(other, j)
        for first in range(0, BLOCK, self._together):
            columns = range(first, first + self._together)
            sums = self._products(row, other, j * BLOCK, columns, False)
            for c in columns:
                for r in range(BLOCK):
                    value = self._picked(j, r, c) - sums[r][c - first]
                    for d in range(c):
                        value = f.fma(-self._load(place, r, d), self._load(diagonal, c, d), value)
                    self._store(value * self._load(diagonal, c, c), place, r, c)

    def _on_diagonal(self, i: Value, row: Value) -> None:
        """Block (i, i) of L; on its diagonal, one over what L has there."""
        f = self._f
        place = self._block(row, i)
        nothing = f.splat(0.0, self._vector)
        for first in range(0, BLOCK, self._together):
            columns = range(first, first + self._together)
            sums = self._products(row, row, i * BLOCK, columns, True)
            for c in columns:
                for r in range(BLOCK):
                    if r < c:
                        self._store(nothing, place, r, c)
                        continue
                    value = self._picked(i, r, c) - sums[r][c - first]
                    if r == c:
                        value = value + self._lacking(i, r)
                    for d in range(c):
                        value = f.fma(-self._load(place, r, d), self._load(place, c, d), value)
                    if r == c:
                        one = f.splat(1.0, self._vector)
                        self._store(one / f.unary("sqrt", value), place, r, c)
                    else:
                        self._store(value * self._load(place, c, c), place, r, c)

    def _lacking(self, i: Value, r: int) -> Value:
        """1 in lanes whose matrix has no such column."""
        f = self._f
        column = f.load(I32.by(self._lanes), self._columns, i * (BLOCK * self._lanes) + r * self._lanes)
        none = column.equals(f.splat(f.convert(self._size, I32), column.type))
        return f.select(none, f.splat(1.0, self._vector), f.splat(0.0, self._vector))

    # V

    def _inverse_column(self, j: Value, count: Value, result: Value) -> None:
        """Block column j of V, and what it adds up to."""
        f = self._f
        diagonal = self._block(self._block_row(j), j)
        pairs = [(a, b) for a in range(BLOCK) for b in range(a + 1)]
        sums = {pair: f.var(f.splat(0.0, self._vector)) for pair in pairs}
        one = f.splat(1.0, self._vector)
        nothing = f.splat(0.0, self._vector)
        self._solved(
            diagonal,
            self._inverse,
            [[one if r == c else nothing for c in range(BLOCK)] for r in range(BLOCK)],
            sums,
        )
        with f.loop(j + 1, count) as i:
            row = self._block_row(i)
            place = f.offset(self._inverse, (i - j) * (_ENTRIES * self._lanes), F32)
            columns = range(BLOCK)
            values: list[list[Value]] = [[] for _ in columns]
            for first in range(0, BLOCK, self._together):
                part = range(first, first + self._together)
                found = self._products(self._block(row, j), self._inverse, (i - j) * BLOCK, part, False)
                for r in range(BLOCK):
                    values[r] += [-v for v in found[r]]
            self._solved(self._block(row, i), place, values, sums)
        for (a, b), total in sums.items():
            value = total.get()
            for r, c in {(a, b), (b, a)}:
                f.store(value, result, (r * BLOCK + c) * self._lanes)

    def _solved(
        self, diagonal: Value, place: Value, values: list[list[Value]], sums: dict[tuple[int, int], Variable]
    ) -> None:
        """Solve for a block of V and store it, transposed: its rows one after the other, as the products walk
        along them; its own products are added to the sums."""
        f = self._f
        for r in range(BLOCK):
            for c in range(BLOCK):
                value = values[r][c]
                for d in range(r):
                    value = f.fma(-self._load(diagonal, r, d), values[d][c], value)
                values[r][c] = value * self._load(diagonal, r, r)
                self._store(values[r][c], place, c, r)
            for (a, b), total in sums.items():
                total.set(f.fma(values[r][a], values[r][b], total.get()))
