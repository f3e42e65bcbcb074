"""Convolutions and pools: references and shapes against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import check_operator

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer
from coresident.graph.operators.windows import TransposedWindow, Window

SEED = 7
F32 = np.dtype(np.float32)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 17), (5, 3, 3), {}),
    ((1, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 3, 9, 8), (4, 3, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ((1, 4, 15, 17), (6, 2, 3, 3), {"group": 2, "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ((2, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 6, 9, 9), (12, 1, 3, 3), {"group": 6}),
    ((1, 3, 10, 7), (2, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 3, 10, 7), (2, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ((1, 3, 10, 7), (2, 3, 3, 3), {"auto_pad": "VALID"}),
    ((1, 2, 5, 6, 7), (3, 2, 3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}),
    (
        (1, 2, 5, 6, 7),
        (3, 2, 2, 1, 3),
        {"strides": [2, 1, 2], "dilations": [1, 1, 2], "pads": [0, 0, 2, 1, 0, 2]},
    ),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool) -> None:
    check_operator("Conv", [normal(*x), normal(*w), *([normal(w[0])] if bias else [])], attributes)


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 7), (3, 2, 4), {"strides": [2]}),
    ((1, 3, 5, 6), (3, 2, 2, 2), {"strides": [2, 2]}),
    ((2, 3, 5, 6), (3, 2, 3, 3), {"strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 1]}),
    ((1, 4, 5, 6), (4, 2, 3, 3), {"group": 2, "dilations": [2, 1]}),
    ((1, 4, 5, 6), (4, 1, 3, 3), {"group": 4, "strides": [1, 2]}),
    ((1, 3, 5, 6), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 5, 6), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 5, 6), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ((1, 3, 5, 6), (3, 2, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    ((1, 3, 5, 6), (3, 2, 3, 3), {"strides": [3, 2], "output_shape": [14, 12], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 4, 3), (2, 3, 2, 2, 2), {"strides": [2, 2, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(
    x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any], bias: bool
) -> None:
    channels = w[1] * attributes.get("group", 1)
    check_operator(
        "ConvTranspose", [normal(*x), normal(*w), *([normal(channels)] if bias else [])], attributes
    )


POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 17), {"kernel_shape": [3]}),
    ((1, 3, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 9, 8), {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1}),
    ((1, 3, 7, 7), {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 3, 10, 10), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 3, 10, 11), {"kernel_shape": [3, 3], "dilations": [2, 3]}),
    ((1, 3, 10, 11), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 10, 11), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 10, 11), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("x", "attributes"), POOLS, ids=str)
def test_max_pool(x: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check_operator("MaxPool", [normal(*x)], attributes, outputs=2)


def test_max_pool_indices_in_column_order() -> None:
    check_operator("MaxPool", [normal(2, 3, 5, 7)], {"kernel_shape": [2, 2], "storage_order": 1}, outputs=2)


def test_max_pool_of_bytes() -> None:
    x = np.random.default_rng(SEED).integers(-128, 128, (1, 2, 7, 7)).astype(np.int8)
    check_operator("MaxPool", [x], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})


@pytest.mark.parametrize(("x", "attributes"), POOLS, ids=str)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(x: tuple[int, ...], attributes: dict[str, Any], include: int) -> None:
    check_operator("AveragePool", [normal(*x)], attributes | {"count_include_pad": include})


@pytest.mark.parametrize(("x", "attributes"), POOLS, ids=str)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(x: tuple[int, ...], attributes: dict[str, Any], p: int) -> None:
    check_operator("LpPool", [normal(*x)], attributes | {"p": p})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("x", [(2, 3, 5), (1, 3, 5, 7), (1, 2, 3, 4, 5)])
def test_global_pools(op: str, x: tuple[int, ...]) -> None:
    check_operator(op, [normal(*x)])


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_epilogue(op: str) -> None:
    matrices = op in ("Gemm", "MatMul")
    x, w = (normal(3, 4), normal(4, 5)) if matrices else (normal(1, 4, 6, 6), normal(4, 4, 3, 3))
    plain = Node(op, ("x", "w"), ("y",))
    y = evaluate(Graph(("x", "w"), ("y",), (plain,), {}, {}), {"x": x, "w": w})["y"]
    residual, scale = normal(*y.shape), normal(*y.shape[1:2], *(1,) * (y.ndim - 2))
    expression = Expression(3, (Apply("Add", (0, 1)), Apply("Mul", (3, 2)), Apply("Relu", (4,))))
    inputs = ("x", "w", "r", "s") if op == "MatMul" else ("x", "w", "", "r", "s")
    fused = Node(op, inputs, ("y",), {"epilogue": expression})
    feeds = {"x": x, "w": w, "r": residual, "s": scale}
    graph = infer(
        Graph(tuple(feeds), ("y",), (fused,), {}, {n: Fact(a.dtype, a.shape) for n, a in feeds.items()})
    )
    assert graph.facts["y"].shape == y.shape
    found = evaluate(graph, feeds)["y"]
    np.testing.assert_allclose(found, np.maximum((y + residual) * scale, 0), rtol=1e-5, atol=1e-5)


def _infer(op: str, *shapes: tuple[int, ...], **attributes: Any) -> Graph:
    names = tuple("xwbre"[: len(shapes)])
    return infer(
        Graph(
            names,
            ("y",),
            (Node(op, names, ("y",), attributes, "n"),),
            {},
            {n: Fact(F32, s) for n, s in zip(names, shapes)},
        )
    )


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "match"),
    [
        ("Conv", [(1, 3, 8, 8), (4, 2, 3, 3)], {}, "X with 3 channels needs 3"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3)], {}, "as many dimensions"),
        ("Conv", [(1, 4, 8, 8), (5, 2, 3, 3)], {"group": 2}, "group 2 must divide"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"kernel_shape": (5, 5)}, "kernel_shape"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"strides": (1,)}, "strides"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"strides": (0, 1)}, "at least 1"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"pads": (1, 1)}, "need 4"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"auto_pad": "SOME"}, "auto_pad"),
        ("Conv", [(1, 3, 2, 8), (4, 3, 3, 3)], {}, "larger than the input"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3), (3,)], {}, r"B must be \[4\]"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3), (4,), (4,)], {}, "at most 3"),
        ("ConvTranspose", [(1, 3, 8, 8), (4, 2, 3, 3)], {}, "W reads 4 channels"),
        ("ConvTranspose", [(1, 3, 1, 8), (3, 2, 3, 3)], {"pads": (2, 0, 2, 0)}, "leaves an output"),
        ("MaxPool", [(1, 3, 8, 8)], {}, "kernel_shape is missing"),
        (
            "MaxPool",
            [(1, 3, 8, 8)],
            {"kernel_shape": (2, 2), "pads": (2, 0, 0, 0)},
            "smaller than the window",
        ),
        ("AveragePool", [(1, 3)], {"kernel_shape": ()}, "spatial"),
    ],
)
def test_what_contradicts_is_told(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidModel, match=match) as caught:
        _infer(op, *shapes, **attributes)
    assert (caught.value.node, caught.value.op) == ("n", op)


def test_negative_pads_are_not_supported() -> None:
    with pytest.raises(UnsupportedModel, match="Slice"):
        _infer("Conv", (1, 3, 8, 8), (4, 3, 3, 3), pads=(-1, 0, 0, 0))


def test_window_geometry() -> None:
    node = Node("Conv", (), (), {"strides": (2, 1), "dilations": (1, 2), "auto_pad": "SAME_UPPER"})
    window = Window.of(node, (7, 9), (3, 3))
    assert (window.extent, window.pads_begin, window.pads_end) == ((3, 5), (1, 2), (1, 2))
    assert window.output((7, 9)) == (4, 9)
    transposed = TransposedWindow.of(
        Node("ConvTranspose", (), (), {"strides": (2,), "pads": (1, 0)}), (5,), (3,)
    )
    assert (transposed.pads_begin, transposed.output) == ((1,), (10,))
