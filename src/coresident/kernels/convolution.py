"""Convolution in one, two or three dimensions: chooses the kernel, packs, emits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.kernels import depthwise, direct, geometry, sparse, sparse_stripes
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.head import Head
from coresident.kernels.lowering import Plan, lowers
from coresident.kernels.pooling import striped_behind


def constant_weights(node: Node, plan: Plan) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The weights and the bias of a node, which must be constant.

    Raises:
        UnsupportedModel: they are computed in the network.
    """
    weights = plan.graph.constant(node.inputs[1])
    bias = plan.graph.constant(node.input(2))
    if weights is None or (node.input(2) and bias is None):
        raise UnsupportedModel("weights and bias must be constant; these are computed by the network")
    if weights.dtype != np.float32:
        raise UnsupportedModel(f"weights of type {weights.dtype}; float32 is supported")
    return weights, bias


@lowers(
    "Conv",
    halo=geometry.halo,
    flat=True,
    blocks=sparse.gains_in_blocks,
    stripes=sparse_stripes.gains_in_stripes,
    copies=lambda node: (node.inputs[0], node.outputs[0]),
)
def convolution(node: Node, plan: Plan) -> None:
    """Conv (ONNX 22), with the epilogue that fusion attached."""
    weights, bias = constant_weights(node, plan)
    groups = node.get("group", 1)
    outputs = weights.shape[0]
    taps = math.prod(weights.shape[2:])
    sizes = plan.graph.facts[node.outputs[0]].sizes
    if 0 in sizes:
        plan.tensor(node.outputs[0])
        return
    full_bias = np.zeros(outputs, np.float32) if bias is None else bias
    shape = Shape(sizes[0], groups, weights.shape[1], outputs // groups, taps, math.prod(sizes[2:]))
    split = weights.reshape(groups, outputs // groups, weights.shape[1], taps)
    head = Head.behind(node, plan) if groups == 1 else None
    if head is not None:
        info = direct.describe(node, shape, weights, sizes, head.inner)
        if direct.emit_with_head(plan, geometry.ways(node, plan), shape, split, full_bias, head, info):
            plan.include(head.node)
            return
    out, epilogue = plan.tensor(node.outputs[0]), Epilogue.of(node, plan, 3)
    info = direct.describe(node, shape, weights, sizes, epilogue)
    if geometry.is_depthwise(node, plan.graph):
        if info["sparsity"] > 0.3:
            info["why"].append("depthwise: a plane has too few products for skipping zeros to pay")
        depthwise.emit(node, plan, weights, full_bias, out, epilogue, info)
        return
    pool = striped_behind(node, plan)
    direct.emit(plan, geometry.ways(node, plan), shape, split, full_bias, out, epilogue, info, pool=pool)
