"""The general kernel: an element-wise computation over strided tensors of any rank.

Loops run over the output's elements in the order in which they lie in memory; neighbouring dimensions that
all operands cross evenly become one, and the innermost is cut into vectors. A dimension that an operand is
broadcast along has stride 0 in it. What is only moved, between different innermost dimensions, goes through
`squares` or `interleaving`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import Typed, register_type, to_memory, to_register
from coresident.codegen.target import Target
from coresident.codegen.types import I16, I64, Type, of_dtype
from coresident.kernels import interleaving, squares
from coresident.kernels.arguments import operand
from coresident.kernels.loops import Dimension, Entry, Split, broadcast, dimensions
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import load_first, store_first

Compute = Callable[[Function, Sequence[Typed], int], Typed]
"""Emits the computation of so many lanes: operands in, result out, of the output's type."""

_TASK_CYCLES = 12_000
_UNROLL = 4
_UNROLL_INSTRUCTIONS = 12
_SHUFFLED_STRIDE = 4
_WIDER = 4
"""Vectors of wide elements beside one of bytes, at most."""


@dataclass(frozen=True)
class Lookup:
    """An operand that is read at a place that another operand names.

    Args:
        index: position among the inputs of the tensor of indices (int32 or int64); negative indices count
            from the end; all are held to the dimension, so that no other memory is read.
        size: of the dimension looked up.
        stride: elements from one index to the next.
    """

    index: int
    size: int
    stride: int


def nest(
    plan: Plan,
    output: Tensor,
    inputs: Sequence[Tensor],
    compute: Compute | None,
    info: dict[str, Any],
    *,
    lookups: Sequence[Lookup | None] = (),
    barrier: bool = True,
) -> None:
    """Emit a step that computes every element of `output`; none if it has none.

    Args:
        output: any strided tensor; it shares no memory with the inputs.
        inputs: tensors that broadcast onto its shape.
        compute: from the operands, without those that only lookups read; None moves the first.
        info: for `analyze`; its kernel is completed and bytes added.
        lookups: for each input, how its place depends on another.
        barrier: as `Plan.step` has it.
    """
    if output.layout.elements == 0:
        return
    operands = [output, *(broadcast(t, output.shape) for t in inputs)]
    moved = sum(_footprint(t) for t in operands)
    loops = dimensions([t.layout for t in operands])
    kernel = _exchange(plan, loops, operands, moved) if compute is None and len(operands) == 2 else None
    if kernel is None:
        every = [None, *(lookups or [None] * len(inputs))]
        kernel = _Nest.of(plan, loops, operands, compute, every, moved).kernel()
    sizes = "x".join(str(loop.size) for loop in kernel.loops)
    plan.step(
        kernel.function,
        [operand(t) for t in operands],
        kernel.tasks,
        reads=operands[1:],
        writes=[output],
        barrier=barrier,
        info={**info, "kernel": f"{info.get('kernel', 'loopnest')} {sizes}, {kernel.form}", "bytes": moved},
    )


@dataclass(frozen=True)
class _Kernel:
    """What is emitted, and what `analyze` says of it."""

    function: Function
    tasks: int
    loops: tuple[Dimension, ...]
    form: str


def _exchange(
    plan: Plan, loops: Sequence[Dimension], operands: Sequence[Tensor], moved: int
) -> _Kernel | None:
    """The kernel of a copy whose innermost dimension changes, if there is one of its own for it."""
    pair, itemsize = (operands[0], operands[1]), operands[0].dtype.itemsize
    side = squares.edge(plan.target, itemsize)
    # Either way a vector takes about three shuffles.
    wanted = _wanted(plan, operands[0].layout.elements * 6 / side + moved / 16)
    turned = squares.loops_of(loops, side)
    if turned is not None:
        function, tasks = squares.Squares(tuple(turned), pair, side, wanted).emit(plan.target)
        return _Kernel(function, tasks, tuple(turned), f"{side}x{side} squares")
    lanes = plan.target.vector_bits // (8 * itemsize)
    planes = interleaving.loops_of(loops, lanes)
    if planes is None:
        return None
    function, tasks = interleaving.Interleaving(tuple(planes), pair, lanes, wanted).emit(plan.target)
    return _Kernel(function, tasks, tuple(planes), f"{lanes} lanes interleaved")


