"""What several passes ask of constants, and make of them."""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operator import Array
from coresident.passes.patch import Patch, View


def integers(view: View, name: str) -> tuple[int, ...] | None:
    """The elements of a constant vector of integers, or None where it is not constant."""
    constant = view.constant(name)
    return tuple(int(v) for v in constant.ravel()) if constant is not None else None


def per_channel(view: View, name: str, rank: int, axis: int, channels: int) -> Array | None:
    """A constant that varies along one axis at most, as float64 [channels].

    Args:
        view: the graph.
        name: of the constant.
        rank: of the tensor that it is broadcast onto.
        axis: the one axis, not negative.
        channels: the size of that tensor along it.

    Returns:
        None where the value is not constant, not of a float type, or varies otherwise.
    """
    constant = view.constant(name)
    if constant is None or constant.ndim > rank or not np.issubdtype(constant.dtype, np.floating):
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for d, size in enumerate(shape) if d != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(constant.astype(np.float64).ravel(), (channels,))


def reshape(view: View, source: str, like: Node, remove: tuple[Node, ...]) -> Patch:
    """The patch that replaces nodes by one Reshape of `source` to the first output of `like`, one of them."""
    target = like.outputs[0]
    shape = view.fresh(f"{target}.shape")
    node = Node("Reshape", (source, shape), (target,), {}, like.name)
    return Patch(remove, (node,), {shape: np.array(view.shape(target), np.int64)})
