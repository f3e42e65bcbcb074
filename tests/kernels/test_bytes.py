"""Kernels between convolutions on bytes: pools, resizes, element-wise chains, movement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, WIDTHS, graph_of

from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import evaluate
from coresident.kernels.layout import Layout

Array = np.ndarray[Any, Any]
RUN = RUN_TARGETS | {"16 lanes": WIDTHS["16 lanes"]}
TARGETS = pytest.mark.parametrize("target", RUN.values(), ids=RUN.keys())
TYPES = pytest.mark.parametrize("dtype", ["uint8", "int8"])
WIDTHS_AROUND_VECTORS = (1, 7, 9, 16, 31, 33, 67)


def random_bytes(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, shape, endpoint=True).astype(dtype)


def planar(shape: tuple[int, ...]) -> Layout:
    """Rows with gaps between them, and room behind."""
    gaps = (1,) * (len(shape) - 2)
    return Layout.planar(shape, gaps, ((0, 0),) * len(gaps), 64)


def converted(dtype: str, stays: bool) -> dict[str, Any]:
    point = 7 if dtype == "int8" else 130
    return {"from_bytes": (0.031, point)} | ({"to_bytes": (0.027, point - 3, dtype)} if stays else {})


def check(graph: Graph, x: Array, target: Any, hint: object, lies: Layout | None = None) -> None:
    """Floats as close as others; bytes within one unit of the reference's, whose sums round elsewhere."""
    layouts = {"x": lies} if lies is not None else None
    if graph.facts["y"].dtype == np.float32:
        check_lowering(graph, {"x": x}, target, layouts=layouts, tolerance=1e-5, hint=hint)
        return
    bench = check_lowering(graph, {"x": x}, target, layouts=layouts, tolerance=255, hint=hint)
    wanted = evaluate(graph, {"x": x})["y"].astype(int)
    apart = np.abs(bench.array(bench.tensor("y")) - wanted)
    assert apart.max(initial=0) <= 1, hint
    assert np.count_nonzero(apart) <= 1 + 0.02 * apart.size, hint


@TARGETS
@TYPES
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_max_pool(target: Any, dtype: str, kernel: int, stride: int, pad: int) -> None:
    rng = np.random.default_rng(3)
    for width in WIDTHS_AROUND_VECTORS:
        if width + 2 * pad < kernel:
            continue
        x = random_bytes(rng, (1, 3, 6, width), dtype)
        attributes = {"kernel_shape": (kernel,) * 2, "strides": (stride,) * 2, "pads": (pad,) * 4}
        graph = graph_of([Node("MaxPool", ("x",), ("y",), attributes)], {"x": x}, ["y"])
        check_lowering(graph, {"x": x}, target, hint=width)
        check_lowering(graph, {"x": x}, target, layouts={"x": planar(x.shape)}, hint=width)


@TARGETS
@TYPES
@pytest.mark.parametrize("stays", [True, False], ids=["to bytes", "to floats"])
@pytest.mark.parametrize("included", [0, 1])
def test_average_pool(target: Any, dtype: str, stays: bool, included: int) -> None:
    rng = np.random.default_rng(4)
    for width in (9, 16, 31, 67):
        x = random_bytes(rng, (1, 3, 6, width), dtype)
        for kernel, stride, pad in ((2, 2, 0), (3, 2, 1)):
            attributes = {"kernel_shape": (kernel,) * 2, "strides": (stride,) * 2, "pads": (pad,) * 4}
            attributes |= {"count_include_pad": included, **converted(dtype, stays)}
            graph = graph_of([Node("AveragePool", ("x",), ("y",), attributes)], {"x": x}, ["y"])
            check(graph, x, target, (width, kernel), planar(x.shape))


