"""Operators that make values of shapes, attributes or ranges: exporters' shape arithmetic.

Source: ONNX Constant-25, Shape-25, Size-25, ConstantOfShape-25, Range-27, EyeLike-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import integers, ranked, required, same_type, values

Array = np.ndarray[Any, Any]


def constant_value(node: Node) -> Array:
    """What a Constant node holds.

    Raises:
        InvalidModel: it has no value of numbers.
    """
    if node.get("value") is not None:
        return np.asarray(node.get("value"))
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype)
    raise InvalidModel(f"a constant of {', '.join(node.attributes) or 'nothing'}; numbers are needed")


def _constant_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    return [Fact.of(constant_value(node))]


def _constant(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    return [constant_value(node)]


def _shape_of(node: Node, shape: tuple[int, ...]) -> Array:
    return np.asarray(shape[slice(node.get("start", 0), node.get("end"))], np.int64)


def _shape_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    return [Fact.of(_shape_of(node, required(facts, 0, "the data").sizes))]


def _shape(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    return [_shape_of(node, required(arrays, 0, "the data").shape)]


def _size_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    return [Fact.of(np.asarray(prod(required(facts, 0, "the data").sizes), np.int64))]


def _size(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.asarray(required(arrays, 0, "the data").size, np.int64)]


def _fill(node: Node) -> Array:
    value = np.asarray(node.get("value", np.zeros(1, np.float32)))
    if value.size != 1:
        raise InvalidModel("value must be one number", shape=value.shape)
    return value.reshape(())


def _filled_shape(target: Array | None) -> tuple[int, ...]:
    if target is None:
        raise InvalidModel("input 0, the shape wanted, is missing")
    shape = integers(target, "the shape wanted")
    if min(shape, default=0) < 0:
        raise InvalidModel(f"the shape wanted, {shape}, has a negative number")
    return shape


def _constant_of_shape_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    return [Fact(_fill(node).dtype, _filled_shape(values(facts, 0, ["the shape wanted"])[0]))]


def _constant_of_shape(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.full(_filled_shape(arrays[0]), _fill(node))]


def _number(operands: Sequence[Array | None], index: int) -> Any:
    array = required(operands, index, RANGE_OPERANDS[index])
    if array.size != 1:
        raise InvalidModel(f"{RANGE_OPERANDS[index]} must be one number", shape=array.shape)
    return array.reshape(()).item()


def _range_count(operands: Sequence[Array | None]) -> int:
    start, limit, delta = (_number(operands, i) for i in range(3))
    if delta == 0:
        raise InvalidModel("a delta of 0")
    exact = isinstance(start, int)
    return max(int(-((start - limit) // delta)) if exact else ceil((limit - start) / delta), 0)


RANGE_OPERANDS = ("start", "limit", "delta")


def _range_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    dtype = same_type([required(facts, i, name) for i, name in enumerate(RANGE_OPERANDS)])
    return [Fact(dtype, (_range_count(values(facts, 0, RANGE_OPERANDS)),))]


def _range(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    start, delta = required(arrays, 0, "start"), required(arrays, 2, "delta")
    steps = np.arange(_range_count(arrays)).astype(start.dtype)
    return [np.asarray(start.reshape(()) + steps * delta.reshape(())).astype(start.dtype)]


def _eye_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the value of the shape wanted")
    return [Fact(np.dtype(node.get("dtype", x.dtype)), ranked(x, (2,), "the value of the shape wanted"))]


def _eye(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the value of the shape wanted")
    return [np.eye(x.shape[0], x.shape[1], k=int(node.get("k", 0)), dtype=node.get("dtype", x.dtype))]


register("Constant", _constant_infer, _constant)
register("Shape", _shape_infer, _shape)
register("Size", _size_infer, _size)
register("ConstantOfShape", _constant_of_shape_infer, _constant_of_shape, operands=[0])
register("Range", _range_infer, _range, operands=[0, 1, 2])
register("EyeLike", _eye_infer, _eye)
