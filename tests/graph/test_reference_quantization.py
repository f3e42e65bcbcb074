"""References of quantised operators against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import check_operator

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer

Array = np.ndarray[Any, Any]

SEED = 20_240_601


def numbers(*shape: int, dtype: str = "float32") -> Array:
    rng = np.random.default_rng([SEED, *shape])
    if dtype.startswith("float"):
        return (rng.standard_normal(shape) * 4).astype(dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(max(bounds.min, -(2**20)), min(bounds.max, 2**20), shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_quantize(dtype: str) -> None:
    x = np.concatenate(
        [numbers(61), np.arange(-9, 9, dtype=np.float32) / 4, np.float32([1e30, -1e30, np.inf])]
    )
    check_operator("QuantizeLinear", [x, np.float32(0.5), np.array(7, dtype)])


def test_quantize_to_bytes_by_default() -> None:
    check_operator("QuantizeLinear", [numbers(3, 5), np.float32(0.03)])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(axis: int) -> None:
    x = numbers(3, 4, 5)
    scale = np.abs(numbers(x.shape[axis])) / 50 + np.float32(0.01)
    point = numbers(x.shape[axis], dtype="int8")
    check_operator("QuantizeLinear", [x, scale, point], {"axis": axis}, opset=13)
    check_operator(
        "DequantizeLinear", [numbers(*x.shape, dtype="int8"), scale, point], {"axis": axis}, opset=13
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
def test_dequantize(dtype: str) -> None:
    point = np.array(0 if dtype == "int32" else 9, dtype)
    check_operator("DequantizeLinear", [numbers(3, 17, dtype=dtype), np.float32(0.037), point])
    check_operator("DequantizeLinear", [numbers(3, 17, dtype=dtype), np.float32(0.037)])


@pytest.mark.parametrize("axis", [0, 1])
def test_by_blocks(axis: int) -> None:
    x = numbers(8, 6)
    shape = tuple(size // 2 if d == axis else size for d, size in enumerate(x.shape))
    scale, point = np.abs(numbers(*shape)) / 9 + np.float32(0.01), numbers(*shape, dtype="uint8")
    attributes = {"axis": axis, "block_size": 2}
    check_operator("DequantizeLinear", [numbers(8, 6, dtype="uint8"), scale, point], attributes)
    check_operator("QuantizeLinear", [x, scale, point], attributes)


@pytest.mark.parametrize("low", [-3.0, 0.5, 0.0])
def test_dynamic_quantize(low: float) -> None:
    x = numbers(4, 9) if low else np.zeros((2, 3), np.float32)
    check_operator("DynamicQuantizeLinear", [np.maximum(x, np.float32(low))], outputs=3)


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
@pytest.mark.parametrize("w_type", ["uint8", "int8"])
def test_convolution(x_type: str, w_type: str) -> None:
    if (x_type, w_type) == ("int8", "uint8"):
        pytest.skip("ONNX Runtime has no such product")
    x, w = numbers(2, 4, 7, 6, dtype=x_type), numbers(6, 2, 3, 3, dtype=w_type)
    attributes = {"group": 2, "pads": [1, 1, 0, 1], "strides": [2, 1]}
    points = [np.array(5, x_type), np.array(-3 if w_type == "int8" else 100, w_type)]
    check_operator("ConvInteger", [x, w], attributes)
    check_operator("ConvInteger", [x, w, *points], attributes)


@pytest.mark.parametrize("a_type", ["uint8", "int8"])
def test_matrix_product(a_type: str) -> None:
    # ONNX Runtime's sums of two products saturate at 16 bits where there is no VNNI: 7 bits are exact.
    a, b = numbers(2, 3, 5, dtype=a_type), numbers(5, 7, dtype="int8") // 2
    check_operator("MatMulInteger", [a, b])
    check_operator("MatMulInteger", [a, b, np.array(5, a_type), np.array(3, np.int8)])
    check_operator("MatMulInteger", [a, b, np.array(5, a_type), numbers(7, dtype="int8")])


def integer_graph(op: str, x: Array, w: Array, *more: Array | None, **attributes: Any) -> tuple[Graph, Array]:
    operands = {f"i{i}": a for i, a in enumerate((x, w, *more)) if a is not None}
    names = tuple(f"i{i}" if a is not None else "" for i, a in enumerate((x, w, *more)))
    facts = {name: Fact.of(a) for name, a in operands.items()}
    graph = infer(Graph(tuple(facts), ("y",), (Node(op, names, ("y",), attributes),), {}, facts))
    return graph, evaluate(graph, operands)["y"]


def test_transposed_convolution_and_bias() -> None:
    x, w = numbers(1, 4, 5, 3, dtype="uint8"), numbers(4, 3, 2, 3, dtype="int8")
    bias = numbers(6, dtype="int32")
    points = np.array(9, np.uint8), np.arange(6, dtype=np.int8)
    attributes: dict[str, Any] = {"group": 2, "strides": (2, 3), "pads": (0, 1, 1, 0)}
    _, got = integer_graph("ConvTransposeInteger", x, w, *points, bias, **attributes)
    shifted = w.reshape(2, 2, 3, 2, 3).astype(np.float64) - np.arange(6).reshape(2, 1, 3, 1, 1)
    _, wanted = integer_graph("ConvTranspose", x - 9.0, shifted.reshape(w.shape), **attributes)
    np.testing.assert_array_equal(got, wanted + bias.reshape(6, 1, 1))
    assert got.dtype == np.int32


def test_zero_points_of_each_channel_and_row() -> None:
    x, w = numbers(1, 3, 5, 5, dtype="uint8"), numbers(4, 3, 3, 3, dtype="uint8")
    _, got = integer_graph("ConvInteger", x, w, None, np.arange(4, dtype=np.uint8))
    _, wanted = integer_graph("Conv", x.astype(float), w - np.arange(4.0).reshape(4, 1, 1, 1))
    np.testing.assert_array_equal(got, wanted)
    a, b = numbers(3, 5, dtype="uint8"), numbers(5, 2, dtype="int8")
    _, got = integer_graph("MatMulInteger", a, b, np.arange(3, dtype=np.uint8), None, np.int32([4, 5]))
    np.testing.assert_array_equal(got, (a.astype(int) - np.arange(3)[:, None]) @ b + [4, 5])


def test_an_epilogue_decides_the_type() -> None:
    steps = (Apply("Cast", (0,), (("to", "float32"),)), Apply("QuantizeLinear", (3, 1, 2)))
    graph, y = integer_graph(
        "ConvInteger",
        *(numbers(1, 3, 4, 4, dtype="uint8"), numbers(5, 3, 1, 1, dtype="int8"), None, None, None),
        *(np.float32(300), np.int8(3)),
        epilogue=Expression(3, steps),
    )
    assert graph.facts["y"].dtype == y.dtype == np.int8


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("ConvInteger", (numbers(1, 3, 4, 4), numbers(5, 3, 1, 1, dtype="int8")), {}),
        (
            "ConvInteger",
            (numbers(1, 3, 4, 4, dtype="uint8"), numbers(5, 3, 1, 1, dtype="int8"), np.int8(1)),
            {},
        ),
        ("MatMulInteger", (numbers(3, 4, dtype="uint8"), numbers(5, 3, dtype="int8")), {}),
        ("QuantizeLinear", (numbers(3, 4), np.ones(3, np.float32), np.zeros(3, np.uint8)), {}),
        ("QuantizeLinear", (numbers(3, 4, dtype="uint8"), np.float32(1), np.uint8(0)), {}),
        ("DequantizeLinear", (numbers(3, 4, dtype="uint8"), np.float32(1), np.int8(0)), {}),
        ("DequantizeLinear", (numbers(3, 4, dtype="uint8"), np.ones((3, 4), np.float32)), {"block_size": 2}),
    ],
)
def test_what_contradicts_is_refused(op: str, arrays: tuple[Array, ...], attributes: dict[str, Any]) -> None:
    with pytest.raises(InvalidModel):
        integer_graph(op, *map(np.asarray, arrays), **attributes)


def test_other_types_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="int32"):
        integer_graph("QuantizeLinear", numbers(3), np.asarray(np.float32(1)), np.asarray(np.int32(0)))
