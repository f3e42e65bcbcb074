"""From an optimised graph to a program: lowers node by node, then gives every buffer its place."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from coresident.codegen import driver
from coresident.codegen.builder import Function
from coresident.codegen.compilation import Compilation
from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.errors import Error, UnsupportedModel
from coresident.graph.graph import Fact, Graph, Node
from coresident.kernels import halo, movement, stripes
from coresident.kernels.families import FAMILIES
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Address, Operand, Tensor
from coresident.runtime import cpu
from coresident.runtime.kernels import Kernels
from coresident.runtime.memory import Memory
from coresident.runtime.program import Port, Program, Step, Word
from coresident.schedule import layouts, memory

_LINE = 64

_KEPT_BYTES = 2 << 20
"""Buffers up to this size have a halo that is written once, for all calls. A halo's lines come from whichever
core had them last: in small networks that took a tenth of the time. Larger buffers share memory with all
others, since it is the caches that they would fill."""

_KEPT_SHARE = 1 / 32
"""Of a larger buffer, from which on its halo is written once as well: a volume's halo is a tenth of it, and
to write it in every call took a tenth of the time, too."""


@dataclass
class _Buffer:
    """A buffer of the arena.

    Args:
        size: in bytes.
        layout: None unless its halo stays from call to call: only buffers of this layout share its memory.
        steps: that touch it.
        halo: step that writes it in every call, and whose it is; None if none does.
        gaps: of each step that writes elements, whether it writes the gaps between rows, too.
    """

    size: int
    layout: tuple[np.dtype[Any], Layout] | None = None
    steps: list[int] = field(default_factory=list)
    halo: tuple[int, Tensor] | None = None
    gaps: list[bool] = field(default_factory=list)


class Planner:
    """Implements `kernels.lowering.Plan` for one graph and one target.

    Args:
        graph: optimised, with facts for all values.
        target: to compile for.
        threads: that will run the program.
        sparse: whether zeros among the weights are skipped.
        remarks: {first output of a node: what to tell of it beside what its lowering tells}.
        kernels: that are compiled already, and where those that are compiled now go.
    """

    def __init__(
        self,
        graph: Graph,
        target: Target,
        threads: int,
        sparse: bool = True,
        remarks: Mapping[str, str] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self._remarks = remarks or {}
        self._remark = ""
        # What counts the elements of outputs is an output too, which the user does not see.
        counting = (name for out in graph.outputs for _, name in _fact(graph, out).counts)
        self._hidden = [name for name in dict.fromkeys(counting) if name not in graph.outputs]
        graph = graph.with_(outputs=(*graph.outputs, *self._hidden))
        self.graph, self.target, self.threads, self.sparse = graph, target, threads, sparse
        assigned = layouts.assign(graph, target, sparse)
        self._places, self._gaps = assigned.places, assigned.gaps
        self._tensors: dict[str, Tensor] = {}
        self._roots: dict[str, int] = {}
        self._copies: dict[tuple[str, Any], Tensor] = {}
        self._buffers: list[_Buffer] = []
        self._constants: dict[int, np.ndarray[Any, Any]] = {}
        self._constants_end = 0
        self._alike_constants: dict[tuple[int, bytes], list[int]] = {}
        self._symbols: set[str] = set()
        self._code = Compilation(target, cpu.usable_cores().count, kernels)
        self._steps: list[tuple[str, tuple[Operand, ...], int, bool, dict[str, Any]]] = []
        self._once: set[int] = set()
        self._readers = graph.consumers()
        self._included: set[str] = set()
        self._over: list[tuple[int, int, int]] = []
        self._scratch = 0
        self._writers: list[tuple[str, tuple[Operand, ...]]] = []
        self._written = 0
        self._node, self._op = "", ""

    # What lowerings ask

    def tensor(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name]
        array = self.graph.constant(name)
        if array is not None:
            tensor = Tensor(name, array.dtype, Layout.contiguous(array.shape), self.constant(array))
        elif name in self.graph.inputs:
            fact = self.graph.facts[name]
            port = Address("input", self.graph.inputs.index(name))
            tensor = Tensor(name, fact.dtype, Layout.contiguous(fact.sizes), port)
        elif name in self.graph.outputs and name not in self._places:
            fact = self.graph.facts[name]
            port = Address("output", self.graph.outputs.index(name))
            tensor = Tensor(name, fact.dtype, Layout.contiguous(fact.sizes), port)
        else:
            tensor = self._create(name)
        self._tensors[name] = tensor
        return tensor

    def _create(self, name: str) -> Tensor:
        place, dtype = self._places[name], self.graph.facts[name].dtype
        if place.root not in self._roots:
            root = self.temporary(place.root_layout, dtype)
            self._roots[place.root] = root.storage.buffer
        return Tensor(name, dtype, place.layout, Address("arena", self._roots[place.root]))

    def lies_planar(self, name: str, halo: Sequence[tuple[int, int]] = (), fill: int = 0) -> bool:
        tensor = self.tensor(name)
        layout = tensor.layout
        fact = self.graph.facts[name]
        lanes = layouts.planar_layout(self.target, fact, (0,) * (len(tensor.shape) - 2), (), fill).slack
        return (
            tensor.dtype in layouts.PLANAR
            and not (tensor.storage.kind == "input" and layout.origin)
            and (layout.strides[-1] == 1 or layout.shape[-1] == 1)
            # Kernels read up to a vector past the end of a row: in the arena there is always room for that.
            and (layout.slack >= lanes or (tensor.storage.kind == "arena" and not any(map(any, halo))))
            and all(have[0] >= want[0] and have[1] >= want[1] for have, want in zip(layout.halo[2:], halo))
            and (layout.fill == fill or not any(map(any, halo)))
        )

    def planar(self, name: str, halo: Sequence[tuple[int, int]] = (), fill: int = 0) -> Tensor:
        tensor = self.tensor(name)
        if self.lies_planar(name, halo, fill):
            return tensor
        wanted = tuple(halo) or ((0, 0),) * (len(tensor.shape) - 2)
        key = (name, (wanted, fill))
        if key not in self._copies:
            fact, own = self.graph.facts[name], tuple(max(pair) for pair in wanted)
            # As wide as those of what is made from it, so that runs of pixels cross row ends.
            gaps = tuple(map(max, own, self._gaps.get(fact.sizes[2:], own)))
            copy = self.temporary(layouts.planar_layout(self.target, fact, gaps, wanted, fill), tensor.dtype)
            movement.copy(self, tensor, copy, {"op": "Copy", "nodes": [name], "kernel": "copy to planes"})
            self._copies[key] = copy
        return self._copies[key]

    def is_striped(self, name: str) -> bool:
        return name in self._places and self._places[name].layout.stripes > 0

    def striped(self, name: str, halo: Sequence[tuple[int, int]]) -> Tensor:
        if self.is_striped(name):
            return self.tensor(name)
        key = (name, ("striped", tuple(halo)))
        if key not in self._copies:
            source = self.tensor(name)
            if source.layout.shape[-1] > 1 and source.layout.strides[-1] != 1:
                source = self.contiguous(name)
            layout = Layout.striped(source.shape, halo, self.target.lanes(F32))
            copy = self.temporary(layout, source.dtype)
            stripes.cut(self, source, copy, {"op": "Copy", "nodes": [name], "kernel": "copy to stripes"})
            self._copies[key] = copy
        return self._copies[key]

    def contiguous(self, name: str) -> Tensor:
        tensor = self.tensor(name)
        if tensor.layout.is_contiguous:
            return tensor
        key = (name, "contiguous")
        if key not in self._copies:
            copy = self.temporary(Layout.contiguous(tensor.shape), tensor.dtype)
            movement.copy(self, tensor, copy, {"op": "Copy", "nodes": [name], "kernel": "copy to C order"})
            self._copies[key] = copy
        return self._copies[key]

    def alias(self, name: str, tensor: Tensor) -> bool:
        if name in self.graph.outputs or name in self._tensors or self._places[name].root != name:
            return False
        self._tensors[name] = replace(tensor, name=name)
        return True

    def reader(self, name: str) -> Node | None:
        readers = self._readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    def readers(self, name: str) -> Sequence[Node]:
        return self._readers.get(name, ())

    def include(self, node: Node) -> None:
        self._included.add(node.outputs[0])

    def temporary(self, layout: Layout, dtype: np.dtype[Any] | type) -> Tensor:
        kind = np.dtype(dtype)
        buffer = _Buffer((layout.extent + layout.slack) * kind.itemsize + _LINE)
        self._buffers.append(buffer)
        tensor = Tensor("", kind, layout, Address("arena", len(self._buffers) - 1))
        if any(map(any, layout.halo)):
            first = len(self._steps)
            movement.zero_halo(self, tensor)
            around: int = sum(details["bytes"] for *_, details in self._steps[first:])
            if buffer.size <= _KEPT_BYTES or around >= _KEPT_SHARE * buffer.size:
                buffer.layout = (kind, layout)
                buffer.steps.clear()
                self._once.update(range(first, len(self._steps)))
            elif first < len(self._steps):
                buffer.halo = first, tensor
            buffer.gaps.clear()
        return tensor

    def constant(self, array: np.ndarray[Any, Any]) -> Address:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        alike = self._alike_constants.setdefault((data.size, data[:_LINE].tobytes()), [])
        for at in alike:
            if np.array_equal(self._constants[at], data):
                return Address("constant", 0, at)
        at = -(-self._constants_end // _LINE) * _LINE
        self._constants[at] = data
        self._constants_end = at + data.size
        alike.append(at)
        return Address("constant", 0, at)

    def _constant_size(self, at: int) -> int:
        """Bytes of the constant that begins there, 0 where none does."""
        found = self._constants.get(at)
        return 0 if found is None else found.size

    def _packed_constants(self) -> memoryview:
        """All constants in their places, aligned as the executor needs them."""
        if not self._constants:
            return memoryview(b"")
        packed = Memory(self._constants_end)
        for at, data in self._constants.items():
            packed.view[at : at + data.size] = data.data
        return packed.view[: self._constants_end].toreadonly()

    def write(self, function: Function, operands: Sequence[Operand], size: int) -> Address:
        place = Address("code", 0, self._written)
        self._written += -(-size // _LINE) * _LINE
        self._writers.append((self._symbol(function), (place, *operands)))
        return place

    def scratch(self, size: int) -> None:
        self._scratch = max(self._scratch, -(-size // _LINE) * _LINE)

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
        index = len(self._steps)
        for tensor in writes:
            if tensor.storage.kind == "arena":
                self._buffers[tensor.storage.buffer].gaps.append(gaps)
        for old, new in itertools.product(over, writes):
            alike = {(t.storage.kind, t.storage.offset, t.dtype, t.layout) for t in (old, new)}
            # What is convolved, too, is read by other tasks around what one writes.
            place = (old.storage.kind, old.storage.buffer)
            alone = sum((t.storage.kind, t.storage.buffer) == place for t in reads) == 1
            if len(alike) == 1 and new.storage.kind == "arena" and alone:
                self._over.append((index, old.storage.buffer, new.storage.buffer))
        places = [o for o in operands if isinstance(o, Address)]
        for address in [*places, *(t.storage for t in (*reads, *writes))]:
            if address.kind == "arena":
                self._buffers[address.buffer].steps.append(index)
        touched = {t.storage: t.layout.elements * t.dtype.itemsize for t in (*reads, *writes)}
        touched |= {o: self._constant_size(o.offset) for o in places if o.kind == "constant"}
        details: dict[str, Any] = {"nodes": [self._node], "op": self._op, "bytes": sum(touched.values())}
        if writes:
            details["shape"] = list(writes[0].shape)
        details |= info or {}
        if self._remark and details["op"] == self._op:
            details["why"] = [*details.get("why", ()), self._remark]
        self._steps.append((self._symbol(function), tuple(operands), tasks, barrier, details))

    def _symbol(self, function: Function) -> str:
        """The function's final name, by its content: the same code is compiled once."""
        family = re.sub(r"\W", "_", function.name)[:40]
        function.name = "kernel"
        content = function.text()
        function.name = f"{family}_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        if function.name not in self._symbols:
            self._symbols.add(function.name)
            self._code.add(function)
        return function.name

    # The whole

    def program(self, info: dict[str, Any] | None = None) -> Program:
        """Lower every node and put the result together."""
        with self._code:
            self._lower()
            objects = (driver.object_code(self.target), *self._code.objects())
        offsets, arena = self._memory()
        steps: list[Step] = []
        once: list[Step] = []
        for i, (symbol, operands, tasks, barrier, details) in enumerate(self._steps):
            words = tuple(self._word(operand, offsets) for operand in operands)
            (once if i in self._once else steps).append(Step(symbol, words, tasks, barrier, details))
        return Program(
            inputs=tuple(self._port(name) for name in self.graph.inputs),
            outputs=tuple(self._result(name) for name in self.graph.outputs),
            preparation=tuple(once),
            steps=tuple(steps),
            objects=objects,
            constants=self._packed_constants(),
            arena_bytes=arena,
            scratch_bytes=self._scratch,
            target=self.target.key,
            features=tuple(sorted(self.target.features)),
            code_bytes=self._written,
            writers=tuple(
                Step(symbol, tuple(self._word(operand, offsets) for operand in operands), 1)
                for symbol, operands in self._writers
            ),
            info=info or {},
        )

    def _lower(self) -> None:
        _check_kernels(self.graph)
        for node in self.graph.nodes:
            if node.outputs[0] in self._included:
                continue
            self._node, self._op = node.name or node.outputs[0], node.op
            self._remark = self._remarks.get(node.outputs[0], "")
            try:
                FAMILIES[node.op].lower(node, self)
            except Error as error:
                shapes = tuple(fact and fact.shape for fact in map(self.graph.fact, node.inputs))
                raise error.at(node=self._node, op=node.op, shape=shapes) from error
        self._narrow_halos()
        for i, name in enumerate(self.graph.outputs):
            elsewhere = {*self.graph.inputs, *self.graph.initializers, *self._places, *self.graph.outputs[:i]}
            if name in elsewhere:
                source = self.tensor(name)
                self._node = name
                movement.copy(
                    self,
                    source,
                    replace(source, layout=Layout.contiguous(source.shape), storage=Address("output", i)),
                    {"op": "Copy"},
                )

    def _narrow_halos(self) -> None:
        """Of halos that are written in every call, what lies between rows is left to who writes it anyway: a
        line for each row, which else would come from memory twice."""
        for buffer in self._buffers:
            if buffer.halo is None or buffer.gaps != [True]:
                continue
            index, tensor = buffer.halo
            made = halo.filling(self, tensor, ends=True)
            if made is not None:
                function, tasks, size = made
                _, operands, _, barrier, details = self._steps[index]
                details = {**details, "bytes": size}
                self._steps[index] = self._symbol(function), operands, tasks, barrier, details

    def _memory(self) -> tuple[list[int], int]:
        groups, group = [], 0
        for step in self._steps:
            groups.append(group)
            group += step[3]
        owners = self._in_place(groups)
        lifetimes = [
            memory.Lifetime(b.size, groups[min(b.steps)], groups[max(b.steps)], b.layout)
            if b.steps and owner == i
            else memory.Lifetime(0, 0, 0)
            for i, (b, owner) in enumerate(zip(self._buffers, owners))
        ]
        offsets, size = memory.place(lifetimes)
        return [offsets[owner] for owner in owners], size

    def _in_place(self, groups: Sequence[int]) -> list[int]:
        """The buffer whose memory each has: another's, where it is written over what is not read again."""
        owners = list(range(len(self._buffers)))
        for index, old, new in self._over:
            owner = owners[old]
            before, after = self._buffers[owner], self._buffers[new]
            beside = [i for i in (*before.steps, *after.steps) if groups[i] == groups[index] and i != index]
            fits = (before.size, before.layout) == (after.size, after.layout)
            if fits and not beside and max(before.steps) == index == min(after.steps) and owners[new] == new:
                before.steps.extend(after.steps)
                owners[new] = owner
        return owners

    def _word(self, operand: Operand, offsets: Sequence[int]) -> Word:
        if isinstance(operand, int):
            return ("integer", operand)
        if operand.kind == "arena":
            return ("arena", offsets[operand.buffer] + operand.offset)
        if operand.kind == "constant":
            return ("constant", operand.offset)
        if operand.kind == "code":
            return ("code", operand.offset)
        if operand.offset:
            raise AssertionError("a view into a user's array needs an integer offset")
        return ("input" if operand.kind == "input" else "output", operand.buffer)

    def _port(self, name: str) -> Port:
        fact = _fact(self.graph, name)
        return Port(name, fact.dtype.name, fact.sizes)

    def _result(self, name: str) -> Port:
        counts = _fact(self.graph, name).counts
        places = tuple((axis, self.graph.outputs.index(counting)) for axis, counting in counts)
        return replace(self._port(name), counts=places, hidden=name in self._hidden)


def _fact(graph: Graph, name: str) -> Fact:
    fact = graph.fact(name)
    assert fact is not None
    return fact


def _check_kernels(graph: Graph) -> None:
    """All operators that no family lowers, told at once."""
    missing: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op not in FAMILIES:
            missing.setdefault(node.op, []).append(node.name or node.outputs[0])
    if not missing:
        return
    listed = ", ".join(f"{op} ({len(names)}, first {names[0]!r})" for op, names in sorted(missing.items()))
    raise UnsupportedModel(
        f"operators without kernels, supported on constants alone: {listed}",
        op=next(iter(missing)) if len(missing) == 1 else None,
    )
