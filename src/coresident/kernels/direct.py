"""One direct convolution, dense or sparse: whichever the cost model says is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from coresident.graph.graph import Node
from coresident.kernels import (
    cost,
    dense,
    dense_code,
    panel,
    panel_code,
    sparse,
    sparse_code,
    winograd,
    winograd_code,
)
from coresident.kernels.epilogue import Epilogue
from coresident.kernels.frame import Shape
from coresident.kernels.geometry import Geometry
from coresident.kernels.lowering import Plan, Tensor


def describe(
    node: Node, shape: Shape, weights: np.ndarray[Any, Any], out: Tensor, epilogue: Epilogue
) -> dict[str, Any]:
    """What `analyze` shows of a convolution, whichever kernel computes it."""
    nonzeros = int(np.count_nonzero(weights))
    return {
        "op": node.op,
        "shape": list(out.shape),
        "kernel_shape": list(weights.shape),
        "epilogue": epilogue.name,
        "macs": shape.macs,
        "nonzero_macs": shape.batch * shape.pixels * nonzeros,
        "sparsity": 1 - nonzeros / max(1, weights.size),
        "why": [],
    }


Emit = Callable[..., None]


def _dense(
    plan: Plan, g: Geometry, shape: Shape, out: Tensor, epilogue: Epilogue
) -> Iterator[tuple[float, Emit]]:
    """The ways to compute it without regard to zeros: (cycles, what emits it)."""
    if g.step == 1:
        pixels = dense.choose(plan, g, shape, out, epilogue)
        yield pixels.cycles, partial(dense_code.emit, plan, g, shape, pixels)
        tiles = winograd.choose(plan, g, shape, out, epilogue)
        if tiles is not None:
            yield tiles.cycles, partial(winograd_code.emit, plan, g, shape, tiles)
    channels = panel.choose(plan, g, shape, out, epilogue)
    if channels is not None:
        yield channels.cycles, partial(panel_code.emit, plan, g, shape, channels)


def emit(
    plan: Plan,
    ways: Sequence[Geometry],
    shape: Shape,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
    barrier: bool = True,
) -> None:
    """Add the step of a convolution.

    Args:
        ways: to read the input; one of them has unit stride.
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        info: of `describe`; gets the reason if many zeros are multiplied all the same.
        barrier: False if the next step does not depend on it.
    """
    skips = plan.sparse and np.count_nonzero(weights) < weights.size
    without: list[tuple[float, Geometry, Emit]] = []
    skipping: list[tuple[float, Geometry, Emit]] = []
    for g in ways:
        copy = cost.copy(cost.Machine.of(plan.target), g.copied)
        without += [(copy + cycles, g, way) for cycles, way in _dense(plan, g, shape, out, epilogue)]
        choice = sparse.choose(plan, g, shape, weights, out, epilogue) if skips else None
        if choice is not None:
            skipping.append((copy + choice.cycles, g, partial(sparse_code.emit, plan, g, shape, choice)))
    best = min(without, key=_cycles)
    if skipping:
        rival = min(skipping, key=_cycles)
        if rival[0] < best[0]:
            best = rival
        elif info["sparsity"] > 0.3:
            zeros = f"{info['sparsity']:.0%} zeros"
            info["why"].append(f"dense: skipping {zeros} would take {rival[0] / best[0]:.2f} times as long")
    _, g, way = best
    g.prepare()
    way(weights, bias, out, epilogue, info, barrier)


def _cycles(way: tuple[float, Geometry, Emit]) -> float:
    return way[0]
