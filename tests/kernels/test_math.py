"""Functions in compiled code against their values in higher precision, at every kind of argument."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from guarded import Bench, check_emission, check_lowering
from scipy import special
from support import EMIT_TARGETS, HOST, RUN_TARGETS, graph_of

from coresident.codegen.builder import kernel, word
from coresident.codegen.math import evaluate
from coresident.codegen.types import F32
from coresident.graph.expression import COMPARISONS, ELEMENTWISE, Apply, Expression
from coresident.graph.graph import Node
from coresident.kernels.layout import Layout

Array = np.ndarray[Any, Any]
TARGETS = pytest.mark.parametrize("target", RUN_TARGETS.values(), ids=RUN_TARGETS.keys())


def graph(op: str, *arrays: Array, known: dict[str, Array] | None = None, **attributes: Any) -> Any:
    feeds = {f"x{i}": array for i, array in enumerate(arrays)}
    return graph_of([Node(op, (*feeds, *(known or {})), ("y",), attributes, op)], feeds, ["y"], known)


def run(
    op: str, target: Any, *arrays: Array, known: dict[str, Array] | None = None, **attributes: Any
) -> Array:
    bench = Bench(graph(op, *arrays, known=known, **attributes), target)
    for i, array in enumerate(arrays):
        bench.place(f"x{i}", Layout.contiguous(array.shape), array.dtype, array)
    bench.lower()
    return bench.array(bench.tensor("y")).copy()


def spread(low: float, high: float) -> Array:
    return np.linspace(low, high, 4001)


def both_signs(low: float, high: float) -> Array:
    """Evenly spread exponents."""
    sizes = np.exp(spread(np.log(low), np.log(high)))
    return np.concatenate([sizes, -sizes])


CASES: dict[str, tuple[Array, Callable[[Array], Array]]] = {
    "Exp": (np.concatenate([spread(-110, 95), spread(-1, 1)]), np.exp),
    "Log": (np.concatenate([np.exp(spread(-102, 88)), spread(0.5, 2)]), np.log),
    "Sin": (np.concatenate([spread(-1e4, 1e4), both_signs(1e-20, 10)]), np.sin),
    "Cos": (np.concatenate([spread(-1e4, 1e4), both_signs(1e-20, 10)]), np.cos),
    "Tanh": (both_signs(1e-20, 20), np.tanh),
    "Sigmoid": (np.concatenate([spread(-86, 40), both_signs(1e-20, 1)]), lambda v: 1 / (1 + np.exp(-v))),
    "Erf": (both_signs(1e-20, 6), special.erf),
    "Sqrt": (np.exp(spread(-100, 88)), np.sqrt),
}


@TARGETS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", CASES)
def test_close_to_the_exact_value(target: Any, op: str, dtype: str) -> None:
    points, exact = CASES[op]
    x = points.astype(dtype)
    wide = np.float64 if dtype == "float32" or op == "Erf" else np.longdouble
    with np.errstate(all="ignore"):
        wanted = exact(x.astype(wide))
        rounded = wanted.astype(dtype)
    got = run(op, target, x)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])
    error = np.abs(got[finite] - wanted[finite]) / np.spacing(np.abs(rounded[finite]))
    worst = int(np.argmax(error))
    assert error[worst] < (2 if dtype == "float32" else 4), f"at {x[finite][worst]!r}"


SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40, -1e-40, 89.0, -105.0, 3e38, -3e38)


@TARGETS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "op", ["Exp", "Log", "Tanh", "Erf", "Sqrt", "Floor", "Ceil", "Round", "Abs", "Sign", "Neg"]
)
def test_special_arguments(target: Any, op: str, dtype: str) -> None:
    x = np.array(SPECIAL, dtype)
    known = graph(op, x)
    with np.errstate(all="ignore"):
        check_lowering(known, {"x0": x}, target, tolerance=1e-6)


@TARGETS
def test_special_arguments_of_the_others(target: Any) -> None:
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    for op in ("Sin", "Cos"):
        assert np.isnan(run(op, target, x)).all()
    np.testing.assert_allclose(run("Sigmoid", target, x), [1, 0, np.nan], atol=2e-38)
    huge = np.array([1e30, -1e35, 3e38], np.float32)
    assert not (np.abs(run("Sin", target, huge)) > 1).any()


@TARGETS
@pytest.mark.parametrize("op", sorted(ELEMENTWISE.keys() - {"QuantizeLinear", "DequantizeLinear"}))
def test_every_operator_against_the_reference(target: Any, op: str) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((3, 37)) * 3 for _ in range(2))
    logical = op in ("And", "Or", "Xor", "Not")
    feeds: list[Array] = [np.asarray(v > 0) if logical else v.astype(np.float32) for v in (x, y)]
    if op in ("Log", "Sqrt", "Pow"):
        feeds[0] = np.abs(feeds[0])
    if op == "Where":
        feeds.insert(0, x > y)
    takes_two = op in COMPARISONS - {"Not", "IsNaN"} or op in (
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "Max",
        "Min",
    )
    count = 3 if op == "Where" else 2 if takes_two or op == "PRelu" else 1
    attributes = {"fmod": 1} if op == "Mod" else {}
    known = graph(op, *feeds[:count], **attributes)
    check_lowering(known, {f"x{i}": v for i, v in enumerate(feeds[:count])}, target, tolerance=3e-6)


@TARGETS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_attributes_are_heeded(target: Any, approximate: str) -> None:
    x = np.linspace(-6, 6, 41, dtype=np.float32)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("Gelu", {"approximate": approximate}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("Selu", {"alpha": 1.1, "gamma": 0.9}),
        ("ThresholdedRelu", {"alpha": 2.0}),
        ("Swish", {"alpha": 1.7}),
    ]
    for op, attributes in cases:
        check_lowering(graph(op, x, **attributes), {"x0": x}, target, tolerance=1e-6, hint=op)


@TARGETS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_power_of_special_numbers(target: Any, dtype: str) -> None:
    numbers = (0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.3, -3.0, 4.0, -0.5, 1 / 3, np.inf, -np.inf, np.nan)
    a, b = (np.array(v, dtype) for v in zip(*itertools.product(numbers, numbers)))
    with np.errstate(all="ignore"):
        wanted = np.power(a, b)
    got = run("Pow", target, a, b)
    np.testing.assert_allclose(got, wanted, rtol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_array_equal(np.signbit(got)[wanted == 0], np.signbit(wanted)[wanted == 0])


@TARGETS
@pytest.mark.parametrize("exponent", [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 2.2])
def test_power_of_a_constant_exponent(target: Any, exponent: float) -> None:
    x = np.linspace(0.01, 9, 41, dtype=np.float32)
    got = run("Pow", target, x, known={"e": np.array(exponent, np.float32)})
    np.testing.assert_allclose(got, np.power(x.astype(np.float64), exponent), rtol=5e-7)


@TARGETS
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32"])
def test_integer_power(target: Any, dtype: str) -> None:
    a, b = np.meshgrid(np.arange(0 if dtype[0] == "u" else -7, 8), np.arange(0, 9))
    a, b = a.astype(dtype), b.astype(dtype)
    np.testing.assert_array_equal(run("Pow", target, a, b), np.power(a, b))
    if dtype == "int32":
        got = run("Pow", target, np.array([2, 1, -1, -1, 0], dtype), np.array([-1, -3, -3, -2, -1], dtype))
        np.testing.assert_array_equal(got, [0, 1, -1, 1, 0])
    if dtype[0] == "i":
        wanted = np.array([3, 1, 9], dtype)
        np.testing.assert_array_equal(
            run("Pow", target, wanted * wanted, np.full(3, 0.5, np.float32)), wanted
        )


@TARGETS
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integer_division_never_traps(target: Any, op: str, dtype: str) -> None:
    info = np.iinfo(dtype)
    numbers = sorted({int(info.min), int(info.max), 0, 1, 2, 3, 7, 100, *((-1, -2, -7) if info.min else ())})
    a, b = (np.array(v, dtype) for v in zip(*itertools.product(numbers, numbers)))
    for fmod in (0, 1) if op == "Mod" else (0,):
        got = run(op, target, a, b, **({"fmod": fmod} if op == "Mod" else {}))
        for x, y, z in zip(a.tolist(), b.tolist(), got.tolist()):
            if y == 0:
                wanted = 0
            elif op == "Div":
                wanted = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
            else:
                wanted = x % y if not fmod else (abs(x) % abs(y)) * (-1 if x < 0 else 1)
            assert z == np.array(wanted % 2**info.bits, np.uint64).astype(dtype), (op, fmod, x, y)


@TARGETS
@pytest.mark.parametrize("fmod", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_modulo(target: Any, fmod: int, dtype: str) -> None:
    numbers = (0.0, 1.0, -1.0, 0.1, 2.5, -2.5, 7.25, -1e6, 3e7, np.inf, -np.inf, np.nan)
    a, b = (np.array(v, dtype) for v in zip(*itertools.product(numbers, numbers)))
    with np.errstate(all="ignore"):
        wanted = (np.fmod if fmod else np.mod)(a, b)
    got = run("Mod", target, a, b, fmod=fmod)
    if not fmod:
        # The remainder by an infinity of the other sign is that infinity, in numpy.
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        return
    np.testing.assert_array_equal(got, wanted) if dtype == "float32" else np.testing.assert_allclose(
        got, wanted, 1e-9
    )


@TARGETS
def test_large_unsigned_constants(target: Any) -> None:
    x = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    got = run("Greater", target, x, known={"k": np.array(2**63 - 1, np.uint64)})
    np.testing.assert_array_equal(got, [False, False, True, True])
    small = np.array([0, 127, 128, 255], np.uint8)
    np.testing.assert_array_equal(run("Add", target, small, known={"k": np.array(255, np.uint8)}), small - 1)


@TARGETS
def test_float16_is_computed_in_single_precision(target: Any) -> None:
    x = np.linspace(-5, 5, 37).astype(np.float16)
    got = run("Mul", target, x, x)
    np.testing.assert_array_equal(got, x * x)
    np.testing.assert_allclose(run("Exp", target, x), np.exp(x), rtol=1e-3)


QUOTIENTS = np.concatenate(
    [
        np.arange(-300, 301) / 2,
        np.random.default_rng(7).standard_normal(997) * 90,
        [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e9, -1e9, 2**31, 1e-40, -0.0],
    ]
)
"""Ties, numbers between, and what saturates."""


@TARGETS
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.1, 0.0078431377, 3.0, 1e-30, 1e30])
@pytest.mark.parametrize("constant", [False, True], ids=["computed scale", "constant scale"])
def test_quantised_as_the_reference_does(target: Any, dtype: str, scale: float, constant: bool) -> None:
    with np.errstate(over="ignore"):
        x = (QUOTIENTS * scale).astype(np.float32)
    number = np.array(scale, np.float32)
    for zero_point in {0, 3, 121, int(np.iinfo(dtype).min)}:
        point = np.array(zero_point, dtype)
        feeds = {"x": x} if constant else {"x": x, "s": number, "z": point}
        known = {"s": number, "z": point} if constant else {}
        node = Node("QuantizeLinear", ("x", "s", "z"), ("y",))
        check_lowering(graph_of([node], feeds, ["y"], known), feeds, target, hint=zero_point)


@TARGETS
def test_quotients_are_rounded_as_a_division_rounds_them(target: Any) -> None:
    rng = np.random.default_rng(11)
    for scale in rng.uniform(0.001, 0.1, 7).astype(np.float32):
        ties = (np.arange(-256, 256).astype(np.float32) + np.float32(0.5)) * scale
        x = np.concatenate([ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, -np.float32(9e9))])
        known = {"s": np.array(scale), "z": np.array(0, np.int16)}
        graph = graph_of([Node("QuantizeLinear", ("x", "s", "z"), ("y",))], {"x": x}, ["y"], known)
        check_lowering(graph, {"x": x}, target, hint=scale)


@TARGETS
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
def test_dequantised_as_the_reference_does(target: Any, dtype: str) -> None:
    x = np.arange(-128 if dtype[0] == "i" else 0, 127, dtype=np.int64).astype(dtype)
    for zero_point in (0, 5, 101):
        known = {"s": np.array(0.031, np.float32), "z": np.array(zero_point, dtype)}
        node = Node("DequantizeLinear", ("x", "s", "z"), ("y",))
        check_lowering(graph_of([node], {"x": x}, ["y"], known), {"x": x}, target, hint=zero_point)


def test_expressions_of_bare_values() -> None:
    expression = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))
    f = kernel(HOST, "bare")
    vector = F32.by(4)
    result = evaluate(f, expression, [f.load(vector, word(f, 0)), f.load(F32, word(f, 1))])
    f.store(result, word(f, 2))
    bench = Bench(graph_of([], {"x": np.zeros(1, np.float32)}, ["x"]))
    x = bench.place("a", Layout.contiguous((4,)), "float32", np.array([-3, -1, 1, 3]))
    b = bench.place("b", Layout.contiguous((1,)), "float32", np.array([1]))
    y = bench.place("c", Layout.contiguous((4,)), "float32")
    bench.step(f, [x.address, b.address, y.address], 1)
    np.testing.assert_array_equal(bench.array(y), [0, 0, 2, 4])


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS.keys())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_library_is_called_on_other_machines(target: Any, dtype: str) -> None:
    x = np.ones((2, 37), dtype)
    for op in (*CASES, "Round", "Floor", "Gelu", "Softplus"):
        check_emission(graph(op, x), {"x0": x}, target)
    for op in ("Pow", "Mod", "Div"):
        known = graph(op, x, x, **({"fmod": 1} if op == "Mod" else {}))
        check_emission(known, {"x0": x, "x1": x}, target)
