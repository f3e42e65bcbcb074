"""What the families share to read their operands: facts while shapes are inferred, arrays while evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.graph import Fact

Array = np.ndarray[Any, Any]
T = TypeVar("T")


def optional(operands: Sequence[T | None], index: int) -> T | None:
    """The operand, None where it is left out."""
    return operands[index] if index < len(operands) else None


def required(operands: Sequence[T | None], index: int, what: str) -> T:
    """The operand.

    Raises:
        InvalidModel: it is left out.
    """
    found = optional(operands, index)
    if found is None:
        raise InvalidModel(f"input {index}, {what}, is missing")
    return found


def values(facts: Sequence[Fact | None], first: int, what: Sequence[str]) -> list[Array | None]:
    """The constant values of the operands from `first` on, one for each name in `what`; None where left out.

    Raises:
        UnsupportedModel: an operand is there but its value is known only at run time.
    """
    found: list[Array | None] = []
    for index, name in enumerate(what, first):
        fact = optional(facts, index)
        if fact is not None and fact.value is None:
            raise UnsupportedModel(
                f"input {index}, {name}, is computed while the network runs; only a constant is supported",
                shape=fact.shape,
            )
        found.append(None if fact is None else fact.value)
    return found


def integers(array: Array, what: str) -> tuple[int, ...]:
    """The elements of an integer operand.

    Raises:
        InvalidModel: it is not of integers.
    """
    if array.dtype.kind not in "iu":
        raise InvalidModel(f"{what} must be integers, not {array.dtype}", shape=array.shape)
    return tuple(int(v) for v in np.ravel(array))


def axis_in(axis: int, rank: int) -> int:
    """The axis counted from the front.

    Raises:
        InvalidModel: it is outside [-rank, rank).
    """
    if not -rank <= axis < rank:
        raise InvalidModel(f"axis {axis} is outside [{-rank}, {rank - 1}], what {rank} dimensions allow")
    return axis % rank


def axes_in(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """The axes counted from the front, in the order given.

    Raises:
        InvalidModel: one is outside [-rank, rank), or named twice.
    """
    found = tuple(axis_in(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise InvalidModel(f"axes {tuple(axes)} name a dimension twice")
    return found


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that these broadcast to, by numpy's rule.

    Raises:
        InvalidModel: they don't.
    """
    result = [1] * max((len(s) for s in shapes), default=0)
    for shape in shapes:
        for i, size in enumerate(shape, len(result) - len(shape)):
            if size != 1 and result[i] not in (1, size):
                raise InvalidModel(
                    "shapes do not broadcast; aligned at the last dimension, sizes must be equal or 1",
                    shape=tuple(shapes),
                )
            result[i] = size if size != 1 else result[i]
    return tuple(result)


def same_type(facts: Sequence[Fact]) -> np.dtype[Any]:
    """The element type of all these.

    Raises:
        InvalidModel: they differ.
    """
    types = {f.dtype for f in facts}
    if len(types) != 1:
        raise InvalidModel(
            f"inputs of one type are needed, not {', '.join(sorted(str(f.dtype) for f in facts))}"
        )
    return facts[0].dtype


def floating(fact: Fact) -> np.dtype[Any]:
    """The element type, a floating-point one.

    Raises:
        InvalidModel: it is not.
    """
    if fact.dtype.kind != "f":
        raise InvalidModel(f"a floating-point type is needed, not {fact.dtype}", shape=fact.shape)
    return fact.dtype


def check_bytes(facts: Sequence[Fact | None]) -> None:
    """Check the types of an integer product's inputs: data, weights, their zero points, a bias.

    Raises:
        InvalidModel: data or weights are neither uint8 nor int8, a zero point is not of their type, or the
            bias is not int32.
    """
    for index, what in enumerate(("the data", "the weights")):
        fact, zero_point = required(facts, index, what), optional(facts, index + 2)
        if fact.dtype not in (np.uint8, np.int8):
            raise InvalidModel(f"{what} must be uint8 or int8, not {fact.dtype}", shape=fact.shape)
        if zero_point is not None and zero_point.dtype != fact.dtype:
            raise InvalidModel(f"the zero point of {what} is {zero_point.dtype}, not {fact.dtype}")
    bias = optional(facts, 4)
    if bias is not None and bias.dtype != np.int32:
        raise InvalidModel(f"the bias must be int32, not {bias.dtype}", shape=bias.shape)


def ranked(fact: Fact, ranks: Sequence[int], what: str) -> tuple[int, ...]:
    """The sizes, of one of these ranks.

    Raises:
        InvalidModel: of another rank.
    """
    if len(fact.shape) not in ranks:
        allowed = " or ".join(str(r) for r in ranks)
        raise InvalidModel(f"{what} must have {allowed} dimensions, not {len(fact.shape)}", shape=fact.shape)
    return fact.sizes


def mean(x: Array, axes: Sequence[int]) -> Array:
    """The mean over the axes, which stay with size 1, in x's floating-point type; of no elements, NaN."""
    count = prod(x.shape[a] for a in axes)
    total = np.sum(x, axis=tuple(axes), keepdims=True, dtype=np.float32 if x.dtype == np.float16 else x.dtype)
    return np.asarray(np.divide(total, total.dtype.type(count))).astype(x.dtype, copy=False)