def _footprint(tensor: Tensor) -> int:
    """Bytes of the elements that are touched, each once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.layout.strides) if stride]
    return math.prod(sizes) * tensor.dtype.itemsize


def _wanted(plan: Plan, cycles: float) -> int:
    """How many tasks work of so many cycles is worth."""
    return 1 if plan.threads == 1 else max(1, min(8 * plan.threads, int(cycles / _TASK_CYCLES)))


def instructions(target: Target, compute: Compute, dtypes: Sequence[np.dtype[Any]]) -> int:
    """About how many the computation of one element is."""
    kinds = [register_type(dtype) for dtype in dtypes]
    probe = Function(target, "probe", [(f"x{i}", kind) for i, kind in enumerate(kinds)])
    compute(probe, [Typed(probe[f"x{i}"], dtype.name) for i, dtype in enumerate(dtypes)], 1)
    return probe.text().count("\n")


def _access_cost(stride: int, lanes: int) -> float:
    """Of reading or writing a vector, in about instructions."""
    if stride in (0, 1):
        return stride
    return 2.0 * abs(stride) if 0 < abs(stride) <= _SHUFFLED_STRIDE else 1.5 * lanes


def _innermost(loops: Sequence[Dimension], widest: int, indices: Sequence[int]) -> int:
    """The loop that is cheapest to cut into vectors."""

    def cost(loop: Dimension) -> float:
        lanes = min(widest, 1 << (loop.size - 1).bit_length())
        access = sum(_access_cost(stride, lanes) for stride in loop.strides[1:])
        access += 1 if loop.strides[0] == 1 else 1.5 * lanes
        access += sum(2 * lanes for i in indices if loop.strides[i])
        return (-(-loop.size // lanes) * (access + 1) + 4) / loop.size

    costs = [cost(loop) for loop in loops]
    return len(costs) - 1 - costs[::-1].index(min(costs))


@dataclass(frozen=True)
class _Nest:
    """One kernel.

    Args:
        entry: loops and tasks; the innermost loop is the one cut into vectors.
        lookups: None for the output; indices count the inputs.
        lanes: of a vector.
        unroll: vectors in one turn of the innermost loop.
    """

    target: Target
    entry: Entry
    lookups: tuple[Lookup | None, ...]
    compute: Compute | None
    lanes: int
    unroll: int

    @staticmethod
    def of(
        plan: Plan,
        loops: Sequence[Dimension],
        operands: Sequence[Tensor],
        compute: Compute | None,
        lookups: Sequence[Lookup | None],
        moved: int,
    ) -> _Nest:
        loops, dtypes = list(loops), [t.dtype for t in operands]
        bits = max(8 * dtype.itemsize for dtype in dtypes)
        if any(dtype.kind in "iu" and dtype.itemsize == 1 for dtype in dtypes):
            # Whole vectors of bytes, beside several of wider elements.
            bits = max(bits // _WIDER, 8)
        if compute is not None and any(dtype == np.float16 for dtype in dtypes):
            bits = max(bits, 32)
        lanes = plan.target.vector_bits // bits
        indices = [lookup.index + 1 for lookup in lookups if lookup is not None]
        loops.append(loops.pop(_innermost(loops, lanes, indices)))
        inner = loops[-1]
        # Indices that change from element to element are followed one by one; scattered copies are scalar.
        if any(inner.strides[i] for i in indices) or (compute is None and inner.strides[0] != 1):
            lanes = 1
        while lanes > 1 and inner.size <= lanes // 2:
            lanes //= 2
        computed = [dtype for i, dtype in enumerate(dtypes) if i and i not in indices]
        cost = instructions(plan.target, compute, computed) if compute is not None else 1
        unroll = _UNROLL if cost < _UNROLL_INSTRUCTIONS and inner.size >= _UNROLL * lanes else 1
        access = sum(_access_cost(stride, lanes) for stride in inner.strides)
        cycles = math.prod(loop.size for loop in loops) * (cost + access) / (2 * lanes) + moved / 16
        split = Split.of([loop.size for loop in loops], _wanted(plan, cycles), lanes * unroll)
        return _Nest(
            plan.target, Entry(tuple(loops), tuple(operands), split), tuple(lookups), compute, lanes, unroll
        )

    def kernel(self) -> _Kernel:
        """The code, and its tasks."""
        return _Kernel(self._emit(), self.entry.split.tasks, self.entry.loops, f"{self.lanes} lanes")

    def _emit(self) -> Function:
        f, pointers = self.entry.function(self.target, "loopnest" if self.compute else "copy")
        with self.entry.rows(f, pointers, len(self.entry.loops) - 1) as (here, start, stop):
            self._row(f, here, start, stop)
        return f

    @property
    def _dtypes(self) -> list[np.dtype[Any]]:
        return [t.dtype for t in self.entry.operands]

    @property
    def _inner(self) -> Dimension:
        return self.entry.loops[-1]

    def _row(self, f: Function, pointers: Sequence[Value], start: Value | int, stop: Value | int) -> None:
        """Elements [start, stop) of the innermost loop: all of them, or whole turns and perhaps the end."""
        size, lanes, turn = self._inner.size, self.lanes, self.lanes * self.unroll
        whole = size // lanes * lanes
        if isinstance(stop, int):
            turns = whole // turn * turn if whole > _UNROLL * lanes else 0
            if turns:
                with f.loop(0, turns, turn) as i:
                    self._vectors(f, pointers, [i + u * lanes for u in range(self.unroll)], lanes)
            for at in range(turns, whole, lanes):
                self._vectors(f, pointers, [at], lanes)
            self._tail(f, pointers, whole, size - whole)
            return
        begin = f.value(start, I64)
        end = f.minimum(stop, whole)
        turns_end = begin + (end - begin) / turn * turn
        with f.loop(begin, turns_end, turn) as i:
            self._vectors(f, pointers, [i + u * lanes for u in range(self.unroll)], lanes)
        if self.unroll > 1:
            with f.loop(turns_end, end, lanes) as i:
                self._vectors(f, pointers, [i], lanes)
        if whole < size:
            with f.when(stop.equals(size)):
                self._tail(f, pointers, whole, size - whole)

    def _tail(self, f: Function, pointers: Sequence[Value], at: int, count: int) -> None:
        """The last elements, fewer than a vector."""
        if count == 0:
            return
        narrowest = min(t.dtype.itemsize for t in self.entry.operands)
        if narrowest >= 4 or self.target.has("avx512bw", "avx512vl"):
            self._vectors(f, pointers, [at], self.lanes, count)
            return
        # No masks for bytes: vectors of half the lanes, and so on.
        lanes = self.lanes
        while count:
            lanes //= 2
            if count >= lanes:
                self._vectors(f, pointers, [at], lanes)
                at, count = at + lanes, count - lanes

    def _vectors(
        self,
        f: Function,
        pointers: Sequence[Value],
        places: Sequence[Value | int],
        lanes: int,
        count: int = 0,
    ) -> None:
        """Compute and store the vectors that start at these elements of the innermost loop."""
        results = [self._result(f, pointers, at, lanes, count) for at in places]
        stride = self._inner.strides[0]
        for at, result in zip(places, results):
            store_first(f, result, pointers[0], _times(at, stride), count, stride)

    def _result(
        self, f: Function, pointers: Sequence[Value], at: Value | int, lanes: int, count: int
    ) -> Value:
        indices = {lookup.index + 1 for lookup in self.lookups if lookup is not None}
        values = []
        for i, (pointer, dtype) in enumerate(zip(pointers, self._dtypes)):
            if i == 0 or i in indices:
                continue
            lookup = self.lookups[i]
            if lookup is not None:
                pointer = self._found(f, pointers, lookup, at, pointer, dtype.itemsize)
            loaded = load_strided(
                f, self._memory_type(dtype).by(lanes), pointer, at, self._inner.strides[i], count
            )
            values.append(loaded if self.compute is None else to_register(f, loaded, dtype))
        if self.compute is None:
            assert isinstance(values[0], Value)
            return values[0]
        result = self.compute(f, [v for v in values if isinstance(v, Typed)], lanes)
        if result.dtype != self._dtypes[0].name:
            raise TypeError(f"{result.dtype} computed for an output of {self._dtypes[0]}")
        return to_memory(f, result)

    def _memory_type(self, dtype: np.dtype[Any]) -> Type:
        return I16 if self.compute is None and dtype == np.float16 else of_dtype(dtype)

    def _found(
        self,
        f: Function,
        pointers: Sequence[Value],
        lookup: Lookup,
        at: Value | int,
        pointer: Value,
        itemsize: int,
    ) -> Value:
        """The pointer of an operand moved to the index that holds here."""
        which = lookup.index + 1
        place = _times(at, self._inner.strides[which])
        index = f.convert(f.load(of_dtype(self._dtypes[which]), pointers[which], place), I64)
        index = f.select(index < 0, index + lookup.size, index)
        index = f.minimum(f.maximum(index, 0), lookup.size - 1)
        return f.offset(pointer, index * (lookup.stride * itemsize))


def _times(at: Value | int, stride: int) -> Value | int:
    return 0 if stride == 0 else at if stride == 1 else at * stride


def load_strided(
    f: Function, kind: Type, pointer: Value, at: Value | int, stride: int, count: int = 0
) -> Value:
    """The vector of elements `at`, `at` + 1, ... of a run with elements `stride` apart; no others are read.

    Args:
        count: how many lanes are wanted; 0 for all. The others are zero.
    """
    lanes, index = kind.lanes, _times(at, stride)
    if count or lanes == 1 or stride in (0, 1) or abs(stride) > _SHUFFLED_STRIDE or lanes < 4:
        return load_first(f, kind, pointer, index, count, stride)
    span = abs(stride) * (lanes - 1)
    base = index if stride > 0 else index - span
    # The last of the vectors that cover the run ends with its last element, so that nothing beyond is read.
    starts = [*(m * lanes for m in range(abs(stride) - 1)), span - lanes + 1] if abs(stride) > 1 else [0]
    parts = [f.load(kind, pointer, base + start) for start in starts]
    wanted = [i * abs(stride) for i in range(lanes)]
    if stride < 0:
        wanted.reverse()
    sources = [next(m for m, start in reversed([*enumerate(starts)]) if start <= e) for e in wanted]
    result = f.shuffle(parts[0], None, [e if m == 0 else 0 for e, m in zip(wanted, sources)])
    for m in range(1, len(parts)):
        picked = [lanes + e - starts[m] if s == m else i for i, (e, s) in enumerate(zip(wanted, sources))]
        result = f.shuffle(result, parts[m], picked)
    return result
