"""Convolutions against the reference: every rank, shape, sparsity and layout that the kernels treat
differently."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from support import (
    EMIT_TARGETS,
    HOST,
    RUN_TARGETS,
    TARGETS,
    WIDTHS,
    check_node,
    few,
    graph_of,
    planned,
    run_graph,
)

from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import evaluate
from coresident.kernels import panel, sparse, sparse_code, sparse_segments, sparse_stream, wired
from coresident.kernels.geometry import Tiles, tiles_of_spans
from coresident.schedule.planner import Planner

SIZES = (1, 2, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33)


@dataclass(frozen=True)
class Case:
    """A convolution; `density` of its weights are not zero, alike for `shared` output channels."""

    batch: int
    inputs: int
    outputs: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    density: float = 1.0
    shared: int = 1
    bias: bool = True

    def feeds(
        self, seed: int
    ) -> tuple[Node, dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((self.batch, self.inputs, *self.spatial), dtype=np.float32)
        shape = (self.outputs, self.inputs // self.group, *self.kernel)
        rows = -(-self.outputs // self.shared)
        mask = np.repeat(rng.random((rows, *shape[1:])) < self.density, self.shared, axis=0)[: self.outputs]
        w = rng.standard_normal(shape).astype(np.float32) * mask.astype(np.float32)
        constants = {"w": w}
        if self.bias:
            constants["b"] = rng.standard_normal(self.outputs).astype(np.float32)
        node = Node(
            "Conv",
            ("x", "w", "b" if self.bias else ""),
            ("y",),
            {
                "strides": self.strides,
                "pads": self.pads,
                "dilations": self.dilations,
                "group": self.group,
                "kernel_shape": self.kernel,
            },
            "conv",
        )
        return node, {"x": x}, constants


def _random(seed: int) -> Case:
    """A convolution drawn by a seed; the window always fits."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernel = tuple(int(k) for k in rng.choice([1, 1, 2, 3, 3, 5] if rank < 3 else [1, 2, 3], rank))
    if rng.random() < 0.5:
        kernel = (kernel[0],) * rank
    dilations = tuple(int(d) for d in rng.choice([1, 1, 1, 2, 3], rank))
    strides = tuple(int(s) for s in rng.choice([1, 1, 1, 2, 3], rank))
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * rank))
    spatial = tuple(
        max(int(rng.choice(SIZES if rank < 3 else SIZES[:8])), (k - 1) * d + 1 - pads[i] - pads[rank + i], 1)
        for i, (k, d) in enumerate(zip(kernel, dilations))
    )
    kind = rng.choice(["plain", "sparse", "grouped", "depthwise"], p=[0.25, 0.45, 0.15, 0.15])
    if kind == "depthwise":
        group = int(rng.integers(1, 20))
        inputs, outputs = group, group * int(rng.integers(1, 3))
    elif kind == "grouped":
        group = int(rng.integers(2, 5))
        inputs, outputs = group * int(rng.integers(1, 8)), group * int(rng.integers(1, 10))
    else:
        group, inputs, outputs = 1, int(rng.integers(1, 40)), int(rng.integers(1, 40))
    sparse = kind == "sparse" or rng.random() < 0.3
    density = float(rng.choice([0.0, 0.02, 0.1, 0.3, 0.7])) if sparse else 1.0
    shared = int(rng.choice([1, 1, 2, 4]))
    batch = int(rng.integers(1, 4))
    return Case(
        batch,
        inputs,
        outputs,
        spatial,
        kernel,
        strides,
        pads,
        dilations,
        group,
        density,
        shared,
        rng.random() < 0.7,
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(60))
def test_random_convolutions(seed: int, target: str) -> None:
    node, feeds, constants = _random(seed).feeds(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(12))
