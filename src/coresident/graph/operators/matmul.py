"""Matrix products. Source: ONNX MatMul-13 and Gemm-13. Both may carry an epilogue (`operators.epilogue`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.epilogue import epilogue_fact, with_epilogue
from coresident.graph.operators.operands import broadcast, optional, ranked, required, same_type

Array = np.ndarray[Any, Any]


def _matmul_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
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
    shape += right[-1:] if len(right) > 1 else ()
    return [epilogue_fact(node, Fact(same_type([a, b]), shape), facts, 2)]


def _matmul_reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    result = np.asarray(np.matmul(required(arrays, 0, "A"), required(arrays, 1, "B")))
    return [with_epilogue(node, result, arrays, 2)]


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
register("Gemm", _gemm_infer, _gemm_reference)
