"""A convolution as a list of constant offsets from one pointer, and its output as runs of pixels.

The planes of the input carry their border of zeros, so tap (i, j) of the kernel is the pixel at a fixed
distance from the output's. A strided convolution reads planes split by phase: with stride 2, pixel 2o + q of
a row is pixel o + q//2 of the phase q mod 2, so that within a phase the stride is 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Graph, Node
from coresident.graph.operators.windows import Window
from coresident.kernels import phases, subsample
from coresident.kernels.layout import Layout
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.spread import starts_of

FIRST, LAST = 1, 2
"""Ends of a row."""

MOST_TAPS = 1 << 16
"""Positions of a kernel: each has an offset in tables or code, and few bytes can make weights of any size."""


def window(node: Node, graph: Graph) -> Window:
    """The window of a convolution node.

    Raises:
        UnsupportedModel: its kernel has more than `MOST_TAPS` positions.
    """
    x, w = graph.fact(node.inputs[0]), graph.fact(node.inputs[1])
    assert x is not None
    assert w is not None
    if math.prod(w.sizes[2:]) > MOST_TAPS:
        raise UnsupportedModel(
            f"a kernel of {math.prod(w.sizes[2:])} positions; {MOST_TAPS} are supported",
            node=node.name or node.outputs[0],
            op=node.op,
            shape=w.sizes,
        )
    return Window.of(node, x.sizes[2:], w.sizes[2:])


def is_depthwise(node: Node, graph: Graph) -> bool:
    """Whether each group has one input channel and few outputs, so that planes are worked on one by one."""
    weights, groups = graph.fact(node.inputs[1]), node.get("group", 1)
    assert weights is not None
    return groups > 1 and weights.sizes[1] == 1 and weights.sizes[0] <= 4 * groups


def read_by_plane(plan: Plan, out: Tensor) -> bool:
    """Whether threads should make channels of their own of a value, rather than pixels: what reads it takes
    it plane by plane, and planes are so small that pieces of them would be short. (Layers of MobileNetV2 at
    28 x 28 and less gain, those at 56 x 56 lose, of floats and of bytes.)"""
    reader = plan.reader(out.name)
    if reader is None or reader.op not in ("Conv", "ConvInteger") or not is_depthwise(reader, plan.graph):
        return False
    return reader.inputs[0] == out.name and 4 * out.layout.elements <= plan.target.l2_bytes


def halo(node: Node, graph: Graph) -> tuple[tuple[int, int], ...]:
    """The zeros around its input that a convolution reads."""
    w = window(node, graph)
    spatial, out = graph.facts[node.inputs[0]].sizes[2:], graph.facts[node.outputs[0]].sizes[2:]
    return tuple(
        (begin, max(0, (o - 1) * t + (k - 1) * d - begin - (s - 1)))
        for s, o, t, k, d, begin in zip(spatial, out, w.strides, w.kernel, w.dilations, w.pads_begin)
    )


@dataclass(frozen=True)
class Geometry:
    """Where a convolution reads.

    Args:
        source: the planes, with their border; split by phase if the convolution is strided. Or pixels in
            blocks, those alone that it reads.
        taps: for each kernel position in C order, elements from an output pixel to what the tap reads.
        batch_stride, channel_stride: elements between pictures and between channels.
        strides: elements between what neighbouring output pixels read, one a spatial dimension.
        pixels: elements between neighbouring pixels of the source.
        copied: bytes moved to make the source from the input; 0 if it is the input.
        prepare: emits that copy: to be called once by who reads the source.
        positions: of each tap, relative to the output pixel, in the input or in a phase of it; none where
            output pixels have others each.
        planes: elements from a channel's first plane to the phase that each tap reads; none without phases.
    """

    source: Tensor
    taps: tuple[int, ...]
    batch_stride: int
    channel_stride: int
    strides: tuple[int, ...]
    pixels: tuple[int, ...] = ()
    copied: int = 0
    prepare: Callable[[], None] = lambda: None
    positions: tuple[tuple[int, ...], ...] = ()
    planes: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """Elements of the input from one pixel of a row to the next."""
        return self.strides[-1]

    @property
    def is_unstrided(self) -> bool:
        """Whether output pixels are as far apart, in all directions, as the pixels that they read."""
        return bool(self.positions) and self.strides == self.pixels

    @property
    def is_striped(self) -> bool:
        """Whether rows are cut into stripes (`Layout.striped`): then all taps read whole vectors."""
        return self.source.layout.stripes > 0


def ways(node: Node, plan: Plan) -> list[Geometry]:
    """How a convolution may read its input: in place, with the stride between pixels; or, where it has
    strides, from a copy split by phase, with unit stride."""
    w = window(node, plan.graph)
    # Columns of striped rows are read in place, whole ones with any stride.
    if all(s == 1 for s in w.strides) or _is_striped(node, plan):
        return [in_place(node, plan)]
    if plan.tensor(node.inputs[0]).layout.block:
        return [_subsampled(node, plan, w, blocked) for blocked in (True, False)]
    direct = plan.lies_planar(node.inputs[0], halo(node, plan.graph))
    return [*([in_place(node, plan)] if direct else []), by_phase(node, plan)]


def _is_striped(node: Node, plan: Plan) -> bool:
    """Whether a convolution works on striped rows: then its other operands are copied, if they are not."""
    return any(map(plan.is_striped, (node.inputs[0], *node.inputs[3:], node.outputs[0])))


def in_place(node: Node, plan: Plan) -> Geometry:
    """Read the planes themselves; they are copied only if they do not lie so."""
    w = window(node, plan.graph)
    around = halo(node, plan.graph)
    x = (plan.striped if _is_striped(node, plan) else plan.planar)(node.inputs[0], around)
    strides = x.layout.strides[2:]
    # The next pixel of a stripe is a column further on.
    pixels = (*strides[:-1], max(x.layout.stripes, 1) * strides[-1])
    positions = tuple(
        tuple(i * d - begin for i, d, begin in zip(position, w.dilations, w.pads_begin))
        for position in itertools.product(*map(range, w.kernel))
    )
    taps = tuple(sum(a * s for a, s in zip(position, pixels)) for position in positions)
    steps = tuple(s * t for s, t in zip(strides, w.strides))
    return Geometry(x, taps, x.layout.strides[0], x.layout.strides[1], steps, strides, positions=positions)


def _subsampled(node: Node, plan: Plan, w: Window, blocked: bool) -> Geometry:
    """Read a copy of the pixels that a strided convolution of single pixels reads, in blocks or in planes."""
    x, out = plan.tensor(node.inputs[0]), plan.tensor(node.outputs[0]).layout
    taken = subsample.subsample(plan, x, w.strides, out, blocked)
    layout = taken.tensor.layout
    copied = 8 * layout.elements
    strides = layout.strides
    return Geometry(taken.tensor, (0,), strides[0], strides[1], strides[2:], strides[2:], copied, taken.emit)


def by_phase(node: Node, plan: Plan) -> Geometry:
    """Read a copy split by phase."""
    w = window(node, plan.graph)
    x = plan.tensor(node.inputs[0])
    split = phases.split(plan, x, w, plan.tensor(node.outputs[0]).layout)
    layout = split.tensor.layout
    strides = layout.strides[3:]
    positions: list[tuple[int, ...]] = []
    planes: list[int] = []
    for position in itertools.product(*map(range, w.kernel)):
        at = [i * d - begin for i, d, begin in zip(position, w.dilations, w.pads_begin)]
        phase = split.index[tuple(a % s for a, s in zip(at, w.strides))]
        planes.append(phase * layout.strides[2])
        positions.append(tuple(a // s for a, s in zip(at, w.strides)))
    taps = tuple(
        plane + sum(a * step for a, step in zip(position, strides))
        for plane, position in zip(planes, positions)
    )
    copied = 4 * (layout.elements + x.layout.elements)
    return Geometry(
        split.tensor,
        taps,
        layout.strides[0],
        layout.strides[1],
        strides,
        strides,
        copied,
        split.emit,
        tuple(positions),
        tuple(planes),
    )


@dataclass(frozen=True)
class Tiles:
    """The output cut into runs of pixels, each of whole vectors.

    Args:
        table: [tiles, 2 + number of extra operands] int32: elements from pixel 0 to the run's first pixel,
            in the input, the output and each extra operand; where they have `ends`, which of these; where
            tiles are `mixed`, whether it is full.
        full: how many of the tiles have `vectors` vectors; the others have `rest_vectors`.
        vectors, rest_vectors: vectors of a tile.
        full_last, rest_last: pixels written by a tile's last vector; all lanes where overshooting is
            harmless.
        flat: whether runs cross row ends; then what lies between rows is written too.
        pixels: of real output covered.
        ends: whether the table says where tiles have an end of a row: `FIRST` and `LAST` added up.
        runs: of a tile that lie below each other, and behind each other in volumes, of `vectors` together;
            none where it is one.
        rows: of each of them, in C order, elements from the first: in the input, the output and each extra
            operand.
    """

    table: np.ndarray
    full: int
    vectors: int
    rest_vectors: int
    full_last: int
    rest_last: int
    flat: bool
    pixels: int
    ends: bool = False
    runs: tuple[int, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()

    @property
    def count(self) -> int:
        return len(self.table)

    @property
    def below(self) -> int:
        """How many runs a tile has."""
        return math.prod(self.runs)

    @property
    def across(self) -> int:
        """Vectors of one of a tile's runs."""
        return self.vectors // self.below

    @property
    def mixed(self) -> bool:
        """Whether there are tiles of both kinds."""
        return 0 < self.full < self.count

    @property
    def operands(self) -> int:
        """Columns of the table that count elements."""
        columns: int = self.table.shape[1]
        return columns - self.ends - self.mixed

    @property
    def overlap(self) -> bool:
        """Whether a pixel may be in two tiles: of `rectangles` alone, which are whole vectors."""
        return self.ends and self.vector_steps * self.full_last > self.pixels

    @property
    def sizes(self) -> list[int]:
        """Vectors of each tile."""
        if self.mixed:
            return [self.vectors if full else self.rest_vectors for full in self.table[:, -1]]
        return [self.vectors if self.full else self.rest_vectors] * self.count

    def placed(self, layouts: Sequence[Layout]) -> Tiles:
        """The same where pixels lie in blocks: only runs that cross row ends do.

        Args:
            layouts: of the input, the output and each extra operand.
        """
        if not any(layout.block for layout in layouts):
            return self
        assert self.flat
        table = self.table.copy()
        for column, layout in enumerate(layouts):
            table[:, column] = layout.place(table[:, column])
        return replace(self, table=table)

    @property
    def vector_steps(self) -> int:
        """Vectors computed over all tiles: what the time goes with."""
        return self.full * self.vectors + (self.count - self.full) * self.rest_vectors


