"""Convolutions as matrix products over columns: for weights that the network computes, and deformable ones.

Columns (im2col) and its transpose Fold (col2im) are operators of this graph alone; Col2Im, and the forms of
Conv and ConvTranspose whose weights are not constant, are written with them.

Source: ONNX Col2Im-18, DeformConv-22.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.composite import Body, composite, expands
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.operands import floating, integers, required, values
from coresident.graph.operators.windows import TransposedWindow, Window

Array = np.ndarray[Any, Any]


def columns_window(node: Node, spatial: Sequence[int]) -> tuple[Window, tuple[int, ...]]:
    """The window of a Columns or DeformedColumns node, and how many there are."""
    window = Window.of(node, spatial, node.get("kernel_shape"))
    return window, window.output(spatial)


def _columns_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    window, output = columns_window(node, x.sizes[2:])
    return [Fact(x.dtype, (*x.sizes[:2], prod(window.kernel), prod(output)))]


def _columns(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    window, output = columns_window(node, x.shape[2:])
    padded = window.padded(x, output, 0)
    taps = [window.tap(padded, at, output) for at in product(*(range(k) for k in window.kernel))]
    return [np.stack(taps, axis=2).reshape(*x.shape[:2], len(taps), prod(output))]


def fold_geometry(node: Node) -> tuple[TransposedWindow, tuple[int, ...], tuple[int, ...]]:
    """Of a Fold node: the window, how many there are, and how far they reach in each dimension.

    The attributes are kernel_shape, strides, dilations, pads_begin, image_shape and windows.
    """
    get = node.get
    window = TransposedWindow(
        *(get(k) for k in ("kernel_shape", "strides", "dilations", "pads_begin", "image_shape"))
    )
    windows = tuple(get("windows"))
    reach = tuple(
        max((n - 1) * s + (k - 1) * d + 1, o + p)
        for n, s, k, d, o, p in zip(
            windows, window.strides, window.kernel, window.dilations, window.output, window.pads_begin
        )
    )
    return window, windows, reach


def fold_slices(window: TransposedWindow, windows: Sequence[int], position: Sequence[int]) -> list[range]:
    """Where the elements at one position of all windows lie, in each dimension."""
    return [
        range(p * d, p * d + (n - 1) * s + 1, s)
        for p, d, n, s in zip(position, window.dilations, windows, window.strides)
    ]


def _fold_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "the columns")
    window, windows, _ = fold_geometry(node)
    n, channels, taps, count = x.sizes
    if taps != prod(window.kernel) or count != prod(windows):
        raise InvalidModel(f"{windows} windows of {window.kernel} do not fit the columns", shape=x.shape)
    return [Fact(floating(x), (n, channels, *window.output))]


def _fold(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the columns")
    window, windows, reach = fold_geometry(node)
    full = np.zeros((*x.shape[:2], *reach), x.dtype)
    for tap, position in enumerate(product(*(range(k) for k in window.kernel))):
        place = tuple(slice(r.start, r.stop, r.step) for r in fold_slices(window, windows, position))
        full[(slice(None), slice(None), *place)] += x[:, :, tap].reshape(*x.shape[:2], *windows)
    cut = tuple(slice(p, p + o) for p, o in zip(window.pads_begin, window.output))
    return [full[(slice(None), slice(None), *cut)]]


register("Columns", _columns_infer, _columns)
register("Fold", _fold_infer, _fold)


@composite("Col2Im", operands=[1, 2])
def _col2im(body: Body) -> list[str]:
    x, node = body.inputs[0], body.node
    image, block = (
        integers(required([array], 0, what), what)
        for array, what in zip(
            values([body.fact(name) for name in body.inputs], 1, ["image_shape", "block_shape"]),
            ["image_shape", "block_shape"],
        )
    )
    if len(body.shape(x)) != 3 or len(image) != len(block) or body.shape(x)[1] % prod(block):
        raise InvalidModel("columns [N, C * block, windows] are needed", shape=body.shape(x))
    window = Window.of(node, image, block)
    windows = window.output(image)
    n, rows, count = body.shape(x)
    cut = body.reshape(x, n, rows // prod(block), prod(block), count)
    return [
        body.add(
            "Fold", cut, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
            pads_begin=window.pads_begin, image_shape=image, windows=windows,
        )
    ]  # fmt: skip


def _with_bias(body: Body, y: str, bias: str) -> str:
    if not bias:
        return y
    channels, rank = body.shape(y)[1], len(body.shape(y))
    return body.add("Add", y, body.reshape(bias, channels, *(1,) * (rank - 2)))


def _are_constant(body: Body) -> bool:
    return all(body.fact(name).value is not None for name in body.inputs[1:3] if name)


@expands("Conv")
def _convolution(body: Body) -> list[str] | None:
    """With weights or a bias that the network computes."""
    if _are_constant(body):
        return None
    node, (x, w) = body.node, body.inputs[:2]
    if body.fact(w).value is not None:
        return [_with_bias(body, body.add("Conv", x, w, **node.attributes), body.input(2))]
    taps = body.shape(w)[2:]
    kept = {name: node.attributes[name] for name in _GEOMETRY if name in node.attributes}
    columns = body.add("Columns", x, **{**kept, "kernel_shape": taps})
    spatial = Window.of(node, body.shape(x)[2:], taps).output(body.shape(x)[2:])
    return [_with_bias(body, _product(body, w, columns, spatial), body.input(2))]


_GEOMETRY = ("strides", "dilations", "pads", "auto_pad")


def _product(body: Body, w: str, columns: str, spatial: Sequence[int]) -> str:
    """The weights times columns [N, C, taps, windows], group by group: [N, M, spatial...]."""
    group = int(body.node.get("group", 1))
    n, channels, taps, count = body.shape(columns)
    outputs = body.shape(w)[0]
    inputs = channels // group * taps
    rows = body.reshape(w, group, outputs // group, inputs)
    sums = body.add("MatMul", rows, body.reshape(columns, n, group, inputs, count))
    return body.reshape(sums, n, outputs, *spatial)


@expands("ConvTranspose")
def _transposed(body: Body) -> list[str] | None:
    """With weights or a bias that the network computes."""
    if _are_constant(body):
        return None
    node, (x, w) = body.node, body.inputs[:2]
    if body.fact(w).value is not None:
        return [_with_bias(body, body.add("ConvTranspose", x, w, **node.attributes), body.input(2))]
    group, (n, channels, *spatial) = int(node.get("group", 1)), body.shape(x)
    outputs, *taps = body.shape(w)[1:]
    window = TransposedWindow.of(node, spatial, taps)
    rows = outputs * prod(taps)
    turned = body.transpose(body.reshape(w, group, channels // group, rows), 0, 2, 1)
    columns = body.add("MatMul", turned, body.reshape(x, n, group, channels // group, prod(spatial)))
    y = body.add(
        "Fold", body.reshape(columns, n, group * outputs, prod(taps), prod(spatial)),
        kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
        pads_begin=window.pads_begin, image_shape=window.output, windows=tuple(spatial),
    )  # fmt: skip
    return [_with_bias(body, y, body.input(2))]


@composite("DeformConv")
def _deformable(body: Body) -> list[str]:
    node, (x, w, offset) = body.node, body.inputs[:3]
    taps = body.shape(w)[2:]
    kept = {name: node.attributes[name] for name in _GEOMETRY if name in node.attributes}
    attributes = {**kept, "kernel_shape": taps, "offset_group": int(node.get("offset_group", 1))}
    mask = [body.input(4)] if body.input(4) else []
    columns = body.add("DeformedColumns", x, offset, *mask, **attributes)
    return [_with_bias(body, _product(body, w, columns, body.shape(offset)[2:]), body.input(3))]


def _deformed_infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, offset = required(facts, 0, "X"), required(facts, 1, "offset")
    n, channels, *spatial = x.sizes
    window, output = columns_window(node, spatial)
    taps, groups = prod(window.kernel), int(node.get("offset_group", 1))
    if groups < 1 or channels % groups:
        raise InvalidModel(f"offset_group {groups} must divide the channels", shape=x.shape)
    wanted = [(n, groups * taps * len(spatial), *output), (n, groups * taps, *output)]
    for fact, shape, what in zip(facts[1:], wanted, ("offset", "mask")):
        if fact is not None and (fact.sizes != shape or fact.dtype != x.dtype):
            raise InvalidModel(f"{what} must be {x.dtype} {shape}", shape=fact.shape)
    if floating(x) != offset.dtype:
        raise InvalidModel("X and offset must be of one type", shape=x.shape)
    return [Fact(x.dtype, (n, channels, taps, prod(output)))]


def _deformed(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    """Linear interpolation at the displaced places; what lies outside is 0."""
    x, offset = required(arrays, 0, "X"), required(arrays, 1, "offset")
    n, channels, *spatial = x.shape
    window, output = columns_window(node, spatial)
    taps, groups, rank = prod(window.kernel), int(node.get("offset_group", 1)), len(spatial)
    moved = offset.reshape(n, groups, taps, rank, *output)
    result = np.zeros((n, groups, channels // groups, taps, *output), x.dtype)
    source = x.reshape(n, groups, channels // groups, *spatial)
    for tap, position in enumerate(product(*(range(k) for k in window.kernel))):
        starts = np.meshgrid(
            *(
                np.arange(o) * s + p * d - b
                for o, s, p, d, b in zip(
                    output, window.strides, position, window.dilations, window.pads_begin
                )
            ),
            indexing="ij",
        )
        places = [start + moved[:, :, tap, d] for d, start in enumerate(starts)]
        for corner in product((0, 1), repeat=rank):
            weight, inside, at = np.ones_like(places[0]), np.ones(places[0].shape, bool), []
            for place, up, size in zip(places, corner, spatial):
                base = np.floor(place)
                weight = weight * (place - base if up else 1 - (place - base))
                inside &= (base + up >= 0) & (base + up < size)
                at.append(np.clip(base + up, 0, size - 1).astype(np.int64))
            batch, group = np.ogrid[:n, :groups]
            ones = (1,) * len(output)
            seen = source[(batch.reshape(n, 1, *ones), group.reshape(1, groups, *ones), slice(None), *at)]
            result[:, :, :, tap] += np.moveaxis(seen, -1, 2) * np.where(inside, weight, 0)[:, :, None]
    if len(arrays) > 2:
        mask = required(arrays, 2, "mask")
        result *= mask.reshape(n, groups, 1, taps, *output)
    return [result.reshape(n, channels, taps, prod(output)).astype(x.dtype, copy=False)]


register("DeformedColumns", _deformed_infer, _deformed)
