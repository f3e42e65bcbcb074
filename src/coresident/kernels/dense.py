"""Dense direct convolution, register-tiled: a few vectors of pixels by a few output channels.

For one tile of pixels, all groups of output channels follow each other, so the tile's activations stay in the
nearest cache and the weights stream past, a few channels side by side. Input channels are taken in blocks
whose part of the tile fits L1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coresident.codegen.types import F32
from coresident.kernels import cost
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry, Tiles, block_sizes, can_run_flat, footprint, tiles
from coresident.kernels.lowering import Plan, Tensor

GROUPS = (2, 3, 4, 6, 8)
"""How many output channels may be packed side by side, to be computed together."""

STRIPED_L1 = 4 / 3
"""Of the part of L1 that a tile's activations may fill: those of striped rows, of which no line is read in
part (transposed convolutions of a U-Net are 1.01-1.07 times as fast so on Zen 5)."""

SHORTER = 0.02
"""Of the time, what tiles of striped rows take longer that take turns with shorter ones, by the share of
these: transposed convolutions of a U-Net are up to 1.08 times as fast on Zen 5 where tiles of fewer vectors
fill the rows. (Runs across rows have few shorter ones.)"""


@dataclass(frozen=True)
class Choice:
    """A way to compute it, and the cycles it should take on one core.

    Args:
        tiles: the cut of the pixels.
        group: output channels packed side by side.
        row_groups, rest_groups: groups of output channels in a full tile and in one of the rest.
        block: input channels in a block: what they hold of a tile should fit L1.
        cycles: as the cost model says.
    """

    tiles: Tiles
    group: int
    row_groups: int
    rest_groups: int
    block: int
    cycles: float

    def __str__(self) -> str:
        flat = ", flat" if self.tiles.flat else ""
        rows = self.group * self.row_groups
        return f"{self.tiles.vectors} vectors x {rows} channels, blocks of {self.block}{flat}"


def choose(
    plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue, merged: bool = False
) -> Choice:
    """The tile that should be fastest; with `merged`, of those that keep pairs of output rows together."""
    machine = cost.Machine.of(plan.target)
    lanes = plan.target.lanes(F32)
    extras = [t.layout for t in epilogue.tensors]
    registers = plan.target.registers
    l1_bytes = machine.dense_l1_bytes * (STRIPED_L1 if g.is_striped else 1.0)
    # Of 32 registers LLVM uses some to load early, and spills sums for them: slow, since the stack is not
    # aligned to vectors.
    spare = 2 if registers > 16 else 0
    best: Choice | None = None

    def fit(vectors: int, rows: int) -> bool:
        # The fewer of both are held beside the sums, the others pass through one register.
        sums = vectors * rows
        return sums <= registers - 4 and sums + min(vectors, rows) < registers - spare

    flats = [True, False] if not merged and can_run_flat(g.strides, out.layout, extras, lanes) else [False]
    for flat in flats:
        for vectors in range(1, registers - 3):
            cutting = tiles(g.strides, out.layout, extras, lanes, vectors, flat)
            if cutting.full == 0 and vectors > cutting.rest_vectors:
                continue
            reach = 4 * footprint(g, vectors * lanes)
            sizes = block_sizes(shape.inputs)
            block = next((size for size in sizes if size * reach <= l1_bytes), sizes[-1])
            block = min(shape.inputs, max(block, 16))
            blocks = -(-shape.inputs // block)
            depth = shape.inputs * shape.taps / blocks
            resident = block * reach <= l1_bytes
            unaligned = not (flat or g.is_striped) or any(tap % lanes for tap in g.taps)
            weights = 4 * shape.outputs * shape.inputs * shape.taps
            for group in sorted({min(size, shape.outputs) for size in GROUPS}):
                if not fit(vectors, group) or (merged and group % 2):
                    continue
                rows = partial(
                    _rows, machine, plan, group, shape.outputs, depth, fit, resident, unaligned, len(extras)
                )
                groups, cycles = rows(vectors)
                rest_groups, rest_cycles = rows(cutting.rest_vectors) if cutting.rest_vectors else (1, 0.0)
                total = blocks * (cutting.full * cycles + (cutting.count - cutting.full) * rest_cycles)
                if weights > machine.cache:
                    total = max(total, cutting.count * weights / machine.l3_bytes)
                if cutting.mixed and g.is_striped:
                    total *= 1 + SHORTER * (1 - cutting.full / cutting.count)
                total *= shape.batch * shape.groups
                # Equal otherwise: the larger group is read as fewer streams.
                if best is None or total <= best.cycles:
                    best = Choice(cutting, group, groups, rest_groups, block, total)
    assert best is not None
    return best


def _rows(
    machine: cost.Machine,
    plan: Plan,
    group: int,
    outputs: int,
    depth: float,
    fit: Callable[[int, int], bool],
    resident: bool,
    unaligned: bool,
    extras: int,
    vectors: int,
) -> tuple[int, float]:
    """For a tile of so many vectors: the channel groups to take at once, and the cycles for all channels."""
    size = plan.target.vector_bits // 8
    tile = partial(
        cost.dense_tile,
        machine,
        vectors,
        depth=depth,
        vector_bytes=size,
        resident=resident,
        unaligned=unaligned,
        extras=extras,
    )
    whole, rest = divmod(outputs, group)
    best = (1, float("inf"))
    for groups in range(1, max(whole, 1) + 1):
        if groups > 1 and not fit(vectors, group * groups):
            break
        many, few = divmod(whole, groups)
        cycles = many * tile(group * groups) + few * tile(group) + (tile(rest) if rest else 0.0)
        if cycles < best[1]:
            best = (groups, cycles)
    return best


def pack(weights: np.ndarray[Any, Any], choice: Choice) -> np.ndarray[Any, Any]:
    """[groups, outputs, inputs, taps] float32 in the order in which the kernel meets them.

    For each group of the convolution and block of input channels: [outputs / group][inputs][taps][group],
    then the output channels left over. A tile's weights are one stream, which is what hardware prefetchers
    follow.
    """
    parts = []
    for w in weights:
        whole = len(w) // choice.group * choice.group
        for first in range(0, w.shape[1], choice.block):
            part = w[:, first : first + choice.block]
            grouped = part[:whole].reshape(-1, choice.group, *part.shape[1:])
            parts.append(grouped.transpose(0, 2, 3, 1).reshape(-1))
            parts.append(part[whole:].transpose(1, 2, 0).reshape(-1))
    return np.concatenate(parts).astype(np.float32)
