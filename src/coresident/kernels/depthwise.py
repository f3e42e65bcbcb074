"""Depthwise convolution: each plane by itself, all taps of a run of pixels while its sums are in
registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value, kernel, word
from coresident.codegen.types import F32, Type
from coresident.graph.graph import Node
from coresident.kernels import cost, geometry
from coresident.kernels import frame as frames
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Frame, Here, Shape
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import cut

TILES_AHEAD = 2
"""Tiles ahead of which lines are asked for that are to be written, be they of this plane or of the next: they
are written faster than they come from another core (1.05-1.3x as fast so, where other layers follow)."""


def emit(
    node: Node,
    plan: Plan,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
) -> None:
    """Add the step of a convolution whose groups have one input channel.

    Args:
        weights: [channels * multiplier, 1, kernel...] float32.
        bias: [channels * multiplier] float32.
    """
    # Every other pixel is taken as it is loaded: a plane is read once, and a copy would cost more.
    shuffles = geometry.window(node, plan.graph).strides[-1] <= 2
    g = geometry.in_place(node, plan) if shuffles else geometry.by_phase(node, plan)
    g.prepare()
    lanes = plan.target.lanes(F32)
    extras = [t.layout for t in epilogue.tensors]
    batch, channels = out.shape[:2]
    multiplier = channels // node.get("group", 1)
    flat = geometry.can_run_flat(g.strides, out.layout, extras, lanes)
    machine = cost.Machine.of(plan.target)
    taps = len(g.taps)

    def cycles(vectors: int) -> float:
        t = geometry.tiles(g.strides, out.layout, extras, lanes, vectors, flat)
        loads = (1.25 if g.step == 1 else 2.5) * t.vector_steps + t.count
        return taps * loads / machine.loads + 8 * t.count + 2 * t.vector_steps

    registers = plan.target.registers
    # Where they are many, LLVM keeps a plane's weights in registers, too.
    held = taps if registers > 16 else 1
    most = max(2, registers - 2 - held) if g.step == 1 else registers // 4 + 1
    vectors = min(range(1, most), key=cycles)
    t = geometry.tiles(g.strides, out.layout, extras, lanes, vectors, flat)
    total = cycles(vectors) * batch * channels
    work = replace(cut(1, channels, batch, plan.threads, total), tiles=t.count)
    f = kernel(plan.target, "conv_depthwise", flushes=True)
    shape = Shape(batch, 1, channels // multiplier, channels, taps, math.prod(out.shape[2:]))
    frame = Frame.open(f, g, shape, t, work, out, epilogue)
    w = word(f, frame.words)
    vector = frame.vector

    with f.loop(frame.part.first_row, frame.part.end_row) as channel:
        source = channel / multiplier if multiplier > 1 else channel
        plane = source * g.channel_stride

        def tile(here: Here, channel: Value = channel, plane: Value = plane) -> None:
            ahead = [at + TILES_AHEAD * here.vectors * lanes for at in here.offsets]
            frame.output.prefetch(f, channel, here.vectors, ahead)
            sums = frame.biases(channel, here.vectors)
            x = f.offset(here.x, plane, F32)

            def weight(k: int) -> Value:
                return f.splat(f.load(F32, w, channel * taps + k), vector)

            if machine.loads == 1:
                sums = _rows(f, g.taps, g.step, x, weight, sums)
            else:
                pixels = {} if g.step == 1 else _every_other(f, g.taps, x, here.vectors, vector)
                for k, tap in enumerate(g.taps):
                    one = weight(k)
                    read = pixels.get(tap) or [
                        f.load(vector, x, tap + v * lanes) for v in range(here.vectors)
                    ]
                    sums = [f.fma(p, one, s) for p, s in zip(read, sums)]
            frame.output.store(f, channel, sums, here.offsets, here.last)

        frame.each_tile(tile)

    operands = [
        *frames.operands(plan, g, t, out, epilogue, plan.constant(bias.astype(np.float32))),
        plan.constant(weights.reshape(-1).astype(np.float32)),
    ]
    shown = f"{t.vectors} vectors{', flat' if t.flat else ''}"
    details = {**info, "kernel": "depthwise", "tile": shown, "estimated_cycles": total}
    reads, gaps = [g.source, *epilogue.tensors], frame.writes_gaps
    plan.step(f, operands, work.tasks, reads=reads, writes=[out], gaps=gaps, info=details)


def _rows(
    f: Function,
    taps: Sequence[int],
    step: int,
    x: Value,
    weight: Callable[[int], Value],
    sums: Sequence[Value],
) -> list[Value]:
    """The sums plus the products of all taps.

    Loads bind, half as long again where a vector lies in two lines, as most do. So where two taps of a row
    read the same pixels but one, vectors of the second come out of those of the first. (Where a row of three
    is loaded once: no faster, since shuffles then bind; for all vectors of a tile at once: slower, for lack
    of registers.)

    Args:
        step: elements from one pixel to the next, 1 or 2.
        weight: of the tap that is numbered so.
    """
    totals, vector, k = list(sums), sums[0].type, 0
    while k < len(taps):
        count = 1
        while k + count < len(taps) and taps[k + count] == taps[k] + count:
            count += 1
        row, weights = taps[k : k + count], [weight(i) for i in range(k, k + count)]
        firsts = [tap for i, tap in enumerate(row) if i // step % 2 == 0]
        now = _loaded(f, firsts, step, x, 0, vector)
        for v in range(len(totals)):
            following = _loaded(f, firsts, step, x, v + 1, vector) if v + 1 < len(totals) else {}
            for tap, one in zip(row, weights):
                if tap in now:
                    pixels = now[tap]
                elif following:
                    before = now[tap - step], following[tap - step]
                    pixels = f.shuffle(*before, range(1, 1 + vector.lanes))
                else:
                    pixels = _loaded(f, [tap], step, x, v, vector)[tap]
                totals[v] = f.fma(pixels, one, totals[v])
            now = following
        k += count
    return totals


def _loaded(f: Function, taps: Sequence[int], step: int, x: Value, v: int, vector: Type) -> dict[int, Value]:
    """For each tap its vector `v`; where that is of every other pixel, neighbours come out of the same
    loads."""
    lanes = vector.lanes
    if step == 1:
        return {tap: f.load(vector, x, tap + v * lanes) for tap in taps}
    found: dict[int, Value] = {}
    for tap in taps:
        if tap not in found:
            pair = [f.load(vector, x, tap + (2 * v + half) * lanes) for half in (0, 1)]
            found[tap] = f.shuffle(pair[0], pair[1], range(0, 2 * lanes, 2))
            found[tap + 1] = f.shuffle(pair[0], pair[1], range(1, 2 * lanes, 2))
    return {tap: found[tap] for tap in taps}


def _every_other(
    f: Function, taps: Sequence[int], x: Value, vectors: int, vector: Type
) -> dict[int, list[Value]]:
    """For each tap its vectors of every other pixel; two neighbouring taps come out of the same two loads."""
    found: dict[int, list[Value]] = {}
    for tap in sorted(taps):
        if tap not in found:
            both = [_loaded(f, [tap, tap + 1], 2, x, v, vector) for v in range(vectors)]
            for one in (tap, tap + 1):
                found[one] = [pixels[one] for pixels in both]
    return found
