"""Writes what stands around the planes of a planar layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.types import Type
from coresident.kernels.arguments import operand
from coresident.kernels.layout import Layout
from coresident.kernels.loops import Entry, Split, dimensions
from coresident.kernels.lowering import Plan, Tensor

_LONGEST_PERIOD = 4
_UNROLLED_VECTORS = 8
_TASK_STORES = 3_000


@dataclass(frozen=True)
class Repeat:
    """A body that stands `count` times, `stride` elements apart: items of (offset, run length or Repeat)."""

    count: int
    stride: int
    body: tuple[Item, ...]


Item = tuple[int, "int | Repeat"]


def zero_halo(plan: Plan, tensor: Tensor) -> None:
    """Emit a step, without a barrier, that writes the fill into the halo of [N, C, spatial...].

    None is emitted where there is no halo.
    """
    made = filling(plan, tensor)
    if made is None:
        return
    f, tasks, size = made
    info = {"op": "Halo", "kernel": "zeros around planes", "bytes": size}
    plan.step(f, [operand(tensor)], tasks, writes=[tensor], barrier=False, info=info)


def filling(plan: Plan, tensor: Tensor, ends: bool = False) -> tuple[Function, int, int] | None:
    """The kernel that does so, its number of tasks and the bytes that they write; None where there are none.

    Args:
        ends: leave out what lies between a plane's first pixel and its last.
    """
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape[2:], tensor.layout.strides[2:]))
    items = folded([run for run in runs(tensor.layout) if not ends or not 0 <= run[0] <= last])
    planes = math.prod(tensor.shape[:2])
    if not items or planes == 0:
        return None
    outer = Layout(tensor.shape[:2], tensor.layout.strides[:2], 0, 0, ((0, 0),) * 2)
    loops = dimensions([outer])
    stores = planes * sum(_count(item) for item in items)
    wanted = 1 if plan.threads == 1 else max(1, min(8 * plan.threads, stores // _TASK_STORES))
    split = Split.of([*(loop.size for loop in loops), 1], wanted, 1)
    entry = Entry(tuple(loops), (tensor,), split)
    f, pointers = entry.function(plan.target, "zero_halo")
    with entry.rows(f, pointers, len(loops)) as (here, _, _):
        _emit(f, here[0], items, tensor.dtype, tensor.layout.fill)
    return f, split.tasks, stores * tensor.dtype.itemsize


def runs(layout: Layout) -> list[tuple[int, int]]:
    """The halo of one plane as (first element, length), counted from the plane's element 0."""
    shape, strides, halo = layout.shape[2:], layout.strides[2:], layout.halo[2:]
    first = 0
    if layout.stripes:
        # Rows with their outer columns, which are written with them.
        first = -halo[-1][0]
        shape, halo = (*shape[:-1], shape[-1] + sum(halo[-1])), (*halo[:-1], (0, 0))
    inside = [np.arange(size) * stride for size, stride in zip(shape, strides)]
    around = [
        np.arange(-before, size + after) * stride
        for size, stride, (before, after) in zip(shape, strides, halo)
    ]
    slabs = [np.zeros(0, np.int64)]
    for d, (size, stride, (before, after)) in enumerate(zip(shape, strides, halo)):
        border = np.concatenate([np.arange(-before, 0), np.arange(size, size + after)]) * stride
        parts = [*inside[:d], border, *around[d + 1 :]]
        slabs.append(sum(np.ix_(*parts), np.zeros((), np.int64)).ravel())
    places = np.sort(np.concatenate(slabs))
    if not places.size:
        return []
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    starts, ends = np.r_[0, cuts], np.r_[cuts, places.size]
    return [(int(places[start]) + first, int(end - start)) for start, end in zip(starts, ends)]


def folded(items: Sequence[Item]) -> list[Item]:
    """The same runs, with what recurs at even distances written once."""
    items, before = list(items), -1
    while len(items) != before:
        before, items = len(items), _fold_once(items)
    return items


def _fold_once(items: Sequence[Item]) -> list[Item]:
    result: list[Item] = []
    at = 0
    while at < len(items):
        counts = [
            (_recurrences(items, at, period) * period, period) for period in range(1, _LONGEST_PERIOD + 1)
        ]
        covered, period = max(counts, key=lambda pair: (pair[0] - pair[1], -pair[1]))
        start = items[at][0]
        if covered == period:
            result.append(items[at])
            at += 1
            continue
        body = tuple((place - start, what) for place, what in items[at : at + period])
        result.append((start, Repeat(covered // period, items[at + period][0] - start, body)))
        at += covered
    return result


def _recurrences(items: Sequence[Item], at: int, period: int) -> int:
    """How often the `period` items from `at` on stand there, at even distances."""
    if at + 2 * period > len(items):
        return 1
    stride = items[at + period][0] - items[at][0]
    for i in itertools.count(at):
        if i + period >= len(items):
            break
        (place, what), (next_place, next_what) = items[i], items[i + period]
        if what != next_what or next_place - place != stride:
            break
    return 1 + (i - at) // period


def _count(item: Item) -> int:
    """Elements written."""
    what = item[1]
    return what if isinstance(what, int) else what.count * sum(_count(part) for part in what.body)


def _emit(f: Function, pointer: Value, items: Sequence[Item], dtype: np.dtype[Any], fill: int) -> None:
    for place, what in items:
        here = f.offset(pointer, place * dtype.itemsize)
        if isinstance(what, int):
            _run(f, here, what, Type("i", 8 * dtype.itemsize), fill)
            continue
        with f.loop(0, what.count) as i:
            _emit(f, f.offset(here, i * (what.stride * dtype.itemsize)), what.body, dtype, fill)


def _run(f: Function, pointer: Value, length: int, element: Type, fill: int) -> None:
    lanes = f.target.lanes(element)
    whole = length // lanes * lanes
    at = 0
    if whole > _UNROLLED_VECTORS * lanes:
        with f.loop(0, whole, lanes) as i:
            f.store(f.constant(fill, element.by(lanes)), pointer, i)
        at = whole
    while at < length:
        while lanes > length - at:
            lanes //= 2
        f.store(f.constant(fill, element.by(lanes)), pointer, at)
        at += lanes
