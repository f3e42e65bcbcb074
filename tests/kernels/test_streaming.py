"""Results that are stored past the caches: large ones, by every kernel of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support import HOST, RUN_TARGETS, TARGETS, few, graph_of, run_graph

from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import evaluate
from coresident.kernels import frame

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(HOST.arch != "x86_64", reason="no CPU of this kind stores past its caches")


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have outputs of any size stored so; of each that is made, whether it was."""
    decide, found = frame._streams, []

    def recorded(*arguments: Any) -> bool:
        found.append(decide(*arguments))
        return found[-1]

    monkeypatch.setattr(frame, "STREAMED_BYTES", 0)
    monkeypatch.setattr(frame, "_streams", recorded)
    return found


def network(seed: int, spatial: Sequence[int], op: str = "Conv") -> tuple[Graph, dict[str, Array]]:
    """A convolution between two others."""
    rng = np.random.default_rng(seed)
    channels, outputs = int(rng.integers(2, 40)), int(rng.integers(1, 40))
    rank, size = len(spatial), int(rng.choice([1, 3])) if op == "Conv" else 2
    each = op == "Conv" and rng.random() < 0.2
    outputs = channels if each else outputs
    shape = (outputs, 1 if each else channels) if op == "Conv" else (channels, outputs)
    w = rng.standard_normal((*shape, *(size for _ in spatial))).astype(np.float32)
    w[rng.random(w.shape) > rng.choice([0.1, 1.0])] = 0
    attributes: dict[str, Any] = {"kernel_shape": (size,) * rank, "group": channels if each else 1}
    if op == "Conv":
        attributes |= {"pads": (size // 2,) * 2 * rank, "epilogue": Expression(1, (Apply("Relu", (0,)),))}
    else:
        attributes |= {"strides": (2,) * rank}
    point = {"kernel_shape": (1,) * rank}
    nodes = [
        Node("Conv", ("x", "w0"), ("h",), point, "before"),
        Node(op, ("h", "w"), ("y",), attributes, "wide"),
        Node("Conv", ("y", "w1"), ("z",), {"kernel_shape": (3,) * rank, "pads": (1,) * 2 * rank}, "after"),
    ]
    constants = {
        "w0": rng.standard_normal((channels, 2, *(1 for _ in spatial))).astype(np.float32),
        "w": w,
        "w1": rng.standard_normal((3, outputs, *(3 for _ in spatial))).astype(np.float32),
    }
    x = rng.standard_normal((1, 2, *spatial), dtype=np.float32)
    return graph_of(nodes, {"x": x}, ["z"], constants), {"x": x}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", few(range(40), 12))
def test_convolutions(seed: int, target: str, streamed: list[bool]) -> None:
    rng = np.random.default_rng(1000 + seed)
    outer = tuple(int(s) for s in rng.integers(4, 12, 1 + (rng.random() < 0.2)))
    graph, feeds = network(seed, (*outer, int(rng.choice([255, 256, 257, 272, 300, 320]))))
    _check(graph, feeds, target, 1 + seed % 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", few(range(20), 5))
def test_transposed_convolutions(seed: int, target: str, streamed: list[bool]) -> None:
    rng = np.random.default_rng(2000 + seed)
    graph, feeds = network(
        seed, (int(rng.integers(3, 9)), int(rng.choice([128, 130, 136, 150]))), "ConvTranspose"
    )
    _check(graph, feeds, target, 1 + seed % 2)


def test_long_rows_are_streamed_and_short_ones_are_not(streamed: list[bool]) -> None:
    for spatial in ((8, 256), (8, 300), (5, 6, 257)):
        streamed.clear()
        _check(*network(0, spatial), "host", 1)
        assert any(streamed)
    for spatial in ((8, 48), (8, 100), (60, 60)):
        streamed.clear()
        _check(*network(0, spatial), "host", 1)
        assert not any(streamed)


def _check(graph: Graph, feeds: dict[str, Array], target: str, threads: int) -> None:
    (got,) = run_graph(graph, feeds, ({"host": HOST} | RUN_TARGETS)[target], threads)
    wanted = evaluate(graph, feeds)["z"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
