"""Matrix products, normalisations and reductions: references and shapes against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import check_operator

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer

SEED = 11
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng([SEED, *shape]).standard_normal(shape) * 3).astype(dtype)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 1, 3, 4), (5, 4, 7)),
        ((4,), (2, 4, 3)),
        ((2, 3, 4), (4,)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check_operator("MatMul", [normal(*a), normal(*b)])


def test_matmul_of_integers() -> None:
    check_operator("MatMul", [normal(3, 4, dtype=np.int32), normal(4, 5, dtype=np.int32)])


@pytest.mark.parametrize("c", [None, (), (1,), (5,), (3, 1), (3, 5)])
@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(c: tuple[int, ...] | None, transposed: tuple[int, int]) -> None:
    a = normal(*((4, 3) if transposed[0] else (3, 4)))
    b = normal(*((5, 4) if transposed[1] else (4, 5)))
    attributes = {"alpha": 0.5, "beta": 2.0, "transA": transposed[0], "transB": transposed[1]}
    check_operator("Gemm", [a, b, *([] if c is None else [normal(*c)])], attributes)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 7), (1, 3, 2, 3, 4)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    operands = [normal(3), normal(3) + 1, normal(3) / 2, np.abs(normal(3))]
    check_operator("BatchNormalization", [normal(*shape), *operands], {"epsilon": 1e-3})


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 7)])
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    check_operator("InstanceNormalization", [normal(*shape), normal(3), normal(3)], {"epsilon": 1e-3})


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalization(groups: int) -> None:
    check_operator("GroupNormalization", [normal(2, 6, 5, 7), normal(6), normal(6)], {"num_groups": groups})


def test_group_normalization_of_opset_18_has_a_scale_a_group() -> None:
    check_operator(
        "GroupNormalization", [normal(2, 6, 5, 7), normal(2), normal(2)], {"num_groups": 2}, opset=18
    )


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_layer_normalization(axis: int) -> None:
    shape = (3, 5, 7)[axis:]
    check_operator(
        "LayerNormalization", [normal(3, 5, 7), normal(*shape), normal(*shape)], {"axis": axis}, outputs=3
    )


def test_layer_normalization_without_bias() -> None:
    check_operator("LayerNormalization", [normal(3, 5, 7), normal(7)])


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis: int) -> None:
    x, scale = normal(3, 5, 7), normal(*(3, 5, 7)[axis:])
    node = Node("RMSNormalization", ("x", "s"), ("y",), {"axis": axis, "epsilon": 1e-3})
    y = evaluate(Graph(("x", "s"), ("y",), (node,), {}, {}), {"x": x, "s": scale})["y"]
    axes = tuple(range(axis % 3, 3))
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-3) * scale, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_lrn(size: int) -> None:
    attributes = {"size": size, "alpha": 0.1, "beta": 0.7, "bias": 2.0}
    if size % 2:
        check_operator("LRN", [normal(2, 7, 3, 5)], attributes)
        return
    # ONNX Runtime has odd sizes only.
    x = normal(2, 7, 3, 5)
    node = Node("LRN", ("x",), ("y",), attributes)
    y = evaluate(Graph(("x",), ("y",), (node,), {}, {}), {"x": x})["y"]
    total = x**2 + np.pad(x**2, [(0, 0), (0, 1), (0, 0), (0, 0)])[:, 1:]
    np.testing.assert_allclose(y, x / (2 + 0.1 / 2 * total) ** 0.7, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_normalization(p: int, axis: int) -> None:
    check_operator("LpNormalization", [normal(3, 5, 7)], {"axis": axis, "p": p})


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [0], [1, -1], [-2]])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduce(kind: str, axes: list[int] | None, keep: int) -> None:
    operands = [normal(3, 4, 5), *([] if axes is None else [np.array(axes)])]
    check_operator(f"Reduce{kind}", operands, {"keepdims": keep}, constants=range(1, len(operands)), opset=18)


def test_reduce_log_sum() -> None:
    check_operator("ReduceLogSum", [np.abs(normal(3, 4, 5)) + 1, np.array([1])], constants=[1], opset=18)


@pytest.mark.parametrize("kind", ["Sum", "Mean", "Max"])
def test_reduce_integers(kind: str) -> None:
    check_operator(f"Reduce{kind}", [normal(3, 4, 5, dtype=np.int32)], opset=18)


@pytest.mark.parametrize("kind", ["Sum", "SumSquare", "L2"])
def test_reduce_no_axes(kind: str) -> None:
    operands = [normal(3, 4), np.zeros(0, np.int64)]
    check_operator(f"Reduce{kind}", operands, {"noop_with_empty_axes": 1}, constants=[1], opset=18)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("attributes", [{}, {"keepdims": 0}, {"select_last_index": 1}])
def test_arg(op: str, axis: int, attributes: dict[str, int]) -> None:
    check_operator(op, [np.round(normal(3, 9, 4) / 3)], {"axis": axis, **attributes})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(op: str, axis: int) -> None:
    check_operator(op, [normal(3, 5, 7) * 10], {"axis": axis})


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumsum(exclusive: int, reverse: int) -> None:
    attributes = {"exclusive": exclusive, "reverse": reverse}
    check_operator("CumSum", [normal(3, 5, 7), np.array(1)], attributes, constants=[1])


@pytest.mark.parametrize(
    "op", ["Softmax", "LogSoftmax", "Hardmax", "ReduceMean", "ReduceLogSumExp", "ReduceSum"]
)
def test_no_elements(op: str) -> None:
    node = Node(op, ("x",), ("y",))
    graph = infer(Graph(("x",), ("y",), (node,), {}, {"x": Fact(F32, (2, 0))}))
    assert evaluate(graph, {"x": np.zeros((2, 0), np.float32)})["y"].shape == graph.facts["y"].shape


def _infer(op: str, facts: list[Fact], **attributes: Any) -> Graph:
    names = tuple(f"x{i}" for i in range(len(facts)))
    return infer(
        Graph(names, ("y",), (Node(op, names, ("y",), attributes, "n"),), {}, dict(zip(names, facts)))
    )


@pytest.mark.parametrize(
    ("op", "facts", "attributes", "kind", "match"),
    [
        ("MatMul", [Fact(F32, (3, 4)), Fact(F32, (5, 6))], {}, InvalidModel, "4 columns and B 5 rows"),
        (
            "Gemm",
            [Fact(F32, (3, 4)), Fact(F32, (5, 6))],
            {"transB": 1},
            InvalidModel,
            "4 columns and B 6 rows",
        ),
        ("Gemm", [Fact(F32, (3, 4)), Fact(F32, (4, 6)), Fact(F32, (5,))], {}, InvalidModel, "broadcast"),
        ("Gemm", [Fact(F32, (2, 3, 4)), Fact(F32, (4, 6))], {}, InvalidModel, "must have 2 dimensions"),
        ("BatchNormalization", [Fact(F32, (1, 3, 4))] + [Fact(F32, (4,))] * 4, {}, InvalidModel, r"\[3\]"),
        ("LayerNormalization", [Fact(F32, (3, 4)), Fact(F32, (3,))], {}, InvalidModel, "broadcast"),
        ("ReduceSum", [Fact(F32, (3, 4)), Fact(I64, (1,))], {}, UnsupportedModel, "axes, is computed"),
        ("ReduceSum", [Fact(F32, (3, 4)), Fact.of(np.array([2]))], {}, InvalidModel, "axis 2 is outside"),
        ("ReduceSum", [Fact(F32, (3, 4)), Fact.of(np.array([1, -1]))], {}, InvalidModel, "twice"),
        ("Softmax", [Fact(F32, (3, 4))], {"axis": 2}, InvalidModel, "axis 2"),
        ("CumSum", [Fact(F32, (3, 4)), Fact(I64, ())], {}, UnsupportedModel, "axis, is computed"),
    ],
)
def test_what_contradicts_is_told(
    op: str, facts: list[Fact], attributes: dict[str, Any], kind: type[Error], match: str
) -> None:
    with pytest.raises(kind, match=match) as caught:
        _infer(op, facts, **attributes)
    assert (caught.value.node, caught.value.op) == ("n", op)
