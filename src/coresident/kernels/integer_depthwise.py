"""Depthwise convolution of bytes: each plane by itself, with lanes that hold neighbouring pixels.

Where one instruction adds four products of bytes to a lane, and another puts the bytes of a vector into any
order, a lane takes four taps of a row of the kernel at once (`_Quads`). Elsewhere bytes are widened, and a
lane takes two taps (`_Words`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.integers import Dot
from coresident.codegen.target import Target
from coresident.codegen.types import I8, I16, I32, I64
from coresident.graph.graph import Node
from coresident.kernels import geometry
from coresident.kernels.integer_epilogue import IntegerEpilogue, IntegerOutput
from coresident.kernels.integer_strips import Places
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import pieces, share

_MOST_SUMS = 8
"""Vectors of sums of a tile."""

_QUAD = 4
"""Taps that are multiplied at once."""

_LOADED = 64
"""Bytes that are put into another order at once."""


@dataclass(frozen=True)
class _Tiles:
    """The cut of a plane.

    Args:
        table: [tiles, 2 + extras] int32: elements from pixel 0 to the tile's first in the input, in the
            output and in further operands.
        vectors: of a tile.
        last: pixels that its last vector writes.
    """

    table: np.ndarray[Any, Any]
    vectors: int
    last: int

    @staticmethod
    def of(p: Places, vectors: int) -> _Tiles:
        spatial, strides = p.out.shape[2:], p.source.strides[2:]
        steps = [s * t for s, t in zip(strides, p.steps)]
        columns = [steps, *p.columns]
        if p.flat:
            length = sum((size - 1) * s for size, s in zip(spatial, strides)) + 1
            length, lines = -(-length // p.lanes) * p.lanes, [(0,) * len(spatial)]
        else:
            length, lines = spatial[-1], [(*at, 0) for at in itertools.product(*map(range, spatial[:-1]))]
        vectors = min(vectors, -(-length // p.lanes))
        width = vectors * p.lanes
        starts = [min(at, max(length - width, 0)) for at in range(0, length, width)]
        table = [
            [sum(a * b for a, b in zip(line, c)) + start * c[-1] for c in columns]
            for line in lines
            for start in starts
        ]
        last = min(length - (vectors - 1) * p.lanes, p.lanes)
        return _Tiles(np.array(table, np.int32), vectors, last)


def emit(
    node: Node,
    plan: Plan,
    source: Tensor,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: IntegerEpilogue,
    info: dict[str, Any],
) -> None:
    """Add the step of a convolution whose groups have one input channel.

    Args:
        weights: [channels * multiplier, taps], less their zero points.
        bias: [channels * multiplier] int32, with the correction for the input's zero point.
    """
    target = plan.target
    lanes = target.lanes(I32)
    batch, channels = out.shape[:2]
    multiplier = channels // node.get("group", 1)
    extras = tuple(t.layout for t in epilogue.tensors)
    w, strides = geometry.window(node, plan.graph), source.layout.strides
    places = Places.of(w, source.layout, out.layout, extras, lanes)
    taps = _Taps.of(places, source.dtype == np.int8)
    way: _Quads | _Words = _Words(taps)
    if _Quads.fits(target, taps, weights):
        way = _Quads(taps)
        start = bias.astype(np.int64) - taps.signed * 128 * weights.sum(axis=1, dtype=np.int64)
        bias = start.astype(np.int32)
    places = replace(places, lanes=way.vectors * lanes)

    def cycles(vectors: int) -> float:
        t = _Tiles.of(places, vectors)
        return len(t.table) * ((way.cycles + 6 * way.vectors) * t.vectors + 20)

    vectors = min(range(1, _MOST_SUMS // way.vectors + 1), key=cycles)
    tiles = _Tiles.of(places, vectors)
    total = cycles(vectors) * batch * channels
    f = kernel(target, "conv_integer_depthwise")
    x, y, bias_at, table, w_at = (word(f, i) for i in range(5))
    extra = [word(f, 5 + i) for i in range(epilogue.words)]
    masked = places.flat and any(map(any, out.layout.halo))
    mask = word(f, 5 + epilogue.words) if masked else None
    tensors = (out, *epilogue.tensors)
    packed = way.packed(weights)
    tasks = pieces(plan.threads, batch * channels, total)
    first, end = share(f, batch * channels, tasks)
    with f.loop(first, end) as unit:
        picture, channel = unit / channels, unit % channels
        output = IntegerOutput(
            epilogue,
            tuple(t.dtype for t in tensors),
            tuple(
                f.offset(pointer, picture * (t.layout.strides[0] * t.dtype.itemsize))
                for pointer, t in zip((y, *extra), tensors)
            ),
            tuple(extra[len(epilogue.tensors) :]),
            tuple(t.layout.strides[1] for t in tensors),
            mask,
            out.layout.fill,
            lanes,
        )
        plane = f.offset(x, picture * strides[0] + (channel / multiplier) * strides[1])
        start = f.splat(f.load(I32, bias_at, channel), I32.by(lanes))
        weight = f.offset(w_at, channel * (packed.nbytes // (4 * channels)), I32)
        columns = tiles.table.shape[1]
        with f.loop(0, len(tiles.table)) as tile:
            at, *offsets = (f.convert(f.load(I32, table, tile * columns + i), I64) for i in range(columns))
            sums = way.sums(f, f.offset(plane, at), tiles.vectors, weight, start)
            output.prefetch(f, channel, way.vectors * tiles.vectors, offsets)
            whole = way.vectors * (tiles.vectors - 1) + -(-tiles.last // lanes)
            output.store(f, channel, sums[:whole], offsets, (tiles.last - 1) % lanes + 1)
    operands = [
        source.address,
        out.address,
        plan.constant(bias),
        plan.constant(tiles.table),
        plan.constant(packed),
        *epilogue.operands(plan),
    ]
    if masked:
        length = int(tiles.table[:, 1].max()) + tiles.vectors * way.vectors * lanes
        real = geometry.border_mask(out.layout.strides[2:], out.shape[2:], length)
        operands.append(plan.constant(real.astype(np.dtype(f"int{8 * out.dtype.itemsize}"))))
    flat = ", flat" if places.flat else ""
    details = {
        **info,
        "kernel": f"integer depthwise, {way.name}",
        "tile": f"{way.vectors * tiles.vectors} vectors{flat}",
        "estimated_cycles": total,
    }
    plan.step(f, operands, tasks, reads=[source, *epilogue.tensors], writes=[out], info=details)


@dataclass(frozen=True)
class _Taps:
    """The taps of a kernel.

    Args:
        rows: elements from an output pixel to what each tap reads, row by row of the kernel.
        step: bytes from one pixel to the next.
        signed: whether bytes are.
    """

    rows: tuple[tuple[int, ...], ...]
    step: int
    signed: bool

    @staticmethod
    def of(p: Places, signed: bool) -> _Taps:
        """Of a convolution that reads so."""
        strides = p.source.strides[2:]
        rows = [list(row) for _, row in itertools.groupby(p.positions, lambda position: position[:-1])]
        return _Taps(
            tuple(tuple(sum(a * s for a, s in zip(at, strides)) for at in row) for row in rows),
            p.steps[-1] * strides[-1],
            signed,
        )


@dataclass(frozen=True)
class _Quads:
    """Four taps of a row to a multiplication (vpdpbusd), brought together by a shuffle of what was loaded
    (vpermb)."""

    taps: _Taps
    vectors: int = 1
    """Of sums, that are made together."""
    name: str = "vpdpbusd"

    @staticmethod
    def fits(target: Target, taps: _Taps, weights: np.ndarray[Any, Any]) -> bool:
        """Whether the target has the instructions for bytes, weights are such, and a load holds what a row of
        taps reads for a vector."""
        lanes = target.lanes(I32)
        has = Dot.of(target).name == "vpdpbusd" and 4 * lanes == _LOADED and target.has("avx512vbmi")
        small = weights.min(initial=0) >= -128 and weights.max(initial=0) <= 127
        reach = max(max(row) - min(row) for row in taps.rows)
        return has and bool(small) and (lanes - 1) * taps.step + reach < _LOADED

    @property
    def cycles(self) -> float:
        """For a vector."""
        return 2.2 * sum(-(-len(row) // _QUAD) for row in self.taps.rows)

    def packed(self, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[channels, taps] as [channels, quads, 4] int8."""
        parts, at = [], 0
        for row in self.taps.rows:
            padded = np.zeros((len(weights), -(-len(row) // _QUAD) * _QUAD), np.int8)
            padded[:, : len(row)] = weights[:, at : at + len(row)]
            parts.append(padded)
            at += len(row)
        return np.concatenate(parts, axis=1)

    def sums(self, f: Function, at: Value, vectors: int, weights: Value, start: Value) -> list[Value]:
        """Those of a tile that begins at an address."""
        kind, step = start.type, self.taps.step
        lanes, dot = kind.lanes, Dot.of(f.target)
        totals, quad = [start] * vectors, 0
        for row in self.taps.rows:
            near, reach = min(row), max(row) - min(row)
            together = 1 + (_LOADED - 1 - reach - (lanes - 1) * step) // (lanes * step)
            together = -(-vectors // -(-vectors // together))
            quads = [[tap - near for tap in row[i : i + _QUAD]] for i in range(0, len(row), _QUAD)]
            held = [f.splat(f.load(I32, weights, quad + i), kind) for i in range(len(quads))]
            for first in range(0, vectors, together):
                some = range(first, min(first + together, vectors))
                read = (len(some) * lanes - 1) * step + reach + 1
                size = _LOADED // 2 if read <= _LOADED // 2 else _LOADED
                loaded = f.load(I8.by(size), at, near + first * lanes * step)
                if self.taps.signed:
                    loaded = loaded ^ -128
                for v, (taps, weight) in itertools.product(some, zip(quads, held)):
                    places = [((v - first) * lanes + lane) * step for lane in range(lanes)]
                    # The last quad's taps that are not there have weights of zero.
                    order = [place + taps[min(i, len(taps) - 1)] for place in places for i in range(_QUAD)]
                    pixels = f.bitcast(f.shuffle(loaded, None, order), kind)
                    totals[v] = dot.add(f, totals[v], [pixels], [weight])
            quad += len(quads)
        return totals


@dataclass(frozen=True)
class _Words:
    """Two taps to a multiplication, bytes widened."""

    taps: _Taps
    vectors: int = 2
    """Of sums, that are made together."""
    name: str = "vpmaddwd"

    @property
    def _flat(self) -> list[int]:
        return [tap for row in self.taps.rows for tap in row]

    @property
    def cycles(self) -> float:
        """For as many pixels as there are words in a vector."""
        return 1.8 * len(self._flat)

    def packed(self, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[channels, taps] as [channels, pairs of taps, 2] int16."""
        padded = np.zeros((len(weights), weights.shape[1] + weights.shape[1] % 2), np.int16)
        padded[:, : weights.shape[1]] = weights
        return padded

    def sums(self, f: Function, at: Value, vectors: int, weights: Value, start: Value) -> list[Value]:
        """Those of a tile that begins at an address, two vectors for each of words."""
        lanes, taps = start.type.lanes, self._flat
        words = 2 * lanes
        low, high = _halves(words)
        dot = Dot("vpmaddwd", 2, False, 1, False, -255, 255)
        totals = [[start, start] for _ in range(vectors)]
        for k in range(0, len(taps), 2):
            pair = f.splat(f.load(I32, weights, k // 2), start.type)
            for v, total in enumerate(totals):
                a = self._widened(f, at, taps[k] + v * words * self.taps.step, words)
                b = f.constant(0, a.type)
                if k + 1 < len(taps):
                    b = self._widened(f, at, taps[k + 1] + v * words * self.taps.step, words)
                for half, order in enumerate((low, high)):
                    mixed = f.bitcast(f.shuffle(a, b, order), start.type)
                    if f.target.arch == "x86_64":
                        total[half] = dot.add(f, total[half], [mixed], [pair])
                    else:
                        total[half] = total[half] + _products(f, mixed, pair)
        found = []
        for one, other in totals:
            # Lane i of the halves is this pixel of the vector.
            place = {low[2 * i]: i for i in range(lanes)} | {high[2 * i]: lanes + i for i in range(lanes)}
            for part in (range(lanes), range(lanes, words)):
                found.append(f.shuffle(one, other, [place[pixel] for pixel in part]))
        return found

    def _widened(self, f: Function, at: Value, first: int, words: int) -> Value:
        """A vector of pixels from some element on."""
        kind, step = I8.by(words), self.taps.step
        if step == 1:
            found = f.load(kind, at, first)
        elif step == 2:
            pair = [f.load(kind, at, first + half * words) for half in (0, 1)]
            found = f.shuffle(pair[0], pair[1], range(0, 2 * words, 2))
        else:
            found = f.constant(0, kind)
            for lane in range(words):
                found = f.insert(found, f.load(I8, at, first + lane * step), lane)
        return f.convert(found, I16, signed=self.taps.signed)


def _halves(words: int) -> tuple[list[int], list[int]]:
    """How two vectors of words take turns within each 128 bits: the lower and the upper half of each."""
    halves = []
    for first in (0, 4):
        pixels = [block + first + i for block in range(0, words, 8) for i in range(4)]
        halves.append([lane for pixel in pixels for lane in (pixel, words + pixel)])
    return halves[0], halves[1]


def _products(f: Function, pixels: Value, weights: Value) -> Value:
    """Sums of two products of words in each lane."""
    total = f.constant(0, pixels.type)
    for shift in (16, 0):
        a, b = (f.convert((v << shift) >> 16, I32) for v in (pixels, weights))
        total = total + a * b
    return total
