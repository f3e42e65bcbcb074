"""Operators that move elements or make shapes: references and facts against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import check_model, check_operator, model_of

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer

SEED = 13
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng([SEED, *shape]).standard_normal(shape) * 3).astype(dtype)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("target", [(4, 6), (0, -1), (-1,), (2, 0, 2, -1), (24, 1, 1)])
def test_reshape(target: tuple[int, ...]) -> None:
    check_operator("Reshape", [normal(2, 3, 4), ints(*target)], constants=[1])


def test_reshape_with_zeros_allowed() -> None:
    check_operator("Reshape", [normal(0, 3), ints(3, 0)], {"allowzero": 1}, constants=[1])


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    check_operator("Flatten", [normal(2, 3, 4)], {"axis": axis})


@pytest.mark.parametrize("perm", [None, (0, 2, 1), (2, 0, 1)])
def test_transpose(perm: tuple[int, ...] | None) -> None:
    check_operator("Transpose", [normal(2, 3, 4)], {} if perm is None else {"perm": perm})


@pytest.mark.parametrize("axes", [None, (0,), (-2, 0)])
def test_squeeze(axes: tuple[int, ...] | None) -> None:
    check_operator(
        "Squeeze",
        [normal(1, 3, 1, 2), *([] if axes is None else [ints(*axes)])],
        constants=range(1, 1 + bool(axes)),
    )


@pytest.mark.parametrize("axes", [(0,), (-1,), (3, 0), (1, 2, -1)])
def test_unsqueeze(axes: tuple[int, ...]) -> None:
    check_operator("Unsqueeze", [normal(3, 2), ints(*axes)], constants=[1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    shapes[1][axis] = 5
    check_operator("Concat", [normal(*s) for s in shapes], {"axis": axis})


def test_split() -> None:
    check_operator("Split", [normal(2, 7), ints(2, 0, 5)], {"axis": 1}, constants=[1], outputs=3)
    check_operator("Split", [normal(2, 7)], {"axis": -1, "num_outputs": 3}, outputs=3)
    check_operator("Split", [normal(6, 2)], {"num_outputs": 2}, outputs=2)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), None, None),
        ((1, -3), (1000, -1), (0, 2), None),
        ((0, 5), (6, 0), (0, 1), (2, -2)),
        ((-1,), (-1000,), (1,), (-1,)),
        ((4,), (2,), (0,), None),
        ((-(2**63),), (2**63 - 1,), (-1,), (3,)),
        ((2**31 - 1,), (-(2**31),), (2,), (-3,)),
    ],
)
def test_slice(starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    operands = [None if o is None else ints(*o) for o in (starts, ends, axes, steps)]
    while operands[-1] is None:
        operands.pop()
    check_operator("Slice", [normal(6, 6, 7), *operands], constants=range(1, 1 + len(operands)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis: int) -> None:
    check_operator("Gather", [normal(4, 4, 4), ints(3, -1, 0, 2, -4).reshape(5, 1)], {"axis": axis})
    check_operator("Gather", [normal(4, 4, 4), np.array(2)], {"axis": axis}, constants=[1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    indices = np.moveaxis(np.random.default_rng(SEED).integers(-4, 4, (6, 3, 2)), 0, axis)
    check_operator("GatherElements", [normal(4, 4, 4), indices], {"axis": axis})


PADS = [(1, 2, 0, 3), (0, -1, 2, 1), (0, 0, -1, -2)]


@pytest.mark.parametrize(
    ("mode", "pads"),
    [(mode, pads) for mode in ("constant", "reflect", "edge") for pads in PADS] + [("wrap", PADS[0])],
)
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    check_operator("Pad", [normal(5, 6), ints(*pads)], {"mode": mode}, constants=[1])


def test_pad_with_a_value_and_axes() -> None:
    operands = [normal(5, 6, 7), ints(1, 2, 3, 0), np.float32(2.5), ints(-1, 0)]
    check_operator("Pad", operands, constants=[1, 3])
    check_operator("Pad", [normal(5, 6, dtype=np.int64), ints(1, 0, 0, 2)], constants=[1])


@pytest.mark.parametrize("target", [(2, 3, 4), (3, 1), (5, 1, 1, 4), (1,)])
def test_expand(target: tuple[int, ...]) -> None:
    check_operator("Expand", [normal(3, 1), ints(*target)], constants=[1])


def test_tile() -> None:
    check_operator("Tile", [normal(2, 3), ints(3, 2)], constants=[1])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    check_operator("DepthToSpace", [normal(2, 12, 3, 5)], {"blocksize": 2, "mode": mode})


def test_space_to_depth() -> None:
    check_operator("SpaceToDepth", [normal(2, 3, 6, 9)], {"blocksize": 3})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_undoes_depth_to_space(mode: str) -> None:
    x = normal(2, 12, 3, 5)
    nodes = [Node(op, (a,), (b,), {"blocksize": 2, "mode": mode}) for op, a, b in
             (("DepthToSpace", "x", "y"), ("SpaceToDepth", "y", "z"))]  # fmt: skip
    graph = infer(Graph(("x",), ("z",), tuple(nodes), {}, {"x": Fact(x.dtype, x.shape)}))
    np.testing.assert_array_equal(evaluate(graph, {"x": x})["z"], x)


@pytest.mark.parametrize(
    "attributes", [{}, {"start": 1}, {"start": -2, "end": -1}, {"end": 100}, {"start": 3, "end": 1}]
)
def test_shape(attributes: dict[str, int]) -> None:
    check_operator("Shape", [normal(2, 3, 4, 5)], attributes)


def test_size() -> None:
    check_operator("Size", [normal(2, 3, 4)])


@pytest.mark.parametrize(
    "value", [None, np.array([2.5], np.float32), np.array([7], np.int64), np.array([True])]
)
def test_constant_of_shape(value: np.ndarray | None) -> None:
    attributes = {} if value is None else {"value": numpy_helper.from_array(value)}
    check_operator("ConstantOfShape", [ints(2, 3)], attributes, constants=[0])


@pytest.mark.parametrize("numbers", [(3, 10, 3), (10, 3, -2), (5, 5, 1), (0.5, 2.25, 0.25), (1, 0, 1)])
def test_range(numbers: tuple[float, ...]) -> None:
    dtype = np.float32 if 0.5 in numbers else np.int64
    check_operator("Range", [np.array(n, dtype) for n in numbers], constants=[0, 1, 2])


@pytest.mark.parametrize("attributes", [{}, {"k": 1}, {"k": -2, "dtype": TensorProto.INT64}])
def test_eye_like(attributes: dict[str, int]) -> None:
    check_operator("EyeLike", [normal(4, 5)], attributes)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    operands = [np.array([[0, 3, -1], [2, -4, 7]]), np.array(4), np.array([-1, 2], np.float32)]
    check_operator("OneHot", operands, {"axis": axis}, constants=[1])


def test_arithmetic_on_shapes_is_known() -> None:
    """What exporters write for x.view(x.size(0), -1, x.size(3) // 2)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Gather", ["shape", "three"], ["w"]),
        helper.make_node("Div", ["w", "two"], ["half"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Unsqueeze", ["half", "axis"], ["half1"]),
        helper.make_node("Concat", ["n1", "rest", "half1"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {
        "zero": np.array(0),
        "three": np.array(3),
        "two": np.array(2),
        "axis": ints(0),
        "rest": ints(-1),
    }
    x = normal(2, 3, 4, 6)
    check_model(model_of(nodes, {"x": x}, ["y"], constants), {"x": x})


def _infer(op: str, facts: list[Fact], **attributes: Any) -> Graph:
    names = tuple(f"x{i}" for i in range(len(facts)))
    return infer(
        Graph(names, ("y",), (Node(op, names, ("y",), attributes, "n"),), {}, dict(zip(names, facts)))
    )


X = Fact(F32, (2, 3, 4))


@pytest.mark.parametrize(
    ("op", "facts", "attributes", "kind", "match"),
    [
        ("Reshape", [X, Fact(I64, (2,))], {}, UnsupportedModel, "the shape wanted, is computed"),
        ("Reshape", [X, Fact.of(ints(5, 5))], {}, InvalidModel, "24 elements do not fit"),
        ("Reshape", [X, Fact.of(ints(5, -1))], {}, InvalidModel, "do not divide"),
        ("Reshape", [X, Fact.of(ints(-1, -1))], {}, InvalidModel, "one -1"),
        ("Reshape", [X, Fact.of(ints(1, 1, 1, 0))], {}, InvalidModel, "copies a dimension"),
        ("Reshape", [X, Fact.of(np.ones(3, np.float32))], {}, InvalidModel, "integers"),
        ("Flatten", [X], {"axis": 4}, InvalidModel, "axis 4"),
        ("Transpose", [X], {"perm": (0, 1, 1)}, InvalidModel, "no permutation"),
        ("Squeeze", [X, Fact.of(ints(0))], {}, InvalidModel, "size 1"),
        ("Concat", [X, Fact(F32, (2, 5, 5))], {"axis": 1}, InvalidModel, "equal in all dimensions but 1"),
        ("Split", [X, Fact.of(ints(1, 1))], {"axis": 1}, InvalidModel, "do not make up"),
        ("Split", [X], {"num_outputs": 2**40}, InvalidModel, "for 1 outputs"),
        (
            "Slice",
            [X, Fact.of(ints(0)), Fact.of(ints(1)), Fact.of(ints(0)), Fact.of(ints(0))],
            {},
            InvalidModel,
            "step of 0",
        ),
        ("Slice", [X, Fact.of(ints(0, 1)), Fact.of(ints(1))], {}, InvalidModel, "as many"),
        ("Gather", [X, Fact.of(ints(3))], {"axis": 1}, InvalidModel, "outside"),
        ("Pad", [X, Fact.of(ints(1, 1))], {}, InvalidModel, "need 6"),
        ("Pad", [X, Fact.of(ints(0, 0, 4, 0, 0, 0))], {"mode": "reflect"}, InvalidModel, "reflection"),
        ("Expand", [X, Fact.of(ints(5))], {}, InvalidModel, "broadcast"),
        ("Tile", [X, Fact.of(ints(1, 2))], {}, InvalidModel, "repeats"),
        ("DepthToSpace", [Fact(F32, (1, 6, 2, 2))], {"blocksize": 2}, InvalidModel, "do not divide"),
        ("SpaceToDepth", [Fact(F32, (1, 6, 3, 2))], {"blocksize": 2}, InvalidModel, "multiples"),
        ("ConstantOfShape", [Fact.of(ints(-1))], {}, InvalidModel, "negative"),
        (
            "Range",
            [Fact.of(np.array(0)), Fact.of(np.array(1)), Fact.of(np.array(0))],
            {},
            InvalidModel,
            "delta",
        ),
    ],
)
def test_what_contradicts_is_told(
    op: str, facts: list[Fact], attributes: dict[str, Any], kind: type[Error], match: str
) -> None:
    with pytest.raises(kind, match=match) as caught:
        _infer(op, facts, **attributes)
    assert (caught.value.node, caught.value.op) == ("n", op)


def test_a_huge_constant_is_not_made_while_shapes_are_inferred() -> None:
    graph = _infer("ConstantOfShape", [Fact.of(ints(2**40, 2**20))])
    assert graph.facts["y"].shape == (2**40, 2**20)
    assert graph.facts["y"].value is None