def test_offsets_that_16_bits_do_not_hold(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of planes of a megabyte, here of all."""
    monkeypatch.setattr(sparse_stream, "UNITS", ())
    case = replace(_random(seed), inputs=11 + seed, outputs=23, group=1, density=0.05 + 0.02 * seed, shared=1)
    node, feeds, constants = case.feeds(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", range(100, 120))
def test_random_convolutions_of_other_widths(seed: int, width: str) -> None:
    node, feeds, constants = _random(seed).feeds(seed)
    check_node(node, feeds, constants, target=width, threads=1 + seed % 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 4000))
def test_many_random_convolutions(seed: int) -> None:
    node, feeds, constants = _random(seed).feeds(seed)
    check_node(node, feeds, constants, threads=1 + seed % 3)


NAMED = {
    "stem 7x7 stride 2": Case(1, 3, 16, (32, 30), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    "sparse in several blocks of channels": Case(
        1, 600, 40, (14, 14), (1, 1), (1, 1), (0,) * 4, (1, 1), density=0.1
    ),
    "sparse 3x3 in several blocks": Case(1, 260, 33, (14, 14), (3, 3), (1, 1), (1,) * 4, (1, 1), density=0.1),
    "dense in several blocks": Case(1, 700, 21, (15, 15), (1, 1), (1, 1), (0,) * 4, (1, 1)),
    "dense 3x3 in several blocks": Case(2, 130, 9, (9, 11), (3, 3), (1, 1), (1,) * 4, (1, 1)),
    "small planes, many channels": Case(1, 200, 72, (7, 7), (3, 3), (1, 1), (1,) * 4, (1, 1)),
    "small planes, strided": Case(1, 130, 56, (15, 14), (3, 3), (2, 2), (1,) * 4, (1, 1)),
    "all weights zero": Case(1, 32, 24, (9, 9), (3, 3), (1, 1), (1,) * 4, (1, 1), density=0.0),
    "pattern shared by four": Case(
        1, 64, 32, (16, 16), (3, 3), (1, 1), (1,) * 4, (1, 1), density=0.1, shared=4
    ),
    "pattern shared by two": Case(
        1, 64, 32, (16, 16), (1, 1), (1, 1), (0,) * 4, (1, 1), density=0.1, shared=2
    ),
    "three dimensions, sparse": Case(
        1, 24, 20, (9, 10, 11), (3, 3, 3), (1,) * 3, (1,) * 6, (1,) * 3, density=0.1
    ),
    "three dimensions, strided": Case(1, 5, 6, (9, 8, 7), (3, 3, 3), (2, 2, 2), (1,) * 6, (1,) * 3),
    "one dimension": Case(2, 6, 7, (101,), (5,), (1,), (2, 2), (1,)),
    "one pixel": Case(1, 64, 40, (1, 1), (1, 1), (1, 1), (0,) * 4, (1, 1), density=0.2),
    "more padding than picture": Case(1, 3, 4, (2, 2), (5, 5), (1, 1), (4, 4, 4, 4), (1, 1)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMED)
def test_named_convolutions(name: str, target: str) -> None:
    node, feeds, constants = NAMED[name].feeds(7)
    check_node(node, feeds, constants, target=target, threads=2)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMED)
def test_named_convolutions_of_other_widths(name: str, width: str) -> None:
    node, feeds, constants = NAMED[name].feeds(7)
    check_node(node, feeds, constants, target=width)


@pytest.mark.parametrize("target", EMIT_TARGETS)
@pytest.mark.parametrize("name", NAMED)
def test_code_is_made_for_other_targets(name: str, target: str) -> None:
    node, feeds, constants = NAMED[name].feeds(7)
    program = Planner(graph_of([node], feeds, ["y"], constants), EMIT_TARGETS[target], 2).program()
    assert program.target == EMIT_TARGETS[target].key != HOST.key
    assert all(program.objects)


@pytest.fixture(params=["pixels", "channels"])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the lanes of the dense kernel hold, whichever the cost model would prefer."""
    choose = panel.choose

    def forced(*arguments: Any, **options: Any) -> panel.Choice | None:
        choice = choose(*arguments, **options)
        return replace(choice, cycles=0.0) if choice is not None and request.param == "channels" else None

    monkeypatch.setattr(panel, "choose", forced)
    return str(request.param)


@pytest.mark.parametrize("target", TARGETS + tuple(WIDTHS))
@pytest.mark.parametrize("seed", few(range(5000, 5030), 8))
@pytest.mark.usefixtures("lanes")
def test_lanes_of_dense_kernels(seed: int, target: str) -> None:
    """Two convolutions, so that the first's output has a border, and a residual between them."""
    rng = np.random.default_rng(seed)
    case = replace(_random(seed), density=1.0)
    node, feeds, constants = case.feeds(seed)
    x = Fact(np.dtype(np.float32), feeds["x"].shape)
    shape = graph_of([node], {"x": x}, ["y"], constants).facts["y"].sizes
    feeds["r"] = rng.standard_normal(shape, dtype=np.float32)
    epilogue = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))
    node = node.with_(inputs=(*node.inputs, "s"), attributes={**node.attributes, "epilogue": epilogue})
    constants["w2"] = rng.standard_normal((3, shape[1], *(3 for _ in shape[2:]))).astype(np.float32)
    pads = {"pads": (1,) * (2 * len(shape) - 4), "kernel_shape": (3,) * (len(shape) - 2)}
    constants["w0"] = rng.standard_normal((shape[1], 1, *(1 for _ in shape[2:]))).astype(np.float32)
    each = {"group": shape[1], "kernel_shape": (1,) * (len(shape) - 2)}
    scaled = Node("Conv", ("r", "w0"), ("s",), each, "scaled")
    after = Node("Conv", ("y", "w2"), ("z",), pads, "after")
    graph = graph_of([scaled, node, after], feeds, ["z"], constants)
    (got,) = run_graph(graph, feeds, (RUN_TARGETS | WIDTHS)[target], 1 + seed % 2)
    want = evaluate(graph, feeds)["z"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(float(np.abs(want).max()), 1e-30))


