"""Functions of one byte that give a byte, as tables of 256 entries in registers.

The low four bits of a byte choose from each of 16 rows of the table, its high four bits then choose among the
rows; NEON chooses from 64 entries at once, AVX-512's VBMI from 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import Typed
from coresident.codegen.target import Target
from coresident.codegen.types import I8, I16
from coresident.kernels.loopnest import Compute

Array = np.ndarray[Any, Any]

INSTRUCTIONS = 12
"""Of a function, as the builder writes them: from so many on a table is faster."""


def lookup(table: Array) -> Compute:
    """The computation that replaces bytes by entries of a table.

    Args:
        table: uint8 or int8 [256], in the order of the bytes as unsigned numbers.
    """
    entries = [int(v) for v in table.view(np.uint8)]

    def compute(f: Function, loaded: Sequence[Typed], lanes: int) -> Typed:
        x = loaded[0].value
        width = 64 if _has_halves(f.target) else 32 if f.target.has("avx2") and lanes >= 32 else 16
        if lanes < width:
            x = _resized(f, x, width)
        parts = [
            _looked_up(f, entries, x if lanes <= width else f.shuffle(x, None, range(at, at + width)))
            for at in range(0, max(lanes, width), width)
        ]
        while len(parts) > 1:
            joined = range(2 * parts[0].type.lanes)
            parts = [f.shuffle(a, b, joined) for a, b in zip(parts[0::2], parts[1::2])]
        result = parts[0] if lanes >= width else _resized(f, parts[0], lanes)
        return Typed(result, table.dtype.name)

    return compute


def _resized(f: Function, x: Value, lanes: int) -> Value:
    """The first lanes; new ones hold anything."""
    if x.type.lanes == 1:
        return f.insert(f.constant(0, I8.by(lanes)), x, 0)
    if lanes == 1:
        return f.extract(x, 0)
    return f.shuffle(x, None, [min(lane, x.type.lanes - 1) for lane in range(lanes)])


def _row(f: Function, entries: Sequence[int], lanes: int) -> Value:
    """Entries as a constant, over and over until the lanes are full."""
    numbers = (entries[lane % len(entries)] for lane in range(lanes))
    return Value(f, f"<{', '.join(f'i8 {number}' for number in numbers)}>", I8.by(lanes))


def _looked_up(f: Function, entries: Sequence[int], x: Value) -> Value:
    if f.target.arch == "aarch64":
        return _by_quarters(f, entries, x)
    return _by_halves(f, entries, x) if x.type.lanes == 64 else _by_rows(f, entries, x)


def _has_halves(target: Target) -> bool:
    """Whether one instruction chooses from half of the table."""
    return target.vector_bits == 512 and target.has("avx512vbmi")


def _by_halves(f: Function, entries: Sequence[int], x: Value) -> Value:
    name, needs = "llvm.x86.avx512.vpermi2var.qi.512", ("avx512vbmi",)
    # The highest bit of an index is not looked at.
    low, high = (
        f.call(name, x.type, _row(f, one, 64), x, _row(f, other, 64), needs=needs)
        for one, other in ((entries[:64], entries[64:128]), (entries[128:192], entries[192:]))
    )
    return f.select(x < 0, high, low)


def _by_quarters(f: Function, entries: Sequence[int], x: Value) -> Value:
    kind, total = x.type, None
    for first in range(0, 256, 64):
        rows = [_row(f, entries[at : at + 16], 16) for at in range(first, first + 64, 16)]
        # An index beyond the 64 entries gives 0.
        found = f.call("llvm.aarch64.neon.tbl4.v16i8", kind, *rows, x - first, needs=("neon",))
        total = found if total is None else total | found
    assert total is not None
    return total


def _by_rows(f: Function, entries: Sequence[int], x: Value) -> Value:
    kind = x.type
    wide = kind.lanes == 32
    shuffle, needs = (
        ("llvm.x86.avx2.pshuf.b", ("avx2",)) if wide else ("llvm.x86.ssse3.pshuf.b.128", ("ssse3",))
    )
    blend = "llvm.x86.avx2.pblendvb" if wide else "llvm.x86.sse41.pblendvb"
    low = x & 15
    level = [
        f.call(shuffle, kind, _row(f, entries[at : at + 16], kind.lanes), low, needs=needs)
        for at in range(0, 256, 16)
    ]
    words = f.bitcast(x, I16.by(kind.lanes // 2))
    for bit in range(4, 8):
        # The bit that decides must stand highest in its byte; what comes from the byte below does not matter.
        mask = x if bit == 7 else f.bitcast(words << (7 - bit), kind)
        level = [
            f.call(blend, kind, a, b, mask, needs=("avx2",) if wide else ("sse4.1",))
            for a, b in zip(level[0::2], level[1::2])
        ]
    return level[0]
