"""Resize against the reference, and the common cases against ONNX Runtime by way of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, check_node, graph_of

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operators.resize import COORDINATE_MODES, NEAREST_MODES
from coresident.kernels.layout import Layout

Array = np.ndarray[Any, Any]
SCALES = ("x", "", "scales")
SIZES = ("x", "", "", "sizes")


def _check(
    x: Array,
    node: Node,
    constants: dict[str, Array],
    target: str = TARGETS[0],
    seed: int = 2,
    hint: object = "",
) -> None:
    graph = graph_of([node], {"x": x}, ["y"], constants)
    rng, y = np.random.default_rng(seed), graph.facts["y"].sizes
    layouts: dict[str, Layout] = {}
    if seed % 3 == 0:
        layouts = {"x": random_layout(rng, x.shape), "y": random_layout(rng, y)}
    elif seed % 3 == 1 and x.ndim > 2 and x.dtype == np.float32:
        gaps = (1,) * (x.ndim - 2)
        layouts = {n: Layout.planar(s, gaps, [(1, 1)] * len(gaps), 16) for n, s in (("x", x.shape), ("y", y))}
    tolerance = 0.0 if node.get("mode", "nearest") == "nearest" else 5e-5
    check_lowering(
        graph,
        {"x": x},
        RUN_TARGETS[target],
        layouts=layouts,
        threads=1 + seed % 2,
        tolerance=tolerance,
        hint=(seed, node, x.shape, constants),
    )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATE_MODES[:-1])
def test_doubling(mode: str, coordinates: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    for seed, width in enumerate((1, 8, 17)):
        x = random_array(np.random.default_rng(seed), (1, 2, 5, width), np.float32)
        constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
        _check(x, Node("Resize", SCALES, ("y",), attributes, "up"), constants, TARGETS[-1], seed)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(18))
def test_random_resizes(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    mode = ("nearest", "linear", "cubic")[seed % 3]
    spatial = int(rng.integers(1, 4)) if mode != "cubic" else 2
    shape = (
        *(int(s) for s in rng.integers(1, 4, 2)),
        *(int(s) for s in rng.choice((1, 5, 7, 8, 9, 16, 17), spatial)),
    )
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": str(rng.choice(COORDINATE_MODES[:-1])),
        "nearest_mode": str(rng.choice(NEAREST_MODES)),
        "cubic_coeff_a": float(rng.choice([-0.75, -0.5])),
    }
    x = random_array(rng, shape, np.float32)
    if rng.random() < 0.5:
        scales = (1, 1, *rng.choice([0.4, 0.5, 1, 1.5, 2, 3, 4, 8], spatial))
        if min(s * f for s, f in zip(shape, scales)) < 1:
            scales = (1, 1, *(2,) * spatial)
        _check(
            x,
            Node("Resize", SCALES, ("y",), attributes, "r"),
            {"scales": np.array(scales, np.float32)},
            target,
            seed // 3,
        )
        return
    sizes = np.array([*shape[:2], *rng.integers(1, 40, spatial)])
    _check(x, Node("Resize", SIZES, ("y",), attributes, "r"), {"sizes": sizes}, target, seed // 3)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crop_and_resize(mode: str) -> None:
    x = random_array(np.random.default_rng(0), (1, 2, 7, 17), np.float32)
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": -3.0,
    }
    constants = {
        "roi": np.array([0, 0, 0.2, -0.1, 1, 1, 1.1, 0.7], np.float32),
        "sizes": np.array([1, 2, 5, 23]),
    }
    _check(x, Node("Resize", ("x", "roi", "", "sizes"), ("y",), attributes, "crop"), constants)


def test_outside_excluded() -> None:
    x = random_array(np.random.default_rng(0), (1, 2, 7, 9), np.float32)
    node = Node("Resize", SCALES, ("y",), {"mode": "cubic", "exclude_outside": 1}, "r")
    _check(x, node, {"scales": np.array([1, 1, 2, 1.7], np.float32)})


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "bool"])
def test_other_types(dtype: str) -> None:
    x = random_array(np.random.default_rng(0), (1, 2, 5, 19), dtype)
    for scales in ((1, 1, 2, 2), (1, 1, 1.5, 0.6), (2, 1, 1, 1)):
        _check(x, Node("Resize", SCALES, ("y",), {}, "r"), {"scales": np.array(scales, np.float32)})
    if dtype == "float64":
        node = Node("Resize", SCALES, ("y",), {"mode": "linear"}, "r")
        _check(x, node, {"scales": np.array((1, 1, 2, 1.3), np.float32)})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_few_and_many_dimensions(mode: str) -> None:
    rng = np.random.default_rng(0)
    for shape, scales in (
        ((9,), (2,)),
        ((3, 9), (2, 2)),
        ((1, 2, 4, 5, 9), (1, 1, 2, 2, 2)),
        ((2, 3, 5, 6), (1, 2, 2, 1)),
    ):
        x = random_array(rng, shape, np.float32)
        _check(
            x, Node("Resize", SCALES, ("y",), {"mode": mode}, "r"), {"scales": np.array(scales, np.float32)}
        )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_through_the_compiler(mode: str) -> None:
    x = random_array(np.random.default_rng(0), (1, 5, 16, 33), np.float32)
    node = Node("Resize", SCALES, ("y",), {"mode": mode}, "up")
    check_node(node, {"x": x}, {"scales": np.array([1, 1, 2, 2], np.float32)}, threads=2)


def test_integers_are_not_interpolated() -> None:
    x = np.zeros((1, 1, 4, 4), np.uint8)
    with pytest.raises(UnsupportedModel, match="uint8"):
        _check(
            x,
            Node("Resize", SCALES, ("y",), {"mode": "linear"}, "r"),
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        )


@pytest.mark.parametrize("target", EMIT_TARGETS)
def test_emission(target: str) -> None:
    x = np.zeros((1, 2, 9, 19), np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for scale in (2, 1.3):
            node = Node("Resize", SCALES, ("y",), {"mode": mode}, "r")
            graph = graph_of([node], {"x": x}, ["y"], {"scales": np.array([1, 1, scale, scale], np.float32)})
            check_emission(graph, {"x": x}, EMIT_TARGETS[target])
