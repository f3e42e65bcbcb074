"""Dense convolution of small kernels with a quarter of the multiplications, by minimal filters.

Of a 3 x 3 kernel 36 products do the work of 144 (`filtering.py`), and a 7 x 7 kernel with strides of 2 is one
of 4 x 4 on four phases of its input, whose 196 products do the work of 784.

Lanes hold tiles of 4 x 4 pixels: those of one stretch of a row, or of 2 or 4 shorter ones, side by side or
below each other. A *strip* is one vector of tiles: its input channels are transformed into the worker's
scratch, then each *chunk* of output channels is multiplied, 36 small matrix products, transformed back and
stored. A value that is not finite reaches all pixels of the tiles whose input it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coresident.codegen.types import F32
from coresident.kernels import cost
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.filtering import FILTERS, TILE, Filter
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.spread import starts_of

_INPUT_CYCLES, _OUTPUT_CYCLES = {3: 420.0, 4: 600.0}, {3: 260.0, 4: 340.0}
"""To transform an input channel of a strip, and an output channel back, with one vector instruction a
cycle, by the filter's taps."""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        filter: of the kernel.
        strips: table of [strips, parts * (2 + further operands)] int32: of each part elements from pixel 0 to
            its first, in the input, the output and each further operand.
        units: first strip of each unit, and the end of the last. Strips that write the same pixels, each
            with rounding errors of its own, are of one unit, so that the same one is always the last to.
        parts: stretches of rows of tiles in a vector.
        width: output pixels of a part.
        group: output channels of a chunk.
        outer: elements from a channel's pixel 0 to that of each plane that taps read: of the outer taps of a
            volume, of the phases of a picture.
        of_taps: of each tap of the kernel, the plane, and its place in the filter.
        first: elements from an output pixel to the first that a tile reads.
        chunks: of output channels.
        cycles: as the cost model says.
    """

    filter: Filter
    strips: Tiles
    units: tuple[int, ...]
    parts: int
    width: int
    group: int
    outer: tuple[int, ...]
    of_taps: tuple[tuple[int, int, int], ...]
    first: int
    chunks: int
    cycles: float

    def __str__(self) -> str:
        taps = self.filter.taps
        rows = "a stretch" if self.parts == 1 else f"{self.parts} stretches"
        return f"{rows} of tiles of {TILE}x{TILE} by {taps}x{taps} x {self.group} channels"


@dataclass(frozen=True)
class _Window:
    """What taps read: a filter's window in each of some planes. As `Choice` has it."""

    filter: Filter
    outer: tuple[int, ...]
    of_taps: tuple[tuple[int, int, int], ...]
    first: int


def _window(g: Geometry) -> _Window | None:
    """None if no filter is as large as what taps read."""
    if len(g.strides) < 2 or g.strides[-1] != 1 or not g.is_unstrided:
        return None
    top, left = (min(a[i] for a in g.positions) for i in (-2, -1))
    extents = {max(a[i] for a in g.positions) + 1 - least for i, least in ((-2, top), (-1, left))}
    if len(extents) > 1 or (taps := extents.pop()) not in FILTERS:
        return None
    inside = g.strides[:-2]
    planes = [
        plane + sum(a * s for a, s in zip(position[:-2], inside))
        for plane, position in zip(g.planes or (0,) * len(g.positions), g.positions)
    ]
    outer = tuple(dict.fromkeys(planes))
    of_taps = tuple((outer.index(plane), a[-2] - top, a[-1] - left) for plane, a in zip(planes, g.positions))
    return _Window(FILTERS[taps], outer, of_taps, top * g.strides[-2] + left)


