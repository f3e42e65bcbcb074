"""One direct convolution, dense or sparse: whichever the cost model says is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from coresident.kernels.geometry import Geometry, Tiles
from coresident.kernels.head import Head
from coresident.kernels.lowering import Plan, Tensor
from coresident.kernels.striped_pooling import StripedPool
from coresident.kernels.stripes import joined, striped_target


def describe(
    node: Node, shape: Shape, weights: np.ndarray[Any, Any], sizes: Sequence[int], epilogue: Epilogue
) -> dict[str, Any]:
    """What `analyze` shows of a convolution, whichever kernel computes it."""
    nonzeros = int(np.count_nonzero(weights))
    return {
        "op": node.op,
        "nodes": [node.name or node.outputs[0]],
        "shape": list(sizes),
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
    if g.is_striped:
        return
    if g.step == 1:
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
    pool: StripedPool | None = None,
) -> None:
    """Add the step of a convolution.

    Args:
        ways: to read the input; one of them has unit stride.
        weights: [groups, outputs, inputs, taps] float32.
        bias: [groups * outputs] float32.
        info: of `describe`; gets the reason if many zeros are multiplied all the same.
        barrier: False if the next step does not depend on it.
        pool: behind it, which is included where the kernel that is fastest can do both.
    """
    target = striped_target(plan, ways[0].source, out)

    def suits(tiles: Tiles) -> bool:
        return pool is None or pool.pooled(tiles, target) is not None

    best = _best(plan, ways, shape, weights, target, epilogue, info, suits)
    if best is None or (best.sparse is not None and not suits(best.sparse.tiles)):
        pool, best = None, _best(plan, ways, shape, weights, target, epilogue, info)
    assert best is not None, "no kernel reads pixels that lie so"
    best.geometry.prepare()
    barrier = barrier or target is not out
    if pool is not None and best.sparse is not None:
        plan.include(pool.node)
        nodes = [*info["nodes"], pool.node.name or pool.node.outputs[0]]
        name = ", ".join(part for part in (epilogue.name, pool.node.op) if part)
        best.emit(
            weights, bias, target, epilogue, {**info, "epilogue": name, "nodes": nodes}, barrier, pool=pool
        )
    else:
        best.emit(weights, bias, target, epilogue, info, barrier)
    joined(plan, target, out)


def emit_with_head(
    plan: Plan,
    ways: Sequence[Geometry],
    shape: Shape,
    weights: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any],
    head: Head,
    info: dict[str, Any],
) -> bool:
    """Add one step for a convolution and its head, if the kernel that is fastest can do both.

    Args:
        ways, shape, weights, bias, info: of the convolution, as `emit` takes them.
    """
    out, epilogue = plan.tensor(head.node.outputs[0]), Epilogue.of(head.node, plan, 3)
    target = striped_target(plan, ways[0].source, out)
    best = _best(plan, ways, shape, weights, target, epilogue, {**info, "why": []})
    if best is None or best.sparse is None:
        return False
    work = best.sparse.work(shape, plan.threads)
    if work.row_parts > 1 or work.pieces:
        return False
    best.geometry.prepare()
    pixels = shape.batch * shape.pixels
    whole = info["macs"] + pixels * head.weights.size
    nonzero = info["nonzero_macs"] + pixels * int(np.count_nonzero(head.weights))
    both = {
        "macs": whole,
        "nonzero_macs": nonzero,
        "sparsity": 1 - nonzero / whole,
        "nodes": [each.name or each.outputs[0] for each in (head.before, head.node)],
        "epilogue": ", ".join(part for part in (head.inner.name, "1x1 Conv", epilogue.name) if part),
    }
    best.emit(weights, bias, target, epilogue, {**info, **both}, head=head)
    joined(plan, target, out)
    return True


@dataclass(frozen=True)
class _Way:
    """A way to compute it.

    Args:
        cycles: that it should take.
        geometry: how the input is read.
        emit: adds the step.
        sparse: the choice, if zeros are skipped.
    """

    cycles: float
    geometry: Geometry
    emit: Emit
    sparse: sparse.Choice | None = None


def _best(
    plan: Plan,
    ways: Sequence[Geometry],
    shape: Shape,
    weights: np.ndarray[Any, Any],
    out: Tensor,
    epilogue: Epilogue,
    info: dict[str, Any],
    suits: Callable[[Tiles], bool] = lambda tiles: True,
) -> _Way | None:
    """What should be fastest; `info` gets the reason if many zeros are multiplied all the same.

    Returns:
        None where only streams or code could read what lies so, and what they would write does not suit them.
    """
    skips = plan.sparse and np.count_nonzero(weights) < weights.size
    blocked = any(sparse.in_blocks(g, out, epilogue) for g in ways)
    without: list[_Way] = []
    skipping: list[_Way] = []
    for g in ways:
        copy = cost.copy(cost.Machine.of(plan.target), g.copied)
        if not blocked:
            without += [_Way(copy + cycles, g, way) for cycles, way in _dense(plan, g, shape, out, epilogue)]
        choice = sparse.choose(plan, g, shape, weights, out, epilogue, suits) if skips else None
        if choice is not None:
            code = partial(sparse_code.emit, plan, g, shape, choice)
            skipping.append(_Way(copy + choice.cycles, g, code, choice))
    if not without:
        return min(skipping, key=_cycles, default=None)
    best = min(without, key=_cycles)
    if skipping:
        rival = min(skipping, key=_cycles)
        if rival.cycles < best.cycles:
            return rival
        if info["sparsity"] > 0.3:
            zeros, slower = f"{info['sparsity']:.0%} zeros", rival.cycles / best.cycles
            info["why"].append(f"dense: skipping {zeros} would take {slower:.2f} times as long")
    return best


def _cycles(way: _Way) -> float:
    return way.cycles
