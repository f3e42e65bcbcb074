"""Elements chosen by their values: the largest, the nonzero ones, the different ones.

Source: ONNX TopK-24, NonZero-13, Unique-11.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import Typed
from coresident.codegen.types import I1, I8, I32, I64
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.operands import axis_in
from coresident.kernels.heap import Entry, Heap
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.scalar import Access, digits, items


@lowers("TopK")
def top_k(node: Node, plan: Plan) -> None:
    """The best so far stand in a heap with the worst of them on top, which is sorted in the end."""
    x, (values, indices) = plan.tensor(node.inputs[0]), (_wanted(plan, node, i) for i in (0, 1))
    if x.dtype.kind == "f" and x.dtype.itemsize < 4:
        raise UnsupportedModel(f"the largest of {x.dtype}; float32, float64 and integers are supported")
    axis = axis_in(int(node.get("axis", -1)), len(x.shape))
    others, length, count = [s for d, s in enumerate(x.shape) if d != axis], x.shape[axis], values.shape[axis]
    largest, dtype = bool(node.get("largest", 1)), x.dtype
    info = {"op": node.op, "nodes": [node.name], "kernel": "heap"}
    lines = math.prod(others) if count else 0
    cost = 4 * length + 30 * count
    if dtype in (np.float32, np.int32) and length < 1 << 32:
        _top_keys(plan, lines, cost, x, (values, indices), axis, largest, info)
        return
    with items(plan, "top_k", lines, cost, [values, indices], [x], info) as (f, line, accesses):
        best, where, source = accesses
        place = digits(line, others)

        def at(i: Value) -> tuple[Value | int, ...]:
            return (*place[:axis], i, *place[axis:])

        def put(i: Value, entry: Entry) -> None:
            best.store(entry[0], *at(i))
            where.store(entry[1], *at(i))

        def better(new: Value, old: Value) -> Value:
            """NaN is the worst."""
            a, b = Typed(new, dtype.name), Typed(old, dtype.name)
            wins = ((a > b) if largest else (a < b)).value
            return wins | (old.differs(old) & new.equals(new)) if dtype.kind == "f" else wins

        def worse(a: Entry, b: Entry) -> Value:
            """Of equals the one further behind."""
            no_better = better(a[0], b[0]) ^ f.constant(1, I1)
            return better(b[0], a[0]) | (no_better & (a[1] > b[1]))

        heap = Heap(f, lambda i: (best.load(*at(i)), where.load(*at(i))), put, worse)
        top, size = f.constant(0, I64), f.constant(count, I64)
        with f.loop(0, count) as i:
            put(i, (source.load(*at(i)), i))
        heap.build(size)
        with f.loop(count, length) as i:
            value = source.load(*at(i))
            with f.when(better(value, best.load(*at(top)))):
                heap.sink(top, size, (value, i))
        heap.sort(size)


def _top_keys(
    plan: Plan,
    lines: int,
    cost: float,
    x: Tensor,
    results: tuple[Tensor, Tensor],
    axis: int,
    largest: bool,
    info: dict[str, Any],
) -> None:
    """The same for 32 bits: element and index are one integer, a key, greater the better; compared at once.

    Keys stand where the indices will be.
    """
    others, length = [s for d, s in enumerate(x.shape) if d != axis], x.shape[axis]
    kept = results[0].shape[axis]
    with items(plan, "top_keys", lines, cost, results, [x], info) as (f, line, accesses):
        best, where, source = accesses
        place = digits(line, others)

        def at(i: Value) -> tuple[Value | int, ...]:
            return (*place[:axis], i, *place[axis:])

        def key(i: Value) -> Value:
            """The element in the order of integers above, then what puts the first of equals first."""
            element = source.load(*at(i))
            bits = f.bitcast(element, I32)
            if x.dtype.kind == "f":
                bits = f.select(bits.equals(-(1 << 31)), f.constant(0, I32), bits)  # -0 equals 0
                bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            bits = bits if largest else bits ^ -1
            if x.dtype.kind == "f":  # NaN is the worst
                bits = f.select(element.differs(element), f.constant(-(1 << 31), I32), bits)
            return (f.convert(bits, I64) << 32) | (f.constant((1 << 32) - 1, I64) - i)

        heap = Heap(f, lambda i: (where.load(*at(i)),), lambda i, entry: where.store(entry[0], *at(i)), _less)
        top, size = f.constant(0, I64), f.constant(kept, I64)
        with f.loop(0, kept) as i:
            where.store(key(i), *at(i))
        heap.build(size)
        with f.loop(kept, length) as i:
            new = key(i)
            with f.when(new > where.load(*at(top))):
                heap.sink(top, size, (new,))
        heap.sort(size)
        with f.loop(0, kept) as i:
            index = (where.load(*at(i)) & ((1 << 32) - 1)) ^ ((1 << 32) - 1)
            where.store(index, *at(i))
            best.store(source.load(*at(index)), *at(i))


def _less(a: Entry, b: Entry) -> Value:
    return a[0] < b[0]


def _wanted(plan: Plan, node: Node, output: int) -> Tensor:
    """The tensor of an output; memory of its own where nobody wants it."""
    name = node.outputs[output] if output < len(node.outputs) else ""
    if name:
        return plan.tensor(name)
    dtype = plan.tensor(node.inputs[0]).dtype if output == 0 else "int64"
    return plan.temporary(
        Layout.contiguous(plan.graph.facts[node.outputs[1 - output]].sizes), np.dtype(dtype)
    )


@lowers("Nonzeros")
def nonzeros(node: Node, plan: Plan) -> None:
    """One element after another, in C order."""
    x, (y, count) = plan.tensor(node.inputs[0]), (plan.tensor(name) for name in node.outputs)
    info = {"op": node.op, "nodes": [node.name], "kernel": "nonzeros"}
    with items(plan, "nonzeros", 1, 4 * x.layout.elements, [y, count], [x], info) as (f, _, accesses):
        to, total, source = accesses
        found = f.var(0, I64)
        with f.loop(0, x.layout.elements) as i:
            place = digits(i, x.shape)
            value = source.load(*place)
            with f.when(value if x.dtype.kind == "b" else value.differs(0)):
                for d, index in enumerate(place):
                    to.store(f.value(index, I64), d, found.get())
                found.set(found.get() + 1)
        total.store(found.get(), 0)


@lowers("UniqueRows")
def unique_rows(node: Node, plan: Plan) -> None:
    """Each row is looked up by bisection among the different ones found so far."""
    x = plan.tensor(node.inputs[0])
    first, inverse, counts, count = (plan.tensor(name) for name in node.outputs)
    rows = x.shape[0]
    # Different rows are numbered as they come: their numbers in the order of their values, their numbers in
    # the result, where they are first, how many there are of each.
    own = [plan.temporary(Layout.contiguous((rows,)), np.int64) for _ in range(4)]
    writes, info = [first, inverse, counts, count, *own], {"op": node.op, "nodes": [node.name]}
    with items(plan, "unique", 1, 100 * rows, writes, [x], info) as (f, _, accesses):
        first_of, which, many, total, sorted_, position, begins, number, source = accesses
        found = f.var(0, I64)
        with f.loop(0, rows) as i:
            low, high, same = f.var(0, I64), f.var(found.get()), f.var(-1, I64)

            def searching() -> Value:
                return (low.get() < high.get()) & (same.get() < 0)

            with f.while_(searching):
                middle = (low.get() + high.get()) // 2
                candidate = sorted_.load(middle)
                side = _compared(f, source, i, begins.load(candidate))
                same.set(f.select(side.equals(0), candidate, same.get()))
                high.set(f.select(side < 0, middle, high.get()))
                low.set(f.select(side > 0, middle + 1, low.get()))
            with f.when(same.get() < 0):
                at = f.var(found.get())
                with f.while_(lambda: at.get() > low.get()):
                    sorted_.store(sorted_.load(at.get() - 1), at.get())
                    at.set(at.get() - 1)
                sorted_.store(found.get(), low.get())
                begins.store(i, found.get())
                number.store(0, found.get())
                same.set(found.get())
                found.set(found.get() + 1)
            number.store(number.load(same.get()) + 1, same.get())
            which.store(same.get(), i)
        with f.loop(0, found.get()) as i:
            position.store(i, sorted_.load(i) if node.get("sorted", 1) else i)
        with f.loop(0, found.get()) as i:
            to = position.load(i)
            first_of.store(begins.load(i), to)
            many.store(number.load(i), to)
        with f.loop(0, rows) as i:
            which.store(position.load(which.load(i)), i)
        total.store(found.get(), 0)


def _compared(f: Function, source: Access, a: Value, b: Value) -> Value:
    """-1, 0 or 1 (I64) as row a stands before, with or behind row b; NaN stands last."""
    dtype, columns = source.tensor.dtype, source.tensor.shape[1]
    result, column = f.var(0, I64), f.var(0, I64)
    with f.while_(lambda: (column.get() < columns) & result.get().equals(0)):
        values = [source.load(row, column.get()) for row in (a, b)]
        if dtype.kind == "b":
            values = [f.convert(value, I8) for value in values]
        x, y = (Typed(value, "int8" if dtype.kind == "b" else dtype.name) for value in values)
        less, more = (x < y).value, (x > y).value
        if dtype.kind == "f":
            nan_x, nan_y = x.value.differs(x.value), y.value.differs(y.value)
            less = less | (nan_y & x.value.equals(x.value))
            more = more | (nan_x & y.value.equals(y.value))
        result.set(f.select(less, f.constant(-1, I64), f.convert(more, I64)))
        column.set(column.get() + 1)
    return result.get()
