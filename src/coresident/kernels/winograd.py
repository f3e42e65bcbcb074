"""Dense convolution of 3 x 3 kernels with a quarter of the multiplications.

Winograd's minimal filtering F(4 x 4, 3 x 3) (A. Lavin and S. Gray, "Fast algorithms for convolutional neural
networks", 2016): 4 x 4 output pixels are made of the 6 x 6 input pixels below them as

    Y = AT [ (G w GT) * (BT x B) ] A        * element by element, and summed over input channels

so 36 products do the work of 144. The interpolation points 0, 1, -1, 1/2 and -2 keep rounding errors within a
few times those of a direct convolution, where the usual 2 and -2 do not (B. Barabasz et al., "Error analysis
and improving the accuracy of Winograd convolution for deep neural networks", 2020).

Lanes hold tiles of 4 x 4 pixels: those of one stretch of a row, or of 2 or 4 rows of tiles where rows are
short. A *strip* is one vector of tiles: its input channels are transformed into the worker's scratch, then
each *chunk* of output channels is multiplied, 36 small matrix products, transformed back and stored. A value
that is not finite reaches all pixels of the tiles whose input it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from coresident.codegen.types import F32
from coresident.kernels import cost
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.spread import starts_of

TILE = 4
"""Output pixels of a tile, in both directions."""
WINDOW = 6
"""Input pixels below a tile."""
POSITIONS = WINDOW * WINDOW

INPUT = np.array(
    [
        [1, -1.5, -2, 1.5, 1, 0],
        [0, -1, 0.5, 2.5, 1, 0],
        [0, 1, -2.5, 0.5, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 0.5, -1, -0.5, 1, 0],
        [0, 1, -1.5, -2, 1.5, 1],
    ]
)
"""BT."""
KERNEL = (
    np.array([[15, 0, 0], [5, 5, 5], [-5, 5, -5], [-16, -8, -4], [1, -2, 4], [0, 0, 15]], np.float64) / 15
)
"""G."""
OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 0.5, -2, 0], [0, 1, 1, 0.25, 4, 0], [0, 1, -1, 0.125, -8, 1]]
)
"""AT."""

_INPUT_CYCLES, _OUTPUT_CYCLES = 420.0, 260.0
"""To transform an input channel of a strip, and an output channel back, with one vector instruction a
cycle."""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        strips: table of [strips, parts * (2 + further operands)] int32: of each part elements from pixel 0 to
            its first, in the input, the output and each further operand.
        units: first strip of each unit, and the end of the last. Strips that write the same pixels, each
            with rounding errors of its own, are of one unit, so that the same one is always the last to.
        parts: rows of tiles in a vector.
        width: output pixels of a part.
        group: output channels of a chunk.
        outer: elements from one outer tap's plane of the input to pixel 0's, one or more.
        first: elements from an output pixel to the first that a tile reads.
        chunks: of output channels.
        cycles: as the cost model says.
    """

    strips: Tiles
    units: tuple[int, ...]
    parts: int
    width: int
    group: int
    outer: tuple[int, ...]
    first: int
    chunks: int
    cycles: float

    def __str__(self) -> str:
        return f"tiles of {TILE}x{TILE}, {self.parts} rows of them x {self.group} channels"


def _window(g: Geometry) -> tuple[tuple[int, ...], int] | None:
    """The outer taps and the first tap of 3 x 3; None if that is not what the taps are."""
    if len(g.strides) < 2 or g.strides[-1] != 1 or not g.positions:
        return None
    if g.taps != tuple(sum(a * s for a, s in zip(position, g.strides)) for position in g.positions):
        return None
    outer = list(dict.fromkeys(position[:-2] for position in g.positions))
    top, left = g.positions[0][-2:]
    wanted = [(*o, top + i, left + j) for o in outer for i in range(3) for j in range(3)]
    if list(g.positions) != wanted:
        return None
    planes = tuple(sum(a * s for a, s in zip(o, g.strides)) for o in outer)
    return planes, top * g.strides[-2] + left


