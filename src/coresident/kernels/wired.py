"""Sparse products as machine code: what is not zero becomes an instruction.

A *chunk* of code has some rows of weights and a block of positions (an input channel and a tap each). It
holds the sums of its rows, of one vector of pixels, in registers; for each position it loads the pixels once,
and for each nonzero of the position it has one multiply-add that names the row's register and takes the
weight from memory, spread over the lanes. So nothing is read but pixels (once for a few products) and
weights, no index is decoded, no branch is mispredicted, and sums wait in memory at a chunk's ends alone. It
is passed over all vectors of a tile, so that it is fetched from L1. (LIBXSMM writes sparse operators so:
Heinecke et al., "LIBXSMM: accelerating small matrix multiplications by runtime code generation", 2016.)

Measured on Zen 4, products of chunks of 10 to 28 KB run at 85-96 % of the multiply-add peak, of floats and of
bytes; loops over a stream of nonzeros reach 50 %. But they take twice as many bytes a nonzero, and a core
gets cold code at 7 bytes a cycle at most. So chunks ask L2, on the way, for the chunk that lies behind them
and for the pixels of the next tile; a task asks for its first chunk before it begins.

On Zen 5, which multiplies two vectors a cycle, loads bind instead, a weight for each product and the pixels:
1.4 to 1.8 products a cycle with 5 to 30 % of nonzeros. Code by itself comes from L2 as fast as from L1 there,
and from memory still has to be asked for (1.5 times as fast).

Measured without gain, on both: two and three vectors of pixels a pass (fewer loads, but code is longer by as
much); on Zen 4: pixels copied into the order in which they are read, rows of pixels that cross cache lines
instead of packed segments; on Zen 5: all chunks passed over one vector before the next (pixels then stay in
L1, but code and weights come from L2: 0.8 times as fast), and each chunk asked for once alone.

Code is a function of positions alone, so files hold these as bits, 4 bytes for up to 31 rows, and
`wired_writer` makes chunks of them when a program is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen import x86
from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import I64
from coresident.kernels.cost import Chunks

Array = np.ndarray[Any, Any]

PIXELS = x86.REGISTERS - 1
"""Register of the pixels, and of numbers that come after them."""

MOST_ROWS = PIXELS
"""Of a chunk: one register holds pixels."""

MOST_VECTORS = 14
"""Of a tile over which chunks are passed."""

CHUNK_BYTES = 28 << 10
"""Of code that L1 keeps while it is passed over a tile."""

SHORT, LONG, PLAIN, ASK, ARGUMENT = 7, 10, 6, 8, 5
"""Bytes of instructions: with a short displacement, with a long one, of registers alone, that ask for a
line, that load an argument."""

REACH = 256
"""Weights that short displacements reach."""

_AHEAD = 4 * REACH // 2
"""Bytes that the argument lies behind a chunk's first weight."""

_STARTS = 3
"""Numbers that say where a chunk is."""


def is_possible(target: Target) -> bool:
    """Whether the target's code can be written so."""
    return target.arch == "x86_64" and target.vector_bits == 512 and target.has("avx512f")


@dataclass(frozen=True)
class End:
    """One thing that the last chunk does with all of its rows' sums before it stores them.

    Args:
        op: "Add" of a residual; "Max" or "Min" with a number.
    """

    op: str
    number: float = 0.0


