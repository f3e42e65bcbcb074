"""The compiled network as plain data: what is cached, stored and loaded.

The ABI of a kernel is `void kernel(const u64 *words, i64 task, void *scratch)`. The words are integers known
at compile time and addresses filled in when the program is loaded; `task` runs from 0 to the step's
`tasks`, exclusive; tasks of one step, and of the steps up to the next barrier, may run at the same time on
several threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from coresident.errors import ArtifactError

Word = tuple[Literal["integer", "constant", "code", "arena", "input", "output"], int]
"""One argument: an integer, a byte offset into constants, written code or arena, or the index of an input or
output."""


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
class Pictures:
    """A batch that is run picture by picture.

    Args:
        count: pictures of the batch.
        inputs: indices of those whose first dimension they are.
        axes: of each output, the one along which they lie; None: the same for all.
    """

    count: int
    inputs: tuple[int, ...]
    axes: tuple[int | None, ...]

    @staticmethod
    def of(content: Any) -> Pictures:
        """From JSON values.

        Raises:
            ArtifactError: they are not what `record` gave.
        """
        try:
            count, inputs, axes = content["count"], tuple(content["inputs"]), tuple(content["axes"])
        except (TypeError, KeyError) as error:
            raise ArtifactError("what is said of the batch can't be read") from error
        numbers = (count, *inputs, *(axis for axis in axes if axis is not None))
        if any(type(number) is not int or number < 0 for number in numbers) or count < 1:
            raise ArtifactError("what is said of the batch can't be")
        return Pictures(count, inputs, axes)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {"count": self.count, "inputs": list(self.inputs), "axes": list(self.axes)}


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
        code_bytes: machine code that is written when the program is loaded.
        writers: steps that write it, run once, in order, before it can be executed; their arguments are
            integers, constants and places in that code.
        preparation: steps that are run once, in order, when the memory of a call is made. What they write to
            the arena no step changes.
        info: about the whole: model name, compile seconds, warnings; and of `pictures`, if the program is for
            one of a batch.
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
    code_bytes: int = 0
    writers: tuple[Step, ...] = ()
    preparation: tuple[Step, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> Pictures | None:
        """The batch of which the program runs one picture; None if it runs all that it is fed."""
        content = self.info.get("pictures")
        if content is None:
            return None
        found = Pictures.of(content)
        if len(found.axes) != len(self.outputs) or max(found.inputs, default=0) >= len(self.inputs):
            raise ArtifactError("what is said of the batch is of another program")
        return found

    @property
    def ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """Inputs and outputs with all pictures of the batch."""
        batch = self.pictures
        if batch is None:
            return self.inputs, self.outputs
        axes = [0 if i in batch.inputs else None for i in range(len(self.inputs))]
        return (
            tuple(_times(port, axis, batch.count) for port, axis in zip(self.inputs, axes)),
            tuple(_times(port, axis, batch.count) for port, axis in zip(self.outputs, batch.axes)),
        )


def _times(port: Port, axis: int | None, count: int) -> Port:
    if axis is None:
        return port
    if axis >= len(port.shape):
        raise ArtifactError(f"the port {port.name!r} has no dimension {axis}", shape=port.shape)
    return replace(port, shape=(*port.shape[:axis], count * port.shape[axis], *port.shape[axis + 1 :]))
