"""Operators that choose elements by their values. Source: ONNX TopK-24."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import axis_in, integers, required, values

Array = np.ndarray[Any, Any]


def top_count(k: Array | None, size: int) -> int:
    """How many TopK takes of a dimension of this size.

    Raises:
        InvalidModel: not one number from 0 to the size.
    """
    numbers = integers(required([k], 0, "K"), "K")
    if len(numbers) != 1 or not 0 <= numbers[0] <= size:
        raise InvalidModel(f"K must be one number from 0 to {size}, not {numbers}")
    return numbers[0]


def _top_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    axis = axis_in(int(node.get("axis", -1)), len(x.shape))
    if x.dtype.kind not in "iuf":
        raise InvalidModel(f"a number is needed, not {x.dtype}", shape=x.shape)
    count = top_count(values(facts, 1, ["K"])[0], x.sizes[axis])
    shape = (*x.sizes[:axis], count, *x.sizes[axis + 1 :])
    return [Fact(x.dtype, shape), Fact(np.dtype(np.int64), shape)]


def _top(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """Of equal elements, the first come first; NaN comes last."""
    x = required(arrays, 0, "X")
    axis = axis_in(int(node.get("axis", -1)), x.ndim)
    count = top_count(required(arrays, 1, "K"), x.shape[axis])
    keys = np.moveaxis(x, axis, -1)
    if node.get("largest", 1):
        # Negated, but for unsigned integers and the least of the signed ones, which have no negative.
        keys = -keys if x.dtype.kind == "f" else np.bitwise_not(keys)
    order = np.moveaxis(np.argsort(keys, axis=-1, kind="stable")[..., :count], -1, axis)
    return [np.take_along_axis(x, order, axis), order.astype(np.int64)]


register("TopK", _top_infer, _top, operands=[1])
