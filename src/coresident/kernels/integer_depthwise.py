"""Depthwise convolution of bytes: each plane by itself, two taps to a multiplication."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.integers import Dot
from coresident.codegen.types import I8, I16, I32, I64
from coresident.graph.graph import Node
from coresident.kernels import cost, geometry
from coresident.kernels.integer_epilogue import IntegerEpilogue, IntegerOutput
from coresident.kernels.integer_strips import Places
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.vectors import pieces, share

_MOST_VECTORS = 4
"""Of a tile, each of as many pixels as words fit a register."""


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
    lanes, words = target.lanes(I32), target.lanes(I16)
    batch, channels = out.shape[:2]
    multiplier = channels // node.get("group", 1)
    extras = tuple(t.layout for t in epilogue.tensors)
    w = geometry.window(node, plan.graph)
    places = Places.of(w, source.layout, out.layout, extras, words)
    strides = source.layout.strides
    taps = [sum(a * s for a, s in zip(position, strides[2:])) for position in places.positions]
    machine = cost.Machine.of(target)

    def cycles(vectors: int) -> float:
        t = _Tiles.of(places, vectors)
        return len(t.table) * (len(taps) * t.vectors * 4.5 / machine.issue * 2 + 12 * t.vectors + 20)

    vectors = min(range(1, _MOST_VECTORS + 1), key=cycles)
    tiles = _Tiles.of(places, vectors)
    total = cycles(vectors) * batch * channels
    f = kernel(target, "conv_integer_depthwise")
    x, y, bias_at, table, w_at = (word(f, i) for i in range(5))
    extra = [word(f, 5 + i) for i in range(epilogue.words)]
    masked = places.flat and any(map(any, out.layout.halo))
    mask = word(f, 5 + epilogue.words) if masked else None
    tensors = (out, *epilogue.tensors)
    pairs = -(-len(taps) // 2)
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
        weight = f.offset(w_at, channel * pairs, I32)
        columns = tiles.table.shape[1]
        with f.loop(0, len(tiles.table)) as tile:
            at, *offsets = (f.convert(f.load(I32, table, tile * columns + i), I64) for i in range(columns))
            signed = source.dtype == np.int8
            here = f.offset(plane, at)
            pixels = _Pixels(f, here, tiles.vectors, words, w.strides[-1] * strides[-1], signed)
            sums = _sums(f, pixels, taps, weight, start)
            output.prefetch(f, channel, 2 * tiles.vectors, offsets)
            whole = 2 * (tiles.vectors - 1) + -(-tiles.last // lanes)
            output.store(f, channel, sums[:whole], offsets, (tiles.last - 1) % lanes + 1)
    operands = [
        source.address,
        out.address,
        plan.constant(bias),
        plan.constant(tiles.table),
        plan.constant(_packed(weights, pairs)),
        *epilogue.operands(plan),
    ]
    if masked:
        length = int(tiles.table[:, 1].max()) + tiles.vectors * words
        real = geometry.border_mask(out.layout.strides[2:], out.shape[2:], length)
        operands.append(plan.constant(real.astype(np.dtype(f"int{8 * out.dtype.itemsize}"))))
    flat = ", flat" if places.flat else ""
    details = {
        **info,
        "kernel": "integer depthwise",
        "tile": f"{tiles.vectors} vectors{flat}",
        "estimated_cycles": total,
    }
    plan.step(f, operands, tasks, reads=[source, *epilogue.tensors], writes=[out], info=details)


def _packed(weights: np.ndarray[Any, Any], pairs: int) -> np.ndarray[Any, Any]:
    """[channels, pairs of taps, 2] int16."""
    padded = np.zeros((len(weights), 2 * pairs), np.int16)
    padded[:, : weights.shape[1]] = weights
    return padded


@dataclass(frozen=True)
class _Pixels:
    """What taps read of a tile.

    Args:
        at: address of the tile's first pixel.
        vectors: of the tile.
        words: pixels of a vector.
        step: bytes from one pixel to the next.
        signed: whether bytes are.
    """

    function: Function
    at: Value
    vectors: int
    words: int
    step: int
    signed: bool

    def tap(self, tap: int, v: int) -> Value:
        """Vector `v` of what a tap reads, widened."""
        f = self.function
        kind = I8.by(self.words)
        first = tap + v * self.words * self.step
        if self.step == 1:
            found = f.load(kind, self.at, first)
        elif self.step == 2:
            pair = [f.load(kind, self.at, first + half * self.words) for half in (0, 1)]
            found = f.shuffle(pair[0], pair[1], range(0, 2 * self.words, 2))
        else:
            found = f.constant(0, kind)
            for lane in range(self.words):
                found = f.insert(found, f.load(I8, self.at, first + lane * self.step), lane)
        return f.convert(found, I16, signed=self.signed)


def _sums(f: Function, pixels: _Pixels, taps: Sequence[int], weights: Value, start: Value) -> list[Value]:
    """The sums of a tile, two vectors for each of words."""
    lanes, words = start.type.lanes, pixels.words
    low, high = _halves(words)
    dot = Dot("vpmaddwd", 2, False, 1, False, -255, 255)
    totals = [[start, start] for _ in range(pixels.vectors)]
    for k in range(0, len(taps), 2):
        pair = f.splat(f.load(I32, weights, k // 2), start.type)
        for v, total in enumerate(totals):
            a = pixels.tap(taps[k], v)
            b = pixels.tap(taps[k + 1], v) if k + 1 < len(taps) else f.constant(0, a.type)
            for half, order in enumerate((low, high)):
                mixed = f.bitcast(f.shuffle(a, b, order), start.type)
                if f.target.arch == "x86_64":
                    total[half] = dot.add(f, total[half], [mixed], [pair])
                else:
                    total[half] = total[half] + _products(f, mixed, pair)
    found = []
    for first, second in totals:
        # Lane i of the halves is this pixel of the vector.
        place = {low[2 * i]: i for i in range(lanes)} | {high[2 * i]: lanes + i for i in range(lanes)}
        for part in (range(lanes), range(lanes, 2 * lanes)):
            found.append(f.shuffle(first, second, [place[pixel] for pixel in part]))
    return found


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
