"""MatMul and Gemm: dense, or skipping the zeros of constant weights where that is estimated to be faster.

Source: ONNX MatMul-13 and Gemm-13; both may carry an epilogue.
"""

from __future__ import annotations

from collections.abc import Callable

from coresident.graph.graph import Node
from coresident.kernels import matmul_dense, matmul_sparse
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.product import Product, of_node

SPARSE_FROM = 0.7
"""Share of zeros below which nothing is tried."""


@lowers("MatMul", "Gemm")
def matmul(node: Node, plan: Plan) -> None:
    product = of_node(node, plan)
    if not product.c.tensor.layout.elements:
        return
    kernel, why = choose(product, plan)
    if kernel is None:
        matmul_dense.dense(product, plan, why)
    else:
        kernel(product, plan)


def choose(p: Product, plan: Plan) -> tuple[Callable[[Product, Plan], None] | None, list[str]]:
    """The sparse kernel to use, or None and the reasons."""
    if p.weights is None:
        return None, ["the second operand is not a constant matrix"]
    if not plan.sparse:
        return None, ["zeros are treated as numbers"]
    zeros = matmul_sparse.sparsity(p.weights)
    if zeros < SPARSE_FROM:
        return None, [f"{zeros:.0%} of the weights are zero; sparse from {SPARSE_FROM:.0%}"]
    dense = matmul_dense.estimate(plan.target, p)
    cycles, kernel = min(
        ((estimate(plan.target, p), kernel) for estimate, kernel in matmul_sparse.KERNELS),
        key=lambda pair: pair[0],
    )
    if cycles >= dense:
        return None, [f"estimated {dense:.0f} cycles dense, {cycles:.0f} sparse"]
    return kernel, []