@TARGETS
@TYPES
@pytest.mark.parametrize("stays", [True, False], ids=["to bytes", "to floats"])
def test_global_average(target: Any, dtype: str, stays: bool) -> None:
    rng = np.random.default_rng(5)
    for shape in ((1, 37, 7, 7), (2, 5, 1, 1), (1, 3, 31, 33), (1, 9, 4, 67)):
        x = random_bytes(rng, shape, dtype)
        graph = graph_of(
            [Node("GlobalAveragePool", ("x",), ("y",), converted(dtype, stays))], {"x": x}, ["y"]
        )
        check(graph, x, target, shape)
        check(graph, x, target, shape, planar(shape))


@TARGETS
@TYPES
@pytest.mark.parametrize("stays", [True, False], ids=["to bytes", "to floats"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_linear_resize(target: Any, dtype: str, stays: bool, coordinates: str) -> None:
    rng = np.random.default_rng(6)
    for width, factor in ((7, 2.0), (16, 2.0), (33, 2.0), (17, 1.7), (31, 0.6), (9, 4.0)):
        x = random_bytes(rng, (1, 3, 5, width), dtype)
        attributes = {"mode": "linear", "coordinate_transformation_mode": coordinates}
        node = Node("Resize", ("x", "", "s"), ("y",), attributes | converted(dtype, stays))
        scales = np.array([1, 1, 2, factor], np.float32)
        check(graph_of([node], {"x": x}, ["y"], {"s": scales}), x, target, width, planar(x.shape))


@TARGETS
@TYPES
def test_nearest_resize(target: Any, dtype: str) -> None:
    rng = np.random.default_rng(7)
    for width, factor in ((7, 2.0), (16, 2.0), (33, 2.0), (17, 1.7), (31, 0.6), (40, 4.0)):
        x = random_bytes(rng, (1, 3, 5, width), dtype)
        node = Node("Resize", ("x", "", "s"), ("y",), {"mode": "nearest"})
        scales = {"s": np.array([1, 1, 2, factor], np.float32)}
        graph = graph_of([node], {"x": x}, ["y"], scales)
        check_lowering(graph, {"x": x}, target, layouts={"x": planar(x.shape)}, hint=width)


def requantised(extra: tuple[Apply, ...] = ()) -> Expression:
    """Dequantise input 0, add the dequantised input 1, do more, quantise."""
    first = 8
    steps = [
        Apply("DequantizeLinear", (0, 2, 3)),
        Apply("DequantizeLinear", (1, 4, 5)),
        Apply("Add", (first, first + 1)),
        *extra,
    ]
    return Expression(8, (*steps, Apply("QuantizeLinear", (first + len(steps) - 1, 6, 7))))


def constants(dtype: str) -> dict[str, Array]:
    def point(number: int) -> Array:
        return np.array(number, dtype)

    scales = [np.array(v, np.float32) for v in (0.021, 0.033, 0.05)]
    return dict(
        zip(
            ("s0", "z0", "s1", "z1", "s2", "z2"),
            (scales[0], point(3), scales[1], point(9), scales[2], point(11)),
        )
    )


@TARGETS
@TYPES
def test_sum_of_bytes(target: Any, dtype: str) -> None:
    rng = np.random.default_rng(8)
    known = constants(dtype)
    for width in WIDTHS_AROUND_VECTORS:
        feeds = {name: random_bytes(rng, (2, 3, width), dtype) for name in ("x0", "x1")}
        node = Node(
            "Elementwise", (*feeds, *known), ("y",), {"expression": requantised((Apply("Relu", (10,)),))}
        )
        graph = graph_of([node], feeds, ["y"], known)
        check_lowering(graph, feeds, target, hint=width)
        layouts = {name: random_layout(rng, (2, 3, width)) for name in ("x0", "x1", "y")}
        check_lowering(graph, feeds, target, layouts=layouts, hint=width, threads=2)


@TARGETS
@TYPES
def test_conversion_at_the_ends_of_a_network(target: Any, dtype: str) -> None:
    rng = np.random.default_rng(9)
    known = {"s": np.array(0.031, np.float32), "z": np.array(5, dtype)}
    for width in WIDTHS_AROUND_VECTORS:
        x = (rng.standard_normal((3, 2, width)) * 4).astype(np.float32)
        graph = graph_of([Node("QuantizeLinear", ("x", "s", "z"), ("y",))], {"x": x}, ["y"], known)
        check_lowering(graph, {"x": x}, target, hint=width)
        back = random_bytes(rng, (3, 2, width), dtype)
        graph = graph_of([Node("DequantizeLinear", ("x", "s", "z"), ("y",))], {"x": back}, ["y"], known)
        check_lowering(graph, {"x": back}, target, hint=width)


@TARGETS
def test_scales_of_each_channel(target: Any) -> None:
    rng = np.random.default_rng(10)
    x = (rng.standard_normal((2, 5, 3, 19)) * 4).astype(np.float32)
    known = {
        "s": rng.uniform(0.01, 0.1, (5, 1, 1)).astype(np.float32),
        "z": random_bytes(rng, (5, 1, 1), "int8"),
    }
    graph = graph_of([Node("QuantizeLinear", ("x", "s", "z"), ("y",))], {"x": x}, ["y"], known)
    check_lowering(graph, {"x": x}, target)


def activation(op: str) -> Expression:
    """Of a byte: dequantise, apply, quantise."""
    steps = (Apply("DequantizeLinear", (0, 1, 2)), Apply(op, (5,)), Apply("QuantizeLinear", (6, 3, 4)))
    return Expression(5, steps)


@TARGETS
@pytest.mark.parametrize(("before", "after"), [("uint8", "uint8"), ("int8", "uint8"), ("uint8", "int8")])
def test_functions_of_a_byte_become_tables(target: Any, before: str, after: str) -> None:
    rng = np.random.default_rng(12)
    known = {
        "s0": np.array(0.05, np.float32),
        "z0": np.array(100, before),
        "s1": np.array(1 / 256, np.float32),
        "z1": np.array(3, after),
    }
    node = Node("Elementwise", ("x", *known), ("y",), {"expression": activation("Sigmoid")})
    for width in (*WIDTHS_AROUND_VECTORS, 256):
        x = random_bytes(rng, (3, width), before)
        x[0, :256] = np.arange(256, dtype=np.uint8).view(before)[:width]
        graph = graph_of([node], {"x": x}, ["y"], known)
        bench = check_lowering(graph, {"x": x}, target, hint=width)
        assert bench.infos[0]["kernel"].startswith("table")


def test_cheap_functions_of_a_byte_are_computed() -> None:
    known = {"c": np.array(3, np.uint8)}
    x = np.arange(256, dtype=np.uint8)
    node = Node("Elementwise", ("x", "c"), ("y",), {"expression": Expression(2, (Apply("Add", (0, 1)),))})
    bench = check_lowering(graph_of([node], {"x": x}, ["y"], known), {"x": x})
    assert bench.infos[0]["kernel"].startswith("loopnest")


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS.keys())
def test_code_for_other_machines(target: Any) -> None:
    x = np.zeros((1, 3, 6, 35), np.uint8)
    pool = {"kernel_shape": (3, 3), "strides": (2, 2)}
    for node in (
        Node("MaxPool", ("x",), ("y",), pool),
        Node("AveragePool", ("x",), ("y",), pool | converted("uint8", True)),
        Node("GlobalAveragePool", ("x",), ("y",), converted("uint8", True)),
    ):
        check_emission(graph_of([node], {"x": x}, ["y"]), {"x": x}, target)
    known = constants("uint8")
    table = Node("Elementwise", ("x", "s0", "z0", "s1", "z1"), ("y",), {"expression": activation("Tanh")})
    check_emission(graph_of([table], {"x": x}, ["y"], known), {"x": x}, target)
    feeds = {"x0": x, "x1": x}
    node = Node("Elementwise", (*feeds, *known), ("y",), {"expression": requantised()})
    check_emission(graph_of([node], feeds, ["y"], known), feeds, target)
