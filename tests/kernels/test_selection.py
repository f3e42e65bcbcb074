"""What is chosen by its values, against the reference: TopK, nonzeros, different rows, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, graph_of, run_graph

from coresident.graph.graph import Node
from coresident.graph.operator import evaluate

Array = np.ndarray[Any, Any]
DTYPES = (np.float32, np.float64, np.int64, np.int32, np.int8, np.uint8)


def _check(
    node: Node, feeds: dict[str, Array], seed: int, target: str, constants: dict[str, Array] | None = None
) -> None:
    """In random layouts for each other seed, else in C order."""
    graph = graph_of([node], feeds, [name for name in node.outputs if name], constants)
    rng = np.random.default_rng(seed)
    layouts = {}
    if seed % 2:
        shapes = {name: graph.fact(name).sizes for name in (*feeds, *node.outputs)}  # type: ignore[union-attr]
        layouts = {name: random_layout(rng, shape) for name, shape in shapes.items()}
    hint = (seed, node, {name: a.shape for name, a in feeds.items()})
    check_lowering(graph, feeds, RUN_TARGETS[target], layouts=layouts, threads=1 + seed % 3, hint=hint)


def _few(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers that are often equal, some of them NaN where there is one."""
    x = rng.integers(0, 7, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        x[rng.random(shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(24))
def test_top_k(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.choice((1, 2, 3, 7, 8, 17, 33), int(rng.integers(1, 4))))
    axis = int(rng.integers(-len(shape), len(shape)))
    count = int(rng.integers(0, shape[axis] + 1)) if seed % 4 else shape[axis]
    node = Node("TopK", ("x", "k"), ("y", "i"), {"axis": axis, "largest": int(rng.integers(2))})
    make = _few if seed % 3 else random_array
    _check(node, {"x": make(rng, shape, DTYPES[seed % 6])}, seed, target, {"k": np.array([count])})


@pytest.mark.parametrize("largest", [0, 1])
def test_top_of_zeros_infinities_and_nan(largest: int) -> None:
    """Both zeros are equal, so the first comes first and keeps its sign; NaN comes last."""
    x = np.float32([-0.0, 0.0, np.nan, -np.inf, -0.0, np.inf, -np.nan, 0.0, 1e-40, -1e-40])
    node = Node("TopK", ("x", "k"), ("y", "i"), {"largest": largest})
    graph = graph_of([node], {"x": x}, ["y", "i"], {"k": np.array([len(x)])})
    got, places = run_graph(graph, {"x": x})
    wanted = evaluate(graph, {"x": x})
    np.testing.assert_array_equal(places, wanted["i"])
    assert np.array_equal(np.signbit(got[:8]), np.signbit(wanted["y"][:8]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(12))
def test_nonzeros(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.choice((1, 2, 3, 7, 8, 17), int(rng.integers(1, 4))))
    x = np.where(rng.random(shape) < rng.random(), random_array(rng, shape, np.float32), 0)
    dtype = (*DTYPES, np.bool_)[seed % 7]
    _check(Node("Nonzeros", ("x",), ("y", "n")), {"x": x.astype(dtype)}, seed, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(18))
def test_unique_rows(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(0, 40)), int(rng.integers(1, 4)))
    x = rng.integers(0, 3, shape).astype((*DTYPES, np.bool_)[seed % 7])
    if x.dtype.kind == "f" and seed % 4 == 0:
        x = x[:, :1]
        x[rng.random(x.shape) < 0.3] = np.nan
    node = Node("UniqueRows", ("x",), ("first", "inverse", "counts", "n"), {"sorted": int(seed % 3 > 0)})
    _check(node, {"x": x}, seed, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(18))
def test_boxes(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    batch, classes, count = (int(n) for n in rng.integers(1, 4, 3) * (1, 1, 11))
    dtype = np.float64 if seed % 5 == 4 else np.float32
    boxes = rng.random((batch, count, 4)).astype(dtype)
    scores = rng.permutation(batch * classes * count).reshape(batch, classes, count).astype(dtype)
    scores /= scores.size
    if seed % 4 == 3:
        scores[rng.random(scores.shape) < 0.2] = np.nan
    limits = {"most": np.array([int(rng.integers(0, count + 3))]), "iou": np.array([rng.random()], dtype)}
    names = ["boxes", "scores", "most", "iou"]
    if seed % 3:
        limits["least"] = np.array(rng.random(), dtype)
        names.append("least")
    feeds = {"boxes": boxes, "scores": scores}
    if seed % 2:
        feeds |= {name: limits.pop(name) for name in names[3:]}
    node = Node("SelectBoxes", tuple(names), ("y", "n"), {"center_point_box": int(seed % 4 == 1)})
    _check(node, feeds, seed, target, limits)


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS)
def test_other_machines(target: Any) -> None:
    x, boxes = np.ones((3, 5), np.float32), np.ones((1, 7, 4), np.float32)
    for node, feeds, constants in (
        (Node("TopK", ("x", "k"), ("y", "i")), {"x": x}, {"k": np.array([2])}),
        (Node("Nonzeros", ("x",), ("y", "n")), {"x": x}, {}),
        (Node("UniqueRows", ("x",), ("a", "b", "c", "n")), {"x": x}, {}),
        (
            Node("SelectBoxes", ("b", "s", "k"), ("y", "n")),
            {"b": boxes, "s": np.ones((1, 2, 7), np.float32)},
            {"k": np.array([3])},
        ),
    ):
        check_emission(graph_of([node], feeds, node.outputs, constants), feeds, target)
