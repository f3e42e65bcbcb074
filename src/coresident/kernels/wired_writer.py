"""The machine code of `wired`: a kernel that writes chunks when a program is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coresident.codegen import x86
from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.target import Target
from coresident.codegen.types import I1, I32, I64
from coresident.kernels import wired
from coresident.kernels.lowering import Address, Operand, Plan
from coresident.kernels.wired import Array, End, Wired, Wiring

_X, _WEIGHTS, _SUMS, _OUT, _RESIDUAL, _NEXT = x86.ARGUMENTS
_BEHIND, _OUT_NEXT, _RESIDUAL_NEXT = x86.FREE

_TABLE = 32
_COLUMNS = 13
_NUMBER, _SUM, _PRODUCT, _WAIT, _LOAD, _STORE, _ADD, _MAXIMUM, _MINIMUM, _ASKS = range(10)
"""Tables of templates."""


def templates(product: x86.Operation) -> Array:
    """[tables, 32] int64: instructions for each row's register, to be filled in."""
    registers = range(_TABLE)
    asks = [
        x86.ask(_NEXT, 2),
        x86.ask(_BEHIND, 2),
        x86.ask(_OUT_NEXT, 1, to_write=True),
        x86.ask(_RESIDUAL_NEXT, 1),
    ]
    tables = [
        [x86.SPREAD.with_memory(r, _WEIGHTS) for r in registers],
        [x86.LOAD.with_memory(r, _SUMS) for r in registers],
        [product.with_memory(r, _WEIGHTS, wired.PIXELS) for r in registers],
        [x86.STORE.with_memory(r, _SUMS) for r in registers],
        [x86.LOAD.with_memory(wired.PIXELS, _X, wide=True)] * _TABLE,
        [x86.STORE.with_memory(r, _OUT, wide=True) for r in registers],
        [x86.ADD.with_memory(r, _RESIDUAL, r, wide=True) for r in registers],
        [x86.MAXIMUM.with_register(r, wired.PIXELS, r) for r in registers],
        [x86.MINIMUM.with_register(r, wired.PIXELS, r) for r in registers],
        [*asks, *[0] * (_TABLE - len(asks))],
    ]
    return np.array(tables, np.int64)


