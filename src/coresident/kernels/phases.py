"""Splits planes by phase, so that strided convolutions read with unit stride."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    strides = [1] * len(spatial)
    for dim in range(len(spatial) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * spatial[dim + 1]
    if all(have >= needed for have, needed in zip(target.strides[2:], strides)):
        strides = list(target.strides[2:])
    n, c = x.shape[:2]
    shift = -sum(b * s for b, s in zip(low, strides))
    layout = Layout.phased((n, c, len(kept), *spatial), strides, lanes)
    tensor = plan.temporary(layout, np.float32)
    moved = replace(layout, origin=shift)
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
    """Plane by plane, and of each the rows of one phase after another: rows outside the picture become zeros,
    others are taken apart into their columns' phases, all at once."""
    n, c = y.shape[:2]
    rank = len(strides)
    # Of the phases that are kept, those of columns are counted fastest.
    columns = sorted({phase[-1] for phase in kept})
    lines = np.array([phase[:-1] for phase in kept[:: len(columns)]], np.int64)
    f = kernel(plan.target, "phase_split")
    source, target, phases = element_0(f, 0, x), element_0(f, 1, y), word(f, 2)

    def rows(d: int, line: Value, at_in: Value, at_out: Value, inside: Value | None) -> None:
        if d == rank - 1:
            _row(f, x, y, strides[d], low[d], (source, at_in), (target, at_out), columns, inside)
            return
        phase = f.load(I64, phases, line * (rank - 1) + d)
        with f.loop(0, y.shape[3 + d]) as o:
            row = (o + low[d]) * strides[d] + phase
            good = (row >= 0) & (row < x.shape[2 + d])
            rows(
                d + 1,
                line,
                at_in + row * x.layout.strides[2 + d],
                at_out + o * y.layout.strides[3 + d],
                good if inside is None else inside & good,
            )

    units = n * c * len(lines)
    vectors = len(columns) * math.prod(y.shape[3:-1]) * -(-y.shape[-1] // plan.target.lanes(F32))
    tasks = pieces(plan.threads, units, 8.0 * units * vectors)
    first, end = share(f, units, tasks) if tasks else (f.constant(0, I64),) * 2
    with f.loop(first, end) as unit:
        line, plane = unit % len(lines), unit / len(lines)
        channel, batch = plane % c, plane / c
        base_in = batch * x.layout.strides[0] + channel * x.layout.strides[1]
        base_out = batch * y.layout.strides[0] + channel * y.layout.strides[1]
        rows(0, line, base_in, base_out + line * (len(columns) * y.layout.strides[2]), None)
    bytes_moved = 4 * (y.layout.elements + x.layout.elements)
    plan.step(
        f,
        [operand(x), operand(y), plan.constant(lines)],
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
    phases: Sequence[int],
    inside: Value | None,
) -> None:
    """One row: of each phase, pixel o is source pixel (o + low) * stride + phase, or zero outside the
    picture.

    A row may be overshot: the next one, or the plane's slack, is written after it by the same task.
    """
    width, size, lanes = y.shape[-1], x.shape[-1], f.target.lanes(F32)
    vector = F32.by(lanes)
    step = x.layout.strides[-1]
    (pointer_in, at_in), (pointer_out, at_out) = source, target
    lane = f.indices(I32.by(lanes))

    def pixels(begin: Value, within: bool) -> Value:
        """A vector of the source's row from some pixel on; zeros outside it."""
        if within:
            return f.load(vector, pointer_in, at_in + begin)
        at = lane + f.splat(f.convert(begin, I32), lane.type)
        return f.load_masked(vector, pointer_in, at_in + begin, (at >= 0) & (at < size))

    def apart(o: Value, within: bool) -> list[Value]:
        """The vectors from pixel o on, of each phase."""
        begin = (o + low) * stride
        if step == 1 and stride == 2:
            one, other = (pixels(begin + half * lanes, within) for half in (0, 1))
            return [f.shuffle(one, other, range(phase, 2 * lanes, 2)) for phase in phases]
        found = []
        for phase in phases:
            value = f.var(f.constant(0.0, vector))
            for i in range(lanes):
                at = begin + (phase + i * stride)
                with f.when((at >= 0) & (at < size)):
                    value.set(f.insert(value.get(), f.load(F32, pointer_in, at_in + at * step), i))
            found.append(value.get())
        return found

    def store(o: Value, values: Sequence[Value]) -> None:
        for i, value in enumerate(values):
            f.store(value, pointer_out, at_out + (o + i * y.layout.strides[2]))

    def copy() -> None:
        # Masks only where a vector is not all within the row.
        first = -(-max(-low, 0) // lanes) * lanes
        whole = max(0, size // stride - low - first) // lanes * lanes
        for begin, end, within in (
            (0, first, False),
            (first, first + whole, True),
            (first + whole, width, False),
        ):
            with f.loop(min(begin, width), min(end, width), lanes) as o:
                store(o, apart(o, within))

    if inside is None:
        copy()
        return
    with f.either(inside) as otherwise:
        copy()
        with otherwise(), f.loop(0, width, lanes) as o:
            store(o, [f.constant(0.0, vector)] * len(phases))
