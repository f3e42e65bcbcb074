"""1x1 convolutions with few outputs that are summed while the convolution before them is finished."""

from __future__ import annotations

import numpy as np
import pytest
from support import RUN_TARGETS, TARGETS, WIDTHS, few, graph_of, planned, run_graph

from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import Array, evaluate
from coresident.kernels import sparse, wired
from coresident.kernels.head import MOST_OUTPUTS

RELU = Expression(1, (Apply("Relu", (0,)),))
SIGMOID = Expression(1, (Apply("Sigmoid", (0,)),))


def _network(
    seed: int, rank: int, outputs: int, extent: int, density: float = 0.1, stride: int = 1, kernel: int = 1
) -> tuple[Graph, dict[str, Array]]:
    """A sparse convolution and a head, which tests may take apart."""
    rng = np.random.default_rng(seed)
    channels, inputs = int(rng.integers(2, 30)), int(rng.integers(2, 40))
    spatial = (*(int(s) for s in rng.integers(3, 12, rank - 1)), extent)
    w = rng.standard_normal((channels, inputs, *(3,) * rank)).astype(np.float32)
    w *= rng.random(w.shape) < density
    constants = {
        "w": w,
        "b": rng.standard_normal(channels).astype(np.float32),
        "v": rng.standard_normal((outputs, channels, *(kernel,) * rank)).astype(np.float32),
        "c": rng.standard_normal(outputs).astype(np.float32),
    }
    before = {"kernel_shape": (3,) * rank, "pads": (1,) * (2 * rank)}
    behind = {"kernel_shape": (kernel,) * rank, "strides": (stride,) * rank}
    if rng.random() < 0.7:
        before["epilogue"] = RELU
    if rng.random() < 0.5:
        behind["epilogue"] = SIGMOID
    nodes = [
        Node("Conv", ("x", "w", "b"), ("y",), before, "before"),
        Node("Conv", ("y", "v", *(["c"] if rng.random() < 0.7 else [])), ("z",), behind, "head"),
    ]
    feeds = {"x": rng.standard_normal((2, inputs, *spatial), dtype=np.float32)}
    return graph_of(nodes, feeds, ["z"], constants), feeds


def _convolutions(graph: Graph, target: str) -> list[list[str]]:
    """The nodes of each step that convolves."""
    steps = planned(graph, (RUN_TARGETS | WIDTHS)[target]).steps
    return [step.info["nodes"] for step in steps if step.info["op"] == "Conv" and "macs" in step.info]


def _check(graph: Graph, feeds: dict[str, Array], target: str, threads: int) -> None:
    wanted = evaluate(graph, feeds)
    for name, got in zip(graph.outputs, run_graph(graph, feeds, (RUN_TARGETS | WIDTHS)[target], threads)):
        want = wanted[name]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("seed", few(range(40), 5))
def test_heads(seed: int, target: str) -> None:
    """Long rows, in segments where there are such, and short ones; in volumes tiles go on in steps."""
    rng = np.random.default_rng(1000 + seed)
    outputs, extent = int(rng.integers(1, MOST_OUTPUTS + 1)), int(rng.choice([7, 14, 29, 64, 100]))
    graph, feeds = _network(seed, int(rng.choice([2, 3])), outputs, extent)
    _check(graph, feeds, target, 1 + seed % 2)
    assert _convolutions(graph, target) == [["before", "head"]]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", few(range(20), 4))
def test_heads_behind_code(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sparse convolution's nonzeros are instructions, sums of several chunks are added up."""
    for over, value in (("FLAT_OVER_CODE", 1e9), ("SEGMENTS_OVER_CODE", 1e9), ("CODE_MARGIN", 1e-9)):
        monkeypatch.setattr(sparse, over, value)
    monkeypatch.setattr(sparse, "FEWEST_PRODUCTS", 0.0)
    monkeypatch.setattr(wired, "MOST_ROWS", (31, 4)[seed % 2])
    monkeypatch.setattr(wired, "CHUNK_BYTES", (28 << 10, 500)[seed // 2 % 2])
    graph, feeds = _network(2000 + seed, 2, 1 + seed % MOST_OUTPUTS, (7, 14, 29, 64)[seed % 4])
    _check(graph, feeds, target, 1)
    steps = planned(graph, RUN_TARGETS[target]).steps
    kernels = [step.info["kernel"] for step in steps if step.info["nodes"] == ["before", "head"]]
    assert ["in code" in kernel for kernel in kernels] == [wired.is_possible(RUN_TARGETS[target])]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "changed", [{"outputs": MOST_OUTPUTS + 1}, {"density": 1.0}, {"stride": 2}, {"kernel": 3}]
)
def test_other_convolutions_are_no_heads(changed: dict[str, int], target: str) -> None:
    graph, feeds = _network(3, **{"rank": 2, "outputs": 2, "extent": 33, **changed})  # type: ignore[arg-type]
    _check(graph, feeds, target, 2)
    assert _convolutions(graph, target) == [["before"], ["head"]]


@pytest.mark.parametrize("target", TARGETS)
def test_results_that_others_read_are_stored(target: str) -> None:
    graph, feeds = _network(4, 2, 2, 40)
    read = graph.with_(outputs=("z", "y"))
    _check(read, feeds, target, 2)
    assert _convolutions(read, target) == [["before"], ["head"]]
    other = Node("MaxPool", ("y",), ("p",), {"kernel_shape": (2, 2)}, "pool")
    read = graph_of([*graph.nodes, other], feeds, ["z", "p"], dict(graph.initializers))
    _check(read, feeds, target, 2)
    assert _convolutions(read, target) == [["before"], ["head"]]


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_without_outputs(target: str) -> None:
    graph, feeds = _network(5, 2, 0, 40)
    (got,) = run_graph(graph, feeds, RUN_TARGETS[target], 2)
    assert got.shape == evaluate(graph, feeds)["z"].shape
    assert _convolutions(graph, target) == [["before"]]
