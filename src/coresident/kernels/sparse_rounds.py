"""The products of a row of weights that shares its pattern with no other: its part of the stream, in rounds.

What binds are loads: two offsets are one, or four where they are of 16 bits (layers of 7x7 pixels are 1.07
times as fast so on Zen 5, of 14x14 1.02), and so are four weights, which shuffles spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value, Variable
from coresident.codegen.types import F32, I64, Type
from coresident.kernels.sparse_stream import UNROLL, Offsets

LATENCY = 4
"""Cycles until a sum can be added to again."""


def chains_of(vectors: int, at_once: float) -> int:
    """Sums that each vector needs so that a core has products to do while others are being added.

    Args:
        at_once: multiply-adds that a core begins in a cycle.
    """
    chains = 1
    while chains < UNROLL and vectors * chains < LATENCY * at_once:
        chains *= 2
    return chains


@dataclass(frozen=True)
class Rounds:
    """A row under construction.

    Args:
        function, vector: under construction, and the type of a register.
        x: address that offsets count from.
        counted: what they count.
        reads: elements from there to each of the tile's vectors.
        position: address in the stream, which is moved past the row.
        offsets: of the next round, as many each as are loaded together.
        chains: as `chains_of` says.
    """

    function: Function
    vector: Type
    x: Value
    counted: Offsets
    reads: Sequence[int]
    position: Variable
    offsets: Sequence[Variable]
    chains: int

    @staticmethod
    def begin(
        f: Function,
        vector: Type,
        x: Value,
        counted: Offsets,
        reads: Sequence[int],
        position: Variable,
        chains: int,
    ) -> Rounds:
        """Load the first offsets of a row.

        Offsets are loaded a round ahead: until one is there no load of pixels can begin, and the loads before
        fill the core's queue, so that it does not see the next one (on Zen 5 a nonzero then takes 0.5 to 2.5
        cycles longer, with the more sums the longer).
        """
        loads = range(UNROLL // counted.together)
        offsets = [f.var(f.opaque(f.load(I64, position.get(), load))) for load in loads]
        return Rounds(f, vector, x, counted, reads, position, offsets, chains)

    def add(self, sums: Sequence[Value], count: Value) -> list[Value]:
        """Sums of the tile's vectors, with a row of `count` products (I64) added."""
        f, none = self.function, self.function.constant(0.0, self.vector)
        totals = [[f.var(value) for value in sums]]
        totals += [[f.var(none) for _ in sums] for _ in range(self.chains - 1)]
        with f.loop(0, count >> (UNROLL.bit_length() - 1)):
            self._round(totals)
        self._rest(count % UNROLL, totals)
        found = [[total.get() for total in chain] for chain in totals]
        while len(found) > 1:
            half = len(found) // 2
            found = [[a + b for a, b in zip(*pair)] for pair in zip(found[:half], found[half:])]
        return found[0]

    def _round(self, totals: Sequence[Sequence[Variable]]) -> None:
        """Add the next `UNROLL`: their offsets, then their weights."""
        f, vector, at = self.function, self.vector, self.position.get()
        loads = [offset.get() for offset in self.offsets]
        size = self.counted.words + UNROLL
        ahead = [f.opaque(f.load(I64, at, size // 2 + load)) for load in range(len(loads))]
        loads[0] = f.opaque(loads[0], *ahead)
        first = f.load(F32.by(UNROLL), at, self.counted.words)
        held = min(vector.bytes, f.target.register_bits // 8) // 4
        weights = f.opaque(f.shuffle(first, None, [i % UNROLL for i in range(held)]))
        for index, offset in enumerate(part for load in loads for part in self._parts(load)):
            lanes = [i // UNROLL * UNROLL % held + index for i in range(vector.lanes)]
            self._multiply(offset, f.shuffle(weights, None, lanes), totals[index % self.chains])
        for variable, value in zip(self.offsets, ahead, strict=True):
            variable.set(value)
        self.position.set(f.offset(at, 4 * size))

    def _rest(self, count: Value, totals: Sequence[Sequence[Variable]]) -> None:
        """Add what is left of a row, fewer than `UNROLL`: their offsets, then their weights.

        Rows of like length follow each other, so these branches are predicted, as an indirect jump into a
        sequence is not.
        """
        f, vector, at = self.function, self.vector, self.position.get()
        together = self.counted.together
        loads = (count + (together - 1)) >> (together.bit_length() - 1)
        weights = f.offset(at, loads * 8)
        first, *others = (offset.get() for offset in self.offsets)
        second = others[0] if others else first >> 32
        two = (count & 2).differs(0)
        with f.when(two):
            for index, offset in enumerate(self._parts(first)[:2]):
                weight = f.splat(f.load(F32, weights, index), vector)
                self._multiply(offset, weight, totals[index % self.chains])
        with f.when((count & 1).differs(0)):
            weight = f.splat(f.load(F32, weights, count - 1), vector)
            self._multiply(self._parts(f.select(two, second, first))[0], weight, totals[2 % self.chains])
        self.position.set(f.offset(weights, count * 4))

    def _parts(self, load: Value) -> list[Value]:
        """The offsets of one load."""
        bits = self.counted.bits
        return [(load >> bits * i) & (1 << bits) - 1 for i in range(self.counted.together)]

    def _multiply(self, offset: Value, weight: Value, totals: Sequence[Variable]) -> None:
        """Add the products of a weight and the tile's pixels at an offset."""
        f, pixels = self.function, self.function.offset(self.x, offset, Type("i", 8 * self.counted.unit))
        for read, total in zip(self.reads, totals, strict=True):
            total.set(f.fma(f.load(self.vector, pixels, read), weight, total.get()))
