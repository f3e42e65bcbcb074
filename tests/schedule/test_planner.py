"""Where the planner puts results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import HOST, RUN_TARGETS, TARGETS, few, graph_of, planned, run_graph

from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import evaluate
from coresident.schedule import planner
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]
ADDED = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))


def residual(
    seed: int, more: tuple[Node, ...] = (), outputs: tuple[str, ...] = ("z",)
) -> tuple[Graph, dict[str, Array]]:
    """Two convolutions, the second with a residual that the first made; and one after them."""
    rng = np.random.default_rng(seed)
    channels, spatial = int(rng.integers(3, 50)), tuple(int(s) for s in rng.integers(5, 40, 2))

    def weights(outputs: int, inputs: int, size: int) -> Array:
        made = rng.standard_normal((outputs, inputs, size, size)).astype(np.float32) / (size * inputs**0.5)
        return np.where(rng.random(made.shape) < rng.choice([0.1, 1.0]), made, 0).astype(np.float32)

    size = int(rng.choice([1, 3]))
    attributes = {"kernel_shape": (size, size), "pads": (size // 2,) * 4}
    nodes = [
        Node("Conv", ("x", "w0"), ("r",), {"kernel_shape": (1, 1)}, "first"),
        Node("Conv", ("r", "w1"), ("h",), {"kernel_shape": (1, 1)}, "between"),
        Node("Conv", ("h", "w2", "", "r"), ("y",), {**attributes, "epilogue": ADDED}, "added"),
        Node("Conv", ("y", "w3"), ("z",), {"kernel_shape": (1, 1)}, "last"),
        *more,
    ]
    x = rng.standard_normal((int(rng.integers(1, 3)), 3, *spatial), dtype=np.float32)
    constants = {
        "w0": weights(channels, 3, 1),
        "w1": weights(channels, channels, 1),
        "w2": weights(channels, channels, size),
        "w3": weights(4, channels, 1),
    }
    return graph_of(nodes, {"x": x}, list(outputs), constants), {"x": x}


def is_in_place(graph: Graph, threads: int = 1) -> bool:
    """Whether the residual addition writes what it reads."""
    (step,) = (s for s in planned(graph, HOST, threads).steps if "Add" in s.info.get("epilogue", ""))
    arena = [word for word in step.words if word[0] == "arena"]
    return len(set(arena)) < len(arena)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", few(range(60), 16))
def test_residuals_that_are_added_in_place(seed: int, target: str) -> None:
    graph, feeds = residual(seed)
    (got,) = run_graph(graph, feeds, RUN_TARGETS[target], 1 + seed % 2)
    wanted = evaluate(graph, feeds)["z"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def test_a_result_takes_the_place_of_a_residual_that_nothing_reads_again() -> None:
    assert any(is_in_place(residual(seed)[0], 1 + seed % 2) for seed in range(8))


def test_a_residual_that_is_read_again_stays() -> None:
    again = Node("Conv", ("r", "w3"), ("v",), {"kernel_shape": (1, 1)}, "again")
    for seed in range(8):
        graph, feeds = residual(seed, (again,), ("z", "v"))
        assert not is_in_place(graph)
        wanted = evaluate(graph, feeds)
        for name, got in zip(("z", "v"), run_graph(graph, feeds)):
            np.testing.assert_allclose(
                got, wanted[name], rtol=0, atol=1e-5 * float(np.abs(wanted[name]).max())
            )


def test_a_residual_that_the_user_gets_stays() -> None:
    for seed in range(8):
        graph, feeds = residual(seed, (), ("z", "r"))
        assert not is_in_place(graph)
        wanted = evaluate(graph, feeds)["r"]
        np.testing.assert_allclose(run_graph(graph, feeds)[1], wanted, rtol=0, atol=1e-5)


def test_a_residual_that_is_convolved_as_well_stays() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3):
        attributes = {"kernel_shape": (size, size), "pads": (size // 2,) * 4, "epilogue": ADDED}
        nodes = [
            Node("Conv", ("x", "w0"), ("r",), {"kernel_shape": (1, 1)}, "first"),
            Node("Conv", ("r", "w1", "", "r"), ("y",), attributes, "added"),
            Node("Conv", ("y", "w2"), ("z",), {"kernel_shape": (1, 1)}, "last"),
        ]
        shapes = {"w0": (40, 3, 1, 1), "w1": (40, 40, size, size), "w2": (4, 40, 1, 1)}
        constants = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
        x = rng.standard_normal((1, 3, 30, 30), dtype=np.float32)
        graph = graph_of(nodes, {"x": x}, ["z"], constants)
        (step,) = (s for s in planned(graph, HOST, 2).steps if "Add" in s.info.get("epilogue", ""))
        assert step.words[0] == step.words[4]  # what is convolved, and what is added
        assert step.words[1] != step.words[0]
        (got,), wanted = run_graph(graph, {"x": x}, HOST, 2), evaluate(graph, {"x": x})["z"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("target", RUN_TARGETS)
def test_copies_of_inputs_lie_as_what_is_made_from_them(target: str) -> None:
    """So that runs of pixels cross row ends from an input on: tiles that end where rows of 14 pixels do take
    twice as long."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 64, 14, 14), dtype=np.float32)
    weights = {f"w{i}": rng.standard_normal((64, 64, k, k)).astype(np.float32) for i, k in enumerate((1, 3))}
    nodes = [
        Node("Conv", ("x", "w0"), ("h",), {"kernel_shape": (1, 1)}, "first"),
        Node("Conv", ("h", "w1"), ("y",), {"kernel_shape": (3, 3), "pads": (1,) * 4}, "last"),
    ]
    planner = Planner(graph_of(nodes, {"x": x}, ["y"], weights), RUN_TARGETS[target], 1)
    assert planner.planar("x").layout.strides[2:] == planner.tensor("h").layout.strides[2:]
    first = next(step for step in planner.program().steps if "first" in str(step.info.get("nodes")))
    assert "flat" in str(first.info["tile"])


