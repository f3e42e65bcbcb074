"""Operators that pick elements by index.

Source: ONNX Gather-13, GatherElements-13, GatherND-13, OneHot-28.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite, expands
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import axis_in, required, values

Array = np.ndarray[Any, Any]


def check_indices(indices: Fact, size: int) -> None:
    """Constant indices are checked while shapes are inferred; those known at run time only, by what runs."""
    if indices.dtype not in (np.int32, np.int64):
        raise InvalidModel(f"indices must be int32 or int64, not {indices.dtype}", shape=indices.shape)
    known = indices.value
    if known is not None and known.size and not -size <= int(known.min()) <= int(known.max()) < size:
        raise InvalidModel(f"indices from {known.min()} to {known.max()} reach outside [{-size}, {size - 1}]")


def _gather_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, indices = required(facts, 0, "the data"), required(facts, 1, "indices")
    shape = x.sizes
    axis = axis_in(int(node.get("axis", 0)), len(shape))
    check_indices(indices, shape[axis])
    return [Fact(x.dtype, (*shape[:axis], *indices.sizes, *shape[axis + 1 :]))]


def _gather(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    indices = required(arrays, 1, "indices")
    return [np.asarray(np.take(required(arrays, 0, "the data"), indices, axis=int(node.get("axis", 0))))]


def _gather_elements_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, indices = required(facts, 0, "the data"), required(facts, 1, "indices")
    shape, wanted = x.sizes, indices.sizes
    axis = axis_in(int(node.get("axis", 0)), len(shape))
    if len(wanted) != len(shape) or any(w > s for i, (w, s) in enumerate(zip(wanted, shape)) if i != axis):
        raise InvalidModel(
            f"indices must fit into the data in all dimensions but {axis}", shape=(shape, wanted)
        )
    check_indices(indices, shape[axis])
    return [Fact(x.dtype, wanted)]


def _gather_elements(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x, indices = required(arrays, 0, "the data"), required(arrays, 1, "indices")
    axis = axis_in(int(node.get("axis", 0)), x.ndim)
    cut = tuple(slice(None) if i == axis else slice(size) for i, size in enumerate(indices.shape))
    return [np.take_along_axis(x[cut], np.where(indices < 0, indices + x.shape[axis], indices), axis)]


def _from_front(body: Body, indices: str, end: str) -> str:
    """Indices of which negative ones count from the end, as int64 from the front.

    Args:
        end: the number of elements, int64[] or [1].
    """
    indices = body.add("Cast", indices, to="int64")
    negative = body.add("Less", indices, body.constant(0, np.int64))
    return body.add("Where", negative, body.add("Add", indices, body.reshape(end)), indices)


@expands("Gather")
def _gather_from_counted(body: Body) -> list[str] | None:
    """Where the data decides what the last element is, negative indices are replaced."""
    x, indices = body.inputs
    axis = axis_in(int(body.node.get("axis", 0)), len(body.shape(x)))
    end = body.counting(x, axis)
    if not end or body.node.get("from_front", 0):
        return None
    return [body.add("Gather", x, _from_front(body, indices, end), axis=axis, from_front=1)]


def linear_index(body: Body, indices: str, sizes: Sequence[int], ends: Sequence[str] = ()) -> str:
    """Indices [..., k] into k dimensions of these sizes as one number each: int64[...], in C order.

    Negative ones count from the end; all are held to their dimension.

    Args:
        ends: for each dimension, what counts its elements, "" where there are as many as its size.
    """
    total = ""
    for d, size in enumerate(sizes):
        end = (ends[d] if ends else "") or body.constant(size, np.int64)
        one = _from_front(body, body.add("Gather", indices, body.constant(d, np.int64), axis=-1), end)
        one = body.add("Clip", one, body.constant(0, np.int64), body.constant(max(size - 1, 0), np.int64))
        stride = body.constant(prod(sizes[d + 1 :]), np.int64)
        term = body.add("Mul", one, stride)
        total = body.add("Add", total, term) if total else term
    return total


@composite("GatherND")
def _gather_nd(body: Body) -> list[str]:
    data, indices = body.inputs
    shape, wanted, batch = body.shape(data), body.shape(indices), int(body.node.get("batch_dims", 0))
    count = wanted[-1] if wanted else 0
    if (
        not 0 <= batch < len(wanted)
        or count < 1
        or batch + count > len(shape)
        or shape[:batch] != wanted[:batch]
    ):
        raise InvalidModel(f"indices do not fit the data with {batch} batch_dims", shape=(shape, wanted))
    picked = shape[batch : batch + count]
    check_indices(body.fact(indices), max(picked))
    ends = [body.counting(data, axis) for axis in range(batch, batch + count)]
    index = linear_index(body, indices, picked, ends)
    if batch:
        first = np.arange(prod(shape[:batch])).reshape(*shape[:batch], *(1,) * (len(wanted) - 1 - batch))
        index = body.add("Add", index, body.constant(first * prod(picked), np.int64))
    rows = body.reshape(data, prod(shape[:batch]) * prod(picked), *shape[batch + count :])
    return [body.add("Gather", rows, index, axis=0, from_front=1)]


def _depth(depth: Array | None) -> int:
    if depth is None or depth.size != 1 or int(depth.reshape(())) < 0:
        raise InvalidModel(f"depth must be one number of at least 0, not {depth}")
    return int(depth.reshape(()))


def _one_hot_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    indices, pair = required(facts, 0, "indices"), required(facts, 2, "values")
    depth = _depth(values(facts, 1, ["depth"])[0])
    if indices.dtype == np.bool_:
        raise InvalidModel("indices must be numbers, not bool", shape=indices.shape)
    if pair.shape != (2,):
        raise InvalidModel("values must be [2], off and on", shape=pair.shape)
    shape = indices.sizes
    axis = axis_in(int(node.get("axis", -1)), len(shape) + 1)
    return [Fact(pair.dtype, (*shape[:axis], depth, *shape[axis:]))]


def _one_hot(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    indices, pair = required(arrays, 0, "indices"), required(arrays, 2, "values")
    depth = _depth(required(arrays, 1, "depth"))
    axis = axis_in(int(node.get("axis", -1)), indices.ndim + 1)
    places = np.arange(depth).reshape(-1, *(1,) * (indices.ndim - axis))
    wanted = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis)
    return [np.where(wanted == places, pair[1], pair[0])]


register("Gather", _gather_infer, _gather)
register("GatherElements", _gather_elements_infer, _gather_elements)
register("OneHot", _one_hot_infer, _one_hot, operands=[1])