class _Code:
    """Where code is being written.

    Args:
        at: address.
        tables: address of the templates.
    """

    def __init__(self, f: Function, at: Value, tables: Value) -> None:
        self.f, self.at, self.tables, self.weight = f, f.var(at), tables, f.var(0, I64)

    def template(self, table: int, row: Value | int = 0) -> Value:
        return self.f.load(I64, self.tables, self.f.value(row, I64) + table * _TABLE)

    def put(self, instruction: Value | int, size: int = wired.SHORT) -> None:
        """Write an instruction; the bytes behind it belong to the next."""
        at = self.at.get()
        self.f.store(self.f.value(instruction, I64), at, align=1)
        self.at.set(self.f.offset(at, size))

    def put_short(self, template: Value, displacement: Value) -> None:
        """Write an instruction with a short displacement, already scaled."""
        self.put(template | (displacement & 255) << 48)

    def put_long(self, template: Value, displacement: Value) -> None:
        """Write an instruction with a long displacement."""
        self.put(template, wired.PLAIN)
        self.put(displacement, wired.LONG - wired.PLAIN)

    def put_ask(self, kind: int, displacement: Value) -> None:
        """Write an instruction that asks for a line."""
        self.put(self.template(_ASKS, kind) | displacement << 32, wired.ASK)

    def put_weight(self, template: Value) -> None:
        """Write an instruction whose operand is the next weight."""
        weight = self.weight.get()
        with self.f.when((weight > 0) & (weight % wired.REACH).equals(0)):
            self.put(x86.advance(_WEIGHTS, 4 * wired.REACH))
        self.put_short(template, weight % wired.REACH - wired.REACH // 2)
        self.weight.set(weight + 1)


def writer(target: Target, ends: tuple[End, ...] | None) -> Function:
    """The kernel that writes chunks. Words: where to, how many, the two strides, and addresses: of their
    table, masks, weights, offsets, asks, templates."""
    f = kernel(target, "write_code")
    code, count, *strides = word(f, 0), *(word(f, i, I64) for i in range(1, 4))
    table, masks, weights, offsets, asks, tables = (word(f, i) for i in range(4, 10))
    with f.loop(0, count) as chunk:
        columns = [f.load(I64, table, chunk * _COLUMNS + i) for i in range(_COLUMNS)]
        start, size, first_mask, first, positions, rows, begins, final = columns[:8]
        first_weight, weight_count, first_ask, ask_count, line_count = columns[8:]
        out = _Code(f, f.offset(code, start), tables)
        held = f.offset(code, start + size)
        with f.loop(0, weight_count) as i:
            f.store(f.load(I32, weights, first_weight + i), held, i)
        for index, register in enumerate(x86.FREE):
            out.put(x86.argument(register, index), wired.ARGUMENT)
        with f.loop(0, rows) as row, f.either(begins.differs(0)) as otherwise:
            out.put_weight(out.template(_NUMBER, row))
            with otherwise():
                out.put_short(out.template(_SUM, row), row)
        asked, lines, rows_asked = (f.var(0, I64) for _ in range(3))
        finished = f.select(final.differs(0), rows, 0)
        with f.loop(0, positions) as position:
            mask = f.var(f.load(I32, masks, first_mask + position))
            with f.when(mask.get().differs(0)):
                out.put_long(out.template(_LOAD), f.convert(f.load(I32, offsets, first + position), I64))
            with f.while_(lambda mask=mask: mask.get().differs(0)):
                left = mask.get()
                row = f.convert(f.call("llvm.cttz.i32", I32, left, f.constant(1, I1)), I64)
                out.put_weight(out.template(_PRODUCT, row))
                mask.set(left & (left - 1))
            # What is asked for is spread over the code.
            done = position + 1
            with f.while_(lambda: asked.get() * positions < ask_count * done):
                out.put_ask(0, f.convert(f.load(I32, asks, first_ask + asked.get()), I64))
                asked.set(asked.get() + 1)
            with f.while_(lambda: lines.get() * positions < line_count * done):
                out.put_ask(1, lines.get() * 64)
                lines.set(lines.get() + 1)
            if ends is not None:
                with f.while_(lambda: rows_asked.get() * positions < finished * done):
                    # What the next pass writes and reads.
                    out.put_ask(2, rows_asked.get() * strides[0])
                    if any(end.op == "Add" for end in ends):
                        out.put_ask(3, rows_asked.get() * strides[1])
                    rows_asked.set(rows_asked.get() + 1)
        if ends is None:
            _leave(f, out, rows)
        else:
            with f.either(final.differs(0)) as otherwise:
                _store(f, out, rows, ends, strides)
                with otherwise():
                    _leave(f, out, rows)
        out.put(x86.RETURN)
    return f


def _leave(f: Function, out: _Code, rows: Value) -> None:
    """Write how sums are left in memory."""
    with f.loop(0, rows) as row:
        out.put_short(out.template(_WAIT, row), row)


def _store(f: Function, out: _Code, rows: Value, ends: Sequence[End], strides: Sequence[Value]) -> None:
    """Write how sums are finished and stored."""
    for end in ends:
        if end.op != "Add":
            out.put_weight(out.template(_NUMBER, wired.PIXELS))
        with f.loop(0, rows) as row:
            if end.op == "Add":
                out.put_long(out.template(_ADD, row), row * strides[1])
            else:
                out.put(out.template(_MAXIMUM if end.op == "Max" else _MINIMUM, row), wired.PLAIN)
    with f.loop(0, rows) as row:
        out.put_long(out.template(_STORE, row), row * strides[0])


def write(plan: Plan, made: Wired, wiring: Wiring) -> Address:
    """Have the chunks written when the program is loaded.

    Returns:
        Where they begin.
    """
    arrays = (made.chunks, made.masks, made.weights, wiring.offsets, made.asks, templates(wiring.product))
    operands: list[Operand] = [len(made.chunks), *wiring.strides, *map(plan.constant, arrays)]
    return plan.write(writer(plan.target, wiring.ends), operands, made.size)
