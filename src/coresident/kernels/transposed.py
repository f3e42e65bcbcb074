"""Transposed convolution: one ordinary convolution for each phase of the output, then the phases are
interleaved.

Output pixel s*q + p gets the products of those taps k for which (p + pad - k*d) is a multiple of the stride
s; each reads input pixel q + (p + pad - k*d) / s. So phase p is a convolution with unit stride and a few of
the taps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, kernel, word
from coresident.codegen.types import F32, I64, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.windows import TransposedWindow
from coresident.kernels import cost, dense, dense_code, direct, panel, panel_code, sparse
from coresident.kernels.convolution import constant_weights
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers

LEAST_DENSE = 0.7
"""Share of nonzeros from which on skipping zeros gains nothing."""


def taps_of(w: TransposedWindow, dimension: int, phase: int) -> list[tuple[int, int]]:
    """(kernel position, input pixel relative to q) of the taps that reach a phase of one dimension."""
    s, d, pad = w.strides[dimension], w.dilations[dimension], w.pads_begin[dimension]
    return [
        (k, (phase + pad - k * d) // s) for k in range(w.kernel[dimension]) if (phase + pad - k * d) % s == 0
    ]


def gains_in_stripes(node: Node, graph: Graph) -> bool | None:
    """Whether striped rows suit it (`Family.stripes`): where windows meet without overlapping, columns of the
    phases take turns. Zeros are multiplied then."""
    weights = graph.constant(node.inputs[1])
    x, y = (graph.facts[name].sizes[2:] for name in (node.inputs[0], node.outputs[0]))
    if (
        weights is None
        or weights.ndim != len(x) + 2
        or np.count_nonzero(weights) < LEAST_DENSE * weights.size
    ):
        return None
    return False if is_pixel_shuffle(TransposedWindow.of(node, x, weights.shape[2:]), y, x) else None


@lowers(
    "ConvTranspose",
    halo=lambda node, graph: ((0, 0),) * (len(graph.facts[node.inputs[0]].shape) - 2),
    stripes=gains_in_stripes,
    copies=lambda node: (node.inputs[0],),
)
def transposed(node: Node, plan: Plan) -> None:
    """ConvTranspose (ONNX 22), with an epilogue of constants per channel."""
    weights, bias = constant_weights(node, plan)
    groups = node.get("group", 1)
    out = plan.tensor(node.outputs[0])
    if 0 in out.shape:
        return
    inputs, per_group = weights.shape[0] // groups, weights.shape[1]
    x_spatial = plan.graph.facts[node.inputs[0]].sizes[2:]
    spatial = out.shape[2:]
    w = TransposedWindow.of(node, x_spatial, weights.shape[2:])
    epilogue = Epilogue.of(node, plan, 3)
    if epilogue.tensors:
        raise UnsupportedModel("a transposed convolution can't add a tensor as it stores")
    phases = list(itertools.product(*map(range, w.strides)))
    sizes = tuple(-(-o // s) for o, s in zip(spatial, w.strides))
    halo = reach_of(w, sizes, x_spatial)
    x = (plan.striped if out.layout.stripes else plan.planar)(node.inputs[0], halo)
    split = weights.reshape(groups, inputs, per_group, *weights.shape[2:]).swapaxes(1, 2)
    full_bias = np.zeros(groups * per_group, np.float32) if bias is None else bias
    if is_pixel_shuffle(w, spatial, x_spatial):
        shape, target = _merged_shape(x, as_channels(split)), coarse(out, w)
        pixels = dense.choose(plan, _point(x), shape, target, epilogue, merged=True)
        channels = None
        if not x.layout.stripes:
            channels = panel.choose(plan, _point(x), shape, target, epilogue, merged=True)
        choice = pixels if channels is None or pixels.cycles < channels.cycles else channels
        if x.layout.stripes or not _sparse_phases_win(plan, x, split, out, choice.cycles, epilogue):
            _emit_merged(node, plan, x, split, full_bias, out, w, epilogue, choice)
            return
    planes = phase_planes(plan, x, (out.shape[0], out.shape[1], len(phases), *sizes), out.dtype)
    for index, phase in enumerate(phases):
        part, positions = phase_weights(split, w, phase)
        taps = tuple(sum(t * s for t, s in zip(place, x.layout.strides[2:])) for place in positions)
        g = Geometry(x, taps, x.layout.strides[0], x.layout.strides[1], x.layout.strides[2:])
        shape = Shape(out.shape[0], groups, inputs, per_group, part.shape[-1], math.prod(sizes))
        info = direct.describe(node, shape, part, out.shape, epilogue)
        last, target = index == len(phases) - 1, phase_view(planes, index)
        direct.emit(plan, [g], shape, part, full_bias, target, epilogue, info, barrier=last)
    interleave(plan, planes, out, w.strides, phases)


def phase_weights(
    split: np.ndarray[Any, Any], w: TransposedWindow, phase: Sequence[int]
) -> tuple[np.ndarray[Any, Any], tuple[tuple[int, ...], ...]]:
    """Of a phase, the weights [groups, outputs, inputs, taps] and where each tap reads, relative to the
    pixel; one tap of zeros where none reaches it.

    Args:
        split: [groups, outputs, inputs, kernel...].
    """
    found = list(itertools.product(*(taps_of(w, d, p) for d, p in enumerate(phase))))
    if not found:
        return np.zeros((*split.shape[:3], 1), split.dtype), ((0,) * len(phase),)
    picked = [split[(slice(None),) * 3 + tuple(k for k, _ in position)] for position in found]
    return np.stack(picked, axis=-1), tuple(tuple(t for _, t in position) for position in found)


def phase_view(planes: Tensor, index: int) -> Tensor:
    """One of the phases in [N][C][phases][spatial...], as an image."""
    view = planes.layout
    layout = Layout(
        (*view.shape[:2], *view.shape[3:]),
        (*view.strides[:2], *view.strides[3:]),
        view.origin + index * view.strides[2],
        view.extent,
        ((0, 0),) * (len(view.shape) - 1),
        view.slack,
    )
    return Tensor("", planes.dtype, layout, planes.storage)


def reach_of(
    w: TransposedWindow, sizes: Sequence[int], x_spatial: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """What all phases read around the input.

    Args:
        sizes: of a phase's output.
    """
    found = []
    for d, (size, inputs) in enumerate(zip(sizes, x_spatial)):
        reach = [t for p in range(w.strides[d]) for _, t in taps_of(w, d, p)] or [0]
        found.append((max(0, -min(reach)), max(0, size - 1 + max(reach) - (inputs - 1))))
    return tuple(found)


def is_pixel_shuffle(w: TransposedWindow, spatial: Sequence[int], x_spatial: Sequence[int]) -> bool:
    """Whether windows meet without overlapping: every phase is then a 1x1 convolution of the same pixel."""
    covers = all(o == i * s for o, i, s in zip(spatial, x_spatial, w.strides))
    return w.kernel == w.strides and w.strides[-1] == 2 and covers and not any(w.pads_begin)


def as_channels(split: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[groups, outputs, inputs, kernel...] -> [groups, outputs * phases, inputs, 1], phases fastest."""
    groups, outputs, inputs = split.shape[:3]
    flat = split.reshape(groups, outputs, inputs, -1)
    return flat.transpose(0, 1, 3, 2).reshape(groups, -1, inputs, 1)


