"""Kernels that go from element to element: what is found by searching, sorting or data-dependent indices.

    with items(plan, "name", y.layout.elements, 8, [y], [x], info) as (f, item, (to, source)):
        to.store(source.load(0, item), item, 0)

Tensors may lie in any strided way. What a kernel takes from the data to address memory it must hold to its
dimension first (`held`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coresident.codegen.builder import Function, Value, kernel
from coresident.codegen.types import I1, I8, I64, Type, of_dtype
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import pieces, share

Index = Value | int


@dataclass(frozen=True)
class Access:
    """A tensor inside a kernel.

    Args:
        f: the kernel.
        tensor: of any layout.
        start: address of its element 0.
    """

    f: Function
    tensor: Tensor
    start: Value

    @property
    def kind(self) -> Type:
        """Of an element in memory."""
        return of_dtype(self.tensor.dtype)

    def place(self, at: Sequence[Index]) -> Index:
        """Elements from element 0 to the one at these indices (fewer than dimensions: the first ones)."""
        total: Index = 0
        for index, stride in zip(at, self.tensor.layout.strides):
            term = index * stride
            total = term if isinstance(total, int) and total == 0 else total + term
        return total

    def at(self, *at: Index) -> Access:
        """The tensor at these indices of its first dimensions: those left count from there."""
        moved = self.f.offset(self.start, self.place(at), self.kind)
        layout = self.tensor.layout
        rest = layout.view(layout.shape[len(at) :], layout.strides[len(at) :], 0)
        return Access(self.f, Tensor(self.tensor.name, self.tensor.dtype, rest, self.tensor.storage), moved)

    def load(self, *at: Index) -> Value:
        """An element; bool as one bit."""
        found = self.f.load(self.kind, self.start, self.place(at))
        return found.differs(0) if self.tensor.dtype.kind == "b" else found

    def load_index(self, *at: Index) -> Value:
        """An element of an integer tensor, as I64."""
        return self.f.convert(self.load(*at), I64, signed=self.tensor.dtype.kind != "u")

    def store(self, value: Value | float, *at: Index) -> None:
        """Write an element; one bit as bool."""
        kind = I1 if isinstance(value, Value) and value.type == I1 else self.kind
        stored = self.f.value(value, kind)
        self.f.store(self.f.convert(stored, I8) if kind == I1 else stored, self.start, self.place(at))


def held(f: Function, index: Value, size: int) -> Value:
    """An index from the data held to [0, size), negative ones counted from the end."""
    from_front = f.select(index < 0, index + size, index)
    return f.minimum(f.maximum(from_front, 0), size - 1)


def digits(index: Value, sizes: Sequence[int]) -> list[Index]:
    """The indices of element `index`, counted in C order over `sizes`."""
    found: list[Index] = []
    for size in reversed(sizes):
        if size == 1:
            found.append(0)
            continue
        last = len(found) == len(sizes) - 1
        found.append(index if last else index % size)
        index = index if last else index // size
    return found[::-1]


@contextmanager
def items(
    plan: Plan,
    name: str,
    count: int,
    cost: float,
    writes: Sequence[Tensor],
    reads: Sequence[Tensor],
    info: dict[str, Any],
) -> Iterator[tuple[Function, Value, list[Access]]]:
    """A step that does what is emitted inside for each of `count` items, dealt to the threads.

    Args:
        name: of the kernel.
        count: items, independent of each other; 0 adds no step.
        cost: of one, in about cycles.
        writes, reads: tensors, in the order of the accesses given.
        info: for `analyze`.

    Yields:
        The kernel, the item's number, and access to the tensors.
    """
    tensors = [*writes, *reads]
    f = kernel(plan.target, name)
    accesses = [Access(f, tensor, element_0(f, i, tensor)) for i, tensor in enumerate(tensors)]
    tasks = pieces(plan.threads, count, count * cost)
    first, last = share(f, count, max(tasks, 1))
    with f.loop(first, last) as item:
        yield f, item, accesses
    plan.step(
        f, [operand(t) for t in tensors], tasks, reads=reads, writes=writes, info={"kernel": name, **info}
    )
