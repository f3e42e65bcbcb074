"""Lowerings run one at a time over guarded memory, without the planner and the runtime."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import emulation
import numpy as np
from support import HOST

from coresident.codegen import llvm
from coresident.codegen.builder import Function
from coresident.codegen.target import Target
from coresident.graph.graph import Graph
from coresident.graph.operator import evaluate
from coresident.kernels.families import FAMILIES
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Address, Operand, Tensor
from coresident.runtime import elf

Array = np.ndarray[Any, Any]


class Bench:
    """A plan whose steps run at once, tasks in random order, over buffers that are guarded.

    Memory that belongs to no element of a tensor holds a pattern; `changed` finds what was written there.

    Args:
        target: whose code runs here; with `emit_only`, code is made and nothing runs.
        threads: as the lowering should believe.
        seed: of the order of tasks.
    """

    GUARD = 256
    """Bytes before and after each buffer."""
    PATTERN = 0xA5

    def __init__(
        self, graph: Graph, target: Target = HOST, threads: int = 1, seed: int = 0, emit_only: bool = False
    ) -> None:
        self.graph, self.target, self.threads, self.sparse = graph, target, threads, True
        self.tensors: dict[str, Tensor] = {}
        self.infos: list[dict[str, Any]] = []
        self.tasks: list[int] = []
        self.objects: list[bytes] = []
        self._buffers: list[Array] = []
        self._order, self._emit_only = random.Random(seed), emit_only
        self._scratch: int | None = None
        self.refuse_aliases = False

    def buffer(self, size: int) -> int:
        """A buffer of so many bytes, filled with the pattern, 64-byte aligned; returns its number."""
        whole = np.full(size + 2 * self.GUARD + 64, self.PATTERN, np.uint8)
        start = -whole.ctypes.data % 64
        self._buffers.append(whole[start : start + size + 2 * self.GUARD])
        return len(self._buffers) - 1

    def array(self, tensor: Tensor) -> Array:
        """The elements of a tensor, as a writable view of its buffer."""
        buffer = self._buffers[tensor.storage.buffer]
        start = self.GUARD + tensor.storage.offset
        item = tensor.dtype.itemsize
        data = buffer[start : start + (buffer.size - start) // item * item].view(tensor.dtype)
        strides = [s * item for s in tensor.layout.strides]
        return np.lib.stride_tricks.as_strided(data[tensor.layout.origin :], tensor.shape, strides)

    def place(self, name: str, layout: Layout, dtype: Any, value: Array | None = None) -> Tensor:
        """Put a tensor of a layout in a buffer of its own, holding the value."""
        kind = np.dtype(dtype)
        number = self.buffer((layout.extent + layout.slack) * kind.itemsize)
        tensor = Tensor(name, kind, layout, Address("arena", number))
        if any(map(any, layout.halo)):
            self._buffers[number][self.GUARD : -self.GUARD] = layout.fill & 255
        if value is not None:
            self.array(tensor)[...] = value
        self.tensors[name] = tensor
        return tensor

    def snapshot(self) -> list[Array]:
        """All memory as it is."""
        return [buffer.copy() for buffer in self._buffers]

    def changed(self, before: Sequence[Array], written: Iterable[Tensor]) -> list[int]:
        """Numbers of the buffers that differ from a snapshot in bytes of no element of `written`."""
        masks = [np.zeros(buffer.size, bool) for buffer in before]
        for tensor in written:
            item = tensor.dtype.itemsize
            start = self.GUARD + tensor.storage.offset + tensor.layout.origin * item
            strides = [*(s * item for s in tensor.layout.strides), 1]
            mask = masks[tensor.storage.buffer][start:]
            np.lib.stride_tricks.as_strided(mask, (*tensor.shape, item), strides)[...] = True
        pairs = zip(before, self._buffers, masks)
        return [i for i, (was, now, mask) in enumerate(pairs) if np.any((was != now) & ~mask)]

    def overrun(self) -> list[int]:
        """Numbers of the buffers whose guards are not what they were."""
        ends = ((i, b[: self.GUARD], b[-self.GUARD :]) for i, b in enumerate(self._buffers))
        return [i for i, *guards in ends if any((guard != self.PATTERN).any() for guard in guards)]

    # The plan, as lowerings see it

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            constant = self.graph.constant(name)
            fact = self.graph.fact(name)
            assert fact is not None
            self.place(name, Layout.contiguous(fact.sizes), fact.dtype, constant)
        return self.tensors[name]

    def planar(self, name: str, halo: Sequence[tuple[int, int]] = (), fill: int = 0) -> Tensor:
        assert not any(map(any, halo)), "a border is not asked for by what is tested here"
        tensor = self.tensor(name)
        return tensor if tensor.layout.strides[-1] == 1 else self._copied(tensor)

    def contiguous(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        return tensor if tensor.layout.is_contiguous else self._copied(tensor)

    def _copied(self, tensor: Tensor) -> Tensor:
        copy = self.temporary(Layout.contiguous(tensor.shape), tensor.dtype)
        if not self._emit_only:
            self.array(copy)[...] = self.array(tensor)
        return copy

    def alias(self, name: str, tensor: Tensor) -> bool:
        if self.refuse_aliases or name in self.tensors:
            return False
        self.tensors[name] = replace(tensor, name=name)
        return True

    def temporary(self, layout: Layout, dtype: Any) -> Tensor:
        return self.place(f"temporary {len(self._buffers)}", layout, dtype)

    def constant(self, array: Array) -> Address:
        return self.place(
            f"constant {len(self._buffers)}", Layout.contiguous(array.shape), array.dtype, array
        ).storage

    def scratch(self, size: int) -> None:
        self._scratch = self.buffer(size)

    def step(
        self,
        function: Function,
        operands: Sequence[Operand],
        tasks: int,
        *,
        reads: Sequence[Tensor] = (),
        writes: Sequence[Tensor] = (),
        over: Sequence[Tensor] = (),
        barrier: bool = True,
        gaps: bool = False,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.infos.append(dict(info or {}))
        self.tasks.append(tasks)
        data = llvm.compile_object(llvm.module_text([function]), self.target)
        self.objects.append(data)
        if self._emit_only:
            return
        order = list(range(tasks))
        self._order.shuffle(order)
        if self.target.arch != HOST.arch:
            self._emulate(data, function.name, operands, order)
            return
        code = elf.load([data], self.target.arch)
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(
            code.address(function.name)
        )
        words = (ctypes.c_uint64 * max(len(operands), 1))(*(self._word(operand) for operand in operands))
        scratch = None
        if self._scratch is not None:
            scratch = self._buffers[self._scratch].ctypes.data + self.GUARD
        for task in order:
            run(ctypes.addressof(words), task, scratch)

    def _emulate(self, data: bytes, name: str, operands: Sequence[Operand], order: Sequence[int]) -> None:
        memory = emulation.Region(emulation.MEMORY)
        places = [memory.place(buffer.data) + self.GUARD for buffer in self._buffers]
        words = [
            operand & (1 << 64) - 1 if isinstance(operand, int) else places[operand.buffer] + operand.offset
            for operand in operands
        ]
        scratch = 0 if self._scratch is None else places[self._scratch]
        after = emulation.call(data, name, words, order, memory, scratch, self.target)
        assert not memory.overrun(after)
        for buffer, place in zip(self._buffers, places):
            start = place - self.GUARD - emulation.MEMORY
            buffer[:] = np.frombuffer(after, np.uint8, buffer.size, start)

    def _word(self, operand: Operand) -> int:
        if isinstance(operand, int):
            return operand & (1 << 64) - 1
        return self._buffers[operand.buffer].ctypes.data + self.GUARD + operand.offset

    def lower(self) -> None:
        """Lower (and run) every node."""
        for node in self.graph.nodes:
            FAMILIES[node.op].lower(node, self)


def random_layout(rng: np.random.Generator, shape: Sequence[int]) -> Layout:
    """A layout with gaps between lines, its dimensions in any order in memory, some of them backwards."""
    order = rng.permutation(len(shape)) if rng.random() < 0.5 else np.arange(len(shape))
    strides, step = [0] * len(shape), 1 if rng.random() < 0.7 else int(rng.integers(2, 6))
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1) + int(rng.integers(0, 3))
    origin = 0
    for d, size in enumerate(shape):
        if rng.random() < 0.2:
            origin += strides[d] * max(size - 1, 0)
            strides[d] = -strides[d]
    return Layout(tuple(shape), tuple(strides), origin, step + 1, ((0, 0),) * len(shape))


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    """Numbers of moderate size of any dtype."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        low, high = (0, 200) if kind.kind == "u" else (-100, 100)
        return rng.integers(low, high, shape).astype(kind)
    return (rng.standard_normal(shape) * 3).astype(kind)