def widening(seed: int) -> tuple[Graph, dict[str, Array]]:
    """Convolutions of one pixel or 3x3, dense or sparse, each with a depthwise or larger one behind it."""
    rng = np.random.default_rng(seed)
    height, width = (int(size) for size in rng.integers(5, 40, 2))
    nodes, constants, read, channels = [], {}, "x", 3
    for place in range(3):
        outputs, size = int(rng.integers(3, 40)), int(rng.choice([3, 5]))
        first = int(rng.choice([1, 1, 3]))
        more: dict[str, Any] = {"kernel_shape": (first, first), "pads": (first // 2,) * 4}
        nodes.append(Node("Conv", (read, f"w{place}"), (f"a{place}",), more, f"a{place}"))
        made = rng.standard_normal((outputs, channels, first, first)).astype(np.float32)
        constants[f"w{place}"] = np.where(rng.random(made.shape) < rng.choice([0.2, 1]), made, np.float32(0))
        channels = outputs
        groups = channels if rng.random() < 0.5 else 1
        more = {"kernel_shape": (size, size), "pads": (size // 2,) * 4, "group": groups}
        nodes.append(Node("Conv", (f"a{place}", f"v{place}"), (f"b{place}",), more, f"b{place}"))
        constants[f"v{place}"] = rng.standard_normal((channels, channels // groups, size, size), np.float32)
        read = f"b{place}"
    x = rng.standard_normal((1, 3, height, width), dtype=np.float32)
    return graph_of(nodes, {"x": x}, [read], constants), {"x": x}


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halos are written in every call, however small they are."""
    monkeypatch.setattr(planner, "_KEPT_BYTES", 0)
    monkeypatch.setattr(planner, "_KEPT_SHARE", 2.0)


@pytest.mark.usefixtures("shared_memory")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", few(range(48), 8))
def test_halos_of_shared_memory_are_written_in_every_call(seed: int, target: str) -> None:
    graph, feeds = widening(seed)
    (got,) = run_graph(graph, feeds, RUN_TARGETS[target], 1 + seed % 2)
    wanted = evaluate(graph, feeds)[graph.outputs[0]]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.usefixtures("shared_memory")
def test_what_lies_between_rows_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By who makes the planes where it can, and with the halo else."""

    def around(graph: Graph) -> int:
        program = planned(graph)
        assert not program.preparation
        return sum(step.info["bytes"] for step in program.steps if step.info["op"] == "Halo")

    graphs = [widening(seed)[0] for seed in range(8)]
    narrow = [around(graph) for graph in graphs]
    monkeypatch.setattr(Planner, "_narrow_halos", lambda self: None)
    whole = [around(graph) for graph in graphs]
    assert all(a <= b for a, b in zip(narrow, whole))
    assert sum(narrow) < 0.9 * sum(whole)
