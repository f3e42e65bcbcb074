"""One direct convolution, dense or sparse: whichever the cost model says is faster."""

from __future__ import annotations

from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.kernels import dense, dense_code, sparse, sparse_code
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.lowering import Plan, Tensor


def describe(
    node: Node, shape: Shape, weights: np.ndarray[Any, Any], out: Tensor, epilogue: Epilogue
) -> dict[str, Any]:
    """What `analyze` shows of a convolution, whichever kernel computes it."""
    nonzeros = int(np.count_nonzero(weights))
    return {
        "op": node.op,
        "shape": list(out.shape),
        "kernel_shape": list(weights.shape),
        "epilogue": epilogue.name,
        "macs": shape.macs,
        "nonzero_macs": shape.batch * shape.pixels * nonzeros,
        "sparsity": 1 - nonzeros / max(1, weights.size),
        "why": [],
    }


def emit(
    plan: Plan,
    g: Geometry,
    shape: Shape,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
    barrier: bool = True,
) -> None:
    """Add the step of a convolution.

    Args:
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        info: of `describe`; gets the reason if many zeros are multiplied all the same.
        barrier: False if the next step does not depend on it.
    """
    as_dense = dense.choose(plan, g, shape, out, epilogue)
    if plan.sparse and np.count_nonzero(weights) < weights.size:
        as_sparse = sparse.choose(plan, g, shape, weights, out, epilogue)
        ratio = as_sparse.cycles / as_dense.cycles
        if ratio < 1:
            sparse_code.emit(plan, g, shape, as_sparse, weights, bias, out, epilogue, info, barrier)
            return
        if info["sparsity"] > 0.3:
            zeros = f"{info['sparsity']:.0%} zeros"
            info["why"].append(f"dense: skipping {zeros} would take {ratio:.2f} times as long")
    dense_code.emit(plan, g, shape, as_dense, weights, bias, out, epilogue, info, barrier)
