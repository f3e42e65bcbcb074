"""What a model takes and gives: described as onnxruntime describes it, and arrays fitted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.errors import InputError
from coresident.runtime.program import Port

Array = np.ndarray[Any, Any]

_ORT_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes one.

    Args:
        name: its name.
        shape: sizes; the name of a dimension that each call may choose, None for one without a name and for
            one whose size depends on the data.
        dtype: numpy's name of its element type; "undefined", with no sizes, for an output of a model with
            free dimensions that does not declare it.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    @property
    def type(self) -> str:
        """As onnxruntime writes it: "tensor(float)"."""
        return f"tensor({_ORT_TYPES.get(self.dtype, self.dtype)})"

    @staticmethod
    def of(port: Port) -> NodeArg:
        counted = dict(port.counts)
        sizes = (None if axis in counted else size for axis, size in enumerate(port.shape))
        return NodeArg(port.name, tuple(sizes), port.dtype)


@dataclass(frozen=True)
class ModelMeta:
    """What a model says of itself, as onnxruntime names it.

    Args:
        custom_metadata_map: the metadata that its makers put into it: names of classes, say.
    """

    custom_metadata_map: dict[str, str]


@dataclass(frozen=True)
class FreeDimension:
    """A size that each call may choose, and what another size costs.

    Args:
        input: name of the input.
        axis: of the input.
        name: of the dimension, None for one without.
        in_pieces: whether programs for other sizes serve a new one while its own is compiled.
        why: why they do not.
    """

    input: str
    axis: int
    name: str | None
    in_pieces: bool
    why: str


def in_order(
    feeds: Mapping[str, Array], inputs: Sequence[NodeArg], dtypes: Sequence[np.dtype[Any]]
) -> list[Array]:
    """The feeds in the order of the inputs, C-contiguous and of the right types.

    Args:
        feeds: by name.
        inputs: of the model.
        dtypes: of these.

    Raises:
        InputError: an input is missing, unknown or of another type. Shapes are not looked at.
    """
    if len(feeds) != len(inputs) or any(one.name not in feeds for one in inputs):
        have = [one.name for one in inputs]
        missing = [name for name in have if name not in feeds]
        unknown = [str(name) for name in feeds if name not in have]
        problems = [f"missing {listed(missing)}"] * bool(missing)
        problems += [f"unknown {listed(unknown)}"] * bool(unknown)
        raise InputError(f"inputs: {', '.join(problems)}; the inputs are {listed(have)}")
    return [_fitting(feeds[one.name], one, dtype) for one, dtype in zip(inputs, dtypes)]


def positions(names: Sequence[str], outputs: Sequence[NodeArg]) -> list[int]:
    """Where the named ones stand among the outputs.

    Raises:
        InputError: there is no such output.
    """
    have = [one.name for one in outputs]
    if unknown := [name for name in names if name not in have]:
        raise InputError(f"no output {listed(unknown)}; the outputs are {listed(have)}")
    return [have.index(name) for name in names]


def listed(names: Sequence[str]) -> str:
    """For a message."""
    return ", ".join(repr(name) for name in names) or "none"


def _fitting(array: object, wanted: NodeArg, dtype: np.dtype[Any]) -> Array:
    """An array as the executor takes it; its shape is checked there."""
    if type(array) is np.ndarray and array.dtype == dtype:
        flags = array.flags
        if flags.c_contiguous and flags.aligned:
            return array
    given = np.asarray(array)
    if given.dtype.newbyteorder("=") != dtype:
        raise InputError(f"input {wanted.name!r} is {given.dtype}; {dtype} is needed", shape=given.shape)
    # Not ascontiguousarray, which makes one dimension of none.
    return np.require(given, dtype, ["C", "A"]).view(np.ndarray)


def check_shapes(inputs: Sequence[NodeArg], shapes: Sequence[tuple[int, ...]]) -> None:
    """Whether the inputs may have these shapes.

    Raises:
        InputError: says which may not.
    """
    for one, shape in zip(inputs, shapes):
        fits = all(want == have or not isinstance(want, int) for want, have in zip(one.shape, shape))
        if len(shape) != len(one.shape) or not fits:
            raise InputError(f"input {one.name!r} has shape {list(shape)}; {list(one.shape)} is needed")
