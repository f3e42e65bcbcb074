"""What the columns of a layer's matrices see: im2col of a few output positions.

Positions of a problem (`network.Problem`) are numbered: pictures first, then the outputs of its phase in
row-major order, all of them where the layer is no transposed convolution. Of a product, they are its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from coresident.graph.operator import Array
from coresident.graph.operators.windows import TransposedWindow, Window
from coresident.sparsification.network import Layer, Problem, problems


def positions(layer: Layer, problem: int, shape: Sequence[int]) -> int:
    """How many output positions a problem has.

    Args:
        layer: the layer.
        problem: number of the problem.
        shape: of the layer's input.
    """
    if not layer.kernel:
        return prod(shape[:-1]) if not layer.node.get("transA", 0) else int(shape[-1])
    return shape[0] * prod(_grid(layer, problems(layer)[problem], shape[2:]).counts)


def columns(layer: Layer, problem: int, x: Array, chosen: Array) -> Array:
    """What the columns of a problem see at some output positions.

    Args:
        layer: the layer.
        problem: number of the problem.
        x: the layer's input; [N, C, spatial...] for convolutions.
        chosen: int [P], positions.

    Returns:
        float32 [columns, P]; zeros where a window reaches into the padding.
    """
    if not layer.kernel:
        rows = x.T if layer.node.get("transA", 0) else x.reshape(-1, x.shape[-1])
        return np.ascontiguousarray(rows[chosen].T, np.float32)
    part = problems(layer)[problem]
    spatial = x.shape[2:]
    grid = _grid(layer, part, spatial)
    picture, *place = np.unravel_index(chosen, (x.shape[0], *grid.counts))
    first = part.group * layer.inputs_in_group
    data = x[:, first : first + layer.inputs_in_group]
    result = np.empty((len(part.taps), layer.inputs_in_group, len(chosen)), np.float32)
    for tap, offsets in enumerate(grid.offsets):
        at = [p * step + offset for p, step, offset in zip(place, grid.steps, offsets)]
        inside = np.logical_and.reduce([(a >= 0) & (a < size) for a, size in zip(at, spatial)])
        index = tuple(np.where(inside, a, 0) for a in at)
        where: tuple[Any, ...] = (picture, slice(None), *index)
        seen = data[where]
        result[tap] = np.where(inside[:, None], seen, np.float32(0)).T
    return result.reshape(-1, len(chosen))


@dataclass(frozen=True)
class _Grid:
    """Where the outputs of a problem read: output i of `counts`, tap t: input i * steps + offsets[t]."""

    counts: tuple[int, ...]
    steps: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]


def _grid(layer: Layer, problem: Problem, spatial: Sequence[int]) -> _Grid:
    if layer.op == "Conv":
        window = Window.of(layer.node, spatial, layer.kernel)
        offsets = tuple(
            tuple(p * d - b for p, d, b in zip(tap, window.dilations, window.pads_begin))
            for tap in problem.taps
        )
        return _Grid(window.output(spatial), window.strides, offsets)
    # Output o reads, through tap k, input (o + pad - k * dilation) / stride; o + pad = phase + stride * j.
    found = TransposedWindow.of(layer.node, spatial, layer.kernel)
    geometry = list(zip(problem.phase, found.strides, found.pads_begin, found.output))
    lowest = [max(-(-(pad - phase) // stride), 0) for phase, stride, pad, _ in geometry]
    counts = tuple(
        max((pad + size - 1 - phase) // stride - low + 1, 0)
        for (phase, stride, pad, size), low in zip(geometry, lowest)
    )
    offsets = tuple(
        tuple(
            low + (phase - k * dilation) // stride
            for low, phase, k, dilation, stride in zip(
                lowest, problem.phase, tap, found.dilations, found.strides
            )
        )
        for tap in problem.taps
    )
    return _Grid(counts, (1,) * len(counts), offsets)
