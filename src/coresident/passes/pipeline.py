"""The passes in their order, and the one function that runs them."""

from __future__ import annotations

from coresident.graph.graph import Graph
from coresident.graph.operator import infer
from coresident.passes import (
    collapse_movement,
    convert_inside,
    expand,
    expand_quantization,
    fold_batch_norm,
    fold_constants,
    fuse_elementwise,
    fuse_epilogue,
    integer_products,
    merge_padding,
    merge_scales,
    move_quantization,
    recognise_activations,
    recognise_norms,
    recognise_pooling,
    reduce_strength,
    remove_identities,
    share_duplicates,
    share_finders,
    sink_transposes,
    widen_half,
)
from coresident.passes.patch import Pass
from coresident.passes.verify import verify as check

PASSES: tuple[Pass, ...] = (
    widen_half.PASS,
    expand_quantization.PASS,
    fold_constants.ARITHMETIC,
    remove_identities.PASS,
    share_duplicates.PASS,
    move_quantization.PASS,
    fold_constants.ARITHMETIC,
    integer_products.PASS,
    fold_constants.PASS,
    # After products of bytes are: a convolution whose weights are still computed is written as a product.
    expand.PASS,
    remove_identities.PASS,
    # Before strength is reduced: it rewrites the products and bounds that activations are recognised by.
    recognise_activations.PASS,
    recognise_norms.PASS,
    reduce_strength.PASS,
    collapse_movement.PASS,
    sink_transposes.PASS,
    collapse_movement.PASS,
    remove_identities.PASS,
    recognise_pooling.PASS,
    merge_padding.PASS,
    fold_batch_norm.PASS,
    fold_constants.PASS,
    share_duplicates.PASS,
    move_quantization.PASS,
    merge_scales.PASS,
    convert_inside.PASS,
    fuse_elementwise.DEQUANTIZE,
    fuse_elementwise.BYTE_FUNCTIONS,
    fuse_epilogue.PASS,
    fuse_elementwise.PASS,
)
"""In order; some run again once others have made work for them."""


def optimise(graph: Graph, verify: bool = False) -> Graph:
    """The same network in fewer and larger nodes.

    Args:
        graph: as read, all shapes known (free dimensions bound).
        verify: whether to check the graph after every pass.

    Returns:
        A graph with the same inputs and outputs and facts for all values.

    Raises:
        InvalidModel, UnsupportedModel: the model contradicts itself or needs what is not supported (`infer`).
        RuntimeError: a pass is wrong (found by `verify`, or a pass that finds no end).
    """
    graph = infer(share_finders.share_finders(graph))
    for step in PASSES:
        before, graph = graph, step.run(graph)
        if verify:
            check(before, graph, step.name)
    return graph
