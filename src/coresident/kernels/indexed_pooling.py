"""MaxPool with the indices of what it chose. Source: ONNX MaxPool-22."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from coresident.codegen.builder import Function, Value
from coresident.codegen.math import Typed
from coresident.codegen.types import I64
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.pooling import pool_geometry
from coresident.kernels.lowering import Plan
from coresident.kernels.scalar import digits, items


def max_indices(node: Node, plan: Plan) -> None:
    """The first largest element of each window and where it lies in X, window by window."""
    x = plan.tensor(node.inputs[0])
    y, indices = (plan.tensor(name) for name in node.outputs)
    if x.dtype.kind == "f" and x.dtype.itemsize < 4:
        raise UnsupportedModel(
            f"indices of a pool over {x.dtype}; float32, float64 and integers are supported"
        )
    spatial, dtype = x.shape[2:], x.dtype
    window, _ = pool_geometry(node, spatial)
    rank = len(spatial)
    if node.get("storage_order", 0):
        steps = [math.prod(spatial[:d]) for d in range(rank)]
    else:
        steps = [math.prod(spatial[d + 1 :]) for d in range(rank)]
    info = {"op": node.op, "nodes": [node.name], "kernel": "pool with indices"}
    count, cost = y.layout.elements, 8 * math.prod(window.kernel)
    with items(plan, "pool_indices", count, cost, [y, indices], [x], info) as (f, item, (to, where, source)):
        n, c, *place = digits(item, y.shape)
        plane = source.at(n, c)
        best, chosen = f.var(0, plane.kind), f.var(-1, I64)

        def look(at: Sequence[Value]) -> None:
            value = plane.load(*at)
            found = Typed(value, dtype.name) > Typed(best.get(), dtype.name)
            better = found.value | (chosen.get() < 0)
            if dtype.kind == "f":
                old = best.get()
                better = better | (value.differs(value) & old.equals(old))
            best.set(f.select(better, value, best.get()))
            index = f.constant(0, I64)
            for position, step in zip(at, steps):
                index = index + position * step
            chosen.set(f.select(better, index, chosen.get()))

        starts = [o * s - b for o, s, b in zip(place, window.strides, window.pads_begin)]
        _window(f, starts, window.kernel, window.dilations, spatial, (), look)
        to.store(best.get(), n, c, *place)
        first = (f.value(n, I64) * x.shape[1] + c) * math.prod(spatial)
        where.store(first + chosen.get(), n, c, *place)


def _window(
    f: Function,
    starts: Sequence[Value | int],
    kernel: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int],
    at: tuple[Value, ...],
    look: Callable[[Sequence[Value]], None],
) -> None:
    """`look` at every position of the window that lies within the sizes."""
    d = len(at)
    if d == len(sizes):
        look(at)
        return
    with f.loop(0, kernel[d]) as k:
        position = k * dilations[d] + starts[d]
        with f.when((position >= 0) & (position < sizes[d])):
            _window(f, starts, kernel, dilations, sizes, (*at, position), look)
