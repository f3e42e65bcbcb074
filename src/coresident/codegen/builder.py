"""The typed builder in which kernels are written: it reads as a loop nest and writes LLVM text.

    with f.loop(0, rows) as row:
        total = f.var(f.splat(0.0, vector))
        with f.loop(0, depth) as k:
            total.set(f.fma(f.load(vector, x, k * lanes), f.splat(weight), total.get()))
        f.store(f.maximum(total.get(), 0.0), y, row * lanes)

Python loops unroll; `loop` makes a loop in the code. A `var` is mutable and becomes registers when LLVM
promotes it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from coresident.codegen.target import Target
from coresident.codegen.types import F32, I1, I32, I64, PTR, Type
from coresident.errors import TargetError

_FLUSHING = 1 << 6 | 1 << 15
"""Bits of an x86 core's control word: denormals that are read are zeros, and so are those that are made."""


@dataclass(frozen=True, eq=False)
class Value:
    """Something computed: an SSA name or a constant, with its type. Operators act lane by lane; integers
    are signed."""

    function: Function
    text: str
    type: Type

    def _binary(self, other: Operand, float_op: str, int_op: str, swap: bool = False) -> Value:
        f = self.function
        if self.type.lanes == 1 and isinstance(other, Value) and other.type.lanes > 1:
            left, right = f.splat(self, other.type), other
        else:
            left, right = self, f.value(other, self.type)
        if swap:
            left, right = right, left
        op = float_op if left.type.kind == "f" else int_op
        return f.emit(f"{op} {left.type} {left.text}, {right.text}", left.type)

    def __add__(self, other: Operand) -> Value:
        return self._binary(other, "fadd", "add")

    def __radd__(self, other: Operand) -> Value:
        return self._binary(other, "fadd", "add", swap=True)

    def __sub__(self, other: Operand) -> Value:
        return self._binary(other, "fsub", "sub")

    def __rsub__(self, other: Operand) -> Value:
        return self._binary(other, "fsub", "sub", swap=True)

    def __mul__(self, other: Operand) -> Value:
        return self._binary(other, "fmul", "mul")

    def __rmul__(self, other: Operand) -> Value:
        return self._binary(other, "fmul", "mul", swap=True)

    def __truediv__(self, other: Operand) -> Value:
        return self._binary(other, "fdiv", "sdiv")

    def __rtruediv__(self, other: Operand) -> Value:
        return self._binary(other, "fdiv", "sdiv", swap=True)

    def __floordiv__(self, other: Operand) -> Value:
        """Integers only; truncates toward zero, as sdiv does."""
        return self._binary(other, "fdiv", "sdiv")

    def __mod__(self, other: Operand) -> Value:
        return self._binary(other, "frem", "srem")

    def __and__(self, other: Operand) -> Value:
        return self._binary(other, "and", "and")

    def __or__(self, other: Operand) -> Value:
        return self._binary(other, "or", "or")

    def __xor__(self, other: Operand) -> Value:
        return self._binary(other, "xor", "xor")

    def __lshift__(self, other: Operand) -> Value:
        return self._binary(other, "shl", "shl")

    def __rshift__(self, other: Operand) -> Value:
        """Arithmetic shift."""
        return self._binary(other, "ashr", "ashr")

    def __neg__(self) -> Value:
        if self.type.kind == "f":
            return self.function.emit(f"fneg {self.type} {self.text}", self.type)
        return self.function.value(0, self.type) - self

    def _compare(self, other: Operand, float_op: str, int_op: str) -> Value:
        right = self.function.value(other, self.type)
        op = f"fcmp {float_op}" if self.type.kind == "f" else f"icmp {int_op}"
        return self.function.emit(f"{op} {self.type} {self.text}, {right.text}", I1.by(self.type.lanes))

    def __lt__(self, other: Operand) -> Value:
        return self._compare(other, "olt", "slt")

    def __le__(self, other: Operand) -> Value:
        return self._compare(other, "ole", "sle")

    def __gt__(self, other: Operand) -> Value:
        return self._compare(other, "ogt", "sgt")

    def __ge__(self, other: Operand) -> Value:
        return self._compare(other, "oge", "sge")

    def equals(self, other: Operand) -> Value:
        return self._compare(other, "oeq", "eq")

    def differs(self, other: Operand) -> Value:
        return self._compare(other, "une", "ne")


Operand = Value | int | float


