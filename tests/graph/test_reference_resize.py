"""Resize against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import check_operator

from coresident.errors import Error, InvalidModel
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import infer

SEED = 17
COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
SCALES = [(2, 2), (0.5, 0.5), (1.5, 2.3), (0.6, 1.7), (1, 3)]
SCALED = [(c, f) for c in COORDINATES for f in SCALES if c != "align_corners" or f in ((2, 2), (1, 3))]
"""ONNX Runtime aligns the corner of the size rounded down, ONNX that of the size asked for."""
NEAREST = [(c, f) for c, f in SCALED if c != "half_pixel_symmetric" or not any(4 * s % 1 for s in f)]
"""Symmetric centres of other scales fall on ties that the last bit of the scale decides."""
SIZES = [(10, 12), (3, 4), (7, 5), (1, 1)]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


def scales(*spatial: float) -> np.ndarray:
    return np.array([1, 1, *spatial], np.float32)


def sizes(*spatial: int) -> np.ndarray:
    return np.array([1, 2, *spatial], np.int64)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(("coordinates", "factors"), SCALED)
def test_scales(mode: str, coordinates: str, factors: tuple[float, float]) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check_operator("Resize", [normal(1, 2, 5, 6), None, scales(*factors)], attributes, constants=[2])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("target", SIZES)
def test_sizes(mode: str, coordinates: str, target: tuple[int, int]) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check_operator("Resize", [normal(1, 2, 5, 6), None, None, sizes(*target)], attributes, constants=[3])


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize(("coordinates", "factors"), NEAREST)
def test_nearest_modes(nearest: str, coordinates: str, factors: tuple[float, float]) -> None:
    attributes = {"mode": "nearest", "nearest_mode": nearest, "coordinate_transformation_mode": coordinates}
    check_operator("Resize", [normal(1, 2, 5, 6), None, scales(*factors)], attributes, constants=[2])


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("target", [(3, 4), (7, 5), (1, 1), (5, 12)])
def test_antialias(mode: str, target: tuple[int, int]) -> None:
    operands = [normal(1, 2, 9, 11), None, None, sizes(*target)]
    for outside in (0, 1):
        attributes = {"mode": mode, "antialias": 1, "exclude_outside": outside}
        check_operator("Resize", operands, attributes, constants=[3])


@pytest.mark.parametrize("attributes", [{"cubic_coeff_a": -0.5}, {"exclude_outside": 1}])
def test_cubic_options(attributes: dict[str, Any]) -> None:
    operands = [normal(1, 2, 5, 6), None, scales(1.7, 0.8)]
    check_operator("Resize", operands, {"mode": "cubic", **attributes}, constants=[2])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_crop(mode: str) -> None:
    region = np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2], np.float32)
    attributes = {
        "mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0,
    }  # fmt: skip
    check_operator("Resize", [normal(1, 2, 5, 6), region, None, sizes(7, 8)], attributes, constants=[1, 3])


def test_axes_and_aspect_ratio() -> None:
    for policy in ("not_larger", "not_smaller"):
        attributes = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "linear"}
        operands = [normal(1, 2, 5, 6), None, None, np.array([9, 8])]
        check_operator("Resize", operands, attributes, constants=[3])
    check_operator(
        "Resize", [normal(1, 2, 5, 6), None, np.array([2, 3], np.float32)], {"axes": [3, 2]}, constants=[2]
    )


def test_one_and_three_dimensions() -> None:
    check_operator(
        "Resize", [normal(1, 2, 5), None, np.float32([1, 1, 2.5])], {"mode": "linear"}, constants=[2]
    )
    operands = [normal(1, 2, 3, 4, 5), None, np.float32([1, 1, 2, 1.5, 2])]
    check_operator("Resize", operands, {"mode": "linear"}, constants=[2])
    check_operator("Resize", operands, {"mode": "nearest"}, constants=[2])


def test_a_huge_size_is_not_tabulated_while_shapes_are_inferred() -> None:
    node = Node("Resize", ("x", "", "", "s"), ("y",), {"mode": "cubic"}, "n")
    constants = {"s": np.array([1, 2, 2**40, 2**18])}
    graph = infer(Graph(("x",), ("y",), (node,), constants, {"x": Fact(np.dtype(np.float32), (1, 2, 5, 6))}))
    assert graph.facts["y"].shape == (1, 2, 2**40, 2**18)


@pytest.mark.parametrize(
    ("operands", "attributes", "kind", "match"),
    [
        ([scales(2, 2), sizes(4, 4)], {}, InvalidModel, "exactly one"),
        ([None, None], {}, InvalidModel, "exactly one"),
        ([np.float32([2, 2]), None], {}, InvalidModel, r"must be \[4\]"),
        ([scales(2, 0), None], {}, InvalidModel, "greater than 0"),
        ([scales(2, np.nan), None], {}, InvalidModel, "finite"),
        ([scales(2, 2), None], {"mode": "best"}, InvalidModel, "mode 'best'"),
    ],
)
def test_what_contradicts_is_told(
    operands: list[np.ndarray | None], attributes: dict[str, Any], kind: type[Error], match: str
) -> None:
    names = ["" if o is None else f"x{i}" for i, o in enumerate(operands)]
    node = Node("Resize", ("x", "", *names), ("y",), attributes, "n")
    constants = {name: o for name, o in zip(names, operands) if o is not None}
    with pytest.raises(kind, match=match):
        infer(Graph(("x",), ("y",), (node,), constants, {"x": Fact(np.dtype(np.float32), (1, 2, 5, 6))}))
