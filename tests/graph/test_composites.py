"""Operators that are written as others, and what places and values choose, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import check_operator

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import operator

SEED = 23


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_gather_nd(batch: int) -> None:
    data = normal(2, 3, 4, 5)
    for depth in range(1, 4 - batch):
        sizes = np.array(data.shape[batch : batch + depth])
        shape = (*data.shape[:batch], 6, depth)
        indices = np.random.default_rng(depth).integers(-sizes, sizes, shape)
        check_operator("GatherND", [data, indices], {"batch_dims": batch})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter(reduction: str) -> None:
    data, rng = normal(3, 4, 5), np.random.default_rng(SEED)
    for depth in (1, 2, 3):
        indices = (
            rng.integers(0, data.shape[:depth], (6, depth))
            if reduction != "none"
            else (np.argwhere(np.ones(data.shape[:depth]))[::2])
        )
        updates = normal(len(indices), *data.shape[depth:])
        check_operator("ScatterND", [data, indices, updates], {"reduction": reduction})
    for axis in (0, 1, -1):
        places = rng.permuted(np.argsort(normal(3, 4, 5), axis=axis), axis=axis)[:2, :3, :4]
        if reduction == "none" and axis == 0:
            places = np.argsort(normal(3, 4, 5), axis=0)[:2, :3, :4]
        check_operator(
            "ScatterElements", [data, places, normal(2, 3, 4)], {"axis": axis, "reduction": reduction}
        )


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (3, 8, 5)])
def test_triangles(shape: tuple[int, ...]) -> None:
    for offset in (-2, 0, 3):
        for upper in (0, 1):
            check_operator("Trilu", [normal(*shape), np.array(offset)], {"upper": upper}, constants=[1])


def test_crops_and_statistics() -> None:
    for wanted in ((5, 6), (2, 9), (8, 3), (9, 9)):
        check_operator("CenterCropPad", [normal(5, 6), np.array(wanted)], constants=[1])
    check_operator("CenterCropPad", [normal(2, 5, 6), np.array([7])], {"axes": [-1]}, constants=[1])
    check_operator("MeanVarianceNormalization", [normal(2, 3, 4, 5)])
    channels = [np.abs(normal(3)) + 1 for _ in range(4)]
    attributes = {"training_mode": 1, "momentum": 0.7, "epsilon": 1e-3}
    check_operator("BatchNormalization", [normal(2, 3, 4, 5), *channels], attributes, outputs=3)


@pytest.mark.parametrize("corners", [0, 1])
def test_affine_grids(corners: int) -> None:
    for size in ((2, 3, 4, 5), (2, 3, 4, 5, 6)):
        theta = normal(2, len(size) - 2, len(size) - 1)
        check_operator("AffineGrid", [theta, np.array(size)], {"align_corners": corners}, constants=[1])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_samples(mode: str, padding: str, corners: int) -> None:
    grid = np.random.default_rng(SEED).uniform(-1.6, 1.6, (2, 4, 5, 2)).astype(np.float32)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    check_operator("GridSample", [normal(2, 3, 6, 7), grid], attributes)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
def test_regions(mode: str, transformation: str) -> None:
    rois = np.array([[0, 0, 8, 6], [1.2, 2.3, 5.1, 9.9], [-1, -2, 3, 4]], np.float32)
    for ratio in (0, 2):
        attributes = {
            "mode": mode, "coordinate_transformation_mode": transformation, "sampling_ratio": ratio,
            "output_height": 3, "output_width": 2, "spatial_scale": 0.8,
        }  # fmt: skip
        operands = [normal(2, 3, 8, 9), rois, np.array([0, 1, 1])]
        check_operator("RoiAlign", operands, attributes, tolerance=1e-4)


def test_the_largest() -> None:
    x = np.random.default_rng(SEED).integers(0, 9, (3, 7, 5)).astype(np.float32)
    for largest in (0, 1):
        for axis in (0, 1, -1):
            attributes = {"axis": axis, "largest": largest}
            check_operator("TopK", [x, np.array([2])], attributes, constants=[1], outputs=2)
    check_operator("TopK", [x], {"k": 3}, outputs=2, opset=9)


def test_sums_of_columns() -> None:
    columns = normal(2, 3 * 6, 20)
    operands = [columns, np.array([6, 6]), np.array([2, 3])]
    check_operator("Col2Im", operands, constants=[1, 2])
    operands = [normal(1, 2 * 4, 12), np.array([7, 6]), np.array([2, 2])]
    check_operator(
        "Col2Im", operands, {"dilations": [2, 3], "pads": [1, 0, 0, 1], "strides": [2, 1]}, constants=[1, 2]
    )


def test_unpooling() -> None:
    x, indices = normal(1, 2, 2, 2), np.array([[[[0, 3], [9, 15]], [[17, 18], [24, 31]]]])
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    check_operator("MaxUnpool", [x, indices], attributes)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bnc,bmc->bnm", [(2, 3, 5), (2, 4, 5)]),
        ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]),
        ("bij->bji", [(2, 3, 4)]),
        ("bij->b", [(2, 3, 4)]),
        ("ij,jk", [(3, 4), (4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("i,i->", [(7,), (7,)]),
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (2, 3, 5, 6)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("bchw,bkhw->bkc", [(2, 3, 4, 5), (2, 6, 4, 5)]),
        ("ab,cd->dbca", [(2, 3), (4, 5)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    check_operator("Einsum", [normal(*shape) for shape in shapes], {"equation": equation})


MASKS: list[tuple[dict[str, Any], Any]] = [
    ({}, None),
    ({"is_causal": 1}, None),
    ({"scale": 0.3, "softcap": 2.0}, normal(4, 6)),
    ({}, normal(4, 6) > 0),
    ({}, normal(2, 1, 4, 6)),
]


@pytest.mark.parametrize(("attributes", "mask"), MASKS)
@pytest.mark.parametrize("heads", [1, 3])
def test_attention(attributes: dict[str, Any], mask: Any, heads: int) -> None:
    if mask is not None and mask.dtype == bool:
        mask[:, 0] = True
    operands = [normal(2, 3, 4, 8), normal(2, heads, 6, 8), normal(2, heads, 6, 5)]
    check_operator("Attention", [*operands, *([] if mask is None else [mask])], attributes, opset=23)


@pytest.mark.parametrize(
    ("op", "facts", "attributes", "match"),
    [
        ("GatherND", [(2, 3), (2, 3)], {}, "do not fit"),
        ("ScatterND", [(2, 3), (2, 1), (2, 4)], {}, "do not fit"),
        ("ScatterElements", [(2, 3), (3, 3), (3, 3)], {"axis": 1}, "fit the data"),
        ("GridSample", [(1, 1, 4, 4), (2, 3, 3, 2)], {}, "grid must be"),
        ("GridSample", [(1, 1, 4, 4), (1, 3, 3, 2)], {"mode": "best"}, "mode 'best'"),
        ("RoiAlign", [(1, 1, 4, 4), (2, 5), (2,)], {}, "rois must be"),
        ("Einsum", [(2, 3), (3, 4)], {"equation": "ij,j->i"}, "not for 2 dimensions"),
        ("Einsum", [(2, 3)], {"equation": "ij->k"}, "no input has"),
        ("Attention", [(1, 2, 3, 4), (1, 3, 3, 4), (1, 3, 3, 4)], {}, "do not divide"),
    ],
)
def test_what_contradicts_is_told(
    op: str, facts: list[tuple[int, ...]], attributes: dict[str, Any], match: str
) -> None:
    names = tuple(f"x{i}" for i in range(len(facts)))
    whole = {"GatherND": {1}, "ScatterND": {1}, "ScatterElements": {1}, "RoiAlign": {2}}.get(op, set())
    dtypes = [np.dtype(np.int64 if i in whole else np.float32) for i in range(len(facts))]
    node = Node(op, names, ("y",), attributes, "n")
    with pytest.raises(InvalidModel, match=match):
        operator(node).infer(node, [Fact(dtype, shape) for dtype, shape in zip(dtypes, facts)])


def test_one_hot_of_truth_values_is_told() -> None:
    facts = [Fact(np.dtype(bool), (3,)), Fact.of(np.array(4)), Fact.of(np.float32([0, 1]))]
    node = Node("OneHot", ("i", "d", "v"), ("y",), {}, "n")
    with pytest.raises(InvalidModel, match="not bool"):
        operator(node).infer(node, facts)
