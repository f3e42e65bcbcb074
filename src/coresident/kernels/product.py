"""A matrix product as kernels see it: C = epilogue(alpha * A @ B + beta * bias, extras...), batched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import evaluate
from coresident.codegen.types import F32
from coresident.errors import UnsupportedModel
from coresident.graph.expression import Expression
from coresident.graph.graph import Node
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Address, Plan, Tensor
from coresident.kernels.vectors import load_first, store_first

_FUNCTIONS = ("Exp", "Log", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Pow", "Mod")
HEAVY = frozenset((*_FUNCTIONS, "Elu", "Celu", "Selu", "Softplus", "Swish", "Mish", "Gelu"))
"""Operators whose code is long: an epilogue with one of them is not unrolled."""


@dataclass(frozen=True)
class Matrix:
    """A matrix for each element of a batch, spread by strides (in elements; 0 broadcasts).

    Args:
        tensor: where it lies.
        batch: one stride a batch dimension.
        row, column: strides.
    """

    tensor: Tensor
    batch: tuple[int, ...]
    row: int
    column: int


@dataclass(frozen=True)
class Product:
    """One product.

    Args:
        batch: sizes of the batch dimensions that remain once those that can be are merged into the rows.
        m, n, k: A is m x k, B is k x n.
        a, b, c: the operands and the result.
        bias: added, times beta.
        extras: further operands of the epilogue.
        expression: the epilogue, if any.
        weights: [k, n], where B is constant and the same for the whole batch.
    """

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    c: Matrix
    bias: Matrix | None
    extras: tuple[Matrix, ...]
    alpha: float
    beta: float
    expression: Expression | None
    weights: np.ndarray[Any, Any] | None

    @property
    def matrices(self) -> int:
        return math.prod(self.batch)

    @property
    def macs(self) -> int:
        return self.matrices * self.m * self.n * self.k

    @property
    def heavy(self) -> bool:
        """Whether the epilogue is too long to be unrolled over a tile."""
        return self.expression is not None and any(step.op in HEAVY for step in self.expression.steps)

    @property
    def addends(self) -> tuple[Matrix, ...]:
        """What the epilogue reads beside the result, in the order of its argument words."""
        return (*(() if self.bias is None else (self.bias,)), *self.extras)

    def finish(self, f: Function, total: Value, addends: Sequence[Value]) -> Value:
        """The epilogue on a vector of sums, given as many lanes of each addend."""
        rest = list(addends)
        if self.alpha != 1:
            total = total * self.alpha
        if self.bias is not None:
            bias = rest.pop(0)
            total = total + bias if self.beta == 1 else f.fma(bias, self.beta, total)
        return total if self.expression is None else evaluate(f, self.expression, [total, *rest])


class Output:
    """Writes the result of a product from inside a kernel.

    Args:
        f: the kernel.
        product: what it computes.
        first_word: the argument word that holds the address of C; those of the addends follow.
        offsets: elements from each matrix of the batch's start, C first, then the addends.
    """

    def __init__(self, f: Function, product: Product, first_word: int, offsets: Sequence[Value]) -> None:
        self.f, self.product = f, product
        self._matrices = (product.c, *product.addends)
        starts = [element_0(f, first_word + i, m.tensor) for i, m in enumerate(self._matrices)]
        self._bases = [f.offset(start, o, F32) for start, o in zip(starts, offsets)]

    def at(self, row: Value | int, column: Value | int) -> list[Value]:
        """The addresses of element (row, column) of C and of the addends."""
        f = self.f
        places = []
        for base, matrix in zip(self._bases, self._matrices):
            place = f.offset(base, row * matrix.row, F32) if matrix.row else base
            places.append(f.offset(place, column * matrix.column, F32) if matrix.column else place)
        return places

    def write(self, total: Value, places: Sequence[Value], row: int, column: int, count: int) -> None:
        """The epilogue and the store of `count` sums, lying `row` and `column` further on than the places."""
        f, kind = self.f, total.type
        addends = [
            load_first(f, kind, place, row * m.row + column * m.column, count, m.column)
            for place, m in zip(places[1:], self.product.addends)
        ]
        c = self.product.c
        value = self.product.finish(f, total, addends)
        store_first(f, value, places[0], row * c.row + column * c.column, count, c.column)


def addresses(product: Product) -> list[Address]:
    """The words that an `Output` reads."""
    return [operand(m.tensor) for m in (product.c, *product.addends)]


def of_node(node: Node, plan: Plan) -> Product:
    """The product that a MatMul or Gemm node asks for.

    Raises:
        UnsupportedModel: it is not float32.
    """
    gemm = node.op == "Gemm"
    weights = plan.graph.constant(node.inputs[1])
    if weights is not None and math.prod(weights.shape[:-2]) != 1:
        weights = None
    # Weights are packed: stored as they are they would only take memory.
    b = plan.tensor(node.inputs[1]) if weights is None else _unstored(node.inputs[1], weights)
    a, c = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0])
    if {a.dtype, b.dtype, c.dtype} != {np.dtype(np.float32)}:
        raise UnsupportedModel(
            f"a matrix product of {a.dtype} and {b.dtype}; float32 is supported", shape=c.shape
        )
    shape = c.shape
    row_dropped = not gemm and len(a.shape) == 1
    column_dropped = not gemm and len(b.shape) == 1
    batch = shape[: len(shape) - 2 + row_dropped + column_dropped]

    def on_result(tensor: Tensor) -> Matrix:
        """Strides over the result, where the tensor broadcasts onto it."""
        own = zip(reversed(tensor.shape), reversed(tensor.layout.strides))
        strides = [0 if size == 1 else stride for size, stride in own][::-1]
        strides = [0] * (len(shape) - len(strides)) + strides
        column = 0 if column_dropped else strides.pop()
        row = 0 if row_dropped else strides.pop()
        return Matrix(tensor, tuple(strides), row, column)

    def side(tensor: Tensor, transposed: bool, vector_is_row: bool) -> tuple[Matrix, int, int]:
        sizes, strides = list(tensor.shape), list(tensor.layout.strides)
        if len(sizes) == 1:
            at = 0 if vector_is_row else 1
            sizes.insert(at, 1)
            strides.insert(at, 0)
        (rows, columns), (row, column) = sizes[-2:], strides[-2:]
        spread = [0 if size == 1 else stride for size, stride in zip(sizes[:-2], strides[:-2])]
        outer = (*[0] * (len(batch) - len(spread)), *spread)
        if transposed:
            return Matrix(tensor, outer, column, row), columns, rows
        return Matrix(tensor, outer, row, column), rows, columns

    left, m, k = side(a, gemm and bool(node.get("transA", 0)), True)
    right, _, n = side(b, gemm and bool(node.get("transB", 0)), False)
    own = 3 if gemm else 2
    extras = tuple(on_result(plan.tensor(name)) for name in node.inputs[own:])
    bias = on_result(plan.tensor(node.input(2))) if gemm and node.input(2) and node.get("beta", 1.0) else None
    if weights is not None:
        weights = (weights.T if gemm and node.get("transB", 0) else weights).reshape(k, n)
    product = Product(
        batch,
        m,
        n,
        k,
        left,
        right,
        on_result(c),
        bias,
        extras,
        float(node.get("alpha", 1.0)) if gemm else 1.0,
        float(node.get("beta", 1.0)) if gemm else 1.0,
        node.get("epilogue"),
        weights,
    )
    return _merged(product)


def _unstored(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    return Tensor(name, array.dtype, Layout.contiguous(array.shape), Address("constant", 0))


def _merged(p: Product) -> Product:
    """Batch dimensions of size 1 dropped, and those merged into the rows that B does not vary over."""
    matrices = [p.a, p.b, p.c, *p.addends]
    batch = [(size, [m.batch[i] for m in matrices]) for i, size in enumerate(p.batch) if size != 1]
    rows, row_strides = p.m, [m.row for m in matrices]
    while batch:
        size, strides = batch[-1]
        together = all(s == rows * r for i, (s, r) in enumerate(zip(strides, row_strides)) if i != 1)
        if strides[1] or not (together or rows == 1):
            break
        row_strides = (
            [row_strides[1] if i == 1 else s for i, s in enumerate(strides)] if rows == 1 else row_strides
        )
        rows *= size
        batch.pop()
    new = [
        Matrix(m.tensor, tuple(strides[i] for _, strides in batch), row_strides[i], m.column)
        for i, m in enumerate(matrices)
    ]
    bias = None if p.bias is None else new[3]
    extras = tuple(new[len(new) - len(p.extras) :]) if p.extras else ()
    sizes = tuple(size for size, _ in batch)
    return Product(
        sizes, rows, p.n, p.k, new[0], new[1], new[2], bias, extras, p.alpha, p.beta, p.expression, p.weights
    )
