"""Operators that sample pictures at computed places: GridSample, RoiAlign, the columns of DeformConv.

Places come from the data: NaN and infinity included, all indices are held to the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import I64, Type, of_dtype
from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.columns import columns_window
from coresident.graph.operators.sampling import CUBIC, MOST_SAMPLES, grid_mode
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor, lowers
from coresident.kernels.movement import copy
from coresident.kernels.scalar import Access, Index, digits, held, items


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


@dataclass(frozen=True)
class _Channels:
    """Samples of all channels at once: neighbours and weights are the same in each.

    Where it pays, vectors hold neighbouring channels: the picture is copied so that the channels of a pixel
    lie side by side, and so are the samples, which are copied to where they belong in the end.

    Args:
        x: the picture, [N, C, spatial...].
        y: the samples, whose second dimension is C too.
        wanted: where the samples are to be in the end.
        lanes: channels of a vector.
    """

    x: Tensor
    y: Tensor
    wanted: Tensor
    lanes: int

    @staticmethod
    def of(
        plan: Plan, x: Tensor, y: Tensor, count: int, neighbours: int, groups: int, info: dict[str, Any]
    ) -> _Channels:
        """With the copy of x if it pays: if the picture is not large beside what is read of it.

        Args:
            count: of samples, each of all channels.
            neighbours: that each is mixed of.
            groups: of channels that have neighbours of their own.
        """
        lanes, channels = plan.target.lanes(of_dtype(x.dtype)), x.shape[1] // groups
        pixels = math.prod((x.shape[0], *x.shape[2:]))
        if channels < lanes or (groups > 1 and channels % lanes) or count * neighbours < pixels:
            return _Channels(x, y, y, 1)
        near = _channels_last(plan, x, lanes)
        copy(plan, x, near, info)
        return _Channels(near, _channels_last(plan, y, lanes), y, lanes)

    def mixed(
        self,
        f: Function,
        picture: Access,
        taps: Sequence[Sequence[Tap]],
        to: Access,
        at: Sequence[Index],
        channels: tuple[Index, int],
        scale: Value | None = None,
    ) -> None:
        """Emit one sample of some channels.

        Args:
            picture: of the sample, from its first channel.
            taps: the neighbours along each axis.
            to: the samples of the picture, from its first channel.
            at: the place of the sample in each channel.
            channels: the first one, and how many.
            scale: what the result is multiplied with.
        """
        kind, neighbours = picture.kind.by(self.lanes), []
        for combination in product(*taps):
            weight = combination[0].weight
            for tap in combination[1:]:
                weight = weight * tap.weight
            place = picture.place((channels[0], *(tap.index for tap in combination)))
            neighbours.append((f.offset(picture.start, place, picture.kind), f.splat(weight, kind)))
        start = f.offset(to.start, to.place((channels[0], *at)), to.kind)
        with f.loop(0, channels[1], self.lanes) as channel:
            total = _mix(f, neighbours, channel * picture.tensor.layout.strides[0], kind)
            total = total if scale is None else total * f.splat(scale, kind)
            f.store(total, start, channel * to.tensor.layout.strides[0])

    def finish(self, plan: Plan, info: dict[str, Any]) -> None:
        """Put the samples where they belong."""
        if self.y is not self.wanted:
            copy(plan, self.y, self.wanted, info)


def _channels_last(plan: Plan, tensor: Tensor, lanes: int) -> Tensor:
    """A tensor of the same shape whose second dimension is innermost and whole vectors long."""
    first, channels, *rest = tensor.shape
    layout = Layout.contiguous((first, *rest, -(-channels // lanes) * lanes))
    strides = (layout.strides[0], 1, *layout.strides[1:-1])
    return replace(plan.temporary(layout, tensor.dtype), layout=layout.view(tensor.shape, strides, 0))


def _mix(f: Function, neighbours: Sequence[tuple[Value, Value]], shift: Value, kind: Type) -> Value:
    """The sum over neighbours, addresses and weights, of what lies `shift` elements further."""
    total: Value | None = None
    for address, weight in neighbours:
        # A weight of 0 hides what it is the weight of, infinities too.
        term = f.select(weight.equals(0.0), f.constant(0.0, kind), f.load(kind, address, shift) * weight)
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
    if not y.layout.elements:
        return
    channels = _Channels.of(plan, x, y, count, neighbours, 1, info)
    cost = 30 + 3 * neighbours * y.shape[1] / channels.lanes
    with items(plan, "grid_sample", count, cost, [channels.y], [channels.x, grid], info) as (
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
        channels.mixed(f, picture.at(batch), taps, to.at(batch), place, (0, y.shape[1]))
    channels.finish(plan, info)


@lowers("DeformedColumns")
def deformed_columns(node: Node, plan: Plan) -> None:
    """Columns of windows whose positions are displaced one by one, for DeformConv."""
    x, offset, *rest = (plan.tensor(name) for name in node.inputs)
    y = plan.tensor(node.outputs[0])
    _check(x)
    n, _, *spatial = x.shape
    window, output = columns_window(node, spatial)
    taps, groups, rank = math.prod(window.kernel), int(node.get("offset_group", 1)), len(spatial)
    each = x.shape[1] // groups
    sizes = (n, groups, *window.kernel, *output)
    info = {"op": node.op, "nodes": [node.name], "kernel": "deformed columns"}
    if not y.layout.elements:
        return
    count = math.prod(sizes)
    channels = _Channels.of(plan, x, y, count, 2**rank, groups, info)
    cost, reads = 30 + 3 * each * 2**rank / channels.lanes, [channels.x, offset, *rest]
    with items(plan, "deformed_columns", count, cost, [channels.y], reads, info) as (f, item, accesses):
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
        chosen = (group * each, each)
        column = (tap, _joined(at, output))
        channels.mixed(f, picture.at(batch), places, to.at(batch), column, chosen, scale)
    channels.finish(plan, info)


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
