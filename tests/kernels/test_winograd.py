"""Winograd's filtering against the reference: its matrices, shapes around tiles, epilogues, rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import EMIT_TARGETS, HOST, RUN_TARGETS, TARGETS, WIDTHS, check_node, few, graph_of, run_graph

from coresident.codegen.types import F32
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Node
from coresident.graph.operator import evaluate
from coresident.kernels import winograd
from coresident.kernels.filtering import FILTERS
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]
LANES = (*TARGETS, *WIDTHS)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[winograd.Choice]:
    """Have all convolutions that can be filtered so be; the choices made."""
    choose, found = winograd.choose, []

    def forced(*arguments: Any) -> winograd.Choice | None:
        choice = choose(*arguments)
        if choice is None:
            return None
        found.append(replace(choice, cycles=choice.cycles * 1e-9))
        return found[-1]

    monkeypatch.setattr(winograd, "choose", forced)
    return found


def _case(
    rng: np.random.Generator,
    spatial: tuple[int, ...],
    pad: int,
    group: int = 1,
    size: int = 3,
    stride: int = 1,
) -> tuple[Node, dict[str, Array], dict[str, Array]]:
    inputs, outputs = group * int(rng.integers(1, 40)), group * int(rng.integers(1, 40))
    kernel = (*(int(k) for k in rng.integers(1, 4, len(spatial) - 2)), size, size)
    strides = (*(1 for _ in spatial[2:]), stride, stride)
    attributes = {
        "kernel_shape": kernel,
        "pads": (pad,) * 2 * len(spatial),
        "group": group,
        "strides": strides,
    }
    x = rng.standard_normal((int(rng.integers(1, 3)), inputs, *spatial), dtype=np.float32)
    w = rng.standard_normal((outputs, inputs // group, *kernel)).astype(np.float32)
    constants = {"w": w, "b": rng.standard_normal(outputs).astype(np.float32)}
    return Node("Conv", ("x", "w", "b"), ("y",), attributes, "conv"), {"x": x}, constants


@pytest.mark.parametrize("taps", FILTERS)
def test_matrices_filter_exactly(taps: int) -> None:
    one = FILTERS[taps]
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (one.window, one.window)).astype(float)
    w = rng.integers(-9, 10, (taps, taps)).astype(float)
    spread = (one.kernels @ w @ one.kernels.T) * (one.inputs @ x @ one.inputs.T)
    wanted = [[(x[i : i + taps, j : j + taps] * w).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(one.outputs @ spread @ one.outputs.T, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("target", LANES)
@pytest.mark.parametrize("seed", few(range(60), 16))
def test_random_convolutions(seed: int, target: str, taken: list[winograd.Choice]) -> None:
    """Rows shorter and longer than a strip, and several stretches long, the last tiles overlapping, grouped
    and of three dimensions."""
    rng = np.random.default_rng(seed)
    sizes = (6, 7, 8, 9, 14, 15, 16, 17, 28, 31, 33, 48, 56, 64, 65, 80, 96, 112, 130)
    depth = tuple(int(s) for s in rng.integers(3, 6, int(rng.random() < 0.3)))
    spatial = (*depth, int(rng.choice(sizes[:9])), int(rng.choice(sizes)))
    node, feeds, constants = _case(rng, spatial, int(rng.integers(0, 3)), int(rng.choice([1, 1, 1, 2])))
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2)
    assert taken


@pytest.mark.parametrize("target", LANES)
@pytest.mark.parametrize("seed", few(range(100, 140), 10))
def test_larger_kernels_and_phases(seed: int, target: str, taken: list[winograd.Choice]) -> None:
    """Of 4 x 4; of 5 x 5, 6 x 6 and 7 x 7 with strides of 2, whose phases have fewer taps here and there."""
    rng = np.random.default_rng(seed)
    size, stride = [(4, 1), (5, 2), (6, 2), (7, 2), (7, 2)][int(rng.integers(5))]
    depth = tuple(int(s) for s in rng.integers(3, 6, int(rng.random() < 0.2)))
    spatial = (*depth, int(rng.integers(14, 40)), int(rng.choice([14, 17, 31, 56, 63, 64, 111, 150, 224])))
    node, feeds, constants = _case(
        rng, spatial, int(rng.integers(0, size)), int(rng.choice([1, 1, 2])), size, stride
    )
    # F(4 x 4, 4 x 4) rounds by about five times as much as a direct convolution, F(4 x 4, 3 x 3) by three.
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=3e-5)
    assert taken


@pytest.mark.parametrize("target", LANES)
@pytest.mark.parametrize("width", [13, 30, 70])
def test_residuals(width: int, target: str, taken: list[winograd.Choice]) -> None:
    rng = np.random.default_rng(width)
    node, feeds, constants = _case(rng, (11, width), 1)
    y = evaluate(graph_of([node], feeds, ["y"], constants), feeds)["y"]
    feeds["r"] = rng.standard_normal(y.shape, dtype=np.float32)
    tail = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))
    node = replace(node, inputs=(*node.inputs, "r"), attributes={**node.attributes, "epilogue": tail})
    check_node(node, feeds, constants, target=target, threads=2)
    assert taken


@pytest.mark.parametrize(("inputs", "size", "stride"), [(256, 3, 1), (24, 7, 2)])
def test_rounding_is_a_few_times_that_of_a_direct_convolution(
    inputs: int, size: int, stride: int, taken: list[winograd.Choice]
) -> None:
    rng = np.random.default_rng(1)
    x = np.maximum(rng.standard_normal((1, inputs, 28, 28), dtype=np.float32), 0)
    w = (rng.standard_normal((16, inputs, size, size)) / (size * inputs**0.5)).astype(np.float32)
    attributes = {"kernel_shape": (size, size), "pads": (size // 2,) * 4, "strides": (stride, stride)}
    node = Node("Conv", ("x", "w"), ("y",), attributes, "conv")
    (got,) = run_graph(graph_of([node], {"x": x}, ["y"], {"w": w}), {"x": x})
    exact = {name: array.astype(np.float64) for name, array in (("x", x), ("w", w))}
    wanted = evaluate(graph_of([node], {"x": exact["x"]}, ["y"], {"w": exact["w"]}), {"x": exact["x"]})["y"]
    assert taken
    assert np.abs(got - wanted).max() < 6e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("target", LANES)
@pytest.mark.parametrize("height", [15, 16])
def test_stretches_that_lie_side_by_side(height: int, target: str, taken: list[winograd.Choice]) -> None:
    """Rows of 7 stretches each, of which strips hold 4: they begin in the midst of rows."""
    lanes = (RUN_TARGETS | WIDTHS | {"host": HOST})[target].lanes(F32)
    node, feeds, constants = _case(np.random.default_rng(height), (height, 7 * lanes), 1)
    check_node(node, feeds, constants, target=target, threads=2)
    assert taken
    assert all(choice.parts == 4 and choice.width == lanes for choice in taken)


def test_strips_that_overlap_are_of_one_unit() -> None:
    # Of 2 planes with 3 rows of 2 strips each, that overlap; the last row begins above the end of the second.
    assert winograd._units([0, 4, 6], [0, 50], 64, 1, 2) == (0, 2, 6, 8, 12)
    assert winograd._units([0, 4, 8], [0, 50], 64, 1, 2) == (0, 2, 4, 6, 8, 10, 12)
    assert winograd._units([0, 4, 8], [0, 64], 64, 1, 1) == (0, 1, 2, 3, 4, 5, 6)
    assert winograd._units([0], [0], 13, 1, 1) == (0, 1)
    # 4 rows of 3 stretches, of which strips have 4: the third begins in the last but one.
    assert winograd._units([0, 4, 8, 12], [0, 16, 32], 16, 4, 1) == (0, 1, 2, 3)
    assert winograd._units([0, 4, 8, 11], [0, 16, 32], 16, 4, 1) == (0, 1, 3)


@pytest.mark.parametrize(("height", "rows"), [(32, 8), (33, 8), (34, 8), (36, 9)])
def test_tasks_do_not_write_the_same_pixels(height: int, rows: int, taken: list[winograd.Choice]) -> None:
    """Each would round them in its own way, and the last to come would be seen."""
    node, feeds, constants = _case(np.random.default_rng(7), (5, height, 70), 1)
    Planner(graph_of([node], feeds, ["y"], constants), HOST, 2).program()
    (choice,) = taken
    beside = 2 if choice.width < 70 else 1
    planes = choice.strips.count // (-(-height // 4) * beside)
    assert len(choice.units) - 1 == planes * rows
    assert choice.units[-1] == choice.strips.count


def test_what_lies_beside_short_rows_does_not_reach_results(taken: list[winograd.Choice]) -> None:
    """The rows of a picture stand between those of another: one with numbers that are not finite."""
    rng = np.random.default_rng(2)
    node, feeds, constants = _case(rng, (13, 14), 1)
    x = np.concatenate([feeds["x"][:1], np.full_like(feeds["x"][:1], np.inf)])
    (got,) = run_graph(graph_of([node], {"x": x}, ["y"], constants), {"x": x})
    assert taken
    assert np.isfinite(got[0]).all()


@pytest.mark.parametrize("target", EMIT_TARGETS)
def test_code_is_made_for_other_targets(target: str, taken: list[winograd.Choice]) -> None:
    node, feeds, constants = _case(np.random.default_rng(3), (14, 30), 1)
    Planner(graph_of([node], feeds, ["y"], constants), EMIT_TARGETS[target], 2).program()


def test_other_windows_are_left_alone(taken: list[winograd.Choice]) -> None:
    rng = np.random.default_rng(4)
    for attributes in ({"strides": (2, 2)}, {"dilations": (2, 2)}, {"strides": (2, 1)}):
        node, feeds, constants = _case(rng, (17, 20), 1)
        node = replace(node, attributes={**node.attributes, **attributes})
        check_node(node, feeds, constants)
        assert not taken
        # The same of what another convolution made, whose planes have a border.
        channels = feeds["x"].shape[1]
        constants["v"] = rng.standard_normal((channels, channels, 1, 1)).astype(np.float32)
        before = Node("Conv", ("x", "v"), ("h",), {"kernel_shape": (1, 1)}, "before")
        graph = graph_of([before, replace(node, inputs=("h", "w", "b"))], feeds, ["y"], constants)
        (got,), wanted = run_graph(graph, feeds), evaluate(graph, feeds)["y"]
        assert not taken
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