@dataclass(frozen=True)
class Variable:
    """A place for a value that changes; LLVM keeps it in registers."""

    function: Function
    address: Value
    type: Type

    def get(self) -> Value:
        return self.function.emit(f"load {self.type}, ptr {self.address.text}", self.type)

    def set(self, value: Operand) -> None:
        value = self.function.value(value, self.type)
        self.function.line(f"store {self.type} {value.text}, ptr {self.address.text}")


def _float_text(value: float, bits: int) -> str:
    """LLVM's exact hexadecimal form; a float constant is written as the double that equals it."""
    if bits == 32 and math.isfinite(value):
        value = struct.unpack("f", struct.pack("f", value))[0]
    return f"0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X}"


class Function:
    """One function under construction.

    Args:
        target: what may be used; an intrinsic that the target lacks is refused here, since LLVM would abort.
        name: the symbol.
        parameters: (name, type) pairs; each is then `function[name]`.
        result: the type returned, if any.
        flushes: whether denormals are zeros while it runs, in what it reads and in what it makes. Where they
            are slow, that is: x86, of whose cores Intel's take 150 cycles for a multiply-add that has one.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        parameters: Sequence[tuple[str, Type]],
        result: Type | None = None,
        flushes: bool = False,
    ) -> None:
        self.target, self.name, self.result = target, name, result
        self._flushes = flushes and target.arch == "x86_64"
        self._parameters = {name: Value(self, f"%{name}", kind) for name, kind in parameters}
        self._entry: list[str] = []
        self._body: list[str] = []
        self._count = 0
        self.declarations: dict[str, str] = {}
        for name in ("llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr") if self._flushes else ():
            self.declarations[name] = f"declare void @{name}(ptr)"

    def __getitem__(self, parameter: str) -> Value:
        return self._parameters[parameter]

    def line(self, text: str) -> None:
        self._body.append("  " + text)

    def emit(self, text: str, kind: Type) -> Value:
        """Write one instruction and name its result."""
        name = f"%{self._new()}"
        self._body.append(f"  {name} = {text}")
        return Value(self, name, kind)

    def _new(self, prefix: str = "v") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _label(self, name: str) -> None:
        self._body.append(f"{name}:")

    # Values

    def constant(self, value: float, kind: Type) -> Value:
        if kind.kind == "f":
            one = _float_text(float(value), kind.bits)
            if kind.bits == 16:
                raise TypeError("half constants are converted, not written")
        elif kind.kind == "p":
            one = "null"
        elif kind.bits == 1:
            one = "true" if value else "false"
        else:
            one = str(int(value))
        return Value(self, one if kind.lanes == 1 else f"splat ({kind.scalar} {one})", kind)

    def value(self, value: Operand, kind: Type) -> Value:
        """A number as a constant of the type; a scalar spread over the lanes; a value as it is."""
        if not isinstance(value, Value):
            return self.constant(value, kind)
        if value.type.lanes == 1 and kind.lanes > 1:
            return self.splat(value, kind)
        if value.type != kind:
            raise TypeError(f"{value.type} where {kind} is wanted, in {self.name}")
        return value

    def splat(self, value: Operand, kind: Type) -> Value:
        """One scalar in all lanes."""
        if not isinstance(value, Value):
            return self.constant(value, kind)
        if kind.lanes == 1:
            return value
        one = self.emit(f"insertelement {kind} poison, {value.type} {value.text}, i64 0", kind)
        zeros = Type("i", 32, kind.lanes)
        return self.emit(f"shufflevector {kind} {one.text}, {kind} poison, {zeros} zeroinitializer", kind)

    def shuffle(self, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
        """Lanes of a (0..n-1) and of b (n..2n-1) in the order named."""
        second = b.text if b is not None else "poison"
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        return self.emit(
            f"shufflevector {a.type} {a.text}, {a.type} {second}, <{len(lanes)} x i32> <{mask}>",
            a.type.by(len(lanes)),
        )

    def extract(self, vector: Value, lane: int) -> Value:
        return self.emit(f"extractelement {vector.type} {vector.text}, i64 {lane}", vector.type.scalar)

    def insert(self, vector: Value, value: Value, lane: int) -> Value:
        return self.emit(
            f"insertelement {vector.type} {vector.text}, {value.type} {value.text}, i64 {lane}", vector.type
        )

    def indices(self, kind: Type) -> Value:
        """0, 1, 2, ... lane by lane, of an integer vector type."""
        if kind.lanes == 1:
            return self.constant(0, kind)
        lanes = ", ".join(f"{kind.scalar} {lane}" for lane in range(kind.lanes))
        return Value(self, f"<{lanes}>", kind)

    def convert(self, value: Value, kind: Type, signed: bool = True) -> Value:
        """To another type, as C does: floats truncate toward zero."""
        kind = kind.by(value.type.lanes)
        source = value.type
        if source == kind:
            return value
        if source.kind == "f" and kind.kind == "f":
            op = "fpext" if kind.bits > source.bits else "fptrunc"
        elif source.kind == "f":
            name = f"llvm.fpto{'si' if signed else 'ui'}.sat.{kind.suffix}.{source.suffix}"
            return self.call(name, kind, value)
        elif kind.kind == "f":
            op = "sitofp" if signed and source.bits > 1 else "uitofp"
        elif kind.bits < source.bits:
            op = "trunc"
        else:
            op = "sext" if signed and source.bits > 1 else "zext"
        return self.emit(f"{op} {source} {value.text} to {kind}", kind)

    def bitcast(self, value: Value, kind: Type) -> Value:
        if value.type == kind:
            return value
        return self.emit(f"bitcast {value.type} {value.text} to {kind}", kind)

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        kind = next(v.type for v in (a, b) if isinstance(v, Value))
        if condition.type.lanes > 1 and kind.lanes == 1:
            kind = kind.by(condition.type.lanes)
        a, b = self.value(a, kind), self.value(b, kind)
        return self.emit(f"select {condition.type} {condition.text}, {kind} {a.text}, {kind} {b.text}", kind)

    def opaque(self, value: Value, *before: Value) -> Value:
        """The same address, integer or vector, of which LLVM does not know that it is.

        Loads from such an address are not merged with others: merged, values that are cheap to load again
        stay in registers that sums need. A vector is taken apart in its register, not loaded lane by lane.

        Args:
            before: addresses or integers that are computed before anything that depends on it.
        """
        whole = value.type.lanes == 1 and value.type.kind != "f"
        vector = "w" if self.target.arch == "aarch64" else "v" if self.target.has("avx512f") else "x"
        register = "r" if whole else vector
        kinds = f"={register},0{',r' * len(before)}"
        arguments = ", ".join(f"{each.type} {each.text}" for each in (value, *before))
        return self.emit(f'call {value.type} asm "", "{kinds}"({arguments})', value.type)

    # Arithmetic that has no operator

    def call(self, name: str, kind: Type, *arguments: Value, needs: Sequence[str] = ()) -> Value:
        """Call an intrinsic.

        Raises:
            TargetError: the target lacks one of `needs`, or a machine intrinsic is called without naming
                its needs.
        """
        self._check(name, needs)
        types = ", ".join(str(a.type) for a in arguments)
        self.declarations[name] = f"declare {kind} @{name}({types})"
        return self.emit(f"call {kind} @{name}({', '.join(f'{a.type} {a.text}' for a in arguments)})", kind)

    def _check(self, name: str, needs: Sequence[str]) -> None:
        if name.startswith(("llvm.x86.", "llvm.aarch64.")) and not needs:
            raise TargetError(f"{name} must name the features that it needs")
        if not self.target.has(*needs):
            raise TargetError(f"{name} needs {', '.join(needs)}, which {self.target.cpu} lacks")

    def fma(self, a: Value, b: Operand, c: Operand) -> Value:
        """a * b + c, rounded once."""
        return self.call(f"llvm.fma.{a.type.suffix}", a.type, a, self.value(b, a.type), self.value(c, a.type))

    def maximum(self, a: Value, b: Operand) -> Value:
        """The larger; a NaN in a passes."""
        b = self.value(b, a.type)
        return self.select(b > a, b, a)

    def minimum(self, a: Value, b: Operand) -> Value:
        """The smaller; a NaN in a passes."""
        b = self.value(b, a.type)
        return self.select(b < a, b, a)

    def unary(self, name: str, a: Value) -> Value:
        """sqrt, fabs, floor, ceil, roundeven, trunc: those that are one instruction."""
        return self.call(f"llvm.{name}.{a.type.suffix}", a.type, a)

    # Memory

    def offset(self, pointer: Value, index: Operand, kind: Type | int = 1) -> Value:
        """The address `index` elements of a type (or of so many bytes) further on."""
        index = self.value(index, I64)
        size = kind if isinstance(kind, int) else kind.bytes
        if size != 1:
            index = (
                index * size
                if isinstance(index, Value) and index.text.startswith("%")
                else self.constant(int(index.text) * size, I64)
            )
        return self.emit(f"getelementptr i8, ptr {pointer.text}, i64 {index.text}", PTR)

    def load(self, kind: Type, pointer: Value, index: Operand = 0, align: int | None = None) -> Value:
        """Load a value; `index` counts its scalar lanes, so that vectors may start at any element."""
        address = (
            pointer if isinstance(index, int) and index == 0 else self.offset(pointer, index, kind.scalar)
        )
        align = align or kind.scalar.bytes
        return self.emit(f"load {kind}, ptr {address.text}, align {align}", kind)

    def store(
        self,
        value: Value,
        pointer: Value,
        index: Operand = 0,
        align: int | None = None,
        streaming: bool = False,
    ) -> None:
        """Store a value; `index` counts its scalar lanes.

        Args:
            align: bytes that the address is a multiple of; those of a lane if not told.
            streaming: past the caches, to memory, for what no cache would hold until it is read. Other cores
                see it once this one has executed a locked instruction, with which workers report (`driver`).
        """
        kind = value.type
        address = (
            pointer if isinstance(index, int) and index == 0 else self.offset(pointer, index, kind.scalar)
        )
        hint = ", !nontemporal !{i32 1}" if streaming else ""
        self.line(f"store {kind} {value.text}, ptr {address.text}, align {align or kind.scalar.bytes}{hint}")

    def first(self, count: Operand, lanes: int) -> Value:
        """The mask of the first `count` lanes (I64 count; may exceed the lanes)."""
        count = (
            self.convert(self.value(count, I64), I32)
            if isinstance(count, Value)
            else self.constant(count, I32)
        )
        kind = I32.by(lanes)
        return self.indices(kind) < count if lanes > 1 else self.value(0, I32) < count

    def load_masked(self, kind: Type, pointer: Value, index: Operand, mask: Value) -> Value:
        """Load the lanes of the mask; the others are zero and their memory is not touched."""
        address = self.offset(pointer, index, kind.scalar)
        name = f"llvm.masked.load.{kind.suffix}.p0"
        self.declarations[name] = f"declare {kind} @{name}(ptr, i32, {mask.type}, {kind})"
        return self.emit(
            f"call {kind} @{name}(ptr {address.text}, i32 {kind.scalar.bytes}, {mask.type} {mask.text}, "
            f"{kind} zeroinitializer)",
            kind,
        )

    def store_masked(self, value: Value, pointer: Value, index: Operand, mask: Value) -> None:
        """Store the lanes of the mask; the memory of the others is not touched."""
        kind = value.type
        address = self.offset(pointer, index, kind.scalar)
        name = f"llvm.masked.store.{kind.suffix}.p0"
        self.declarations[name] = f"declare void @{name}({kind}, ptr, i32, {mask.type})"
        self.line(
            f"call void @{name}({kind} {value.text}, ptr {address.text}, i32 {kind.scalar.bytes}, "
            f"{mask.type} {mask.text})"
        )

    def prefetch(
        self, pointer: Value, index_bytes: Operand = 0, write: bool = False, near: bool = True
    ) -> None:
        """Ask for a cache line, to be read or to be written; into the nearest cache, or the one behind it."""
        address = self.offset(pointer, index_bytes)
        self.declarations["llvm.prefetch.p0"] = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
        locality = 3 if near else 2
        self.line(f"call void @llvm.prefetch.p0(ptr {address.text}, i32 {int(write)}, i32 {locality}, i32 1)")

    def var(self, initial: Operand, kind: Type | None = None) -> Variable:
        """A variable that starts with a value (its type is needed for a plain number)."""
        if isinstance(initial, Value) and kind is None:
            kind = initial.type
        assert kind is not None, "a variable started from a number needs its type"
        name = f"%{self._new('var')}"
        self._entry.append(f"  {name} = alloca {kind}")
        variable = Variable(self, Value(self, name, PTR), kind)
        variable.set(initial)
        return variable

    # Control

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: int = 1) -> Iterator[Value]:
        """A loop over I64 indices from start while below stop."""
        stop = self.value(stop, I64)
        counter = self.var(start, I64)
        head, body, done = self._new("head"), self._new("body"), self._new("done")
        self.line(f"br label %{head}")
        self._label(head)
        index = counter.get()
        more = index < stop
        self.line(f"br i1 {more.text}, label %{body}, label %{done}")
        self._label(body)
        yield index
        counter.set(index + step)
        self.line(f"br label %{head}")
        self._label(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Code that runs if a condition (I1) holds."""
        body, done = self._new("then"), self._new("after")
        self.line(f"br i1 {condition.text}, label %{body}, label %{done}")
        self._label(body)
        yield
        self.line(f"br label %{done}")
        self._label(done)

    @contextmanager
    def either(self, condition: Value) -> Iterator[Otherwise]:
        """Two branches: `with f.either(c) as other: ...; with other(): ...` (the second inside the first's
        block)."""
        yes, no, done = self._new("yes"), self._new("no"), self._new("after")
        self.line(f"br i1 {condition.text}, label %{yes}, label %{no}")
        self._label(yes)
        other = Otherwise(self, no, done)
        yield other
        if not other.opened:
            raise RuntimeError("either() without its other branch")
        self.line(f"br label %{done}")
        self._label(done)

    @contextmanager
    def while_(self, condition: object) -> Iterator[None]:
        """Loop while `condition()`, a callable that emits an I1, holds."""
        assert callable(condition)
        head, body, done = self._new("head"), self._new("body"), self._new("done")
        self.line(f"br label %{head}")
        self._label(head)
        self.line(f"br i1 {condition().text}, label %{body}, label %{done}")
        self._label(body)
        yield
        self.line(f"br label %{head}")
        self._label(done)

    def switch_down(self, count: Value, steps: int) -> Iterator[int]:
        """A jump into unrolled code so that exactly the last `count` (0..steps) of the steps run.

        Yields each step's index in 0..steps-1, in order; the caller emits step `i` in the body of its loop.
        A jump that repeats its last target is predicted, which a loop's varying exit is not.
        """
        labels = [self._new("step") for _ in range(steps)] + [self._new("done")]
        cases = " ".join(f"i64 {steps - i}, label %{label}" for i, label in enumerate(labels[:-1]))
        self.line(f"switch i64 {count.text}, label %{labels[-1]} [ {cases} ]")
        for i, label in enumerate(labels[:-1]):
            self._label(label)
            yield i
            self.line(f"br label %{labels[i + 1]}")
        self._label(labels[-1])

    def ret(self, value: Value | None = None) -> None:
        """Leave; code after it is unreachable."""
        self._body += self._restored()
        self.line("ret void" if value is None else f"ret {value.type} {value.text}")
        self._label(self._new("unreached"))

    @property
    def lines(self) -> int:
        """How long it is so far, in instructions about."""
        return len(self._entry) + len(self._body)

    def text(self) -> str:
        """The function as LLVM reads it, without its declarations."""
        parameters = ", ".join(f"{v.type} %{name}" for name, v in self._parameters.items())
        end = "  ret void" if self.result is None else f"  ret {self.result} zeroinitializer"
        lines = [
            f'define {self.result or "void"} @{self.name}({parameters}) nounwind "no-builtins" {{',
            "entry:",
        ]
        body = [*self._entry, *self._flushed(), *self._body, *self._restored()]
        return "\n".join([*lines, *body, end, "}"])

    def _flushed(self) -> list[str]:
        """Where it begins: the caller's control word is kept, and another one, with two bits more, loaded."""
        if not self._flushes:
            return []
        return [
            "  %control.before = alloca i32",
            "  %control.flushing = alloca i32",
            "  call void @llvm.x86.sse.stmxcsr(ptr %control.before)",
            "  %control = load i32, ptr %control.before",
            f"  %control.more = or i32 %control, {_FLUSHING}",
            "  store i32 %control.more, ptr %control.flushing",
            "  call void @llvm.x86.sse.ldmxcsr(ptr %control.flushing)",
        ]

    def _restored(self) -> list[str]:
        """Where it leaves."""
        return ["  call void @llvm.x86.sse.ldmxcsr(ptr %control.before)"] if self._flushes else []


class Otherwise:
    """The other branch of `Function.either`."""

    def __init__(self, function: Function, label: str, done: str) -> None:
        self.function, self.label, self.done, self.opened = function, label, done, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.opened = True
        self.function.line(f"br label %{self.done}")
        self.function._label(self.label)
        yield


KERNEL_PARAMETERS = (("args", PTR), ("task", I64), ("scratch", PTR))


def kernel(target: Target, name: str, flushes: bool = False) -> Function:
    """A function of the one kernel ABI: `void name(words, task, scratch)`.

    `args` points at 64-bit words (addresses and integers, see runtime.program), `task` is the index of the
    piece of work, `scratch` is memory of the calling worker.

    Those that sum products of floats flush denormals: lanes beyond the end of a plane are computed with and
    not stored, and what lies there may be bytes of another layer, which as floats are denormals.
    """
    return Function(target, name, KERNEL_PARAMETERS, flushes=flushes)


def word(function: Function, index: int, kind: Type = PTR) -> Value:
    """Argument word `index` of a kernel, an address unless said otherwise."""
    return function.load(kind, function.offset(function["args"], 8 * index), align=8)


__all__ = ["F32", "I64", "PTR", "Function", "Operand", "Value", "Variable", "kernel", "word"]
