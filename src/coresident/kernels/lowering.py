"""What a kernel family sees while a graph is lowered, and the table of families.

A lowering looks at its node, takes the tensors of its inputs and outputs, emits kernels and adds steps:

    @lowers("Relu")
    def relu(node: Node, plan: Plan) -> None:
        x, y = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
        function = kernel(plan.target, "relu")
        ...
        plan.step(function, [x.address, y.address], tasks=..., info={"op": node.op})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from coresident.codegen.builder import Function
from coresident.codegen.target import Target
from coresident.graph.graph import Graph, Node
from coresident.kernels.layout import Layout


@dataclass(frozen=True)
class Address:
    """A place in a buffer: of an activation (`buffer` is the planner's number) or of the constants.

    Args:
        kind: "arena", "constant", "code", "input" or "output".
        buffer: the planner's number of the buffer; the index of the port for inputs and outputs.
        offset: in bytes.
    """

    kind: str
    buffer: int
    offset: int = 0


@dataclass(frozen=True)
class Tensor:
    """A value with a place.

    Args:
        name: of the value.
        dtype: numpy type of an element (bool is one byte).
        layout: arrangement in its buffer.
        storage: start of the buffer.
    """

    name: str
    dtype: np.dtype[Any]
    layout: Layout
    storage: Address

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def address(self) -> Address:
        """Of element 0."""
        shift = self.layout.origin * self.dtype.itemsize
        return Address(self.storage.kind, self.storage.buffer, self.storage.offset + shift)


Operand = Address | int
"""An argument word of a kernel: an address, or an integer known now."""


class Plan(Protocol):
    """The planner as lowerings see it."""

    target: Target
    graph: Graph
    threads: int
    sparse: bool
    """False: zeros in the weights are to be treated as numbers."""

    def tensor(self, name: str) -> Tensor:
        """The tensor of a value, constants included (they are stored as they are, C-contiguous)."""

    def planar(self, name: str, halo: Sequence[tuple[int, int]] = (), fill: int = 0) -> Tensor:
        """The tensor of a value [N, C, spatial...] of float32 or bytes with rows of unit stride and at least
        this spatial halo, which holds `fill`; where its rows are striped (`Layout.striped`), with that halo.

        A copy is made where the value does not already lie so.
        """

    def striped(self, name: str, halo: Sequence[tuple[int, int]]) -> Tensor:
        """The tensor of a float32 value [N, C, spatial...] with striped rows and at least this spatial halo.

        A copy is made where it does not already lie so.
        """

    def is_striped(self, name: str) -> bool:
        """Whether a value lies in striped rows."""

    def lies_planar(self, name: str, halo: Sequence[tuple[int, int]] = (), fill: int = 0) -> bool:
        """Whether `planar` gives the tensor itself, without a copy."""

    def contiguous(self, name: str) -> Tensor:
        """The tensor in C order; a copy is made where it does not already lie so."""

    def alias(self, name: str, tensor: Tensor) -> bool:
        """Let an output be a view: `tensor` (of another name) with a layout of its own.

        Returns:
            False if the output must be written to a place of its own (it is a model output, or part of a
            concatenation); the lowering then copies.
        """

    def temporary(self, layout: Layout, dtype: np.dtype[Any] | type) -> Tensor:
        """A tensor that lives between the steps of one lowering."""

    def reader(self, name: str) -> Node | None:
        """The only node that reads a value; None where there are several, or the value is an output."""

    def readers(self, name: str) -> Sequence[Node]:
        """The nodes that read a value."""

    def include(self, node: Node) -> None:
        """Say that the lowering of another node does this one's work: it will not be lowered itself."""

    def constant(self, array: np.ndarray[Any, Any]) -> Address:
        """Put packed weights or a table into the constants (64-byte aligned)."""

    def write(self, function: Function, operands: Sequence[Operand], size: int) -> Address:
        """Have machine code written when the program is loaded.

        Args:
            function: a kernel that writes it; its first word is the address to write to.
            operands: its further words, constants and integers.
            size: bytes of the code.

        Returns:
            Where it will be, an operand for steps (64-byte aligned).
        """

    def scratch(self, size: int) -> None:
        """Make sure that each worker has this many bytes of scratch."""

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
        """Add a step. The function's name may be any; equal code is kept once.

        Args:
            function: a kernel (`codegen.builder.kernel`).
            operands: its words.
            tasks: pieces of work.
            reads, writes: tensors that it touches: their buffers live until then, their halos are zeroed
                before.
            over: of `reads`, those whose place what is written may take if nothing reads them afterwards: an
                element is written once, after the elements in its place have been read, by the same task.
            barrier: False if the next step may run beside this one.
            gaps: whether it writes those between the rows of `writes`, too, with what their halos hold.
            info: what `analyze` shows: op, kernel, tile, macs, nonzero_macs, sparsity, pattern, why (a list
                of reasons why it is not sparse, not fused or slow).
        """


Lowering = Callable[[Node, Plan], None]
Halo = Callable[[Node, Graph], tuple[tuple[int, int], ...]]
Fill = Callable[[Node, Graph], int]
Blocks = Callable[[Node, Graph, Target], bool]
Stripes = Callable[[Node, Graph], bool | None]


@dataclass(frozen=True)
class Family:
    """An entry of the table.

    Args:
        lower: emits the node.
        halo: for operators that want their first input planar: the spatial halo that they need; None for
            operators that take any layout.
        fill: the value of that halo; None for zero.
        flat: whether runs of pixels cross row ends, so that input and output want the same gaps between rows.
        blocks: whether a node whose zeros are skipped is faster where pixels lie in blocks (`Layout.blocked`)
            in its first input, its output or what its epilogue adds; None for operators that cannot read
            such.
        stripes: whether a node whose zeros are skipped is faster where rows are cut into stripes
            (`Layout.striped`) in all that it reads and writes, False if it is no slower; None, or None as the
            answer, where it can't read such.
        copies: of what a node reads and writes with striped rows, the values that it can copy from others or
            to them.
    """

    lower: Lowering
    halo: Halo | None = None
    flat: bool = False
    fill: Fill | None = None
    blocks: Blocks | None = None
    stripes: Stripes | None = None
    copies: Callable[[Node], Sequence[str]] = lambda node: ()


FAMILIES: dict[str, Family] = {}


def lowers(
    *ops: str,
    halo: Halo | None = None,
    flat: bool = False,
    fill: Fill | None = None,
    blocks: Blocks | None = None,
    stripes: Stripes | None = None,
    copies: Callable[[Node], Sequence[str]] = lambda node: (),
) -> Callable[[Lowering], Lowering]:
    """Enter a lowering in the table for these operators."""

    def enter(function: Lowering) -> Lowering:
        for op in ops:
            assert op not in FAMILIES, f"two lowerings for {op}"
            FAMILIES[op] = Family(function, halo, flat, fill, blocks, stripes, copies)
        return function

    return enter