def check_lowering(
    graph: Graph,
    feeds: Mapping[str, Array],
    target: Target = HOST,
    *,
    layouts: Mapping[str, Layout] | None = None,
    threads: int = 1,
    views: bool = True,
    tolerance: float = 0.0,
    hint: object = "",
) -> Bench:
    """Run a graph's lowerings over guarded memory and compare all outputs with the reference.

    Args:
        layouts: of some values; others are contiguous.
        views: whether outputs may be views of inputs.
        tolerance: relative and absolute; 0 for equality.
        hint: what to print where it fails, the seed for one.
    """
    bench = Bench(graph, target, threads)
    bench.refuse_aliases = not views
    for name, array in feeds.items():
        bench.place(name, (layouts or {}).get(name, Layout.contiguous(array.shape)), array.dtype, array)
    for name, layout in (layouts or {}).items():
        if name not in feeds:
            bench.place(name, layout, graph.facts[name].dtype)
    if not views:
        for node in graph.nodes:
            for name in node.outputs:
                bench.tensor(name)
    for name in graph.initializers:
        bench.tensor(name)
    before = bench.snapshot()
    bench.lower()
    written = [bench.tensor(name) for node in graph.nodes for name in node.outputs if name]
    assert not bench.changed(before, [t for t in written if t.storage.buffer < len(before)]), hint
    assert not bench.overrun(), hint
    wanted = evaluate(graph, dict(feeds))
    for name in graph.outputs:
        got = bench.array(bench.tensor(name))
        for axis, _ in graph.facts[name].counts:
            got = got[(*[slice(None)] * axis, slice(wanted[name].shape[axis]))]
        assert (got.dtype, got.shape) == (wanted[name].dtype, wanted[name].shape), hint
        np.testing.assert_allclose(
            got.astype(np.float64), wanted[name].astype(np.float64), tolerance, tolerance, err_msg=str(hint)
        )
    return bench


def check_emission(graph: Graph, feeds: Mapping[str, Array], target: Target) -> None:
    """Make the objects for a target of any machine, and link them: nothing may stay undefined."""
    bench = Bench(graph, target, threads=2, emit_only=True)
    for name, array in feeds.items():
        bench.place(name, Layout.contiguous(array.shape), array.dtype, array)
    bench.lower()
    for data in bench.objects:
        elf.load([data], target.arch)
