"""Matrix products, dense and sparse, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from guarded import Bench, check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, HOST, RUN_TARGETS, TARGETS, check_node, graph_of, run_graph

from coresident.codegen.types import F32
from coresident.errors import UnsupportedModel
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Node
from coresident.kernels import matmul, matmul_dense, matmul_sparse
from coresident.kernels.lowering import Plan
from coresident.kernels.product import Product

Array = np.ndarray[Any, Any]
Kernel = Callable[[Product, Plan], None]
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 24, 25, 31, 33, 50)
KERNELS = {"gathered": matmul_sparse.gathered, "planar": matmul_sparse.planar}

GELU = Expression(2, (Apply("Mul", (0, 1)), Apply("Gelu", (2,))))
RELU = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))


def _sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    m, n, k = (int(s) for s in rng.choice(SIZES, 3))
    return m, n, k


def _pruned(rng: np.random.Generator, k: int, n: int, zeros: float) -> Array:
    """Weights with so many zeros; some rows and columns have nothing else."""
    w = random_array(rng, (k, n), np.float32)
    w[rng.random((k, n)) < zeros] = 0
    if zeros and n > 2 and k > 2:
        w[:, rng.integers(0, n)] = 0
        w[rng.integers(0, k)] = 0
    return w


def _tolerance(k: int) -> float:
    return 3e-6 * (k + 10)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(8))
def test_constant_weights(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    m, n, k = _sizes(rng)
    a, w = random_array(rng, (2, m, k)[seed % 2 :], np.float32), random_array(rng, (k, n), np.float32)
    node = Node("MatMul", ("a", "w"), ("y",), {}, "product")
    check_node(node, {"a": a}, {"w": w}, target=target, threads=1 + seed % 2, tolerance=_tolerance(k))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_panels_of_a_few_rows_evenly(threads: int, target: str) -> None:
    for n in range(1000, 1100, 7):
        columns = -(-n // RUN_TARGETS[target].lanes(F32))
        vectors = matmul_dense.choose_tile(RUN_TARGETS[target], 1, n, threads).vectors
        panels = -(-columns // vectors)
        assert -(-panels // threads) * threads * vectors < 1.13 * columns


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(10))
def test_two_computed_operands(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    m, n, k = _sizes(rng)
    batches = [((), ()), ((3,), (3,)), ((2, 1), (3,)), ((), (2, 3)), ((2, 3), ())][seed % 5]
    feeds = {
        "a": random_array(rng, (*batches[0], m, k), np.float32),
        "b": random_array(rng, (*batches[1], k, n), np.float32),
    }
    graph = graph_of([Node("MatMul", ("a", "b"), ("y",), {}, "product")], feeds, ["y"])
    layouts = {}
    if seed % 2:
        layouts = {name: random_layout(rng, graph.facts[name].sizes) for name in ("a", "b", "y")}
    check_lowering(
        graph,
        feeds,
        RUN_TARGETS[target],
        layouts=layouts,
        threads=1 + seed % 3,
        tolerance=_tolerance(k) * 10,
        hint=(seed, m, n, k),
    )


@pytest.mark.parametrize("shapes", [((9,), (9,)), ((9,), (3, 9, 5)), ((3, 4, 9), (9,)), ((1, 9), (9, 1))])
def test_vectors(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    a, b = (random_array(rng, shape, np.float32) for shape in shapes)
    node = Node("MatMul", ("a", "b"), ("y",), {}, "product")
    check_node(node, {"a": a, "b": b}, tolerance=1e-5)
    check_node(node, {"a": a}, {"b": b}, tolerance=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(12))
def test_gemm(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    m, n, k = _sizes(rng)
    turned_a, turned_b = seed & 1, seed >> 1 & 1
    a = random_array(rng, (k, m) if turned_a else (m, k), np.float32)
    b = random_array(rng, (n, k) if turned_b else (k, n), np.float32)
    c = random_array(rng, [(), (n,), (m, 1), (1, n), (m, n)][seed % 5], np.float32)
    attributes: dict[str, Any] = {"transA": turned_a, "transB": turned_b, "alpha": 0.5, "beta": 2.0}
    inputs: tuple[str, ...] = ("a", "b", "c")
    feeds, constants = {"a": a}, {"b": b, "c": c}
    if seed % 4 == 3:
        feeds, constants = {"a": a, "b": b}, {"c": c}
    if seed % 3:
        attributes["epilogue"] = (RELU, GELU)[seed % 2]
        feeds["d"] = random_array(rng, [(m, n), (n,), (m, 1)][seed % 3], np.float32)
        inputs = (*inputs, "d")
    node = Node("Gemm", inputs, ("y",), attributes, "product")
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=_tolerance(k))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 19, 48])
def test_long_epilogues_of_several_blocks_of_rows(n: int, target: str) -> None:
    rng = np.random.default_rng(n)
    m, k = 1201, 5
    feeds = {"a": random_array(rng, (2, m, k), np.float32), "d": random_array(rng, (2, m, n), np.float32)}
    weights = random_array(rng, (k, n), np.float32)
    node = Node("MatMul", ("a", "w", "d"), ("y",), {"epilogue": GELU}, "product")
    check_node(node, feeds, {"w": weights}, target=target, tolerance=_tolerance(k))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(12))
def test_sparse_kernels(seed: int, kernel: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    m, n, k = _sizes(rng)
    weights = _pruned(rng, k, n, (0.0, 0.7, 0.9, 1.0)[seed % 4])
    shape = ((m, k), (2, m, k), (2, 3, m, k))[seed % 3]
    feeds = {"a": random_array(rng, shape, np.float32)}
    attributes: dict[str, Any] = {}
    inputs: tuple[str, ...] = ("a", "w")
    if seed % 2:
        attributes["epilogue"] = (RELU, GELU)[seed // 2 % 2]
        feeds["d"] = random_array(rng, (n,), np.float32)
        inputs = ("a", "w", "d")
    graph = graph_of([Node("MatMul", inputs, ("y",), attributes, "product")], feeds, ["y"], {"w": weights})
    layouts = {}
    if seed % 3 == 0:
        layouts = {name: random_layout(rng, graph.facts[name].sizes) for name in ("a", "y")}
    chosen: Kernel = KERNELS[kernel]
    monkeypatch.setattr(matmul, "choose", lambda product, plan: (chosen, []))
    check_lowering(
        graph,
        feeds,
        RUN_TARGETS[target],
        layouts=layouts,
        threads=1 + seed % 3,
        tolerance=_tolerance(k) * 10,
        hint=(seed, m, n, k),
    )


@pytest.mark.parametrize("shape", [(1, 1000, 512), (8, 300, 257), (33, 120, 200)])
@pytest.mark.parametrize("zeros", [0.9, 0.0])
def test_choice(shape: tuple[int, int, int], zeros: float) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m)
    feeds, constants = {"a": random_array(rng, (m, k), np.float32)}, {"w": _pruned(rng, k, n, zeros)}
    node = Node("MatMul", ("a", "w"), ("y",), {}, "product")
    check_node(node, feeds, constants, threads=2, tolerance=_tolerance(k))
    bench = Bench(graph_of([node], feeds, ["y"], constants), threads=2)
    bench.lower()
    info = bench.infos[-1]
    assert ("sparse" in info["kernel"]) == (zeros > 0.5), info
    assert info["macs"] == m * n * k
    if zeros > 0.5:
        assert info["nonzero_macs"] == m * np.count_nonzero(constants["w"])
        # What is not a nonzero takes no memory.
        stored = sum(t.layout.elements for name, t in bench.tensors.items() if name.startswith("constant"))
        assert stored < 0.5 * n * k
    else:
        assert info["why"]


def test_zeros_counted_as_numbers_give_the_same() -> None:
    rng = np.random.default_rng(0)
    feeds, constants = {"a": random_array(rng, (1, 300), np.float32)}, {"w": _pruned(rng, 300, 100, 0.9)}
    graph = graph_of([Node("MatMul", ("a", "w"), ("y",), {}, "p")], feeds, ["y"], constants)
    sparse, dense = (run_graph(graph, feeds, HOST, 2, choice)[0] for choice in (True, False))
    np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shapes", [((4, 0), (0, 3)), ((0, 4), (4, 3)), ((4, 3), (3, 0))])
def test_nothing_to_multiply(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    feeds = {name: np.zeros(shape, np.float32) for name, shape in zip("ab", shapes)}
    check_lowering(graph_of([Node("MatMul", ("a", "b"), ("y",), {}, "p")], feeds, ["y"]), feeds)


def test_integers_are_refused() -> None:
    feeds = {name: np.zeros((2, 2), np.int32) for name in "ab"}
    with pytest.raises(UnsupportedModel, match="int32"):
        check_lowering(graph_of([Node("MatMul", ("a", "b"), ("y",), {}, "p")], feeds, ["y"]), feeds)


@pytest.mark.parametrize("target", EMIT_TARGETS)
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("zeros", [0.95, 0.0])
def test_emission(target: str, rows: int, zeros: float) -> None:
    rng = np.random.default_rng(0)
    feeds, weights = {"a": np.zeros((rows, 200), np.float32)}, _pruned(rng, 200, 100, zeros)
    node = Node("MatMul", ("a", "w"), ("y",), {}, "p")
    check_emission(graph_of([node], feeds, ["y"], {"w": weights}), feeds, EMIT_TARGETS[target])
    check_emission(
        graph_of([node], {**feeds, "w": weights}, ["y"]), {**feeds, "w": weights}, EMIT_TARGETS[target]
    )