def choose(plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue) -> Choice | None:
    """The cut that should be fastest; None where no filter is as large as the kernel, or
    pixels do not lie side by side."""
    window, lanes = _window(g), plan.target.lanes(F32)
    columns = [g.strides, out.layout.strides[2:], *(t.layout.strides[2:] for t in epilogue.tensors)]
    if window is None or lanes < TILE or any(c[-1] != 1 for c in columns) or out.shape[-2] < TILE:
        return None
    machine = cost.Machine.of(plan.target)
    positions, taps = window.filter.positions, window.filter.taps
    channels = shape.inputs * len(window.outer)
    most = 24 if plan.target.registers > 16 else 12
    group = min(
        (min(size, shape.outputs) for size in range(most, most // 2 - 1, -4)),
        key=lambda size: -(-shape.outputs // size) * (size + 1),
    )
    chunks = -(-shape.outputs // group)
    each = channels * _INPUT_CYCLES[taps] / machine.fmas
    each += chunks * positions * (channels * group * 1.07 / machine.fmas + 30 + 2 * group)
    each += shape.outputs * (_OUTPUT_CYCLES[taps] / machine.fmas + 60 * len(epilogue.tensors))
    # Each strip reads all weights.
    weights = 4 * positions * channels * shape.outputs
    each = max(each, weights / (machine.l2_bytes if weights < machine.cache else machine.l3_bytes))
    height, width = out.shape[-2:]
    best: Choice | None = None
    for parts in (1, 2, 4):
        pixels = TILE * lanes // parts
        tops, lefts = starts_of(height, TILE), starts_of(width, pixels) if width > pixels else [0]
        if parts > 1 and width > pixels and width % pixels:
            continue
        stretches = list(itertools.product(tops, lefts))
        planes = list(itertools.product(*map(range, out.shape[2:-2])))
        # As many stretches as parts: the last is there several times if need be.
        table = [
            [
                sum(a * s for a, s in zip((*index, *stretches[min(at + part, len(stretches) - 1)]), c))
                for part in range(parts)
                for c in columns
            ]
            for index, at in itertools.product(planes, range(0, len(stretches), parts))
        ]
        cycles = shape.batch * shape.groups * len(table) * each
        if best is None or cycles < best.cycles:
            array = np.array(table, np.int32)
            tiles = Tiles(array, len(array), TILE, 0, lanes, lanes, False, math.prod(out.shape[2:]))
            best = Choice(
                window.filter,
                tiles,
                _units(tops, lefts, min(width, pixels), parts, len(planes)),
                parts,
                min(width, pixels),
                group,
                window.outer,
                window.of_taps,
                window.first,
                chunks,
                cycles,
            )
    return best


def _units(tops: Sequence[int], lefts: Sequence[int], width: int, parts: int, planes: int) -> tuple[int, ...]:
    """As `Choice` has them, in some planes.

    Args:
        tops, lefts: first rows and columns of the stretches of a plane.
        width: pixels of one.
        parts: stretches of a strip.
    """
    overlap = len(tops) > 1 and tops[-1] - tops[-2] < TILE

    def begins(stretch: int) -> bool:
        place = stretch % len(lefts)
        beside = place > 0 and lefts[place] - lefts[place - 1] < width
        return not beside and not (overlap and stretch > (len(tops) - 2) * len(lefts))

    strips = -(-len(tops) * len(lefts) // parts)
    firsts = [strip for strip in range(strips) if begins(strip * parts)]
    return (*(plane * strips + first for plane in range(planes) for first in firsts), planes * strips)


def pack(weights: np.ndarray, choice: Choice) -> np.ndarray:
    """[groups, outputs, inputs, taps] as [groups][chunks][positions][planes][inputs][channels of a
    chunk], float32: transformed, zeros after the last channel."""
    groups, outputs, inputs, _ = weights.shape
    filter, planes = choice.filter, len(choice.outer)
    kernels = np.zeros((groups, outputs, inputs, planes, filter.taps, filter.taps))
    for tap, place in enumerate(choice.of_taps):
        kernels[(..., *place)] = weights[..., tap]
    spread = np.einsum("ua,vb,goczab->guvzco", filter.kernels, filter.kernels, kernels, optimize=True)
    padded = np.zeros((*spread.shape[:-1], choice.chunks * choice.group), np.float32)
    padded[..., :outputs] = spread
    split = padded.reshape(groups, filter.positions, planes, inputs, choice.chunks, choice.group)
    return np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3, 5)).reshape(-1)