def can_run_flat(strides: Sequence[int], out: Layout, extras: Sequence[Layout], lanes: int) -> bool:
    """Whether a run of pixels may cross row ends: all lie with the same gaps, and may be overshot."""
    spatial = out.shape[2:]

    def same(layout: Layout) -> bool:
        return all(a == b for a, b, size in zip(layout.strides[2:], strides, spatial) if size > 1)

    return (
        strides[-1] == 1
        and not out.stripes
        and out.slack >= lanes
        and all(map(same, (out, *extras)))
        and all(e.slack >= lanes for e in extras)
    )


def tiles(
    strides: Sequence[int], out: Layout, extras: Sequence[Layout], lanes: int, vectors: int, flat: bool
) -> Tiles:
    """Cut the output's pixels into runs of `vectors` vectors, and a shorter run where they end.

    Args:
        strides: of the input, one a spatial dimension.
        out, extras: layouts of the output and of other operands of its shape.
        lanes: pixels in a vector.
        vectors: in a tile.
        flat: one run over all rows (`can_run_flat`), or one for each row.
    """
    cut = tiles_of_spans(strides, out, extras, lanes, vectors, flat, 1)
    assert cut is not None
    return cut


def tiles_of_spans(
    strides: Sequence[int],
    out: Layout,
    extras: Sequence[Layout],
    lanes: int,
    vectors: int,
    flat: bool,
    spans: int,
) -> Tiles | None:
    """`tiles` of a picture whose flat run is first cut into spans, as equal as can be.

    Returns:
        None where the spans would end in shorter runs of several lengths.
    """
    spatial = out.shape[2:]
    columns = [tuple(strides), out.strides[2:], *(e.strides[2:] for e in extras)]
    steps = np.array([c[-1] for c in columns])
    if flat:
        starts = np.zeros((1, len(columns)), np.int64)
        length = -(-(sum((size - 1) * s for size, s in zip(spatial, strides)) + 1) // lanes) * lanes
    else:
        rows = (
            np.indices(spatial[:-1]).reshape(len(spatial) - 1, -1).T
            if len(spatial) > 1
            else np.zeros((1, 0), int)
        )
        starts = np.stack([rows @ np.array(c[:-1], dtype=np.int64).reshape(-1) for c in columns], axis=1)
        length = spatial[-1]
    width, wholes = vectors * lanes, length // lanes
    # The first spans are the longer ones, and the first worker is who gets the odd task.
    ends = [-(-wholes * i // spans) * lanes for i in range(1, spans)] + [length]
    runs = [
        (at, min(width, end - at)) for first, end in zip([0, *ends], ends) for at in range(first, end, width)
    ]
    shorter = {size for _, size in runs if size < width}
    if len(shorter) > 1:
        return None
    (rest,) = shorter or {0}
    rest_vectors = -(-rest // lanes)
    full = np.array([size == width for _, size in runs])
    begins = np.array([first for first, _ in runs], np.int64)[:, None] * steps
    table = starts[:, None, :] + begins[None, :, :]
    has_ends = out.stripes > 0
    told = [np.array([_ends(at, size, length) for at, size in runs])] if has_ends else []
    told += [full] if full.any() and not full.all() else []
    for column in told:
        table = np.concatenate([table, np.broadcast_to(column[None, :, None], (*table.shape[:2], 1))], axis=2)
    return Tiles(
        table.reshape(-1, table.shape[2]).astype(np.int32),
        len(starts) * int(full.sum()),
        vectors,
        rest_vectors,
        lanes,
        rest - (rest_vectors - 1) * lanes if rest else lanes,
        flat,
        math.prod(spatial),
        has_ends,
    )


def _ends(at: int, size: int, length: int) -> int:
    """Which ends of a row of a length a run of it has."""
    return FIRST * (at == 0) + LAST * (at + size >= length)


def rectangles(
    strides: Sequence[int],
    out: Layout,
    extras: Sequence[Layout],
    lanes: int,
    across: int,
    runs: tuple[int, ...],
) -> Tiles:
    """Cut the output's striped rows into tiles of `across` columns in each of some rows, so many along each
    outer dimension; the last ones overlap those before rather than the ends."""
    spatial = out.shape[2:]
    columns = [tuple(strides), out.strides[2:], *(e.strides[2:] for e in extras)]
    extents = [*runs, across * lanes]
    starts = [starts_of(*each) for each in zip(spatial, extents, strict=True)]
    begins = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(spatial))
    places = [begins @ np.array(c, np.int64) for c in columns]
    ends = FIRST * (begins[:, -1] == 0) + LAST * (begins[:, -1] + extents[-1] >= spatial[-1])
    return Tiles(
        np.stack([*places, ends], axis=1).astype(np.int32),
        len(begins),
        across * math.prod(runs),
        0,
        lanes,
        lanes,
        False,
        math.prod(spatial),
        True,
        runs,
        tuple(places_of(runs, c) for c in columns),
    )


def places_of(runs: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Elements from the first of some runs, in C order, to each; the strides are those of their dimensions,
    and of further ones."""
    indices = itertools.product(*map(range, runs))
    return tuple(sum(i * s for i, s in zip(index, strides)) for index in indices)


def border_mask(strides: Sequence[int], spatial: Sequence[int], length: int) -> np.ndarray:
    """[length] int32, all ones at the pixels of a flat run that are real, zero between rows and past the
    end."""
    mask = np.zeros(length, np.int32)
    grid = np.indices(spatial).reshape(len(spatial), -1)
    mask[np.array(strides) @ grid] = -1
    return mask


def segments(g: Geometry, width: int, runs: Sequence[int] = ()) -> list[tuple[int, int]]:
    """(start, end) of what a run of `width` pixels reads of one input channel, in elements from its first
    pixel; or so many runs (`Tiles.runs`)."""
    merged: list[tuple[int, int]] = []
    places = list(places_of(runs, g.strides))
    if g.is_striped and g.step > 1:
        lanes = g.source.layout.stripes
        places = [row + at * g.step for row in places for at in range(0, width, lanes)]
        width = lanes
    for tap in sorted({tap + place for tap in g.taps for place in places}):
        if merged and tap <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], tap + width))
        else:
            merged.append((tap, tap + width))
    return merged


def footprint(g: Geometry, width: int, runs: Sequence[int] = ()) -> int:
    """Floats of one input channel that a run of `width` pixels reads, or so many runs (`Tiles.runs`)."""
    return sum(end - start for start, end in segments(g, width, runs))


def block_sizes(inputs: int) -> list[int]:
    """Sizes of input-channel blocks worth trying, the whole first."""
    return sorted(
        {-(-inputs // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if parts <= inputs}, reverse=True
    )
