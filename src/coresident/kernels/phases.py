"""Splits planes by phase, so that strided convolutions read with unit stride."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.graph.operators.windows import Window
from coresident.kernels.arguments import element_0, operand
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import pieces, share


@dataclass(frozen=True)
class Split:
    """Planes split by phase.

    Args:
        tensor: [N][C][phases][spatial...], each phase plane with its border, all of it written.
        index: the position of each phase among those kept.
        emit: adds the step that writes it.
    """

    tensor: Tensor
    index: Mapping[tuple[int, ...], int]
    emit: Callable[[], None]


@dataclass(frozen=True)
class _Phase:
    """One phase plane: rows lo..hi (exclusive) of each dimension are read, row o of it is row o * stride +
    phase."""

    phase: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


def split(plan: Plan, x: Tensor, w: Window, target: Layout) -> Split:
    """A copy that splits `x` [N, C, spatial...] for a window whose output has the layout `target`.

    Only the phases that a tap reads are kept: one of four for a 1x1 convolution with stride 2. Rows get the
    output's distance where that is enough, so that runs of pixels can cross row ends.
    """
    out = target.shape[2:]
    reach = []
    for k, d, begin, s in zip(w.kernel, w.dilations, w.pads_begin, w.strides):
        quotients: dict[int, list[int]] = {}
        for i in range(k):
            at = i * d - begin
            quotients.setdefault(at % s, []).append(at // s)
        reach.append(quotients)
    kept = list(itertools.product(*(sorted(q) for q in reach)))
    # One geometry for all phases: the widest reach of any.
    low = [min(min(q) for q in quotients.values()) for quotients in reach]
    high = [o + max(max(q) for q in quotients.values()) for quotients, o in zip(reach, out)]
    low = [min(v, 0) for v in low]
    lanes = plan.target.lanes(F32)
    spatial = tuple(h - b for h, b in zip(high, low))
    line = 16
    strides = [1] * len(spatial)
    for dim in range(len(spatial) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * spatial[dim + 1]
    if all(have >= needed for have, needed in zip(target.strides[2:], strides)):
        strides = list(target.strides[2:])
    span = sum((size - 1) * s for size, s in zip(spatial, strides)) + 1
    plane = (-(-(span + lanes) // line) | 1) * line
    n, c = x.shape[:2]
    shift = -sum(b * s for b, s in zip(low, strides))
    layout = Layout(
        (n, c, len(kept), *spatial),
        (c * len(kept) * plane, len(kept) * plane, plane, *strides),
        0,
        n * c * len(kept) * plane + lanes,
        ((0, 0),) * (3 + len(spatial)),
        slack=lanes,
    )
    tensor = plan.temporary(layout, np.float32)
    moved = Layout(layout.shape, layout.strides, shift, layout.extent, layout.halo, lanes)
    return Split(
        Tensor("", tensor.dtype, moved, tensor.storage),
        {phase: i for i, phase in enumerate(kept)},
        partial(_emit, plan, x, tensor, w.strides, kept, low),
    )


def _emit(
    plan: Plan,
    x: Tensor,
    y: Tensor,
    strides: Sequence[int],
    kept: Sequence[tuple[int, ...]],
    low: Sequence[int],
) -> None:
    """Plane by plane of each phase: rows outside the picture become zeros, others every stride-th pixel."""
    n, c, count = y.shape[:3]
    rank = len(strides)
    table = np.array([[*phase] for phase in kept], np.int64)
    function = kernel(plan.target, "phase_split")
    source, target, phases = element_0(function, 0, x), element_0(function, 1, y), word(function, 2)

    def rows(d: int, phase: Sequence[Value], at_in: Value, at_out: Value, inside: Value | None) -> None:
        if d == rank - 1:
            _row(function, x, y, strides[d], low[d], (source, at_in), (target, at_out), phase[d], inside)
            return
        with function.loop(0, y.shape[3 + d]) as o:
            row = (o + low[d]) * strides[d] + phase[d]
            good = (row >= 0) & (row < x.shape[2 + d])
            rows(
                d + 1,
                phase,
                at_in + row * x.layout.strides[2 + d],
                at_out + o * y.layout.strides[3 + d],
                good if inside is None else inside & good,
            )

    units = n * c * count
    vectors = math.prod(y.shape[3:-1]) * -(-y.shape[-1] // plan.target.lanes(F32))
    tasks = pieces(plan.threads, units, 8.0 * units * vectors)
    first, end = share(function, units, tasks) if tasks else (function.constant(0, I64),) * 2
    with function.loop(first, end) as unit:
        which, plane = unit % count, unit / count
        channel, batch = plane % c, plane / c
        base_in = batch * x.layout.strides[0] + channel * x.layout.strides[1]
        base_out = batch * y.layout.strides[0] + channel * y.layout.strides[1] + which * y.layout.strides[2]
        phase = [function.load(I64, phases, which * rank + d) for d in range(rank)]
        rows(0, phase, base_in, base_out, None)
    bytes_moved = 4 * (y.layout.elements + x.layout.elements)
    plan.step(
        function,
        [operand(x), operand(y), plan.constant(table)],
        tasks=tasks,
        reads=[x],
        writes=[y],
        info={"op": "Copy", "kernel": f"phase split by {'x'.join(map(str, strides))}", "bytes": bytes_moved},
    )


def _row(
    f: Function,
    x: Tensor,
    y: Tensor,
    stride: int,
    low: int,
    source: tuple[Value, Value],
    target: tuple[Value, Value],
    phase: Value,
    inside: Value | None,
) -> None:
    """One row: pixel o is source pixel (o + low) * stride + phase, or zero outside the picture."""
    width, size, lanes = y.shape[-1], x.shape[-1], f.target.lanes(F32)
    vector = F32.by(lanes)
    step = x.layout.strides[-1]
    zero = f.constant(0.0, vector)
    (pointer_in, at_in), (pointer_out, at_out) = source, target
    # Lanes o with 0 <= o * stride + first < size are copied.
    first = phase + low * stride

    lane = f.indices(I32.by(lanes))

    def pixels(begin: Value) -> Value:
        """A vector of the source's row from some pixel on; zeros outside it."""
        at = lane + f.splat(f.convert(begin, I32), lane.type)
        return f.load_masked(vector, pointer_in, at_in + begin, (at >= 0) & (at < size))

    def copy() -> None:
        with f.loop(0, width, lanes) as o:
            begin = o * stride + first
            if step == 1 and stride == 2:
                pair = pixels(begin), pixels(begin + lanes)
                whole = f.shuffle(*pair, range(0, 2 * lanes, 2))
            else:
                value = f.var(zero)
                for i in range(lanes):
                    at = begin + i * stride
                    with f.when((at >= 0) & (at < size)):
                        value.set(f.insert(value.get(), f.load(F32, pointer_in, at_in + at * step), i))
                whole = value.get()
            # The row may be overshot: the next row, or the plane's slack, is written after it by the same
            # task.
            f.store(whole, pointer_out, at_out + o)

    if inside is None:
        copy()
        return
    with f.either(inside) as otherwise:
        copy()
        with otherwise(), f.loop(0, width, lanes) as o:
            f.store(zero, pointer_out, at_out + o)
