"""Global pooling under its own name.

1. ReduceMean and ReduceMax over all spatial axes become GlobalAveragePool and GlobalMaxPool, and a Reshape
   where the axes are not kept.
2. AveragePool and MaxPool whose one window is the whole input, without padding, become the same.
"""

from __future__ import annotations

import numpy as np

from coresident.graph.graph import Node
from coresident.graph.operators.windows import Window
from coresident.passes.constants import integers
from coresident.passes.patch import Patch, View, pattern_pass

GLOBAL = {
    "ReduceMean": "GlobalAveragePool",
    "ReduceMax": "GlobalMaxPool",
    "AveragePool": "GlobalAveragePool",
    "MaxPool": "GlobalMaxPool",
}


def _reduction(view: View, node: Node) -> Patch | None:
    if node.op not in ("ReduceMean", "ReduceMax") or not node.input(1):
        return None
    source, target = node.inputs[0], node.outputs[0]
    shape, axes = view.shape(source), integers(view, node.inputs[1])
    if axes is None or len(shape) < 3 or not np.issubdtype(view.dtype(source), np.floating):
        return None
    if sorted(axis % len(shape) for axis in axes) != list(range(2, len(shape))):
        return None
    if node.get("keepdims", 1):
        return Patch((node,), (Node(GLOBAL[node.op], (source,), (target,), {}, node.name),))
    kept, flat = view.fresh(f"{target}.kept"), view.fresh(f"{target}.shape")
    pool = Node(GLOBAL[node.op], (source,), (kept,), {}, node.name)
    reshape = Node("Reshape", (kept, flat), (target,), {}, node.name)
    return Patch((node,), (pool, reshape), {flat: np.array(shape[:2], np.int64)})


def _one_window(view: View, node: Node) -> Patch | None:
    if node.op not in ("AveragePool", "MaxPool") or not view.gives_one(node):
        return None
    source = node.inputs[0]
    spatial, kernel = view.shape(source)[2:], tuple(node.get("kernel_shape"))
    if kernel != spatial or not np.issubdtype(view.dtype(source), np.floating):
        return None
    window = Window.of(node, spatial, kernel)
    if any(window.pads_begin) or any(window.pads_end) or window.extent != spatial:
        return None
    return Patch((node,), (Node(GLOBAL[node.op], (source,), node.outputs[:1], {}, node.name),))


PASS = pattern_pass("recognise_pooling", _reduction, _one_window)
