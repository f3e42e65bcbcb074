"""Work along some dimensions of a tensor, for each place in the others: reductions, softmax, normalisations.

A line is what one result depends on. Where elements of a line lie side by side, vectors run along it;
otherwise each lane is a line of its own, and vectors run across neighbouring lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coresident.codegen.builder import Function, Value, Variable
from coresident.codegen.target import Target
from coresident.codegen.types import I64, Type
from coresident.kernels.layout import Layout
from coresident.kernels.vectors import fold, load_first, share, store_first, unravel

Unary = Callable[[Value], Value]
Binary = Callable[[Value, Value], Value]

BLOCK = 64
"""Vectors added one after another before their sum joins the total: rounding errors stay small."""


@dataclass(frozen=True)
class Extent:
    """One dimension: its size, and its strides in elements in the input and in each other tensor."""

    size: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Lines:
    """All lines of a tensor.

    Args:
        kept: dimensions that count the lines, outermost first.
        along: dimensions of a line, outermost first; at least one.
        across: whether vectors run over neighbouring lines, which the last of `kept` counts.
        kind: type of a vector.
        stored: type of an element of the first tensor in memory, where that is another.
    """

    kept: tuple[Extent, ...]
    along: tuple[Extent, ...]
    across: bool
    kind: Type
    stored: Type | None = None

    @staticmethod
    def of(target: Target, scalar: Type, layouts: Sequence[Layout], axes: Sequence[int]) -> Lines:
        """The lines over these axes; the first layout decides the order, all have its shape."""
        extents = [
            Extent(size, tuple(layout.strides[d] for layout in layouts))
            for d, size in enumerate(layouts[0].shape)
        ]
        kept = _merged([e for d, e in enumerate(extents) if d not in axes])
        along = _merged([e for d, e in enumerate(extents) if d in axes])
        none = (0,) * len(layouts)
        across = bool(kept and along and 0 < abs(kept[-1].strides[0]) < abs(along[-1].strides[0]))
        longest = kept[-1].size if across else along[-1].size if along else 1
        lanes = target.lanes(scalar)
        while lanes > 1 and longest <= lanes // 2:
            lanes //= 2
        return Lines(tuple(kept), tuple(along) or (Extent(1, none),), across, scalar.by(lanes))

    @property
    def outer(self) -> tuple[Extent, ...]:
        """The dimensions that are counted through one by one."""
        return self.kept[:-1] if self.across else self.kept

    @property
    def groups(self) -> int:
        """How many lines, or vectors of lines, there are at each place of `outer`."""
        return -(-self.kept[-1].size // self.kind.lanes) if self.across else 1

    @property
    def items(self) -> int:
        """Lines, or vectors of lines."""
        return math.prod(e.size for e in self.outer) * self.groups

    @property
    def length(self) -> int:
        """Elements of a line."""
        return math.prod(e.size for e in self.along)

    @property
    def steps(self) -> int:
        """Vectors in all."""
        if self.across:
            return self.items * self.length
        *outer, inner = self.along
        return self.items * math.prod(e.size for e in outer) * -(-inner.size // self.kind.lanes)

    def emit(
        self,
        f: Function,
        tasks: int,
        pointers: Sequence[Value],
        body: Callable[[Line], None],
        kinds: Sequence[Type],
    ) -> None:
        """Code that does `body` for this task's share of the lines.

        Args:
            tasks: of the step.
            pointers: element 0 of each tensor.
            body: emits the work on one line, or one vector of lines.
            kinds: the element type of each tensor.
        """
        first, last = share(f, self.items, tasks)
        strides = [tuple(e.strides[i] for e in self.outer) for i in range(len(pointers))]
        with f.loop(first, last) as item:
            index, group = item, f.constant(0, I64)
            if self.groups > 1:
                index, group = item // self.groups, item % self.groups
            offsets = unravel(f, index, [e.size for e in self.outer], *strides)
            if not self.across:
                starts = [f.offset(p, o, k) for p, o, k in zip(pointers, offsets, kinds)]
                body(Line(f, self, tuple(starts), self.kind.lanes))
                return
            columns = self.kept[-1]
            column = group * self.kind.lanes
            starts = [
                f.offset(p, o + column * s if s else o, k)
                for p, o, s, k in zip(pointers, offsets, columns.strides, kinds)
            ]
            rest = columns.size % self.kind.lanes
            if not rest:
                body(Line(f, self, tuple(starts), self.kind.lanes))
            elif self.groups == 1:
                body(Line(f, self, tuple(starts), rest))
            else:
                with f.either(group < self.groups - 1) as other:
                    body(Line(f, self, tuple(starts), self.kind.lanes))
                    with other():
                        body(Line(f, self, tuple(starts), rest))

    def emit_groups(
        self,
        f: Function,
        tasks: int,
        pointers: Sequence[Value],
        body: Callable[[Sequence[Line]], None],
        single: Callable[[Line], None],
        kinds: Sequence[Type],
    ) -> None:
        """As `emit` for vectors along lines, but as many neighbouring lines at a time as a vector has lanes.

        Args:
            body: emits the work on that many lines.
            single: emits the work on one: those left over.
        """
        lanes, inner = self.kind.lanes, self.kept[-1]
        outer = self.kept[:-1]
        groups = -(-inner.size // lanes)
        first, last = share(f, math.prod(e.size for e in outer) * groups, tasks)
        strides = [tuple(e.strides[i] for e in outer) for i in range(len(pointers))]
        with f.loop(first, last) as item:
            group = item % groups
            offsets = unravel(f, item // groups, [e.size for e in outer], *strides)
            starts = [
                f.offset(p, o + group * (lanes * s), k)
                for p, o, s, k in zip(pointers, offsets, inner.strides, kinds)
            ]

            def line(i: Value | int) -> Line:
                moved = (f.offset(p, i * s, k) for p, s, k in zip(starts, inner.strides, kinds))
                return Line(f, self, tuple(moved), lanes)

            rest = inner.size % lanes
            if not rest:
                body([line(i) for i in range(lanes)])
                return
            with f.either(group < groups - 1) as other:
                body([line(i) for i in range(lanes)])
                with other(), f.loop(0, rest) as i:
                    single(line(i))


def _merged(extents: Sequence[Extent]) -> list[Extent]:
    """Without sizes of 1, by falling stride of the first tensor; merged where all cross them evenly."""
    result: list[Extent] = []
    for inner in sorted((e for e in extents if e.size != 1), key=lambda e: -abs(e.strides[0])):
        outer = result[-1] if result else None
        if outer and all(a == b * inner.size for a, b in zip(outer.strides, inner.strides)):
            result[-1] = Extent(outer.size * inner.size, inner.strides)
        else:
            result.append(inner)
    return result


@dataclass(frozen=True)
class Place:
    """Where a vector of a line lies.

    Args:
        line: of which it is part.
        offsets: elements from the line's start, one a tensor.
        count: lanes that are part of it.
    """

    line: Line
    offsets: tuple[Value, ...]
    count: int

    def _stride(self, tensor: int) -> int:
        lines = self.line.lines
        return (lines.kept[-1] if lines.across else lines.along[-1]).strides[tensor]

    def load(self, tensor: int = 0) -> Value:
        """The vector of a tensor as it is stored; lanes beyond `count` are zero."""
        line, kind = self.line, self.line.lines.kind
        stride = self._stride(tensor) if kind.lanes > 1 else 1
        if tensor == 0 and line.lines.stored is not None:
            kind = line.lines.stored.by(kind.lanes)
        return load_first(line.f, kind, line.starts[tensor], self.offsets[tensor], self.count, stride)

    def store(self, value: Value, tensor: int = 1) -> None:
        """Write the lanes that count."""
        line = self.line
        stride = self._stride(tensor) if line.lines.kind.lanes > 1 else 1
        store_first(line.f, value, line.starts[tensor], self.offsets[tensor], self.count, stride)

    def only(self, value: Value, neutral: float) -> Value:
        """The value, with `neutral` in the lanes that don't count."""
        lanes = value.type.lanes
        if self.count == lanes or self.line.lines.across:
            return value
        return self.line.f.select(self.line.f.first(self.count, lanes), value, neutral)


