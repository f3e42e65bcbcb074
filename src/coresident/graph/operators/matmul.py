"""Matrix products. Source: ONNX MatMul-13, Gemm-13 and MatMulInteger-10.

All may carry an epilogue (`operators.epilogue`). MatMulInteger has one input more than in ONNX, after the
zero points of A and B: a bias, int32[N], that is added to the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.epilogue import epilogue_fact, with_epilogue
from coresident.graph.operators.operands import (
    broadcast,
    check_bytes,
    optional,
    ranked,
    required,
    same_type,
)

Array = np.ndarray[Any, Any]


def _product_shape(facts: Sequence[Fact | None]) -> tuple[int, ...]:
    a, b = required(facts, 0, "A"), required(facts, 1, "B")
    left, right = a.sizes, b.sizes
    if not left or not right:
        raise InvalidModel("A and B must have at least one dimension", shape=(left, right))
    inner = right[0] if len(right) == 1 else right[-2]
    if left[-1] != inner:
        raise InvalidModel(
            f"A has {left[-1]} columns and B {inner} rows; they must be as many", shape=(left, right)
        )
    shape = broadcast([left[:-2], right[:-2]])
    shape += left[-2:-1] if len(left) > 1 else ()
    return shape + (right[-1:] if len(right) > 1 else ())


def _matmul_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    dtype = same_type([required(facts, 0, "A"), required(facts, 1, "B")])
    return [epilogue_fact(node, Fact(dtype, _product_shape(facts)), facts, 2)]


def _matmul_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    result = np.asarray(np.matmul(required(arrays, 0, "A"), required(arrays, 1, "B")))
    return [with_epilogue(node, result, arrays, 2)]


def _integer_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    check_bytes(facts)
    shape = _product_shape(facts)
    a_point, b_point, bias = (optional(facts, i) for i in (2, 3, 4))
    a, b = required(facts, 0, "A").sizes, required(facts, 1, "B").sizes
    if a_point is not None and a_point.sizes not in ((), (1,), a[-2:-1], (*a[:-1], 1)):
        raise InvalidModel("the zero point of A must be one number, or one of each row", shape=a_point.shape)
    if b_point is not None and b_point.sizes not in ((), (1,), b[-1:], (*b[:-2], 1, b[-1])):
        raise InvalidModel(
            "the zero point of B must be one number, or one of each column", shape=b_point.shape
        )
    if bias is not None and bias.sizes != b[-1:]:
        raise InvalidModel(f"the bias must be {list(b[-1:])}, one number a column", shape=bias.shape)
    return [epilogue_fact(node, Fact(np.dtype(np.int32), shape), facts, 5)]


def _integer_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    a, b = required(arrays, 0, "A"), required(arrays, 1, "B")
    a_point, b_point, bias = (optional(arrays, i) for i in (2, 3, 4))
    # Doubles hold these sums exactly, and numpy multiplies matrices of them fast.
    left, right = a.astype(np.float64), b.astype(np.float64)
    if a_point is not None:
        rows = a_point.reshape(-1, 1) if a_point.ndim == 1 and a_point.size > 1 else a_point
        left = left - rows
    if b_point is not None:
        right = right - b_point
    sums = np.asarray(np.matmul(left, right)).astype(np.int64)
    if bias is not None:
        sums += bias
    return [with_epilogue(node, sums.astype(np.int32), arrays, 5)]


def _gemm_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    a, b, c = required(facts, 0, "A"), required(facts, 1, "B"), optional(facts, 2)
    left, right = ranked(a, (2,), "A"), ranked(b, (2,), "B")
    rows, inner = reversed(left) if node.get("transA", 0) else left
    depth, columns = reversed(right) if node.get("transB", 0) else right
    if inner != depth:
        raise InvalidModel(
            f"A, transposed as said, has {inner} columns and B {depth} rows; they must be as many",
            shape=(left, right),
        )
    if c is not None and broadcast([(rows, columns), c.sizes]) != (rows, columns):
        raise InvalidModel(f"C must broadcast onto {(rows, columns)}", shape=c.shape)
    dtype = same_type([f for f in (a, b, c) if f is not None])
    return [epilogue_fact(node, Fact(dtype, (rows, columns)), facts, 3)]


def _gemm_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    a, b, c = required(arrays, 0, "A"), required(arrays, 1, "B"), optional(arrays, 2)
    number = a.dtype.type
    product = np.matmul(a.T if node.get("transA", 0) else a, b.T if node.get("transB", 0) else b)
    result = product * number(node.get("alpha", 1.0))
    if c is not None:
        result = result + c * number(node.get("beta", 1.0))
    return [with_epilogue(node, result, arrays, 3)]


register("MatMul", _matmul_infer, _matmul_reference)
register("MatMulInteger", _integer_infer, _integer_reference)
register("Gemm", _gemm_infer, _gemm_reference)
