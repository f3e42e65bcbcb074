"""Vector code that kernel families share: partial loads and stores, folds, transposes, shares of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I64, Type

Combine = Callable[[Value, Value], Value]


def load_first(
    f: Function, kind: Type, pointer: Value, index: Value | int = 0, count: int = 0, stride: int = 1
) -> Value:
    """The first `count` lanes of a vector, touching no other memory; the other lanes are zero.

    Args:
        index: in elements.
        count: how many lanes; 0 for all.
        stride: elements between one lane and the next (0 spreads one element over all lanes).
    """
    count = count or kind.lanes
    if stride == 0:
        return f.splat(f.load(kind.scalar, pointer, index), kind)
    if kind.lanes == 1:
        return f.load(kind, pointer, index)
    if stride != 1:
        result = f.constant(0, kind)
        base = f.offset(pointer, index, kind.scalar)
        for lane in range(count):
            result = f.insert(result, f.load(kind.scalar, base, lane * stride), lane)
        return result
    if count == kind.lanes:
        return f.load(kind, pointer, index)
    return f.load_masked(kind, pointer, index, f.first(count, kind.lanes))


def store_first(
    f: Function, value: Value, pointer: Value, index: Value | int = 0, count: int = 0, stride: int = 1
) -> None:
    """Store the first `count` lanes, `stride` elements apart, touching no other memory.

    Args:
        index: in elements.
        count: how many lanes; 0 for all.
        stride: elements between one lane and the next.
    """
    lanes = value.type.lanes
    count = count or lanes
    if lanes == 1 or (count == lanes and stride == 1):
        f.store(value, pointer, index)
        return
    base = f.offset(pointer, index, value.type.scalar)
    if stride != 1:
        for lane in range(count):
            f.store(f.extract(value, lane), base, lane * stride)
        return
    if count == 1:
        # LLVM 22 makes a masked store of one lane of narrowed integers a store of 32 bits, on x86.
        f.store(f.extract(value, 0), base)
        return
    if f.target.has("avx512vl"):
        f.store_masked(value, base, 0, f.first(count, lanes))
        return
    # Before AVX-512 masked stores are slow on some CPUs (Zen: 40 micro-operations): powers of two instead.
    at, size = 0, lanes
    while at < count:
        if count - at >= size:
            part = f.shuffle(value, None, range(at, at + size)) if size > 1 else f.extract(value, at)
            f.store(part, base, at)
            at += size
        size //= 2


def fold(f: Function, vector: Value, combine: Combine) -> Value:
    """All lanes combined into one scalar, in a fixed order: halves, then halves of halves."""
    while vector.type.lanes > 2:
        half = vector.type.lanes // 2
        low, high = f.shuffle(vector, None, range(half)), f.shuffle(vector, None, range(half, 2 * half))
        vector = combine(low, high)
    if vector.type.lanes == 1:
        return vector
    return combine(f.extract(vector, 0), f.extract(vector, 1))


def fold_many(f: Function, vectors: Sequence[Value], combine: Combine) -> Value:
    """As many vectors as each has lanes, each folded: lane i of the result is the fold of vector i."""
    lanes = vectors[0].type.lanes
    assert len(vectors) == lanes
    if lanes == 1:
        return vectors[0]
    width, level = lanes, list(vectors)
    while width > 1:
        half = width // 2
        parts = range(0, lanes, width)
        low = [s + p + i for s in (0, lanes) for p in parts for i in range(half)]
        high = [s + p + half + i for s in (0, lanes) for p in parts for i in range(half)]
        level = [
            combine(f.shuffle(a, b, low), f.shuffle(a, b, high)) for a, b in zip(level[0::2], level[1::2])
        ]
        width = half
    return level[0]


def transpose(f: Function, rows: Sequence[Value]) -> list[Value]:
    """A square of lanes x lanes, rows to columns."""
    lanes = rows[0].type.lanes
    assert len(rows) == lanes
    square, half = list(rows), lanes // 2
    while half:
        upper = [i if not i & half else lanes + i - half for i in range(lanes)]
        lower = [i + half if not i & half else lanes + i for i in range(lanes)]
        for i in range(lanes):
            if not i & half:
                a, b = square[i], square[i + half]
                square[i], square[i + half] = f.shuffle(a, b, upper), f.shuffle(a, b, lower)
        half //= 2
    return square


def unravel(f: Function, index: Value, sizes: Sequence[int], *strides: Sequence[int]) -> list[Value]:
    """The offsets of element `index` (counted in C order over `sizes`) for each set of strides."""
    totals: list[Value | None] = [None] * len(strides)
    for d in range(len(sizes) - 1, -1, -1):
        if sizes[d] == 1:
            continue
        outermost = math.prod(sizes[:d]) == 1
        digit = index if outermost else index % sizes[d]
        if not outermost:
            index = index // sizes[d]
        for i, stride in enumerate(strides):
            if stride[d]:
                term = digit * stride[d]
                have = totals[i]
                totals[i] = term if have is None else have + term
    return [f.constant(0, I64) if total is None else total for total in totals]


def of_phases(row: Value, at: Value, merged: Sequence[tuple[int, int]]) -> tuple[Value, Value]:
    """The output channel that a pair of phases is part of, and the offset of what it writes.

    Args:
        row: index of the first of the pair; phases count fastest, those of the last dimension in pairs.
        at: the offset that phase 0 of a pixel has.
        merged: of each dimension but the last (phases, elements from one to the next).
    """
    channel = row / 2
    for count, stride in reversed(merged):
        at = at + (channel % count) * stride
        channel = channel / count
    return channel, at


def pieces(threads: int, units: int, cost: float) -> int:
    """Into how many tasks to cut equal units of work.

    Args:
        threads: workers that will run them.
        units: how many units there are.
        cost: of all of them together, in vector operations or about cycles.
    """
    if threads == 1:
        return min(units, 1)
    return max(min(units, 4 * threads, int(cost / 4096)), min(units, 1))


def share(f: Function, units: int, tasks: int) -> tuple[Value, Value]:
    """The first unit of this task and of the next: all units dealt to the tasks as evenly as can be."""
    task = f["task"]
    if units == tasks:
        return task, task + 1
    return (task * units) // tasks, ((task + 1) * units) // tasks
