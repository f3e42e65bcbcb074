"""The general kernel: element-wise operators over any layouts, in vectors, tails, tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, graph_of

from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Node
from coresident.kernels import loopnest
from coresident.kernels.layout import Layout

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65)
TARGETS = pytest.mark.parametrize("target", RUN_TARGETS.values(), ids=RUN_TARGETS.keys())


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts even small tensors into tasks."""
    monkeypatch.setattr(loopnest, "_TASK_CYCLES", 30)


def binary(op: str, a: Any, b: Any, **attributes: Any) -> Any:
    return graph_of([Node(op, ("a", "b"), ("y",), attributes, op)], {"a": a, "b": b}, ["y"])


@TARGETS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "int8", "float64"])
def test_tails(target: Any, size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    a, b = random_array(rng, (3, size), dtype), random_array(rng, (3, size), dtype)
    gaps = Layout((3, size), (size + 2, 1), 1, 3 * (size + 2), ((0, 0),) * 2)
    layouts = {"a": gaps, "b": gaps, "y": gaps}
    check_lowering(binary("Add", a, b), {"a": a, "b": b}, target, layouts=layouts)


@TARGETS
@pytest.mark.parametrize("size", [1, 100, 1000, 1023, 4099])
def test_flat_tensors_are_cut_into_tasks(target: Any, size: int, many_tasks: None) -> None:
    a = np.arange(size, dtype=np.float32)
    bench = check_lowering(binary("Mul", a, a), {"a": a, "b": a}, target, threads=3)
    assert bench.tasks[0] == 1 or size > 30
    assert size < 1000 or bench.tasks[0] > 8


@TARGETS
@pytest.mark.parametrize("seed", range(12))
def test_broadcasting_over_any_layouts(target: Any, seed: int, many_tasks: None) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = [int(rng.choice(SIZES[:9])) for _ in range(rank)]
    shapes = [
        [1 if rng.random() < 0.3 else size for size in shape][int(rng.integers(0, rank)) :] for _ in range(2)
    ]
    dtype = str(rng.choice(["float32", "int64", "uint8", "int16"]))
    feeds = {name: random_array(rng, s, dtype) for name, s in zip("ab", shapes)}
    graph = binary("Sub", feeds["a"], feeds["b"])
    layouts = {name: random_layout(rng, array.shape) for name, array in feeds.items()}
    layouts["y"] = random_layout(rng, graph.facts["y"].sizes)
    check_lowering(graph, feeds, target, layouts=layouts, threads=3, hint=f"seed {seed}")


@TARGETS
@pytest.mark.parametrize("stride", [-5, -4, -3, -2, -1, 0, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [3, 8, 13, 37])
def test_inner_strides(target: Any, stride: int, size: int) -> None:
    rng = np.random.default_rng(0)
    a, b = random_array(rng, (size,), "float32"), random_array(rng, (size,), "float32")
    if stride == 0:
        b = b[:1]
    origin = -stride * (size - 1) if stride < 0 else 0
    there = Layout(b.shape, (stride or 1,), origin, abs(stride) * size + 1, ((0, 0),))
    check_lowering(binary("Add", a, b), {"a": a, "b": b}, target, layouts={"b": there})
    if stride:
        check_lowering(binary("Add", b, a), {"a": b, "b": a}, target, layouts={"a": there, "y": there})


@TARGETS
@pytest.mark.parametrize("op", ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "int64", "float64"])
def test_comparisons_store_bool(target: Any, op: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = random_array(rng, (5, 19), dtype), random_array(rng, (19,), dtype)
    a[0] = b
    check_lowering(binary(op, a, b), {"a": a, "b": b}, target)


@TARGETS
@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(target: Any, op: str) -> None:
    rng = np.random.default_rng(0)
    a, b = random_array(rng, (5, 33), "bool"), random_array(rng, (5, 1), "bool")
    check_lowering(binary(op, a, b), {"a": a, "b": b}, target)
    check_lowering(graph_of([Node("Not", ("a",), ("y",))], {"a": a}, ["y"]), {"a": a}, target)


@TARGETS
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_where(target: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        "c": random_array(rng, (4, 1, 17), "bool"),
        "a": random_array(rng, (3, 17), dtype),
        "b": random_array(rng, (), dtype),
    }
    graph = graph_of([Node("Where", ("c", "a", "b"), ("y",))], feeds, ["y"])
    check_lowering(graph, feeds, target)


TYPES = (
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)


@TARGETS
@pytest.mark.parametrize("source", TYPES)
def test_cast(target: Any, source: str) -> None:
    rng = np.random.default_rng(0)
    x = np.abs(random_array(rng, (2, 21), source)) if source != "bool" else random_array(rng, (2, 21), source)
    for to in TYPES:
        graph = graph_of([Node("Cast", ("x",), ("y",), {"to": to})], {"x": x}, ["y"])
        check_lowering(graph, {"x": x}, target, hint=f"{source} to {to}")


@TARGETS
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_variadic(target: Any, op: str, count: int) -> None:
    rng = np.random.default_rng(count)
    feeds = {f"x{i}": random_array(rng, (3, 11) if i % 2 else (11,), "float32") for i in range(count)}
    if op in ("Max", "Min"):
        feeds["x0"][2] = np.nan
    graph = graph_of([Node(op, tuple(feeds), ("y",))], feeds, ["y"])
    check_lowering(graph, feeds, target, tolerance=1e-6)


@TARGETS
@pytest.mark.parametrize("low", ["", "constant", "computed"])
@pytest.mark.parametrize("high", ["", "constant", "computed"])
def test_clip_with_any_bounds(target: Any, low: str, high: str) -> None:
    x = np.array([-5, -1, 0, 0.5, np.nan, 3, np.inf, -np.inf, 7] * 3, np.float32)
    feeds, known, names = {"x": x}, {}, ["x"]
    for name, how, value in (("low", low, -1.5), ("high", high, 2.5)):
        names.append(name if how else "")
        if how:
            (known if how == "constant" else feeds)[name] = np.array(value, np.float32)
    while not names[-1]:
        names.pop()
    check_lowering(graph_of([Node("Clip", tuple(names), ("y",))], feeds, ["y"], known), feeds, target)


@TARGETS
def test_one_element_constants_are_in_the_code(target: Any) -> None:
    x = np.arange(20, dtype=np.int64).reshape(4, 5)
    known = {"k": np.array([[[-(2**40)]]])}
    graph = graph_of([Node("Add", ("x", "k"), ("y",))], {"x": x}, ["y"], known)
    check_lowering(graph, {"x": x}, target)


def fused(x: Any, scale: Any, residual: Any) -> Any:
    steps = (
        Apply("Mul", (0, 1)),
        Apply("Add", (3, 2)),
        Apply("Swish", (4,)),
        Apply("Clip", (5,)),
        Apply("LeakyRelu", (6,), (("alpha", 0.3),)),
    )
    node = Node("Elementwise", ("x", "s", "r"), ("y",), {"expression": Expression(3, steps)})
    return graph_of([node], {"x": x, "s": scale, "r": residual}, ["y"])


@TARGETS
@pytest.mark.parametrize("seed", range(6))
def test_fused_chains_over_planes(target: Any, seed: int, many_tasks: None) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.choice(SIZES[:9])) for _ in range(4))
    feeds = {
        "x": random_array(rng, shape, "float32"),
        "s": random_array(rng, (shape[1], 1, 1), "float32"),
        "r": random_array(rng, shape, "float32"),
    }
    planes = Layout.planar(shape, (1, 1), ((1, 1), (1, 1)), 8)
    layouts = {"x": planes, "y": Layout.planar(shape, (0, 0), ((0, 0), (0, 0)), 8)}
    graph = fused(x=feeds["x"], scale=feeds["s"], residual=feeds["r"])
    check_lowering(graph, feeds, target, layouts=layouts, threads=2, tolerance=1e-6, hint=f"seed {seed}")


@TARGETS
def test_tensors_without_elements_emit_nothing(target: Any) -> None:
    x = np.zeros((3, 0, 5), np.float32)
    bench = check_lowering(binary("Add", x, x), {"a": x, "b": x}, target)
    assert bench.tasks == []


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS.keys())
@pytest.mark.parametrize("dtype", ["float32", "int8", "int64", "float64", "uint16"])
def test_other_machines(target: Any, dtype: str) -> None:
    a = np.ones((3, 67), dtype)
    for op in ("Add", "Div", "Greater", "Mod"):
        check_emission(binary(op, a, a, fmod=1), {"a": a, "b": a}, target)
    for to in TYPES:
        graph = graph_of([Node("Cast", ("x",), ("y",), {"to": to})], {"x": a}, ["y"])
        check_emission(graph, {"x": a}, target)
