"""The compiled network as plain data: what is cached, stored and loaded.

The ABI of a kernel is `void kernel(const u64 *words, i64 task, void *scratch)`. The words are integers known
at compile time and addresses filled in when the program is loaded; `task` runs from 0 to the step's
`tasks`, exclusive; tasks of one step, and of the steps up to the next barrier, may run at the same time on
several threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Word = tuple[Literal["integer", "constant", "arena", "input", "output"], int]
"""One argument: an integer, a byte offset into constants or arena, or the index of an input or output."""


@dataclass(frozen=True)
class Port:
    """An input or output as the user sees it: C-contiguous, `dtype` a numpy name ("float32").

    Args:
        name, dtype, shape: of the array.
        counts: of an output, (axis, index of another output) for each dimension that holds fewer elements
            than the shape says: that output, one int64, says how many.
        hidden: whether an output is there for others' counts alone, and is not handed out.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    counts: tuple[tuple[int, int], ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Step:
    """One kernel over its tasks.

    Args:
        kernel: symbol in one of the objects.
        words: its arguments.
        tasks: how many pieces of work; 0 is legal and runs nothing.
        barrier: whether all tasks so far must end before the next step starts.
        info: for `analyze`, JSON values only: nodes, op, kernel, shape, macs, nonzero_macs, sparsity,
            pattern, tile, why...
    """

    kernel: str
    words: tuple[Word, ...]
    tasks: int
    barrier: bool = True
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A compiled network for one CPU and one set of shapes.

    Args:
        inputs, outputs: in the model's order; hidden outputs come last.
        steps: in order of execution.
        objects: ELF relocatable objects that hold the kernels and the team's entry points.
        constants: packed weights and tables; 64-byte aligned once loaded.
        arena_bytes: activations of one call.
        scratch_bytes: scratch of one worker.
        target: `Target.key` of the CPU compiled for.
        features: CPU features that the code uses, which a machine that loads it must have.
        preparation: steps that are run once, in order, when the memory of a call is made. What they write to
            the arena no step changes.
        info: about the whole: model name, compile seconds, warnings.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    objects: tuple[bytes, ...]
    constants: bytes | memoryview
    arena_bytes: int
    scratch_bytes: int
    target: str
    features: tuple[str, ...]
    preparation: tuple[Step, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
