"""Operators that sample pictures at computed places: GridSample, RoiAlign, the columns of DeformConv.

Places come from the data: NaN and infinity included, all indices are held to the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I64, Type
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.columns import columns_window
from coresident.graph.operators.sampling import CUBIC, MOST_SAMPLES, grid_mode
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.scalar import Access, digits, held, items


@dataclass(frozen=True)
class Tap:
    """One neighbour along one axis: its index, within the axis, and its weight."""

    index: Value
    weight: Value


def _check(x: Tensor) -> None:
    if x.dtype.itemsize not in (4, 8):
        raise UnsupportedModel(f"a sample of {x.dtype}; float32 and float64 are supported", shape=x.shape)


def _clamped(f: Function, place: Value, size: int) -> Value:
    """A place as an index within [0, size)."""
    return f.minimum(f.maximum(f.convert(place, I64), 0), size - 1)


def _tap(f: Function, place: Value, weight: Value, size: int) -> Tap:
    """A neighbour at a whole place; without weight where that is outside."""
    inside = (place > -0.5) & (place < size - 0.5)
    return Tap(_clamped(f, place, size), f.select(inside, weight, 0.0))


def _linear(f: Function, at: Value, size: int) -> list[Tap]:
    base = f.unary("floor", at)
    share = at - base
    return [_tap(f, base, 1.0 - share, size), _tap(f, base + 1.0, share, size)]


def _cubic(f: Function, at: Value, size: int, inside: _Inside) -> list[Tap]:
    base = f.unary("floor", at)
    share, a = at - base, CUBIC
    taps = []
    for i, d in enumerate((share + 1.0, share, 1.0 - share, 2.0 - share)):
        if i in (1, 2):
            weight = ((a + 2) * d - (a + 3)) * d * d + 1.0
        else:
            weight = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        taps.append(_tap(f, inside.of(base + float(i - 1)), weight, size))
    return taps


@dataclass(frozen=True)
class _Inside:
    """What brings a place into the picture, as the attribute padding_mode says."""

    f: Function
    size: int
    padding: str
    corners: bool

    def of(self, place: Value) -> Value:
        if self.padding == "zeros":
            return place
        if self.padding == "reflection":
            place = self._reflected(place)
        return self.f.minimum(self.f.maximum(place, 0.0), float(self.size - 1))

    def _reflected(self, place: Value) -> Value:
        f = self.f
        low, high = (0.0, self.size - 1.0) if self.corners else (-0.5, self.size - 0.5)
        if high <= low:
            return f.constant(low, place.type)
        distance = f.unary("fabs", place - low)
        turns = f.unary("floor", distance / (high - low))
        rest = distance - turns * (high - low)
        half = turns * 0.5
        return f.select(f.unary("floor", half).equals(half), rest + low, high - rest)


def _mix(f: Function, picture: Access, taps: Sequence[Sequence[Tap]]) -> Value:
    """The weighted sum over all neighbours."""
    total: Value | None = None
    for combination in product(*taps):
        weight = combination[0].weight
        for tap in combination[1:]:
            weight = weight * tap.weight
        seen = picture.load(*(tap.index for tap in combination))
        # A weight of 0 hides what it is the weight of, infinities too.
        term = f.select(weight.equals(0.0), f.constant(0.0, weight.type), seen * weight)
        total = term if total is None else total + term
    assert total is not None
    return total


@lowers("GridSample")
def grid_sample(node: Node, plan: Plan) -> None:
    """The neighbours of a place are found once for all channels."""
    x, grid = (plan.tensor(name) for name in node.inputs)
    y = plan.tensor(node.outputs[0])
    _check(x)
    mode, spatial = grid_mode(node), x.shape[2:]
    corners, padding = bool(node.get("align_corners", 0)), node.get("padding_mode", "zeros")
    places = (y.shape[0], *y.shape[2:])
    count, neighbours = math.prod(places), {"nearest": 1, "linear": 2, "cubic": 4}[mode] ** len(spatial)
    info = {"op": node.op, "nodes": [node.name], "kernel": f"grid sample, {mode}"}
    cost = 30 + 3 * neighbours * y.shape[1]
    with items(plan, "grid_sample", count if y.layout.elements else 0, cost, [y], [x, grid], info) as (
        f,
        item,
        (to, picture, wanted),
    ):
        batch, *place = digits(item, places)
        taps = []
        for d, size in enumerate(spatial):
            g = f.convert(wanted.load(batch, *place, len(spatial) - 1 - d), picture.kind)
            at = (g + 1.0) * ((size - 1) / 2) if corners else ((g + 1.0) * float(size) - 1.0) * 0.5
            inside = _Inside(f, size, padding, corners)
            if mode == "cubic":
                taps.append(_cubic(f, at, size, inside))
            elif mode == "linear":
                taps.append(_linear(f, inside.of(at), size))
            else:
                nearest = f.unary("roundeven", inside.of(at))
                taps.append([_tap(f, nearest, f.constant(1.0, at.type), size)])
        with f.loop(0, y.shape[1]) as channel:
            to.store(_mix(f, picture.at(batch, channel), taps), batch, channel, *place)


@lowers("DeformedColumns")
def deformed_columns(node: Node, plan: Plan) -> None:
    """Columns of windows whose positions are displaced one by one, for DeformConv."""
    x, offset, *rest = (plan.tensor(name) for name in node.inputs)
    y = plan.tensor(node.outputs[0])
    _check(x)
    n, channels, *spatial = x.shape
    window, output = columns_window(node, spatial)
    taps, groups, rank = math.prod(window.kernel), int(node.get("offset_group", 1)), len(spatial)
    each = channels // groups
    sizes = (n, groups, *window.kernel, *output)
    info = {"op": node.op, "nodes": [node.name], "kernel": "deformed columns"}
    count, cost = math.prod(sizes) if y.layout.elements else 0, 30 + 3 * each * 2**rank
    with items(plan, "deformed_columns", count, cost, [y], [x, offset, *rest], info) as (f, item, accesses):
        to, picture, moved, *mask = accesses
        batch, group, *place = digits(item, sizes)
        position, at = place[:rank], place[rank:]
        tap = _joined(position, window.kernel)
        places = []
        for d, size in enumerate(spatial):
            start = at[d] * window.strides[d] + position[d] * window.dilations[d] - window.pads_begin[d]
            shift = moved.load(batch, (group * taps + tap) * rank + d, *at)
            begin = f.convert(f.value(start, I64), picture.kind)
            places.append(_linear(f, begin + shift, size))
        scale = mask[0].load(batch, group * taps + tap, *at) if mask else None
        with f.loop(0, each) as channel:
            source = group * each + channel
            value = _mix(f, picture.at(batch, source), places)
            to.store(value if scale is None else value * scale, batch, source, tap, _joined(at, output))


def _joined(at: Sequence[Value | int], sizes: Sequence[int]) -> Value | int:
    """Indices as one, counted in C order."""
    total: Value | int = 0
    for index, size in zip(at, sizes):
        total = total * size + index if isinstance(total, Value) or total else index
    return total


@lowers("RoiAlign")
def roi_align(node: Node, plan: Plan) -> None:
    """Each bin averages, or takes the largest of, samples spread over it."""
    x, rois, batches = (plan.tensor(name) for name in node.inputs)
    y = plan.tensor(node.outputs[0])
    _check(x)
    half = 0.5 if node.get("coordinate_transformation_mode", "half_pixel") == "half_pixel" else 0.0
    ratio, scale = int(node.get("sampling_ratio", 0)), float(node.get("spatial_scale", 1.0))
    largest = node.get("mode", "avg") == "max"
    info = {"op": node.op, "nodes": [node.name], "kernel": "roi align"}
    with items(plan, "roi_align", y.layout.elements, 200, [y], [x, rois, batches], info) as (
        f,
        item,
        (to, pictures, regions, picture_of),
    ):
        roi, channel, *bin_ = digits(item, y.shape)
        kind = pictures.kind
        picture = pictures.at(held(f, picture_of.load_index(roi), x.shape[0]), channel)
        starts, steps, counts, seen = [], [], [], []
        for d, size in enumerate(y.shape[2:]):
            start = regions.load(roi, 1 - d) * scale - half
            length = regions.load(roi, 3 - d) * scale - half - start
            step = (length if half else f.maximum(length, 1.0)) / float(size)
            samples = f.unary("ceil", f.minimum(step, float(MOST_SAMPLES)))
            count = f.constant(ratio, I64) if ratio else f.maximum(f.convert(samples, I64), 0)
            starts.append(start + step * f.convert(f.value(bin_[d], I64), kind))
            steps.append(step / f.convert(count, kind))
            counts.append(count)
            seen.append(_seen(f, starts[d], steps[d], count, x.shape[2 + d]))
        (first, end), (left, right) = seen
        total, started = f.var(0.0, kind), f.var(0, I64)
        with f.loop(first, end) as i, f.loop(left, right) as j:
            places = [
                start + (f.convert(k, kind) + 0.5) * step for start, step, k in zip(starts, steps, (i, j))
            ]
            taps = [_bounded(f, place, size) for place, size in zip(places, x.shape[2:])]
            terms = [
                picture.load(a.index, b.index) * (a.weight * b.weight) for a, b in product(taps[0], taps[1])
            ]
            if largest:
                most = f.maximum(f.maximum(terms[0], terms[1]), f.maximum(terms[2], terms[3]))
                none = started.get().equals(0)
                total.set(f.select(none, most, f.maximum(total.get(), most)))
                started.set(1)
            else:
                total.set(total.get() + ((terms[0] + terms[1]) + (terms[2] + terms[3])))
        if largest:
            # Samples that are not seen are 0.
            hidden = (end - first < counts[0]) | (right - left < counts[1])
            floor = f.select(started.get().equals(0), 0.0, f.maximum(total.get(), 0.0))
            total.set(f.select(hidden, floor, total.get()))
        area = f.maximum(counts[0] * counts[1], 1)
        to.store(total.get() if largest else total.get() / f.convert(area, kind), roi, channel, *bin_)


def _seen(f: Function, start: Value, step: Value, count: Value, size: int) -> tuple[Value, Value]:
    """The samples of a bin, first and end, among which are all that do not lie outside the picture.

    A region as large as it likes thus costs no more than one of the picture's size.
    """
    ends = [f.unary("floor", (float(at) - start) / step - 0.5) for at in (-1, size)]
    first, last = (f.minimum(f.maximum(f.convert(end, I64), -1), count) for end in ends)
    forward = step > 0.0
    none = f.constant(0, I64)
    return f.select(forward, f.maximum(first, 0), none), f.select(
        forward, f.maximum(f.minimum(last + 2, count), 0), count
    )


def _bounded(f: Function, place: Value, size: int) -> list[Tap]:
    """The neighbours of a place that is moved into the picture, without weight if more than 1 outside."""
    kind: Type = place.type
    counts = (place >= -1.0) & (place <= float(size))
    at = f.minimum(f.maximum(place, 0.0), float(size - 1))
    base = f.unary("floor", at)
    share = at - base
    low = _clamped(f, base, size)
    high = f.minimum(low + 1, size - 1)
    zero = f.constant(0.0, kind)
    return [Tap(low, f.select(counts, 1.0 - share, zero)), Tap(high, f.select(counts, share, zero))]