@dataclass(frozen=True)
class Wiring:
    """How chunks are made of weights.

    Args:
        rows: of a chunk, `MOST_ROWS` at most.
        block: positions of a chunk.
        passes: vectors of a tile.
        offsets: [positions] int32, bytes from a pixel to what each reads.
        product: of a row's register, the pixels and a weight.
        ends: of the last block's chunks, which store results; None where they leave sums.
        strides: bytes from a row's results to the next row's, and from residuals to residuals.
        asks: [channels of a block, lines] int32, bytes from where the next pixels to be read begin to what
            one pass is to ask for, all rows together.
        together: chunks of other rows that share the asking.
        parts: (first row, end) of what tasks have of the rows.
    """

    rows: int
    block: int
    passes: int
    offsets: Array
    product: x86.Operation
    ends: tuple[End, ...] | None
    strides: tuple[int, int]
    asks: Array
    together: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Wired:
    """Weights as chunks: group by group of the convolution, in each in the order in which tasks run them.

    Args:
        masks: uint32, of each position of each chunk the rows that have a nonzero there.
        weights: 32-bit, of each chunk: what its rows' sums start with if its block is the first, of each
            position the nonzeros, row by row, and the numbers of the ends.
        asks: int32, of each chunk.
        chunks: [chunks, 13] int64 for `wired_writer`.
        starts: [chunks, 3] int64: bytes at which a chunk's code and weights begin, and the code of the chunk
            that runs after it; group by group, in each rows by rows, and block after block.
        size: bytes of all.
    """

    masks: Array
    weights: Array
    asks: Array
    chunks: Array
    starts: Array
    size: int

    @staticmethod
    def of(weights: Array, begins: Array, wiring: Wiring) -> Wired:
        """Cut weights.

        Args:
            weights: [groups, rows, positions], of four bytes each; what is not zero becomes an instruction.
            begins: [groups, rows] of the same type: what sums start with.
        """
        positions = weights.shape[2]
        numbers = np.array([end.number for end in wiring.ends or () if end.op != "Add"], np.float32)
        masks, stream, asked = [], [], []
        table: list[tuple[int, ...]] = []
        places: list[tuple[int, int, int]] = []
        code = at = first_mask = first_ask = 0
        for group, begin in zip(weights, begins):
            for row, first in _in_order(wiring, positions):
                held = group[row : row + wiring.rows]
                bits = np.left_shift(1, np.arange(len(held), dtype=np.uint32))
                chunk = held[:, first : first + wiring.block].T
                used, final = chunk != 0, first + wiring.block >= positions
                mask = (used * bits).sum(axis=1, dtype=np.uint32)
                values = chunk[used]
                mine = [values]
                if first == 0:
                    mine.insert(0, begin[row : row + wiring.rows])
                if final:
                    mine.append(numbers.view(weights.dtype))
                channels = len(chunk) * len(wiring.asks) // wiring.block
                share = row // wiring.rows % wiring.together
                asks = wiring.asks[share : channels : wiring.together].reshape(-1)
                count = sum(map(len, mine))
                loads = int(np.count_nonzero(mask))
                size, lines = _code_bytes(wiring, len(held), loads, len(values), count, len(asks), final)
                end = size + -(-4 * count // 64) * 64
                table.append(
                    (
                        *(code, size, first_mask, first, len(chunk), len(held), first == 0, final),
                        *(at, count, first_ask, len(asks), lines),
                    )
                )
                places.append((code, code + size, code + end))
                masks.append(mask)
                stream += mine
                asked.append(asks)
                code += end
                at += count
                first_mask += len(mask)
                first_ask += len(asks)
        of_group = np.array(places, np.int64).reshape(len(weights), -1, _STARTS)
        by_rows = np.lexsort(np.array(_in_order(wiring, positions)).T[::-1])
        return Wired(
            np.concatenate(masks),
            np.concatenate(stream),
            np.concatenate(asked),
            np.array(table, np.int64),
            of_group[:, by_rows].reshape(-1, _STARTS),
            code,
        )

    def of_group(self, f: Function, starts: Value, group: Value, groups: int) -> Value:
        """Address of the starts of a group's chunks, of those of all."""
        return f.offset(starts, group * (len(self.starts) // groups * _STARTS), I64)

    @property
    def ahead(self) -> int:
        """Chunks' bytes that are asked for while one is passed over a vector, at most."""
        return 64 * int(self.chunks[:, 12].max())


def _in_order(wiring: Wiring, positions: int) -> list[tuple[int, int]]:
    """(first row, first position) of each chunk as tasks run them: block after block over a part of the rows.

    Each asks for the one that lies behind it: where that was not the next to run, layers of several blocks
    took 1.35 to 1.7 times as long (3x3 at 14x14 and 7x7, ResNet-50 with 80 % zeros).
    """
    return [
        (row, first)
        for begin, end in wiring.parts
        for first in range(0, positions, wiring.block)
        for row in range(begin, end, wiring.rows)
    ]


def _code_bytes(
    wiring: Wiring, rows: int, loads: int, products: int, weights: int, asks: int, final: bool
) -> tuple[int, int]:
    """Of a chunk's code, a multiple of 64, and the lines that it asks for of the chunk behind it."""
    size = SHORT * (rows + products + max(weights - 1, 0) // REACH) + LONG * loads + ASK * asks
    if final and wiring.ends is not None:
        for end in wiring.ends:
            size += (LONG + ASK) * rows if end.op == "Add" else PLAIN * rows + SHORT
        size += (LONG + ASK) * rows
    else:
        size += SHORT * rows
    size += ARGUMENT * len(x86.FREE) + 8
    # A share of the two chunks behind, about as long as it: of one alone, much comes late.
    lines = -(-2 * (size + 4 * weights) // (64 * wiring.passes))
    return -(-(size + ASK * lines) // 64) * 64, lines


def fetch(f: Function, code: Value, starts: Value, chunk: Value) -> None:
    """Ask L2 for a chunk.

    Args:
        code: address of the first.
        starts: address of `Wired.starts`.
    """
    begin, end = (f.load(I64, starts, chunk * _STARTS + i) for i in (0, 2))
    with f.loop(begin, end, 64) as line:
        f.prefetch(code, line, near=False)


def place(f: Function, code: Value, starts: Value, chunk: Value) -> list[Value]:
    """Addresses of a chunk, of its weights as `run` takes them, and of the chunk behind it.

    Args:
        code, starts: as `fetch` takes them.
    """
    begin, weights, following = (f.load(I64, starts, chunk * _STARTS + i) for i in range(_STARTS))
    return [f.offset(code, at) for at in (begin, weights + _AHEAD, following)]


def run(f: Function, code: Value, *arguments: Value) -> None:
    """Pass a chunk over one vector of pixels.

    Args:
        code: its address.
        arguments: addresses: that offsets count from; of the weights, of `place`; of the rows'
            sums, which are read unless the block is the first, and written unless results are; of the first
            row's results, and of the first residuals; of what is asked for: of the next pixels, of the
            next chunk, and of the results and residuals of the next pass.
    """
    assert len(arguments) == 9
    f.line(f"call void {code.text}({', '.join(f'ptr {a.text}' for a in arguments)})")


def ways(nonzero: Array, inputs: int, threads: int) -> Iterator[tuple[int, int, Chunks]]:
    """Ways to cut weights into chunks: rows, input channels, and what they hold.

    Args:
        nonzero: [groups, rows, positions], whether a weight is not zero.
        inputs: input channels (or elements of them) whose positions these are.
    """
    groups, outputs, _ = nonzero.shape
    products, least = int(np.count_nonzero(nonzero)), -(-outputs // MOST_ROWS)
    sizes = {-(-outputs // parts) for parts in (least, -(-least // threads) * threads)}
    if least == 2:
        # Few rows more than there can be in one chunk load few pixels by themselves: with 31 and 1, layers of
        # 32 channels are 1.2 times as fast as with 16 and 16. (Of more chunks, equal ones are faster.)
        sizes.add(MOST_ROWS)
    for rows in sorted(sizes):
        starts = np.arange(0, outputs, rows)
        loads = int(np.count_nonzero(np.logical_or.reduceat(nonzero, starts, axis=1)))
        code = (SHORT * products + LONG * loads) / groups * rows / outputs
        blocks = min(max(1, math.ceil(code / CHUNK_BYTES)), inputs)
        block = -(-inputs // blocks)
        yield (
            rows,
            block,
            Chunks(products, loads, groups * outputs, groups * len(starts), -(-inputs // block)),
        )


def asked(runs: Sequence[tuple[int, int]], passes: int) -> tuple[list[int], list[int]]:
    """How to ask for runs of cache lines in some passes: elements from the plane where each pass begins, and
    from there to the lines that it asks for.

    Args:
        runs: (first element, lines) of each.
    """
    longest, together = max(lines for _, lines in runs), 1
    while together < longest and sum(-(-lines // together) for _, lines in runs) > passes:
        together += 1
    units = [first + 16 * line for first, lines in runs for line in range(0, lines, together)]
    each = -(-len(units) // passes)
    begins = units[::each]
    steps = [unit - units[0] for unit in units[:each]]
    lines = [step + 16 * line for step in steps for line in range(together)]
    return [*begins, *begins[-1:] * (passes - len(begins))], lines