def _in_segments(monkeypatch: pytest.MonkeyPatch, group: int, steps: bool = False) -> None:
    """Have sparse convolutions take tiles of segments with groups of so many lanes, in several steps if they
    can, whatever they cost and however much the CPU loads at once."""
    segments = sparse._segments

    def forced(*arguments: Any) -> Iterator[sparse.Choice]:
        for choice in segments(*arguments):
            goes_on = choice.packing is not None and choice.packing.steps > 1
            yield replace(choice, cycles=choice.cycles * (1e-18 if goes_on and steps else 1e-9))

    monkeypatch.setattr(sparse, "_segments", forced)
    monkeypatch.setattr(sparse_segments, "group_of", lambda _: group)


SHORT_ROWS = (7, 14, 16, 18, 28, 32, 43, 50, 56)
SEGMENTED = [name for name in (*TARGETS, *WIDTHS) if (RUN_TARGETS | WIDTHS)[name].lanes(F32) == 16]


@pytest.mark.parametrize("target", SEGMENTED)
@pytest.mark.parametrize("seed", few(range(6000, 6040), 12))
def test_segments_of_rows(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rows, and several short ones; blocks of input channels and residuals; a last tile overlaps the one
    before, or has rows that are not there; it may go on in steps; what is read next may be asked for."""
    _in_segments(monkeypatch, (8, 16)[seed // 4 % 2], steps=seed % 4 > 1)
    monkeypatch.setattr(sparse_code, "is_near", lambda *_: seed % 3 == 0)
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([2, 2, 3]))
    kernel = (*(int(k) for k in rng.choice([1, 2, 3], rank - 1)), int(rng.choice([2, 3, 5, 11])))
    long = kernel[-1] > 5 or rng.random() < 0.4
    columns = int(rng.integers(72, 200)) if long else int(rng.choice(SHORT_ROWS))
    spatial = (*(int(s) for s in rng.integers(5, 20 if rank == 2 else 9, rank - 1)), columns)
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * rank))
    dilations = tuple(int(d) for d in rng.choice([1, 1, 2], rank))
    group, density = int(rng.choice([1, 1, 2])), float(rng.choice([0.05, 0.2, 0.5]))
    inputs, outputs = group * int(rng.integers(2, 50)), group * int(rng.integers(1, 20))
    case = Case(2, inputs, outputs, spatial, kernel, (1,) * rank, pads, dilations, group, density)
    node, feeds, constants = case.feeds(seed)
    if rng.random() < 0.5:
        y = evaluate(graph_of([node], feeds, ["y"], constants), feeds)["y"]
        feeds["r"] = rng.standard_normal(y.shape, dtype=np.float32)
        tail = Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,))))
        node = replace(node, inputs=(*node.inputs, "r"), attributes={**node.attributes, "epilogue": tail})
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2)


def _behind(case: Case, seed: int, target: str, threads: int) -> str:
    """What a convolution behind another is cut into, whose result is checked."""
    node, feeds, constants = case.feeds(seed)
    channels = case.inputs
    constants["w0"] = np.random.default_rng(seed).standard_normal((channels, 1, 1, 1)).astype(np.float32)
    scaled = Node("Conv", ("x", "w0"), ("s",), {"group": channels, "kernel_shape": (1, 1)}, "scaled")
    graph = graph_of([scaled, node.with_(inputs=("s", *node.inputs[1:]))], feeds, ["y"], constants)
    (got,) = run_graph(graph, feeds, (RUN_TARGETS | WIDTHS)[target], threads)
    want = evaluate(graph, feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(float(np.abs(want).max()), 1e-30))
    steps = planned(graph, (RUN_TARGETS | WIDTHS)[target]).steps
    return " ".join(str(step.info.get("tile")) for step in steps)


@pytest.mark.parametrize("target", SEGMENTED)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 14, 28])
def test_packed_rows_go_on_from_others(
    size: int, stride: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of lanes that another packed row has already are packed from it, in groups of 16 lanes."""
    _in_segments(monkeypatch, 16, steps=False)
    made: list[int] = []
    moved_on = sparse_segments.Packing._moved_on
    monkeypatch.setattr(
        sparse_segments.Packing, "_moved_on", lambda self, *a: made.append(size) or moved_on(self, *a)
    )
    case = Case(1, 9, 5, (stride * size,) * 2, (3, 3), (stride,) * 2, (1,) * 4, (1, 1), 1, 0.2)
    _behind(case, size, target, 1)
    assert made


@pytest.mark.parametrize("target", SEGMENTED)
@pytest.mark.parametrize("seed", few(range(6100, 6160), 6))
def test_segments_of_strided_rows(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed phase by phase, from what a convolution before has made."""
    _in_segments(monkeypatch, (8, 16)[seed // 2 % 2])
    rng = np.random.default_rng(seed)
    strides = tuple(int(s) for s in rng.choice([[2, 2], [2, 2], [1, 2], [2, 1], [3, 2]]))
    kernel = tuple(int(k) for k in rng.choice([1, 2, 3, 5], 2))
    columns = int(rng.integers(72, 140)) if rng.random() < 0.3 else int(rng.choice(SHORT_ROWS))
    size = int(rng.integers(5, 20)), columns * strides[1] + int(rng.integers(-1, 2))
    pads, dilations = tuple(rng.integers(0, 3, 4).tolist()), tuple(rng.choice([1, 1, 2], 2).tolist())
    inputs, outputs = int(rng.integers(2, 50)), int(rng.integers(1, 20))
    density = float(rng.choice([0.05, 0.2, 0.5]))
    _behind(
        Case(2, inputs, outputs, size, kernel, strides, pads, dilations, 1, density),
        seed,
        target,
        1 + seed % 2,
    )


@pytest.mark.parametrize("size", [7, 28, 70])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("target", SEGMENTED)
def test_segments_of_strided_rows_are_taken(
    target: str, group: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_segments(monkeypatch, group)
    case = Case(1, 20, 8, (2 * size,) * 2, (3, 3), (2, 2), (1,) * 4, (1, 1), density=0.1)
    assert "segments" in _behind(case, 1, target, 1)


@pytest.mark.parametrize("spatial", [(9, 100), (7, 7), (14, 14), (28, 28), (13, 32), (56, 56)])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("target", SEGMENTED)
def test_segments_are_taken(
    target: str, group: int, spatial: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_segments(monkeypatch, group)
    case = Case(1, 40, 8, spatial, (3, 3), (1, 1), (1,) * 4, (1, 1), density=0.1)
    assert "segments" in _tiles(case, target)


@pytest.mark.parametrize("spatial", [(9, 7, 64), (5, 13, 32), (8, 16, 16), (11, 8, 8)])
@pytest.mark.parametrize("group", [8, 16])
@pytest.mark.parametrize("target", SEGMENTED)
def test_segments_go_on_in_steps(
    target: str, group: int, spatial: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along the depth of a volume; a last tile overlaps the one before."""
    _in_segments(monkeypatch, group, steps=True)
    case = Case(1, 40, 8, spatial, (3,) * 3, (1,) * 3, (1,) * 6, (1,) * 3, density=0.1)
    assert re.search("in [0-9]+ steps", _tiles(case, target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("inputs", [513, 1024])
def test_threads_that_share_a_tile_have_a_part_of_its_rows_each(
    inputs: int, threads: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do on Intel's cores, where the tile's pixels are asked for, block by block."""

    def in_one(*arguments: Any) -> Tiles | None:
        cutting = tiles_of_spans(*arguments)
        return cutting if cutting is not None and cutting.count == 1 else None

    monkeypatch.setattr(Target, "shuffles_apart", False)
    monkeypatch.setattr(wired, "is_possible", lambda target: False)
    monkeypatch.setattr(sparse, "tiles_of_spans", in_one)
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((90, inputs, 1, 1)) * (rng.random((90, inputs, 1, 1)) < 0.1)
    node = Node("Conv", ("x", "w"), ("y",), {"kernel_shape": (1, 1)}, "conv")
    feeds = {"x": rng.standard_normal((1, inputs, 7, 7)).astype(np.float32)}
    constants = {"w": w.astype(np.float32)}
    check_node(node, feeds, constants, target=target, threads=threads)
    graph = graph_of([node], feeds, ["y"], constants)
    steps = planned(graph, RUN_TARGETS[target], threads).steps
    (step,) = (step for step in steps if step.info["op"] == "Conv")
    assert (step.info["kernel"], step.tasks) == ("sparse", threads)


def _tiles(case: Case, target: str) -> str:
    """What a convolution is cut into, which is checked."""
    node, feeds, constants = case.feeds(0)
    check_node(node, feeds, constants, target=target)
    steps = planned(graph_of([node], feeds, ["y"], constants), (RUN_TARGETS | WIDTHS)[target]).steps
    return " ".join(str(step.info.get("tile")) for step in steps)


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_zeros_counted_as_numbers_give_the_same(density: float) -> None:
    case = Case(1, 40, 24, (13, 13), (3, 3), (1, 1), (1,) * 4, (1, 1), density=density)
    node, feeds, constants = case.feeds(3)
    check_node(node, feeds, constants, sparse=False)


EPILOGUES = {
    "relu": (Expression(1, (Apply("Relu", (0,)),)), ()),
    "residual add, relu": (Expression(2, (Apply("Add", (0, 1)), Apply("Relu", (2,)))), ("full",)),
    "silu": (Expression(1, (Apply("Swish", (0,)),)), ()),
    "prelu by channel": (Expression(2, (Apply("PRelu", (0, 1)),)), ("channel",)),
    "clip": (Expression(3, (Apply("Clip", (0, 1, 2)),)), ("scalar", "scalar")),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize("depthwise", [False, True])
def test_epilogues(name: str, density: float, depthwise: bool, target: str) -> None:
    expression, kinds = EPILOGUES[name]
    channels = 19 if depthwise else 24
    case = Case(
        2,
        channels,
        channels,
        (11, 13),
        (3, 3),
        (1, 1),
        (1,) * 4,
        (1, 1),
        channels if depthwise else 1,
        density,
    )
    node, feeds, constants = case.feeds(11)
    rng = np.random.default_rng(12)
    for i, kind in enumerate(kinds):
        extra = f"e{i}"
        if kind == "full":
            feeds[extra] = rng.standard_normal(feeds["x"].shape, dtype=np.float32)
        elif kind == "channel":
            constants[extra] = rng.standard_normal((channels, 1, 1)).astype(np.float32)
        else:
            constants[extra] = np.array([-0.4, 0.7][i], np.float32)
        node = node.with_(inputs=(*node.inputs, extra))
    node = node.with_(attributes={**node.attributes, "epilogue": expression})
    # Clip cuts the range that errors are measured by to a hundredth of the sums' own.
    check_node(node, feeds, constants, target=target, threads=2, tolerance=1e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(24))
def test_transposed_convolutions(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    group = int(rng.choice([1, 1, 1, 2]))
    inputs, outputs = group * int(rng.integers(1, 20)), group * int(rng.integers(1, 12))
    kernel = tuple(int(k) for k in rng.integers(1, 5 if rank < 3 else 4, rank))
    strides = tuple(int(s) for s in rng.integers(1, 4, rank))
    dilations = tuple(int(d) for d in rng.choice([1, 1, 2], rank))
    spatial = tuple(int(s) for s in rng.integers(1, 18 if rank < 3 else 7, rank))
    room = [(s - 1) * t + (k - 1) * d for s, t, k, d in zip(spatial, strides, kernel, dilations)]
    pads = tuple(int(rng.integers(0, min(3, r // 2 + 1))) for r in room) * 2
    extra = tuple(int(rng.integers(0, s)) for s in strides)
    x = rng.standard_normal((2, inputs, *spatial), dtype=np.float32)
    w = rng.standard_normal((inputs, outputs // group, *kernel)).astype(np.float32)
    w *= rng.random(w.shape) < float(rng.choice([0.1, 1.0]))
    b = rng.standard_normal(outputs).astype(np.float32)
    attributes = {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": group,
        "output_padding": extra,
        "kernel_shape": kernel,
    }
    node = Node("ConvTranspose", ("x", "w", "b"), ("y",), attributes, "up")
    assert math.prod(spatial) > 0
    check_node(node, {"x": x}, {"w": w, "b": b}, target=target, threads=2)


@pytest.mark.parametrize("target", TARGETS + tuple(WIDTHS))
@pytest.mark.parametrize("seed", few(range(7000, 7024), 4))
@pytest.mark.usefixtures("lanes")
def test_transposed_convolutions_whose_windows_meet(seed: int, target: str) -> None:
    """All phases are channels of one product, which are interleaved as they are stored."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 3]))
    group = int(rng.choice([1, 1, 2]))
    inputs, outputs = group * int(rng.choice([3, 17, 40, 130])), group * int(rng.integers(1, 30))
    strides = (*(int(s) for s in rng.choice([1, 2, 2, 3], rank - 1)), 2)
    spatial = tuple(int(s) for s in rng.integers(1, 40 if rank < 3 else 9, rank))
    x = rng.standard_normal((2, inputs, *spatial), dtype=np.float32)
    w = rng.standard_normal((inputs, outputs // group, *strides)).astype(np.float32)
    b = rng.standard_normal(outputs).astype(np.float32)
    attributes = {"strides": strides, "kernel_shape": strides, "group": group}
    node = Node("ConvTranspose", ("x", "w", "b"), ("y",), attributes, "up")
    check_node(node, {"x": x}, {"w": w, "b": b}, target=target, threads=1 + seed % 2)
