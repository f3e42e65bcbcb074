"""Pools against the reference, over guarded memory and through the compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, check_node, graph_of

from coresident.graph.graph import Node
from coresident.kernels.layout import Layout

SIZES = (5, 7, 8, 9, 13, 15, 16, 17, 31, 33)


def bordered(shape: tuple[int, ...], border: int = 1) -> Layout:
    """Planes with zeros around them."""
    spatial = len(shape) - 2
    return Layout.planar(shape, (border,) * spatial, ((border, border),) * spatial, 16)


def _random_pool(rng: np.random.Generator) -> tuple[Node, tuple[int, ...]]:
    op = str(rng.choice(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"]))
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernel = tuple(int(k) for k in rng.integers(1, 5 if rank < 3 else 4, rank))
    dilations = tuple(int(d) for d in rng.choice([1, 1, 1, 2], rank))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": tuple(int(s) for s in rng.choice([1, 1, 2, 2, 3], rank)),
        "dilations": dilations,
        "pads": tuple(int(rng.integers(0, min(3, e))) for e in (*extent, *extent)),
        "ceil_mode": int(rng.integers(0, 2)),
    }
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(0, 2))
    if op == "LpPool":
        attributes["p"] = int(rng.integers(1, 4))
    sizes = (int(s) for s in rng.choice(SIZES if rank < 3 else SIZES[:6], rank))
    spatial = (max(size, e) for size, e in zip(sizes, extent))
    shape = (int(rng.integers(1, 3)), int(rng.integers(1, 5)), *spatial)
    return Node(op, ("x",), ("y",), attributes, "pool"), shape


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(18))
def test_random_pools(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    node, shape = _random_pool(rng)
    x = random_array(rng, shape, np.float32)
    graph = graph_of([node], {"x": x}, ["y"])
    layouts = {}
    if seed % 3 == 0:
        layouts = {"x": bordered(shape), "y": bordered(graph.facts["y"].sizes)}
    elif seed % 3 == 1:
        layouts = {"x": random_layout(rng, shape), "y": random_layout(rng, graph.facts["y"].sizes)}
    threads = 1 + seed % 2
    check_lowering(
        graph,
        {"x": x},
        RUN_TARGETS[target],
        layouts=layouts,
        threads=threads,
        tolerance=2e-5,
        hint=(seed, node),
    )


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
@pytest.mark.parametrize("width", [14, 16, 30, 32, 34, 66])
def test_halving(op: str, kernel: tuple[int, int], width: int) -> None:
    pads = (0,) * 4 if kernel == (2, 2) else (1,) * 4
    attributes = {"kernel_shape": kernel, "strides": (2, 2), "pads": pads}
    x = np.random.default_rng(width).standard_normal((1, 3, 12, width), dtype=np.float32)
    check_node(Node(op, ("x",), ("y",), attributes, "pool"), {"x": x}, threads=2)


def test_halving_in_three_dimensions() -> None:
    attributes = {"kernel_shape": (2, 2, 2), "strides": (2, 2, 2)}
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 8, 34), dtype=np.float32)
    check_node(Node("MaxPool", ("x",), ("y",), attributes, "pool"), {"x": x}, threads=2)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_nan_and_infinity_reach_the_windows_that_hold_them(kernel: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal((1, 2, 12, 20), dtype=np.float32)
    x[0, 0, 3, 5], x[0, 0, 11, 19], x[0, 1, 0, 0], x[0, 1, 6, 7] = np.nan, np.nan, -np.inf, np.inf
    attributes = {
        "kernel_shape": kernel,
        "strides": (2, 2),
        "pads": (0,) * 4 if kernel == (2, 2) else (1,) * 4,
    }
    graph = graph_of([Node("MaxPool", ("x",), ("y",), attributes, "pool")], {"x": x}, ["y"])
    check_lowering(graph, {"x": x})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float64"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_max_pool_of_other_types(dtype: str, kernel: tuple[int, int]) -> None:
    attributes = {"kernel_shape": kernel, "strides": (2, 2)}
    x = random_array(np.random.default_rng(2), (1, 3, 11, 37), dtype)
    graph = graph_of([Node("MaxPool", ("x",), ("y",), attributes, "pool")], {"x": x}, ["y"])
    check_lowering(graph, {"x": x})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("spatial", [(7, 7), (17, 31), (4, 5, 6), (65,)])
def test_global_pools(op: str, target: str, spatial: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x = random_array(rng, (2, 19, *spatial), np.float32)
    graph = graph_of([Node(op, ("x",), ("y",), {}, "pool")], {"x": x}, ["y"])
    for layout in (bordered(x.shape), random_layout(rng, x.shape)):
        check_lowering(
            graph,
            {"x": x},
            RUN_TARGETS[target],
            layouts={"x": layout},
            threads=2,
            tolerance=1e-5,
            hint=layout,
        )


@pytest.mark.parametrize("target", EMIT_TARGETS)
def test_emission(target: str) -> None:
    x = np.zeros((1, 4, 20, 37), np.float32)
    for op, attributes in (
        ("MaxPool", {"kernel_shape": (2, 2), "strides": (2, 2)}),
        ("AveragePool", {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
    ):
        node = Node(op, ("x",), ("y",), attributes, "pool")
        check_emission(graph_of([node], {"x": x}, ["y"]), {"x": x}, EMIT_TARGETS[target])
