"""Operators that write elements to places that indices name.

ScatterRows, an operator of this graph alone, does the work: rows of updates go to rows of the data.

Source: ONNX ScatterElements-18, ScatterND-18, MaxUnpool-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.gather import check_indices, linear_index
from coresident.graph.operators.operands import axis_in, integers, required, same_type, values
from coresident.graph.operators.windows import Window

Array = np.ndarray[Any, Any]

REDUCTIONS = ("none", "add", "mul", "max", "min")


def reduction(node: Node) -> str:
    """What is done where something is written.

    Raises:
        InvalidModel: none of `REDUCTIONS`.
    """
    found: str = node.get("reduction", "none")
    if found not in REDUCTIONS:
        raise InvalidModel(f"reduction {found!r} is none of {', '.join(REDUCTIONS)}")
    return found


def _rows_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    data, index, updates = (required(facts, i, what) for i, what in enumerate(("data", "index", "updates")))
    if len(data.shape) != 2 or updates.sizes != (*index.sizes, data.sizes[1]) or len(index.shape) != 1:
        raise InvalidModel("rows for rows are needed", shape=(data.shape, index.shape, updates.shape))
    reduction(node)
    return [Fact(same_type([data, updates]), data.sizes)]


def _rows(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    data, index, updates = (required(arrays, i, "an input") for i in range(3))
    y, how = data.copy(), reduction(node)
    act: Any = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}.get(how)
    for row, update in zip(np.clip(index, 0, max(len(y) - 1, 0)), updates):
        y[row] = update if act is None else act(y[row], update)
    return [y]


register("ScatterRows", _rows_infer, _rows)


def _scattered(body: Body, data: str, index: str, updates: str, rows: int) -> str:
    """ScatterRows over the data seen as so many rows."""
    shape = body.shape(data)
    length = prod(shape) // rows if rows else 0
    count = prod(body.shape(index))
    y = body.add(
        "ScatterRows",
        body.reshape(data, rows, length),
        body.reshape(index, count),
        body.reshape(updates, count, length),
        reduction=reduction(body.node),
    )
    return body.reshape(y, *shape)


@composite("ScatterND")
def _scatter_nd(body: Body) -> list[str]:
    data, indices, updates = body.inputs
    shape, wanted = body.shape(data), body.shape(indices)
    depth = wanted[-1] if wanted else 0
    if not 1 <= depth <= len(shape) or body.shape(updates) != (*wanted[:-1], *shape[depth:]):
        raise InvalidModel("updates do not fit indices and data", shape=(shape, wanted, body.shape(updates)))
    check_indices(body.fact(indices), max(shape[:depth]))
    index = linear_index(body, indices, shape[:depth])
    return [_scattered(body, data, index, updates, prod(shape[:depth]))]


@composite("ScatterElements")
def _scatter_elements(body: Body) -> list[str]:
    data, indices, updates = body.inputs
    shape, wanted = body.shape(data), body.shape(indices)
    axis = axis_in(int(body.node.get("axis", 0)), len(shape))
    if (
        len(wanted) != len(shape)
        or wanted != body.shape(updates)
        or any(w > s for d, (w, s) in enumerate(zip(wanted, shape)) if d != axis)
    ):
        raise InvalidModel("indices and updates must be alike and fit the data", shape=(shape, wanted))
    check_indices(body.fact(indices), shape[axis])
    index = linear_index(body, body.reshape(indices, *wanted, 1), shape[axis : axis + 1])
    total = body.add("Mul", index, body.constant(prod(shape[axis + 1 :]), np.int64))
    for d, size in enumerate(wanted):
        if d != axis and size > 1:
            places = np.arange(size).reshape(-1, *(1,) * (len(wanted) - d - 1)) * prod(shape[d + 1 :])
            total = body.add("Add", total, body.constant(places, np.int64))
    return [_scattered(body, data, total, updates, prod(shape))]


@composite("MaxUnpool", operands=[2])
def _max_unpool(body: Body) -> list[str]:
    """The values of a MaxPool back at the places that it names, zeros elsewhere."""
    x, indices = body.inputs[:2]
    (wanted,) = values([body.fact(n) if n else None for n in body.inputs], 2, ["output_shape"])
    shape, node = body.shape(x), body.node
    kernel = node.get("kernel_shape", ())
    if len(shape) < 3 or body.shape(indices) != shape:
        raise InvalidModel("X [N, C, spatial...] and indices of its shape are needed", shape=shape)
    window = Window.of(node, shape[2:], kernel)
    sizes = zip(shape[2:], window.strides, window.kernel, window.pads_begin, window.pads_end)
    pooled = (*shape[:2], *((n - 1) * s + k - b - e for n, s, k, b, e in sizes))
    target = pooled if wanted is None else integers(wanted, "output_shape")
    if len(target) != len(pooled) or min(pooled) < 1 or any(t < p for t, p in zip(target, pooled)):
        raise InvalidModel(f"output_shape {target} must hold {pooled}", shape=shape)
    index = body.add("Cast", body.reshape(indices, prod(shape)), to="int64")
    zeros = body.add("ConstantOfShape", body.constant(pooled, np.int64), value=np.zeros(1, body.dtype(x)))
    y = _scattered(body, zeros, index, x, prod(pooled))
    pads = [*[0] * len(pooled), *(t - p for t, p in zip(target, pooled))]
    return [body.add("Pad", y, body.constant(pads, np.int64)) if any(pads) else y]