@dataclass(frozen=True)
class Line:
    """One line, or one vector of neighbouring lines, inside a kernel.

    Args:
        f: the kernel.
        lines: of which it is one.
        starts: address of its first element in each tensor.
        count: where vectors run across lines, how many lines there are.
    """

    f: Function
    lines: Lines
    starts: tuple[Value, ...]
    count: int

    def each(self, body: Callable[[Place], None]) -> None:
        """`body` for all vectors of the line, in order."""
        self._outer(lambda offsets: self._inner(offsets, body))

    def total(self, prepare: Unary, combine: Binary, neutral: float) -> Value:
        """Everything on the line combined, spread over the lanes where a vector lies along it."""
        total = self.partial(prepare, combine, neutral)
        if self.lines.across:
            return total
        return self.f.splat(fold(self.f, total, combine), total.type)

    def partial(self, prepare: Unary, combine: Binary, neutral: float) -> Value:
        """Everything on the line combined lane by lane: to be folded where vectors lie along the line."""
        f, kind = self.f, self.lines.kind
        total = f.var(neutral, kind)

        def add(place: Place, into: Variable = total) -> None:
            value = place.only(prepare(place.load()), neutral)
            into.set(combine(into.get(), value))

        self._outer(lambda offsets: self._blocks(offsets, total, add, combine, neutral))
        return total.get()

    def _outer(self, body: Callable[[Sequence[Value]], None]) -> None:
        """Loops over all dimensions of the line but the last."""

        def nest(d: int, offsets: Sequence[Value]) -> None:
            if d == len(self.lines.along) - 1:
                body(offsets)
                return
            extent = self.lines.along[d]
            with self.f.loop(0, extent.size) as i:
                nest(d + 1, [o + i * s if s else o for o, s in zip(offsets, extent.strides)])

        nest(0, [self.f.constant(0, I64)] * len(self.starts))

    def _at(self, offsets: Sequence[Value], i: Value | int, count: int) -> Place:
        strides = self.lines.along[-1].strides
        moved = [o + i * s if s else o for o, s in zip(offsets, strides)]
        values = [self.f.value(o, I64) for o in moved]
        return Place(self, tuple(values), count)

    def _inner(self, offsets: Sequence[Value], body: Callable[[Place], None]) -> None:
        f, size = self.f, self.lines.along[-1].size
        if self.lines.across:
            with f.loop(0, size) as i:
                body(self._at(offsets, i, self.count))
            return
        lanes = self.lines.kind.lanes
        whole = size // lanes * lanes
        if whole:
            with f.loop(0, whole, lanes) as i:
                body(self._at(offsets, i, lanes))
        if size % lanes:
            body(self._at(offsets, whole, size % lanes))

    def _blocks(
        self,
        offsets: Sequence[Value],
        total: Variable,
        add: Callable[..., None],
        combine: Binary,
        neutral: float,
    ) -> None:
        """The last dimension in blocks: several sums that do not wait for each other, then their sum."""
        f, size = self.f, self.lines.along[-1].size
        step = 1 if self.lines.across else self.lines.kind.lanes
        count = self.count if self.lines.across else self.lines.kind.lanes
        vectors = size // step
        chains = next((c for c in (8, 4, 2, 1) if vectors >= 2 * c), 1)
        whole = vectors // chains * chains * step
        block = chains * BLOCK * step

        def one(start: Value | int, stop: Value | int) -> None:
            sums = [f.var(neutral, self.lines.kind) for _ in range(chains)]
            with f.loop(start, stop, chains * step) as i:
                for c, chain in enumerate(sums):
                    add(self._at(offsets, i + c * step, count), chain)
            values = [chain.get() for chain in sums]
            while len(values) > 1:
                values = [combine(a, b) for a, b in zip(values[0::2], values[1::2])]
            total.set(combine(total.get(), values[0]))

        if whole > block:
            with f.loop(0, whole, block) as start:
                end = start + block
                one(start, f.select(end < whole, end, f.constant(whole, I64)))
        elif whole:
            one(0, whole)
        for i in range(whole, vectors * step, step):
            add(self._at(offsets, i, count))
        if size % step:
            add(self._at(offsets, vectors * step, size % step))