def choose(plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue) -> Choice | None:
    """The cut that should be fastest; None where kernels are not 3 x 3, or pixels not side by side."""
    window, lanes = _window(g), plan.target.lanes(F32)
    columns = [g.strides, out.layout.strides[2:], *(t.layout.strides[2:] for t in epilogue.tensors)]
    if window is None or lanes < TILE or any(c[-1] != 1 for c in columns) or out.shape[-2] < TILE:
        return None
    machine = cost.Machine.of(plan.target)
    planes, first = window
    channels = shape.inputs * len(planes)
    most = 24 if plan.target.registers > 16 else 12
    group = min(
        (min(size, shape.outputs) for size in range(most, most // 2 - 1, -4)),
        key=lambda size: -(-shape.outputs // size) * (size + 1),
    )
    chunks = -(-shape.outputs // group)
    each = channels * _INPUT_CYCLES / machine.fmas
    each += chunks * POSITIONS * (channels * group * 1.07 / machine.fmas + 30 + 2 * group)
    each += shape.outputs * (_OUTPUT_CYCLES / machine.fmas + 60 * len(epilogue.tensors))
    # Each strip reads all weights.
    weights = 4 * POSITIONS * channels * shape.outputs
    each = max(each, weights / (machine.l2_bytes if weights < machine.cache else machine.l3_bytes))
    height, width = out.shape[-2:]
    best: Choice | None = None
    for parts in (1, 2, 4):
        pixels = TILE * lanes // parts
        if parts > 1 and width > pixels:
            break
        tops = starts_of(height, TILE)
        # As many rows of tiles as parts: the last are there twice if need be.
        rows = [
            [tops[min(at + part, len(tops) - 1)] for part in range(parts)]
            for at in starts_of(len(tops), parts)
        ]
        lefts = starts_of(width, pixels) if width > pixels else [0]
        outer = itertools.product(*map(range, out.shape[2:-2]))
        table = [
            [sum(a * s for a, s in zip((*index, top, left), c)) for top in tops_here for c in columns]
            for index, tops_here, left in itertools.product(outer, rows, lefts)
        ]
        cycles = shape.batch * shape.groups * len(table) * each
        if best is None or cycles < best.cycles:
            array = np.array(table, np.int32)
            strips = Tiles(array, len(array), TILE, 0, lanes, lanes, False, math.prod(out.shape[2:]))
            units = _units(math.prod(out.shape[2:-2]), len(rows), len(lefts), height % TILE != 0)
            best = Choice(strips, units, parts, min(width, pixels), group, planes, first, chunks, cycles)
    return best


def _units(planes: int, rows: int, beside: int, overlap: bool) -> tuple[int, ...]:
    """As `Choice` has them, of `planes` times `rows` times `beside` strips.

    Args:
        overlap: whether the last row begins above the end of the one before.
    """
    together = rows - (overlap and rows > 1)
    firsts = [(plane * rows + row) * beside for plane in range(planes) for row in range(together)]
    return (*firsts, planes * rows * beside)


def pack(weights: np.ndarray, choice: Choice) -> np.ndarray:
    """[groups, outputs, inputs, taps] as [groups][chunks][positions][outer taps][inputs][channels of a
    chunk], float32: transformed, zeros after the last channel."""
    groups, outputs, inputs, taps = weights.shape
    kernels = weights.reshape(groups, outputs, inputs, taps // 9, 3, 3).astype(np.float64)
    spread = np.einsum("ua,vb,goczab->guvzco", KERNEL, KERNEL, kernels, optimize=True)
    padded = np.zeros((*spread.shape[:-1], choice.chunks * choice.group), np.float32)
    padded[..., :outputs] = spread
    split = padded.reshape(groups, POSITIONS, taps // 9, inputs, choice.chunks, choice.group)
    return np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3, 5)).reshape(-1)
