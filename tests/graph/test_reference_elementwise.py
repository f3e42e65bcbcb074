"""Element-wise references against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx_models import check_operator

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.graph.expression import COMPARISONS, ELEMENTWISE, Apply, Expression
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.numpy_math import NumpyMath
from coresident.graph.operator import evaluate, infer

SEED = 20_240_501


def normal(*shape: int, dtype: type = np.float32, low: float | None = None) -> np.ndarray:
    numbers = np.random.default_rng([SEED, *shape]).standard_normal(shape) * 3
    return (numbers if low is None else np.abs(numbers) + low).astype(dtype)


UNARY = (
    *("Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Exp", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Relu"),
    *("Reciprocal", "Softplus", "Softsign", "Identity", "HardSwish", "Mish", "Selu", "IsNaN", "Gelu"),
    *("LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "HardSigmoid"),
)


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    check_operator(op, [normal(3, 17)])


@pytest.mark.parametrize("op", ["LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "HardSigmoid"])
def test_unary_with_attributes(op: str) -> None:
    check_operator(op, [normal(3, 17)], {"alpha": 0.7} | ({"beta": 0.4} if op == "HardSigmoid" else {}))


@pytest.mark.parametrize("op", ["Sqrt", "Log"])
def test_unary_of_positive_numbers(op: str) -> None:
    check_operator(op, [normal(3, 17, low=0.1)])


def test_gelu_by_tanh() -> None:
    check_operator("Gelu", [normal(3, 17)], {"approximate": "tanh"})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_binary_broadcasts(op: str, dtype: type) -> None:
    b = normal(7, 1, dtype=dtype)
    check_operator(op, [normal(2, 1, 5, dtype=dtype), np.where(b == 0, dtype(3), b)])


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_comparison(op: str, dtype: type) -> None:
    check_operator(op, [normal(9, 8, dtype=dtype), normal(8, dtype=dtype)])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logical(op: str) -> None:
    check_operator(op, [normal(9, 8) > 0, normal(8) > 0])


def test_not() -> None:
    check_operator("Not", [normal(9, 8) > 0])


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_variadic(op: str, count: int) -> None:
    check_operator(op, [normal(3, 1, 5), normal(4, 1), normal(5)][:count])


@pytest.mark.parametrize("bounds", [(None, None), (-1, None), (None, 1), (-1, 1), (1, -1)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    low, high = (None if b is None else np.float32(b) for b in bounds)
    check_operator("Clip", [normal(3, 5), low, high])


def test_pow_keeps_the_type_of_the_base() -> None:
    check_operator("Pow", [normal(3, 5, low=0.1), np.array([2, 3, -1, 0, 1], np.int64)])
    check_operator("Pow", [np.arange(5, dtype=np.int64), np.array([2, 3, 0, 1, 5], np.int64)])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_of_integers(fmod: int) -> None:
    check_operator("Mod", [np.arange(-8, 8), np.array([3, -3] * 8)], {"fmod": fmod})


def test_mod_of_floats() -> None:
    check_operator("Mod", [normal(4, 4), normal(4, low=0.5)], {"fmod": 1})


def test_integer_division_rounds_toward_zero() -> None:
    a, b = np.array([7, -7, 7, -7, 6, -6, 0]), np.array([2, 2, -2, -2, 3, 3, -5])
    np.testing.assert_array_equal(NumpyMath().divide(a, b), [3, -3, -3, 3, 2, -2, 0])
    check_operator("Div", [a, b])


def test_where() -> None:
    check_operator("Where", [normal(7, 1) > 0, normal(5), normal(7, 5)])


def test_prelu() -> None:
    check_operator("PRelu", [normal(2, 3, 5, 5), normal(3, 1, 1)])


@pytest.mark.parametrize("to", [np.float64, np.float16, np.int32, np.uint8, np.bool_])
def test_cast(to: type) -> None:
    check_operator("Cast", [normal(4, 5, low=0.1)], {"to": helper.np_dtype_to_tensor_dtype(np.dtype(to))})


def test_cast_like() -> None:
    check_operator("CastLike", [normal(4, 5), np.zeros(2, np.int64)])


def test_dropout_passes_the_data_on() -> None:
    check_operator("Dropout", [normal(4, 5), np.float32(0.3)], constants=[1])


EXTREMES = np.array([0, -0.0, 1, -1, 65504, np.inf, -np.inf, np.nan], np.float16)
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "PRelu")
COMPARING = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")


def _operands(op: str) -> list[np.ndarray]:
    x = EXTREMES
    if op in ("And", "Or", "Xor"):
        return [x > 0, x < 1]
    if op == "Not":
        return [x > 0]
    if op == "Where":
        return [x > 0, x, x]
    if op == "Clip":
        return [x, np.array(-1, x.dtype), np.array(1, x.dtype)]
    return [x, x[::-1]] if op in BINARY + COMPARING else [x]


@pytest.mark.parametrize("op", sorted(ELEMENTWISE.keys() - {"QuantizeLinear", "DequantizeLinear"}))
def test_results_keep_float16_and_warn_of_nothing(op: str) -> None:
    feeds = {f"x{i}": a for i, a in enumerate(_operands(op))}
    node = Node(op, tuple(feeds), ("y",), {"to": "int32"} if op == "Cast" else {})
    facts = {name: Fact(a.dtype, a.shape) for name, a in feeds.items()}
    graph = infer(Graph(tuple(feeds), ("y",), (node,), {}, facts))
    y = evaluate(graph, feeds)["y"]
    assert (y.dtype, y.shape) == (graph.facts["y"].dtype, EXTREMES.shape)
    if op not in COMPARISONS and op != "Cast":
        assert y.dtype == np.float16


def test_expression_of_several_inputs() -> None:
    a, b = normal(3, 1, 5), normal(4, 1)
    expression = Expression(
        2, (Apply("Mul", (0, 1)), Apply("LeakyRelu", (2,), (("alpha", 0.25),)), Apply("Less", (3, 1)))
    )
    node = Node("Elementwise", ("a", "b"), ("y",), {"expression": expression})
    graph = infer(
        Graph(("a", "b"), ("y",), (node,), {}, {"a": Fact(a.dtype, a.shape), "b": Fact(b.dtype, b.shape)})
    )
    y = evaluate(graph, {"a": a, "b": b})["y"]
    assert graph.facts["y"].dtype == y.dtype == bool
    assert graph.facts["y"].shape == y.shape == (3, 4, 5)
    np.testing.assert_array_equal(y, np.where(a * b < 0, a * b * np.float32(0.25), a * b) < b)


def _one(op: str, facts: list[Fact], **attributes: object) -> Graph:
    names = tuple("abc"[: len(facts)])
    return Graph(names, ("y",), (Node(op, names, ("y",), attributes, "n"),), {}, dict(zip(names, facts)))


F32, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)


@pytest.mark.parametrize(
    ("op", "facts", "kind", "match"),
    [
        ("Add", [Fact(F32, (2, 3)), Fact(F32, (4,))], InvalidModel, "do not broadcast"),
        ("Add", [Fact(F32, (2,)), Fact(I64, (2,))], InvalidModel, "one type"),
        ("Add", [Fact(BOOL, (2,)), Fact(BOOL, (2,))], InvalidModel, "a number"),
        ("Add", [Fact(F32, (2,))], InvalidModel, "1 operands; 2 are needed"),
        ("And", [Fact(F32, (2,)), Fact(F32, (2,))], InvalidModel, "bool"),
        ("Exp", [Fact(I64, (2,))], InvalidModel, "floating-point"),
        ("Where", [Fact(F32, (2,)), Fact(F32, (2,)), Fact(F32, (2,))], InvalidModel, "condition"),
        ("PRelu", [Fact(F32, (1, 3)), Fact(F32, (2, 3))], InvalidModel, "slope"),
        ("Clip", [Fact(F32, (3,)), Fact(F32, (3,))], InvalidModel, "scalar"),
        ("Dropout", [Fact(F32, (3,)), Fact(F32, ()), Fact(BOOL, ())], UnsupportedModel, "training"),
    ],
)
def test_what_contradicts_is_told(op: str, facts: list[Fact], kind: type[Error], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        infer(_one(op, facts))
    assert (caught.value.node, caught.value.op) == ("n", op)
