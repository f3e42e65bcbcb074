"""Reductions, extremes, softmax and normalisations against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, check_node, graph_of, run_graph

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.reduction import REDUCTIONS
from coresident.kernels.layout import Layout

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33)


def _shape(rng: np.random.Generator, rank: int) -> tuple[int, ...]:
    return tuple(int(s) for s in rng.choice(SIZES, rank))


def _check(
    node: Node,
    feeds: dict[str, np.ndarray[Any, Any]],
    target: str,
    seed: int,
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    tolerance: float = 2e-5,
) -> None:
    """In a random layout for each third seed, planes with a border where there are some, else in C order."""
    rng = np.random.default_rng(seed)
    graph = graph_of([node], feeds, [name for name in node.outputs if name], constants)
    x, y = feeds["x"].shape, graph.facts[node.outputs[0]].sizes
    layouts: dict[str, Layout] = {}
    if seed % 3 == 0:
        layouts = {"x": random_layout(rng, x), node.outputs[0]: random_layout(rng, y)}
    elif seed % 3 == 1 and len(x) > 2 and feeds["x"].dtype == np.float32:
        gaps = (1,) * (len(x) - 2)
        layouts = {"x": Layout.planar(x, gaps, [(0, 1)] * len(gaps), 16)}
    check_lowering(
        graph,
        feeds,
        RUN_TARGETS[target],
        layouts=layouts,
        threads=1 + seed % 2,
        tolerance=tolerance,
        hint=(seed, node, x),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_reductions(op: str, seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = _shape(rng, rank)
    axes = np.flatnonzero(rng.random(rank) < 0.5)
    x = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if op not in ("ReduceProd", "ReduceLogSum"):
        x -= 1
    node = Node(op, ("x", "axes"), ("y",), {"keepdims": seed % 2}, "reduce")
    _check(node, {"x": x}, target, seed, {"axes": axes}, 1e-4)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float64", "bool"])
@pytest.mark.parametrize("axis", [1, 2])
def test_reductions_of_other_types(dtype: str, axis: int) -> None:
    x = random_array(np.random.default_rng(axis), (5, 9, 17), dtype)
    ops = ["ReduceMax", "ReduceMin"]
    if dtype != "bool":
        ops += ["ReduceSum", "ReduceSumSquare", "ReduceL1"] + ["ReduceMean"] * (dtype != "uint8")
    for op in ops:
        node = Node(op, ("x", "axes"), ("y",), {}, "reduce")
        tolerance = 1e-12 if dtype == "float64" else 0.0
        _check(node, {"x": x}, TARGETS[0], 2, {"axes": np.array([axis])}, tolerance)


def test_no_axes_are_all_or_none() -> None:
    x = random_array(np.random.default_rng(0), (3, 5, 7), np.float32)
    for attributes in ({"noop_with_empty_axes": 1}, {}):
        _check(Node("ReduceSum", ("x",), ("y",), attributes, "reduce"), {"x": x}, TARGETS[0], 2)


@pytest.mark.parametrize("shape", [(1, 3_000_000), (3_000_000 // 16, 16)])
def test_the_mean_of_many_is_accurate(shape: tuple[int, int]) -> None:
    x = np.full(shape, 0.1, np.float32)
    axis = int(np.argmax(shape))
    node = Node("ReduceMean", ("x", "axes"), ("y",), {}, "mean")
    graph = graph_of([node], {"x": x}, ["y"], {"axes": np.array([axis])})
    (mean,) = run_graph(graph, {"x": x}, threads=2)
    np.testing.assert_allclose(mean, 0.1, rtol=2e-5)


def test_nan_is_the_largest_and_the_smallest() -> None:
    x = random_array(np.random.default_rng(0), (4, 37), np.float32)
    x[1, 36], x[2, 3], x[3, 8] = np.nan, np.nan, np.inf
    for op in ("ReduceMax", "ReduceMin"):
        for axis in (0, 1):
            _check(
                Node(op, ("x", "axes"), ("y",), {}, "r"), {"x": x}, TARGETS[0], 2, {"axes": np.array([axis])}
            )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("seed", range(4))
def test_extremes(op: str, seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    attributes = {
        "axis": int(rng.integers(-rank, rank)),
        "keepdims": seed % 2,
        "select_last_index": seed // 2 % 2,
    }
    # Few different numbers: there are ties.
    x = rng.integers(-3, 4, _shape(rng, rank))
    for dtype in ("float32", "int32", "uint8", "int64"):
        _check(Node(op, ("x",), ("y",), attributes, "arg"), {"x": np.abs(x).astype(dtype)}, target, seed)
    with_nan = np.where(rng.random(x.shape) < 0.1, np.nan, x).astype(np.float32)
    _check(Node(op, ("x",), ("y",), attributes, "arg"), {"x": with_nan}, target, seed)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("seed", range(6))
def test_softmax(op: str, seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    x = random_array(rng, _shape(rng, rank), np.float32 if seed % 4 else np.float64)
    axis = int(rng.integers(-rank, rank))
    _check(Node(op, ("x",), ("y",), {"axis": axis}, "softmax"), {"x": x}, target, seed)


def test_softmax_of_large_numbers() -> None:
    x = np.array([[1000, 999, -1000, 0], [-np.inf, 3, 4, 5]], np.float32)
    _check(Node("Softmax", ("x",), ("y",), {}, "softmax"), {"x": x}, TARGETS[0], 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(6))
def test_normalisations_of_planes(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    channels, groups = int(rng.choice([2, 6, 16, 18])), 2
    shape = (2, channels, *(int(s) for s in rng.choice(SIZES[3:], int(rng.integers(1, 4)))))[: 4 + seed % 2]
    feeds = {"x": random_array(rng, shape, np.float32)}
    per_channel = {name: random_array(rng, (channels,), np.float32) for name in ("s", "b", "m")}
    per_group = {"s": per_channel["s"][:groups], "b": per_channel["b"][:groups]}
    affine = ("x", "s", "b")
    _check(
        Node("InstanceNormalization", affine, ("y",), {}, "n"),
        {**feeds, **per_channel},
        target,
        seed,
        None,
        2e-4,
    )
    for operands in (per_channel, per_group):
        node = Node("GroupNormalization", affine, ("y",), {"num_groups": groups}, "n")
        _check(node, {**feeds, "s": operands["s"], "b": operands["b"]}, target, seed, None, 2e-4)
    local = {"size": int(rng.integers(1, 6)), "alpha": 0.1, "beta": [0.75, 0.6][seed % 2]}
    _check(Node("LRN", ("x",), ("y",), local, "n"), feeds, target, seed)
    statistics = {**per_channel, "v": rng.uniform(0.5, 2, channels).astype(np.float32)}
    batch = Node("BatchNormalization", ("x", "s", "b", "m", "v"), ("y",), {}, "n")
    _check(batch, feeds, target, seed, statistics, 1e-4)
    _check(batch, {**feeds, **statistics}, target, seed, None, 1e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(6))
def test_normalisations_along_axes(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(2, 5))
    shape = (*_shape(rng, rank - 1), int(rng.choice(SIZES[3:])))
    axis = int(rng.integers(1, rank))
    feeds = {"x": random_array(rng, shape, np.float32), "s": random_array(rng, shape[axis:], np.float32)}
    bias = {"b": random_array(rng, shape[-1:], np.float32)}
    layer = Node("LayerNormalization", ("x", "s", "b"), ("y",), {"axis": axis}, "n")
    _check(layer, {**feeds, **bias}, target, seed, None, 2e-4)
    _check(layer.with_(outputs=("y", "mean", "inverse")), {**feeds, **bias}, target, seed, None, 2e-3)
    _check(layer.with_(inputs=("x", "s"), outputs=("y", "", "inverse")), feeds, target, seed, None, 2e-3)
    _check(Node("RMSNormalization", ("x", "s"), ("y",), {"axis": axis}, "n"), feeds, target, seed, None, 2e-4)
    for p in (1, 2):
        node = Node("LpNormalization", ("x",), ("y",), {"axis": int(rng.integers(0, rank)), "p": p}, "n")
        _check(node, {"x": np.where(feeds["x"] < -5, 0, feeds["x"])}, target, seed)


@pytest.mark.parametrize("op", ["Softmax", "ReduceMean", "LayerNormalization"])
def test_through_the_compiler(op: str) -> None:
    rng = np.random.default_rng(5)
    x = random_array(rng, (1, 13, 33), np.float32)
    constants = {
        "ReduceMean": {"o": np.array([1])},
        "LayerNormalization": {"o": np.ones(33, np.float32)},
    }.get(op, {})
    check_node(Node(op, ("x", *constants), ("y",), {}, "n"), {"x": x}, constants, threads=2, tolerance=2e-5)


def test_half_precision_is_refused() -> None:
    x = np.zeros((2, 3), np.float16)
    with pytest.raises(UnsupportedModel, match="float16"):
        check_lowering(graph_of([Node("ReduceSum", ("x",), ("y",), {}, "r")], {"x": x}, ["y"]), {"x": x})


@pytest.mark.parametrize("target", EMIT_TARGETS)
def test_emission(target: str) -> None:
    x, vector = np.zeros((2, 6, 9, 19), np.float32), np.zeros(6, np.float32)
    nodes = [Node(op, ("x",), ("y",), {"axis": axis}, "n") for op in ("Softmax", "ArgMax") for axis in (1, 3)]
    nodes += [Node("ReduceMax", ("x",), ("y",), {}, "n"), Node("ReduceLogSumExp", ("x",), ("y",), {}, "n")]
    nodes += [
        Node("InstanceNormalization", ("x", "s", "b"), ("y",), {}, "n"),
        Node("LRN", ("x",), ("y",), {"size": 3}, "n"),
    ]
    for node in nodes:
        feeds = {name: x if name == "x" else vector for name in node.inputs}
        check_emission(graph_of([node], feeds, ["y"]), feeds, EMIT_TARGETS[target])
