"""Dense integer convolution whose lanes hold output channels: what `panel.py` is to floats.

One element of two or four input channels is broadcast from the packed strip for each pixel. Where products
have to fit 16 bits before they are added (vpmaddubsw), what is too large of the few weights that are is left
out, and added from a list of its own once the sums are complete: the result is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.integers import Dot
from coresident.codegen.types import I32
from coresident.kernels import cost, panel
from coresident.kernels.frame import Shape
from coresident.kernels.integer_stream import Entries, elements, entries, safe_products
from coresident.kernels.integer_strips import Places, Strips, row_chunks
from coresident.kernels.lowering import Plan
from coresident.kernels.tiling import Cut, divided, unevenness

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        strips: chunks of rows; each row is a tile.
        dot: how elements are multiplied.
        width: vectors of output channels in a wide panel; narrow ones have one less.
        wide, narrow: panels of each; the wide ones come first.
        pixels: of each piece of a row, in order: short ones first.
        block: elements of the input channels in a block.
        cycles: as the cost model says.
    """

    strips: Strips
    dot: Dot
    width: int
    wide: int
    narrow: int
    pixels: tuple[int, ...]
    block: int
    cycles: float

    def __str__(self) -> str:
        return f"{max(self.pixels)} pixels x {self.widest} vectors of channels, blocks of {self.block}"

    @property
    def widest(self) -> int:
        """Vectors of the widest panel."""
        return self.width if self.wide else self.width - 1

    @property
    def panels(self) -> int:
        return self.wide + self.narrow

    def row_vectors(self, lanes: int) -> int:
        """Vectors of an output row."""
        return -(-sum(self.pixels) // lanes)

    @property
    def runs(self) -> list[int]:
        """The lengths that chunks of rows have in the output, from the first pixel to the last."""
        tiles, width = self.strips.tiles[:, 1], sum(self.pixels)
        return sorted(
            {int(tiles[end - 1] - tiles[first]) + width for _, _, first, end, _ in self.strips.strips}
        )

    def work(self, shape: Shape, threads: int) -> Cut:
        """The tasks."""
        batch = shape.batch * shape.groups
        return divided(len(self.strips.strips), batch, self.panels, threads, self.cycles)

    def sizes(self, work: Cut) -> list[int]:
        """Vectors of channels in each part of the panels."""
        bounds = [work.row_range(part) for part in range(work.row_parts)]
        wide = [end * self.wide // self.panels - first * self.wide // self.panels for first, end in bounds]
        return [(end - first) * (self.width - 1) + more for (first, end), more in zip(bounds, wide)]

    @property
    def most_tiles(self) -> int:
        """Rows of the largest chunk."""
        return int((self.strips.strips[:, 3] - self.strips.strips[:, 2]).max())


@dataclass(frozen=True)
class _Rates:
    """What panels take, relative to instructions or in cycles, fitted to layers measured one by one.

    Args:
        products: relative to instructions.
        waiting: of sums between blocks, relative to instructions.
        strip: cycles for a panel and some pixels.
        channel, vector, tensor: cycles for a row of an output channel; for each vector of it, and each vector
            that its epilogue reads.
        packing: relative to instructions.
    """

    products: float
    waiting: float
    strip: float
    channel: float
    vector: float
    tensor: float
    packing: float


_USUAL = _Rates(1.12, 1.0, 40.0, 12.0, 7.0, 0.0, 1.0)
"""Of Zen 3 and sums in 16 bits."""

_DIRECT = _Rates(1.1, 0.7, 0.0, 0.0, 3.1, 2.25, 0.7)
"""Of Zen 4 and vpdpbusd of 512 bits: 95 layers of rn50_q, unet_q and mbv2_q, with a deviation of 7 %."""


def choose(plan: Plan, shape: Shape, weights: Array, places: Places) -> Choice | None:
    """How to cut it; None if a weight can't be multiplied.

    Args:
        weights: [groups, outputs, inputs, taps].
    """
    ways = [_choose(plan, shape, weights, places, dot) for dot in Dot.all(plan.target)]
    return min((way for way in ways if way is not None), key=lambda way: way.cycles, default=None)


def _choose(plan: Plan, shape: Shape, weights: Array, places: Places, dot: Dot) -> Choice | None:
    machine = cost.Machine.of(plan.target)
    lanes, registers = plan.target.lanes(I32), plan.target.registers
    if not dot.held and (weights.min(initial=0) < dot.low or weights.max(initial=0) > dot.high):
        return None
    columns = places.out.shape[-1]
    most = 2 if registers == 16 else 3
    needed = -(-shape.outputs // lanes)
    vectors = most if panel.panels(needed, most)[0] else most - 1
    # Beside the sums there are the weights, a pixel, and products.
    pieces = panel.divide(columns, min(lanes, (registers - vectors - 2 - dot.held) // vectors))
    count = -(-shape.inputs // dot.channels)
    block = max(1, min(count, machine.panel_l1_bytes // (4 * vectors * lanes * shape.taps)))
    block = -(-count // -(-count // block))
    blocks = -(-count // block)
    row_vectors = -(-columns // lanes)
    rates = _DIRECT if cost.adds_at_once(plan.target, dot) else _USUAL
    ends = shape.outputs * (rates.channel + (rates.vector + rates.tensor * len(places.extras)) * row_vectors)
    if dot.held:
        sample = weights[0, :: max(1, shape.outputs // 64)]
        left = len(split(sample, dot)[1].row) / max(1, len(sample)) * shape.outputs
        ends += left * (4 + 2.5 * row_vectors)

    def of_panel(width: int) -> float:
        """Cycles for a row and a panel of so many vectors."""
        total = 0.0
        for pixels in pieces:
            products = cost.panel_products(machine, width, pixels, *dot.instructions)
            waits = rates.waiting * (3 * width * pixels + 20) * (blocks - 1)
            total += count * shape.taps * products * rates.products + waits + rates.strip + 8 * width * pixels
        return total

    batch = shape.batch * shape.groups
    best: Choice | None = None
    for rows in (56, 28, 14, 8, 7, 4, 2, 1):
        chunk = row_chunks(places, rows)
        # It is read again for each panel, from L2.
        if rows > 1 and 4 * chunk.span * count > machine.cache // 2:
            continue
        packing = chunk.packed * count * (0.35 if chunk.step == 1 else 0.6 if chunk.step == 2 else 8.0)
        packing *= rates.packing
        parts = panel.sharing(batch * len(chunk.strips), plan.threads)
        wide, narrow = panel.panels(needed, most, parts)
        each = wide * of_panel(most) + narrow * of_panel(most - 1) + ends
        # Each chunk reads all weights.
        cycles = batch * (len(chunk.tiles) * each + packing + 1000.0 * len(chunk.strips))
        choice = Choice(chunk, dot, most, wide, narrow, pieces, block, cycles)
        work = choice.work(shape, plan.threads)
        cycles += batch * packing * (work.row_parts - 1)
        cycles *= unevenness(work, chunk.sizes, plan.threads, choice.sizes(work))
        if best is None or cycles < best.cycles:
            best = replace(choice, cycles=cycles)
    return best


def split(weights: Array, dot: Dot) -> tuple[Array, Entries]:
    """[outputs, inputs, taps] as [outputs, elements * taps, channels of an element] of what one product can
    multiply, and entries for the rest."""
    whole = elements(weights, dot.channels)
    if not dot.held:
        return whole, entries(np.zeros_like(whole)[:, None], dot)
    safe = safe_products(np.clip(whole, dot.low, dot.high))
    return safe, entries((whole - safe)[:, None], dot, safe=True)


@dataclass(frozen=True)
class Packed:
    """Weights in the order in which the kernel meets them.

    Args:
        weights: [groups][panels][elements][taps][lanes of the panel][channels of an element], int8 or int16.
        starts: [groups * outputs + 1] int32: where each channel's entries for the rest begin.
        offsets: [entries] int32: packed pixels from an output pixel to what the entry reads.
        rest: [entries][channels of an element] int8 or int16.
    """

    weights: Array
    starts: Array
    offsets: Array
    rest: Array


def pack(weights: Array, choice: Choice, lanes: int) -> Packed:
    """Order the weights [groups, outputs, inputs, taps]."""
    _, outputs, _, taps = weights.shape
    size, channels = choice.dot.channels, lanes * (choice.width * choice.panels - choice.narrow)
    split_at = choice.wide * choice.width * lanes
    kind = np.int8 if size == 4 else np.int16
    parts, counts, offsets, rest = [], [np.zeros(1, np.int64)], [], []
    for group in weights:
        safe, left = split(group, choice.dot)
        padded = np.zeros((channels, *safe.shape[1:]), kind)
        padded[:outputs] = safe
        for part, width in ((padded[:split_at], choice.width), (padded[split_at:], choice.width - 1)):
            if len(part):
                parts.append(part.reshape(-1, width * lanes, safe.shape[1], size).transpose(0, 2, 1, 3))
        counts.append(np.bincount(left.row, minlength=outputs))
        element, tap = np.divmod(left.column, taps)
        offsets.append(element * choice.strips.span + np.array(choice.strips.taps)[tap])
        rest.append(left.weights[:, 0])
    return Packed(
        np.concatenate([part.reshape(-1) for part in parts]),
        np.cumsum(np.concatenate(counts)).astype(np.int32),
        np.concatenate(offsets).astype(np.int32),
        np.ascontiguousarray(np.concatenate(rest), kind),
    )