def coarse(out: Tensor, w: TransposedWindow) -> Tensor:
    """The output seen at the input's pixels: each the first of its phases."""
    view = out.layout
    shape = (*view.shape[:2], *(o // s for o, s in zip(view.shape[2:], w.strides)))
    strides = (*view.strides[:2], *(t * s for t, s in zip(view.strides[2:], w.strides)))
    halo = view.halo if view.stripes else ()
    return Tensor("", out.dtype, view.view(shape, strides, 0, halo), out.storage)


def _point(x: Tensor) -> Geometry:
    """Reads the pixel itself."""
    strides = x.layout.strides
    return Geometry(x, (0,), strides[0], strides[1], strides[2:])


def _merged_shape(x: Tensor, rows: np.ndarray[Any, Any]) -> Shape:
    groups, outputs, inputs, _ = rows.shape
    return Shape(x.shape[0], groups, inputs, outputs, 1, math.prod(x.shape[2:]))


def _sparse_phases_win(
    plan: Plan, x: Tensor, split: np.ndarray[Any, Any], out: Tensor, cycles: float, epilogue: Epilogue
) -> bool:
    """Whether skipping zeros phase by phase, and interleaving the phases after, is faster than `cycles`."""
    if not plan.sparse or np.count_nonzero(split) == split.size:
        return False
    rows = as_channels(split)
    phases = rows.shape[1] // split.shape[1]
    one = rows.reshape(split.shape[0], split.shape[1], phases, -1, 1)[:, :, 0]
    planes = Layout.planar(
        (*out.shape[:2], *x.shape[2:]), (0,) * len(x.shape[2:]), ((0, 0),) * len(x.shape[2:]), 8
    )
    target = Tensor("", out.dtype, planes, out.storage)
    choice = sparse.choose(plan, _point(x), _merged_shape(x, one), one, target, epilogue)
    interleaving = 8 * out.layout.elements / cost.Machine.of(plan.target).l3_bytes
    return choice is not None and phases * choice.cycles + interleaving < cycles


def _emit_merged(
    node: Node,
    plan: Plan,
    x: Tensor,
    split: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    w: TransposedWindow,
    epilogue: Epilogue,
    choice: dense.Choice | panel.Choice,
) -> None:
    """All phases as channels of one 1x1 convolution, which interleaves them as it stores."""
    rows = as_channels(split)
    shape = _merged_shape(x, rows)
    info = direct.describe(node, shape, rows, out.shape, epilogue)
    merged = tuple(zip(w.strides[:-1], out.layout.strides[2:-1]))
    repeated = np.repeat(bias, math.prod(w.strides))
    rest = rows, repeated, coarse(out, w), epilogue, info
    if isinstance(choice, panel.Choice):
        panel_code.emit(plan, _point(x), shape, choice, *rest, merged=merged)
    else:
        dense_code.emit(plan, _point(x), shape, choice, *rest, merged=merged)


def phase_planes(plan: Plan, x: Tensor, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
    """A temporary [N][C][phases][spatial...] with the input's gaps between rows where it is large enough
    for that."""
    spatial = shape[3:]
    strides = list(x.layout.strides[2:])
    if any(size > have for size, have in zip(spatial, x.shape[2:])):
        strides = [math.prod(spatial[d + 1 :]) for d in range(len(spatial))]
    slack = max(plan.target.lanes(F32), 32 // dtype.itemsize)
    layout = Layout.phased(shape, strides, slack, dtype.itemsize)
    return plan.temporary(layout, dtype)


def interleave(
    plan: Plan, x: Tensor, y: Tensor, strides: Sequence[int], phases: Sequence[tuple[int, ...]]
) -> None:
    """Put the phases [N][C][phases][spatial...] together into [N][C][spatial...]; one task an output
    plane."""
    f = kernel(plan.target, "phase_merge")
    element = of_dtype(y.dtype)
    lanes, rank = min(plan.target.lanes(element), 16), len(strides)
    vector = element.by(lanes)
    source, target = word(f, 0), word(f, 1)
    batch, channel = f["task"] / y.shape[1], f["task"] % y.shape[1]
    from_plane = batch * x.layout.strides[0] + channel * x.layout.strides[1]
    to_plane = batch * y.layout.strides[0] + channel * y.layout.strides[1]
    stride, width = strides[-1], y.shape[-1]
    index = {phase: i for i, phase in enumerate(phases)}

    def row(at_in: Value, at_out: Value, outer: tuple[int, ...]) -> None:
        starts = [at_in + index[(*outer, p)] * x.layout.strides[2] for p in range(stride)]
        done = f.var(f.constant(0, I64))
        if stride == 2:
            low = [lane // 2 + (lane % 2) * lanes for lane in range(lanes)]
            with f.loop(0, width // (2 * lanes)) as block:
                a, b = (f.load(vector, source, at + block * lanes) for at in starts)
                f.store(f.shuffle(a, b, low), target, at_out + block * (2 * lanes))
                high = f.shuffle(a, b, [lane + lanes // 2 for lane in low])
                f.store(high, target, at_out + block * (2 * lanes) + lanes)
            done.set(width // (2 * lanes) * lanes)
        with f.loop(done.get(), -(-width // stride)) as q:
            for p, at in enumerate(starts):
                with f.when(q * stride + p < width):
                    f.store(f.load(element, source, at + q), target, at_out + q * stride + p)

    def rows(d: int, at_in: Value, at_out: Value, outer: tuple[int, ...]) -> None:
        if d == rank - 1:
            row(at_in, at_out, outer)
            return
        for p in range(strides[d]):
            count = -(-(y.shape[2 + d] - p) // strides[d])
            with f.loop(0, count) as q:
                rows(
                    d + 1,
                    at_in + q * x.layout.strides[3 + d],
                    at_out + (q * strides[d] + p) * y.layout.strides[2 + d],
                    (*outer, p),
                )

    rows(0, from_plane, to_plane, ())
    plan.step(
        f,
        [x.address, y.address],
        tasks=y.shape[0] * y.shape[1],
        reads=[x],
        writes=[y],
        info={"op": "Copy", "kernel": "phase merge", "bytes": 2 * y.dtype.itemsize * y.layout.elements},
    )
