"""Products of bytes and what becomes of their sums, in the instructions that a CPU has for them.

Neighbouring channels of a pixel, four bytes or two that are widened, fill one 32-bit lane, an *element*; a
vector holds one element of as many pixels as it has such lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import F32, I8, I16, I32

Array = np.ndarray[Any, Any]

_X86_WORDS = {
    128: "llvm.x86.sse2.pmadd.wd",
    256: "llvm.x86.avx2.pmadd.wd",
    512: "llvm.x86.avx512.pmaddw.d.512",
}
_X86_BYTES = {
    128: "llvm.x86.ssse3.pmadd.ub.sw.128",
    256: "llvm.x86.avx2.pmadd.ub.sw",
    512: "llvm.x86.avx512.pmaddubs.w.512",
}
_X86_NEEDS = {128: ("ssse3",), 256: ("avx2",), 512: ("avx512bw",)}


@dataclass(frozen=True)
class Dot:
    """A way to multiply elements.

    Args:
        name: of the instructions, for `analyze`.
        channels: of an element: four bytes, or two of 16 bits; one byte where any four of them are brought
            together in the registers.
        signed: whether activations are signed bytes; unsigned otherwise.
        depth: how many products are added before the sum is of 32 bits. If more than one, or `held`, a sum of
            them has to fit 16 bits, whatever the activations are: positive weights of a pair of channels must
            sum to `BOUND` at most, and so must negative ones.
        held: whether that holds even of one product.
        low, high: weights that can be multiplied.
    """

    name: str
    channels: int
    signed: bool
    depth: int
    held: bool
    low: int
    high: int

    BOUND = 128
    """255 * 128 fits 16 bits."""

    @staticmethod
    def of(target: Target) -> Dot:
        """The best that the target has for bytes."""
        if target.arch == "aarch64":
            name = "sdot" if target.has("dotprod") else "smull"
            return Dot(name, 4, True, 1, False, -127, 127)
        if _vnni(target):
            return Dot("vpdpbusd", 4, False, 1, False, -128, 127)
        return Dot("vpmaddubsw", 4, False, 2, True, -128, 127)

    @staticmethod
    def all(target: Target) -> list[Dot]:
        """Those that may be the best: where sums of bytes have to fit 16 bits, large weights can be faster
        at twice the width."""
        best = Dot.of(target)
        return [best, WORDS] if best.held else [best]

    @staticmethod
    def gathering(target: Target) -> Dot:
        """Of elements of one byte."""
        return replace(Dot.of(target), channels=1, depth=1)

    @property
    def gathers(self) -> bool:
        return self.channels == 1

    @property
    def element_bytes(self) -> int:
        """Of an element as it is packed."""
        return 1 if self.gathers else 4

    @property
    def instructions(self) -> tuple[int, int]:
        """Multiplications of one product that is added by itself, and all its arithmetic."""
        return {"vpmaddubsw": (2, 3), "vpmaddwd": (1, 2), "smull": (2, 5)}.get(self.name, (1, 1))

    @property
    def arithmetic(self) -> int:
        """Instructions of `depth` products that are added together."""
        return 2 * self.depth + 1 if self.held else self.depth * self.instructions[1]

    def add(self, f: Function, total: Value, quads: Sequence[Value], weights: Sequence[Value]) -> Value:
        """A sum of 32-bit lanes plus the products of some vectors of quads with weights, `depth` at most.

        Args:
            total: a vector of I32.
            quads, weights: vectors of as many I32 lanes, each lane four bytes.
        """
        bits = _widest(f.target, total.type.bytes * 8)
        parts = total.type.bytes * 8 // bits
        if parts == 1:
            return self._add(f, total, quads, weights)
        vectors = [total, *quads, *weights]
        lanes = total.type.lanes // parts
        done = []
        for part in range(parts):
            cut = [f.shuffle(v, None, range(part * lanes, (part + 1) * lanes)) for v in vectors]
            done.append(self._add(f, cut[0], cut[1 : 1 + len(quads)], cut[1 + len(quads) :]))
        return joined(f, done)

    def any_weights(self, f: Function, weights: Value) -> tuple[Value, ...]:
        """A vector of any weights in range as `add_any` takes it: where sums of two products may not fit 16
        bits, the weights without their signs, and the bits to flip in what each of them meets."""
        if not self.held:
            return (weights,)
        values = f.bitcast(weights, I8.by(4 * weights.type.lanes))
        negative = values >> 7
        parts = ((values ^ negative) - negative, negative ^ -128)
        return tuple(f.bitcast(part, weights.type) for part in parts)

    def add_any(self, f: Function, total: Value, quads: Value, weights: Sequence[Value]) -> Value:
        """A sum of 32-bit lanes plus the products of one vector of quads with what `any_weights` made of
        weights, less what `lacking` says of these.

        An unsigned byte x becomes the signed x - 128 for a positive weight w, and 127 - x for a negative one:
        both are x with some bits flipped. Two products of such a byte and of w without its sign always fit 16
        bits.
        """
        if not self.held:
            return self.add(f, total, [quads], weights)
        return self.add(f, total, [weights[0]], [quads ^ weights[1]])

    def lacking(self, weights: Array) -> Array:
        """What a product by `add_any` lacks, int64, for weights of any shape."""
        if not self.held:
            return np.zeros(weights.shape, np.int64)
        return np.where(weights < 0, 127, 128) * weights.astype(np.int64)

    def _add(self, f: Function, total: Value, quads: Sequence[Value], weights: Sequence[Value]) -> Value:
        kind, lanes = total.type, total.type.lanes
        bits = 32 * lanes
        bytes_, words = I8.by(4 * lanes), I16.by(2 * lanes)
        pairs = [(f.bitcast(x, bytes_), f.bitcast(w, bytes_)) for x, w in zip(quads, weights)]
        if self.name == "vpdpbusd":
            for x, w in pairs:
                total = f.call(f"llvm.x86.avx512.vpdpbusd.{bits}", kind, total, x, w, needs=_vnni(f.target))
            return total
        if self.name == "vpmaddwd":
            words = I16.by(2 * lanes)
            for x, w in zip(quads, weights):
                both = (f.bitcast(v, words) for v in (x, w))
                total = _kept(f, total + f.call(_X86_WORDS[bits], kind, *both, needs=_word_needs(bits)))
            return total
        if self.name == "sdot":
            for x, w in pairs:
                total = f.call("llvm.aarch64.neon.sdot.v4i32.v16i8", kind, total, x, w, needs=["dotprod"])
            return total
        if self.name == "smull":
            for x, w in pairs:
                total = total + self._smull(f, x, w)
            return total
        needs = _X86_NEEDS[bits]
        sums = [f.call(_X86_BYTES[bits], words, x, w, needs=needs) for x, w in pairs]
        whole = sums[0]
        for more in sums[1:]:
            whole = whole + more
        return _kept(f, total + f.call(_X86_WORDS[bits], kind, whole, f.constant(1, words), needs=needs))

    def _smull(self, f: Function, x: Value, w: Value) -> Value:
        halves = []
        for part in (range(8), range(8, 16)):
            a, b = f.shuffle(x, None, part), f.shuffle(w, None, part)
            halves.append(f.call("llvm.aarch64.neon.smull.v8i16", I16.by(8), a, b, needs=["neon"]))
        pairs = f.call("llvm.aarch64.neon.addp.v8i16", I16.by(8), *halves, needs=["neon"])
        return f.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", I32.by(4), pairs, needs=["neon"])


WORDS = Dot("vpmaddwd", 2, False, 1, False, -255, 255)
"""Products of words, which are bytes widened."""


def _kept(f: Function, total: Value) -> Value:
    """The sum, added now: LLVM would first add what is added to it later, which takes more registers than
    there are."""
    kind = F32.by(total.type.lanes)
    name = f"llvm.arithmetic.fence.{kind.suffix}"
    return f.bitcast(f.call(name, kind, f.bitcast(total, kind)), total.type)


def _word_needs(bits: int) -> tuple[str, ...]:
    return {128: ("sse2",), 256: ("avx2",), 512: ("avx512bw",)}[bits]


def _vnni(target: Target) -> list[str]:
    """The features by which the target has vpdpbusd at its width; none if it lacks it."""
    if target.arch != "x86_64":
        return []
    if target.vector_bits == 512:
        return ["avx512vnni"] if target.has("avx512vnni") else []
    if target.has("avxvnni"):
        return ["avxvnni"]
    return ["avx512vnni", "avx512vl"] if target.has("avx512vnni", "avx512vl") else []


def _widest(target: Target, bits: int) -> int:
    """The widest vectors of at most so many bits that integer instructions take."""
    if target.arch == "aarch64":
        return min(bits, 128)
    return min(bits, 512 if target.has("avx512bw") else 256)


def joined(f: Function, parts: Sequence[Value]) -> Value:
    """Vectors one after another; their number is a power of two."""
    level = list(parts)
    while len(level) > 1:
        lanes = level[0].type.lanes
        level = [f.shuffle(a, b, range(2 * lanes)) for a, b in zip(level[::2], level[1::2])]
    return level[0]


def saturated(f: Function, totals: Sequence[Value], zero_point: int, signed: bool) -> Value:
    """Vectors of I32, plus a zero point, held to the range of a byte, as one vector of bytes.

    Args:
        totals: a power of two of them.
    """
    bits, x86 = totals[0].type.bytes * 8, f.target.arch == "x86_64"
    packs = x86 and (bits == 256 or (bits == 512 and len(totals) > 1 and f.target.has("avx512bw")))
    return (_packed if packs else _truncated)(f, totals, zero_point, signed)


def _truncated(f: Function, totals: Sequence[Value], zero_point: int, signed: bool) -> Value:
    low, high = (-128, 127) if signed else (0, 255)
    done = []
    for total in totals:
        kind = total.type
        held = f.call(f"llvm.smax.{kind.suffix}", kind, total, f.constant(low - zero_point, kind))
        held = f.call(f"llvm.smin.{kind.suffix}", kind, held, f.constant(high - zero_point, kind))
        done.append(f.convert(held + zero_point if zero_point else held, I8))
    return joined(f, done)


def _packed(f: Function, totals: Sequence[Value], zero_point: int, signed: bool) -> Value:
    """By the saturating packs of AVX2 and AVX-512, which work on each 128 bits of their operands."""
    count, lanes = len(totals), totals[0].type.lanes
    groups = lanes // 4
    isa, end, needs = ("avx2", "", "avx2") if lanes == 8 else ("avx512", ".512", "avx512bw")
    words = []
    for first in range(0, count, 2):
        a, b = totals[first], totals[min(first + 1, count - 1)]
        word = f.call(f"llvm.x86.{isa}.packssdw{end}", I16.by(2 * lanes), a, b, needs=[needs])
        if zero_point:
            name = f"llvm.sadd.sat.{word.type.suffix}"
            word = f.call(name, word.type, word, f.constant(zero_point, word.type))
        words.append(word)
    name = f"llvm.x86.{isa}.{'packsswb' if signed else 'packuswb'}{end}"
    parts = []
    for first in range(0, len(words), 2):
        a, b = words[first], words[min(first + 1, len(words) - 1)]
        packed = f.bitcast(f.call(name, I8.by(4 * lanes), a, b, needs=[needs]), I32.by(lanes))
        # Each 128 bits hold four bytes of each vector.
        vectors = min(count, 4)
        order = [v + group * 4 for v in range(vectors) for group in range(groups)]
        parts.append(f.bitcast(f.shuffle(packed, None, order), I8.by(lanes * vectors)))
    return joined(f, parts)


def interleaved(f: Function, rows: Sequence[Value]) -> list[Value]:
    """Vectors of bytes, one for each of two or four channels, as vectors of elements in the order of their
    pixels; two bytes are unsigned and widened."""
    lanes = rows[0].type.lanes
    if len(rows) == 2:
        mixed = f.shuffle(rows[0], rows[1], [i for lane in range(lanes) for i in (lane, lanes + lane)])
        size = lanes // 2
        parts = [f.shuffle(mixed, None, range(at, at + size)) for at in range(0, 2 * lanes, size)]
        return [f.bitcast(f.convert(p, I16, signed=False), I32.by(size // 2)) for p in parts]
    low, high = range(lanes // 2), range(lanes // 2, lanes)

    def zip_(a: Value, b: Value, half: Sequence[int]) -> Value:
        return f.shuffle(a, b, [i for lane in half for i in (lane, a.type.lanes + lane)])

    quads = []
    for half in (low, high):
        first, second = zip_(rows[0], rows[1], half), zip_(rows[2], rows[3], half)
        words = [f.bitcast(v, I16.by(lanes // 2)) for v in (first, second)]
        quarter = lanes // 4
        for part in (range(quarter), range(quarter, 2 * quarter)):
            quads.append(f.bitcast(zip_(words[0], words[1], part), I32.by(quarter)))
    return quads


def gathered(f: Function, rows: Sequence[Value]) -> list[Value]:
    """Four vectors of bytes as four of quads, each 128 bits of a vector for themselves: `in_order` puts what
    becomes of them in the order of pixels."""
    size = rows[0].type.lanes

    def zip_(a: Value, b: Value, high: bool) -> Value:
        lanes = a.type.lanes
        part = 16 * lanes // size
        starts = [first + part // 2 * high for first in range(0, lanes, part)]
        return f.shuffle(
            a, b, [i for at in starts for k in range(at, at + part // 2) for i in (k, lanes + k)]
        )

    words = I16.by(size // 2)
    quads = []
    for high in (False, True):
        pair = [f.bitcast(zip_(rows[i], rows[i + 1], high), words) for i in (0, 2)]
        quads += [f.bitcast(zip_(pair[0], pair[1], upper), I32.by(size // 4)) for upper in (False, True)]
    return quads


def in_order(f: Function, totals: Sequence[Value]) -> list[Value]:
    """Four vectors of lanes like those of `gathered`, in the order of pixels."""
    parts = totals[0].type.lanes // 4
    result = []
    for v in range(4):
        blocks = []
        for block in range(v * parts, (v + 1) * parts):
            part, which = divmod(block, 4)
            blocks.append((totals[which], range(4 * part, 4 * part + 4)))
        if parts == 1:
            result.append(blocks[0][0])
        elif parts == 2:
            (a, low), (b, high) = blocks
            result.append(f.shuffle(a, b, [*low, *(a.type.lanes + i for i in high)]))
        else:
            result.append(joined(f, [f.shuffle(vector, None, lanes) for vector, lanes in blocks]))
    return result
