"""Depthwise convolution: each plane by itself, all taps of a run of pixels while its sums are in
registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coresident.codegen.builder import Value, kernel, word
from coresident.codegen.types import F32, I32, I64
from coresident.graph.graph import Node
from coresident.kernels import cost, geometry
from coresident.kernels.epilogue import Epilogue, Output
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.tiling import cut


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
    g = geometry.geometry(node, plan)
    lanes = plan.target.lanes(F32)
    vector = F32.by(lanes)
    extras = [t.layout for t in epilogue.tensors]
    batch, channels = out.shape[:2]
    multiplier = channels // node.get("group", 1)
    flat = geometry.can_run_flat(g.strides, out.layout, extras, lanes)
    machine = cost.Machine.of(plan.target)
    taps = len(g.taps)

    def cycles(vectors: int) -> float:
        t = geometry.tiles(g.strides, out.layout, extras, lanes, vectors, flat)
        loads = 1.25 * t.vector_steps + t.count
        return taps * loads / machine.loads + 8 * t.count + 2 * t.vector_steps

    vectors = min(range(1, plan.target.registers - 3), key=cycles)
    t = geometry.tiles(g.strides, out.layout, extras, lanes, vectors, flat)
    total = cycles(vectors) * batch * channels
    work = cut(1, channels, batch, plan.threads, total)
    masked = flat and any(map(any, out.layout.halo))
    f = kernel(plan.target, "conv_depthwise")
    x, w, b, y, table = (word(f, i) for i in range(5))
    extra = [word(f, 5 + i) for i in range(epilogue.words)]
    mask = word(f, 5 + epilogue.words) if masked else None
    picture, first, last, _, _ = work.part(f)
    x = f.offset(x, picture * g.batch_stride, F32)
    y = f.offset(y, picture * out.layout.strides[0], F32)
    tensors = [f.offset(p, picture * e.layout.strides[0], F32) for p, e in zip(extra, epilogue.tensors)]
    output = Output(
        epilogue,
        (y, *tensors),
        tuple(extra[len(epilogue.tensors) :]),
        (out.layout.strides[1], *(e.layout.strides[1] for e in epilogue.tensors)),
        mask,
        vector,
    )
    columns = t.table.shape[1]

    def run(channel: Value, tile_x: Value, offsets: Sequence[Value], count: int, last_pixels: int) -> None:
        start = f.splat(f.load(F32, b, channel), vector)
        sums = [start] * count
        for k, tap in enumerate(g.taps):
            weight = f.splat(f.load(F32, w, channel * taps + k), vector)
            sums = [f.fma(f.load(vector, tile_x, tap + v * lanes), weight, s) for v, s in enumerate(sums)]
        output.store(f, channel, sums, offsets, last_pixels)

    with f.loop(first, last) as channel:
        source = channel / multiplier if multiplier > 1 else channel
        plane = f.offset(x, source * g.channel_stride, F32)
        with f.loop(0, t.count) as tile:
            offsets = [f.convert(f.load(I32, table, tile * columns + c), I64) for c in range(columns)]
            tile_x = f.offset(plane, offsets[0], F32)
            cases: list[Callable[[], None]] = []
            if t.full:
                cases.append(lambda: run(channel, tile_x, offsets[1:], t.vectors, t.full_last))
            if t.count > t.full:
                cases.append(lambda: run(channel, tile_x, offsets[1:], t.rest_vectors, t.rest_last))
            if len(cases) == 1:
                cases[0]()
            else:
                with f.either(tile < t.full) as otherwise:
                    cases[0]()
                    with otherwise():
                        cases[1]()

    operands = [
        g.source.address,
        plan.constant(weights.reshape(-1).astype(np.float32)),
        plan.constant(bias.astype(np.float32)),
        out.address,
        plan.constant(t.table),
        *epilogue.operands(plan),
    ]
    if masked:
        operands.append(plan.constant(geometry.border_mask(g.strides, out.shape[2:], t.vector_steps * lanes)))
    shown = f"{t.vectors} vectors{', flat' if t.flat else ''}"
    info = {**info, "kernel": "depthwise", "tile": shown, "estimated_cycles": total}
    plan.step(f, operands, work.tasks, reads=[g.source, *epilogue.tensors], writes=[out], info=info)
