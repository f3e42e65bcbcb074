"""Products of bytes whose second operand the network computes, as products of float32 that are exact.

The kernels of ConvInteger and MatMulInteger pack their weights while compiling. Bytes less their zero points
lie within 255 of 0, so sums of 258 products of them are integers below 2^24, which float32 holds: longer sums
are cut into parts, which are added as int32.
"""

from __future__ import annotations

from math import prod

import numpy as np

from coresident.graph.composite import Body, expands
from coresident.graph.operators.windows import Window

EXACT_DEPTH = (1 << 24) // (255 * 255)
"""Products of two differences of bytes whose sum float32 holds in whatever order they are added."""


def _constant(body: Body, *inputs: int) -> bool:
    return all(body.value(name) is not None for index in inputs if (name := body.input(index)))


def _difference(body: Body, name: str, point: str) -> str:
    """A value of bytes less its zero points, which broadcast onto it, as float32."""
    single = body.add("Cast", name, to="float32")
    return body.add("Sub", single, body.add("Cast", point, to="float32")) if point else single


def _product(body: Body, a: str, b: str) -> str:
    """The int32 sums of a product of matrices [..., M, K] and [..., K, N] of integers, both float32."""
    depth_axis = max(len(body.shape(b)) - 2, 0)
    depth = body.shape(b)[depth_axis]
    total = ""
    for first in range(0, max(depth, 1), EXACT_DEPTH):
        end = min(first + EXACT_DEPTH, depth)
        left, right = (
            name if end - first == depth else _cut(body, name, axis, first, end)
            for name, axis in ((a, len(body.shape(a)) - 1), (b, depth_axis))
        )
        part = body.add("Cast", body.add("MatMul", left, right), to="int32")
        total = body.add("Add", total, part) if total else part
    return total


def _cut(body: Body, name: str, axis: int, first: int, end: int) -> str:
    bounds = (body.constant([number], np.int64) for number in (first, end, axis))
    return body.add("Slice", name, *bounds)


@expands("MatMulInteger")
def _matrix(body: Body) -> list[str] | None:
    a, b = body.inputs[:2]
    points = body.input(2)
    one_point = not points or prod(body.shape(points)) == 1
    if one_point and prod(body.shape(b)[:-2]) == 1 < len(body.shape(b)) and _constant(body, 1, 2, 3, 4):
        return None
    if points and len(body.shape(points)) == 1 and not one_point:
        points = body.reshape(points, -1, 1)
    sums = _product(body, _difference(body, a, points), _difference(body, b, body.input(3)))
    return [body.add("Add", sums, body.input(4)) if body.input(4) else sums]


@expands("ConvInteger")
def _convolution(body: Body) -> list[str] | None:
    if _constant(body, 1, 2, 3, 4):
        return None
    node, (x, w), point = body.node, body.inputs[:2], body.input(3)
    group, (n, _, *spatial) = int(node.get("group", 1)), body.shape(x)
    outputs, inputs, *taps = body.shape(w)
    if point:
        channels = prod(body.shape(point))
        point = body.reshape(point, channels, *(1,) * (len(taps) + 1))
    rows = body.reshape(_difference(body, w, point), group, outputs // group, inputs * prod(taps))
    known = ("strides", "dilations", "pads", "auto_pad")
    kept = {name: node.attributes[name] for name in known if name in node.attributes}
    # After the zero point is gone, so that padding with 0 is padding with it.
    columns = body.add(
        "Columns", _difference(body, x, body.input(2)), **{**kept, "kernel_shape": tuple(taps)}
    )
    windows = Window.of(node, spatial, taps).output(spatial)
    cut = body.reshape(columns, n, group, inputs * prod(taps), prod(windows))
    sums = body.reshape(_product(body, rows, cut), n, outputs, *windows)
    if not body.input(4):
        return [sums]
    return [body.add("Add", sums, body.reshape(body.input(4), outputs, *(1,) * len(taps)))]
