"""Integer convolutions against the reference, to the last bit: zero points, shapes, sparsity, extremes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, WIDTHS, check_node, few, graph_of, planned, run_graph

from coresident.codegen.builder import Function, Value
from coresident.codegen.integers import Dot
from coresident.codegen.target import NAMED, Target
from coresident.codegen.types import I32
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Graph, Node
from coresident.graph.operator import evaluate
from coresident.graph.operators.windows import Window
from coresident.kernels import (
    asking,
    cost,
    integer_choice,
    integer_code,
    integer_cost,
    integer_panel,
    integer_segments,
    integer_stream,
    integer_wired,
)
from coresident.kernels.integer_strips import Places, pitched_strips
from coresident.kernels.layout import Layout
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]
SIZES = (1, 5, 7, 8, 9, 15, 16, 17, 31, 33)
_AVX2 = NAMED["x86-64-avx2"]
INTEGER_TARGETS: dict[str, Target] = {
    **EMIT_TARGETS,
    **{name: NAMED[name] for name in ("x86-64-vnni", "aarch64-dotprod")},
    "avxvnni": replace(_AVX2, cpu="alderlake", features=_AVX2.features | {"avxvnni"}),
}


def _bytes(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Bytes of the whole range, or the extremes alone."""
    bounds = np.iinfo(dtype)
    if rng.random() < 0.3:
        return rng.choice([bounds.min, bounds.max], shape).astype(dtype)
    return rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def _window(
    rng: np.random.Generator,
    rank: int,
    kernels: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> dict[str, tuple[int, ...]]:
    """A convolution's attributes, kernel, strides and dilations drawn from these for each dimension."""
    kernel, stride, dilation = (
        tuple(int(x) for x in rng.choice(some, rank)) for some in (kernels, strides, dilations)
    )
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * rank))
    return {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": pads}


def _covered(drawn: Sequence[int], window: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Sizes, large enough for a window."""
    reach = zip(window["kernel_shape"], window["dilations"])
    return tuple(max(int(s), (k - 1) * d + 1) for s, (k, d) in zip(drawn, reach))


def _case(seed: int, op: str = "ConvInteger") -> tuple[Node, dict[str, Array], dict[str, Array]]:
    """An integer convolution drawn by a seed; the window always fits."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernels = [1, 1, 2, 3, 5] if rank < 3 else [1, 2, 3]
    window = _window(rng, rank, kernels, [1, 1, 1, 2, 3], [1, 1, 1, 2])
    kernel = window["kernel_shape"]
    spatial = _covered(rng.choice(SIZES if rank < 3 else SIZES[1:5], rank), window)
    group = int(rng.choice([1, 1, 1, 2, 3]))
    inputs, outputs = group * int(rng.integers(1, 20)), group * int(rng.integers(1, 20))
    if rng.random() < 0.2:
        group = inputs = int(rng.integers(2, 20))
        outputs = group * int(rng.integers(1, 3))
    x_type, w_type = rng.choice([np.uint8, np.int8], 2)
    w = _bytes(rng, w_type, (outputs, inputs // group, *kernel))
    constants = {"w": w}
    if rng.random() < 0.5:
        constants["wz"] = _bytes(rng, w_type, () if rng.random() < 0.5 else (outputs,))
    if rng.random() < 0.6:
        zeros = rng.random(w.shape) < rng.choice([0.5, 0.9, 1.0])
        if rng.random() < 0.5:
            zeros[:] = zeros[:, :1]
        point = constants.get("wz", np.zeros((), w_type))
        w[zeros] = np.broadcast_to(point.reshape(-1, *[1] * (w.ndim - 1)), w.shape)[zeros]
    if rng.random() < 0.7:
        constants["xz"] = _bytes(rng, x_type, ())
    if rng.random() < 0.7:
        constants["b"] = rng.integers(-10000, 10000, outputs).astype(np.int32)
    attributes = {**window, "group": group}
    names = ("x", "w", *(name if name in constants else "" for name in ("xz", "wz", "b")))
    x = _bytes(rng, x_type, (int(rng.integers(1, 3)), inputs, *spatial))
    return Node(op, names, ("y",), attributes, "conv"), {"x": x}, constants


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(40))
def test_random_convolutions(seed: int, target: str) -> None:
    node, feeds, constants = _case(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("target", WIDTHS)
@pytest.mark.parametrize("seed", range(100, 112))
def test_random_convolutions_at_other_widths(seed: int, target: str) -> None:
    node, feeds, constants = _case(seed)
    check_node(node, feeds, constants, target=target, tolerance=0)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("seed", few(range(200, 220), 8))
def test_channels_in_the_lanes(seed: int, held: bool, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are added at once, and such that leave out what does not fit 16 bits."""
    dots = [dot for dot in Dot.all((RUN_TARGETS | WIDTHS)[target]) if dot.held is held]
    if not dots:
        pytest.skip("no such products here")
    choose = integer_panel._choose

    def forced(*arguments: Any) -> integer_panel.Choice | None:
        choice = choose(*arguments)
        return replace(choice, cycles=0.0) if choice is not None and arguments[-1] in dots else None

    monkeypatch.setattr(integer_panel, "_choose", forced)
    node, feeds, constants = _case(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", few(range(800, 840), 6))
def test_planes_by_themselves(seed: int, wide: bool, target: str) -> None:
    """Long rows and short ones, kernels of several quads of taps and such that no load holds, weights that
    fit a byte or not once their zero points are subtracted."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernels = [1, 2, 3, 5, 7] if rank < 3 else [1, 2, 3]
    window = _window(rng, rank, kernels, [1, 1, 2, 3, 4], [1, 1, 2, 9])
    spatial = _covered(rng.integers(1, 90 if rank < 3 else 20, rank), window)
    groups, each = int(rng.integers(2, 9)), int(rng.integers(1, 4))
    x_type, w_type = rng.choice([np.uint8, np.int8]), rng.choice([np.uint8, np.int8]) if wide else np.int8
    constants = {
        "w": _bytes(rng, w_type, (groups * each, 1, *window["kernel_shape"])),
        "xz": _bytes(rng, x_type, ()),
    }
    if wide:
        constants["wz"] = _bytes(rng, w_type, (groups * each,))
    attributes = {**window, "group": groups}
    names = ("x", "w", "xz", *(["wz"] if wide else []))
    x = _bytes(rng, x_type, (2, groups, *spatial))
    node = Node("ConvInteger", names, ("y",), attributes, "conv")
    check_node(node, {"x": x}, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
def test_four_taps_are_multiplied_at_once(target: str) -> None:
    x = np.zeros((1, 4, 9, 9), np.uint8)
    attributes = {"group": 4, "kernel_shape": (3, 3)}
    on = (RUN_TARGETS | WIDTHS)[target]
    for dtype, zero in ((np.int8, 0), (np.uint8, 200)):
        constants = {"w": np.full((4, 1, 3, 3), 3, dtype), "wz": np.array(zero, dtype)}
        graph = graph_of(
            [Node("ConvInteger", ("x", "w", "", "wz"), ("y",), attributes)], {"x": x}, ["y"], constants
        )
        kernels = " ".join(str(step.info.get("kernel")) for step in planned(graph, on).steps)
        quads = on.lanes(I32) == 16 and on.has("avx512vbmi") and dtype == np.int8
        assert ("depthwise, vpdpbusd" in kernels) == quads


def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all convolutions bring single weights together."""
    cycles = integer_cost.streamed
    monkeypatch.setattr(integer_choice, "GATHERED", 2.0)
    monkeypatch.setattr(integer_panel, "choose", lambda *_: None)

    def forced(*arguments: Any, most: float) -> float:
        return cycles(*arguments) * (1e-9 if arguments[4].gathers else 1.0)

    monkeypatch.setattr(integer_cost, "streamed", forced)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("seed", range(300, 325))
def test_single_weights(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _gather(monkeypatch)
    node, feeds, constants = _case(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("name", INTEGER_TARGETS)
def test_single_weights_on_other_targets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _gather(monkeypatch)
    steps = []
    for seed in (300, 301, 302):
        node, feeds, constants = _case(seed)
        steps += Planner(graph_of([node], feeds, ["y"], constants), INTEGER_TARGETS[name], 2).program().steps
    assert any("gathered" in str(step.info.get("kernel")) for step in steps)


@pytest.mark.parametrize("held", [False, True])
def test_fours_hold_each_weight_once(held: bool) -> None:
    rng = np.random.default_rng(0)
    for rows, nonzeros in ((1, 1), (3, 7), (5, 64), (4, 0)):
        row = np.sort(rng.integers(0, rows, nonzeros))
        weights = rng.integers(-128, 128, (nonzeros, 1, 1)).astype(np.int16)
        entries = integer_stream.Entries(row, np.arange(nonzeros), weights)
        dot = replace(Dot.gathering(_AVX2), held=held)
        picked, there = integer_stream.fours(entries, dot, rows)
        assert sorted(picked[there]) == list(range(nonzeros))
        assert (row[picked] == row[picked[:, :1]]).all()
        assert (np.diff(row[picked[:, 0]]) >= 0).all()
        pairs = np.where(there, weights[picked, 0, 0], 0).reshape(-1, 2)
        sums = [np.maximum(sign * pairs, 0).sum(axis=1) for sign in (1, -1)]
        assert not held or (np.stack(sums) <= Dot.BOUND).all()


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("seed", few(range(600, 630), 12))
def test_blocks_of_input_channels(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums wait between them."""
    size = 1 + seed % 3

    def in_blocks(*arguments: Any) -> list[tuple[bool, int]]:
        shape, shared = arguments[2], arguments[5]
        return [(False, size)] if shape.outputs % shared == 0 else []

    monkeypatch.setattr(integer_choice, "_orders", in_blocks)
    monkeypatch.setattr(integer_panel, "choose", lambda *_: None)
    monkeypatch.setattr(integer_wired, "is_possible", lambda *_: False)
    if seed % 4 == 0:
        _in_segments(monkeypatch)
    node, feeds, constants = (_segmented if seed % 4 == 0 else _case)(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)
    per_group = constants["w"].shape[1]
    tiles = _tiles(node, feeds, constants, target)
    assert "blocks of" in tiles or "strip" not in tiles or per_group <= 4 * size


def _in_segments(monkeypatch: pytest.MonkeyPatch, group: int = 8) -> list[Any]:
    """Have all convolutions cut into segments that can be, with groups of up to so many lanes, whatever the
    target and however much the CPU loads at once; the ways that there are."""
    cycles, strips, found = integer_cost.streamed, integer_choice.segment_strips, list[Any]()

    def recorded(*arguments: Any) -> list[Any]:
        ways = strips(*arguments[:3], group)
        found.extend(ways)
        return ways

    monkeypatch.setattr(integer_choice, "segment_strips", recorded)
    monkeypatch.setattr(integer_choice, "_spreads", lambda _: True)

    def forced(*arguments: Any, most: float) -> float:
        segments = arguments[3].segments
        wanted = 1.0 if segments is None else 1e-12 if segments.spread.group == group else 1e-9
        return cycles(*arguments) * wanted

    monkeypatch.setattr(integer_cost, "streamed", forced)
    monkeypatch.setattr(integer_panel, "choose", lambda *_: None)
    return found


@pytest.mark.parametrize("size", [2, 7, 14, 57])
@pytest.mark.parametrize("flat", [False, True])
def test_cuts_are_tried_once(size: int, flat: bool) -> None:
    """And have tiles of so many vectors as were asked for."""
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    source, out = (
        Layout.planar((1, 4, size, size), (0, gap), ((1, 1), (1, 1)), 32, 1) for gap in (1, 1 if flat else 2)
    )
    places = Places.of(window, source, out, (), 16)
    assert places.flat == flat
    found = []
    for vectors in range(1, 21):
        cuts = integer_choice._cuts(places, vectors)
        assert all(strips.vectors == vectors for strips in cuts)
        found += [(strips.tiles.tobytes(), strips.strips.tobytes(), strips.runs.tobytes()) for strips in cuts]
    assert found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [13, 27, 28, 57])
@pytest.mark.parametrize("lanes", [8, 16])
def test_strided_tiles_begin_at_whole_vectors(size: int, kernel: int, lanes: int) -> None:
    """Strips that begin within a row are packed so that their tiles are aligned, and hold what they need."""
    source = Layout.planar((1, 4, size, size), (0, 1), ((0, 1), (0, 1)), lanes, 1)
    half = -(-size // 2)
    out = Layout.planar((1, 4, half, half), (0, 2), ((0, 0), (0, 0)), lanes, 1)
    pads = (kernel // 2,) * 2
    window = Window((kernel, kernel), (2, 2), pads, pads, (1, 1))
    several = 0
    for vectors, together in itertools.product((1, 2, 5), (1, 2, 4)):
        strips = pitched_strips(Places.of(window, source, out, (), lanes), vectors, together)
        assert strips is not None
        several += len(strips.strips) > 1
        assert np.all(strips.tiles[:, 0] % lanes == 0)
        for first_run, end_run, first, end, base in strips.strips:
            packed = dict[int, int]()
            for run, place, length in strips.runs[first_run:end_run]:
                packed |= {int(place) + i: int(base + run) + i * strips.step for i in range(length)}
            for tile, pixel in strips.tiles[first:end]:
                for lane in range(strips.vectors * lanes):
                    row, column = divmod(int(pixel) + lane, out.strides[2])
                    if row >= half or column >= half:
                        continue
                    for (down, across), tap in zip(itertools.product(range(kernel), repeat=2), strips.taps):
                        at = (2 * row + down - kernel // 2, 2 * column + across - kernel // 2)
                        assert packed[int(tile) + lane + tap] == at[0] * source.strides[2] + at[1]
    assert several


def _tiles(node: Node, feeds: dict[str, Array], constants: dict[str, Array], target: str) -> str:
    """What is told of the tiles of a network of one node."""
    graph = graph_of([node], feeds, ["y"], constants)
    steps = planned(graph, (RUN_TARGETS | WIDTHS)[target]).steps
    return "; ".join(str(step.info.get("tile", "")) for step in steps)


def _segmented(seed: int) -> tuple[Node, dict[str, Array], dict[str, Array]]:
    """An integer convolution that may be cut into segments, of long rows or of several short ones."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([2, 2, 3]))
    kernel = (*rng.choice([1, 2, 3], rank - 1), int(rng.choice([2, 3, 5, 11])))
    dilations = tuple(int(d) for d in rng.choice([1, 1, 2], rank))
    long = kernel[-1] > 5 or rng.random() < 0.4
    columns = int(rng.integers(72, 200) if long else rng.choice([14, 18, 24, 28, 32, 43, 50]))
    strides = (1,) * rank
    if rank == 2 and rng.random() < 0.5:
        strides = tuple(int(s) for s in rng.choice([[2, 2], [1, 2], [2, 1], [3, 2]]))
        columns = columns * strides[1] + int(rng.integers(-1, 2))
    spatial = (*rng.integers(7, 20 if rank == 2 else 9, rank - 1), columns)
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * rank))
    group = int(rng.choice([1, 1, 2]))
    inputs, outputs = group * int(rng.integers(2, 20)), group * int(rng.integers(1, 12))
    x_type = rng.choice([np.uint8, np.int8])
    w = _bytes(rng, np.int8, (outputs, inputs // group, *kernel))
    w[rng.random(w.shape) < rng.choice([0.0, 0.6, 0.9])] = 0
    constants = {"w": w, "xz": _bytes(rng, x_type, ())}
    names = ("x", "w", "xz")
    attributes = {
        "pads": pads,
        "group": group,
        "dilations": dilations,
        "kernel_shape": kernel,
        "strides": strides,
    }
    x = _bytes(rng, x_type, (int(rng.integers(1, 3)), inputs, *spatial))
    return Node("ConvInteger", names, ("y",), attributes, "conv"), {"x": x}, constants


@pytest.mark.parametrize("target", [*TARGETS, "16 lanes"])
@pytest.mark.parametrize("seed", few(range(400, 440), 11))
def test_segments_of_rows(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = _in_segments(monkeypatch, (8, 16)[seed // 2 % 2])
    node, feeds, constants = _segmented(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)
    assert ("segments" in _tiles(node, feeds, constants, target)) == bool(ways)


@pytest.mark.parametrize("target", [*TARGETS, "16 lanes"])
@pytest.mark.parametrize(("spatial", "stacked"), [((19, 130), 2), ((25, 30), 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("group", [8, 16])
def test_tiles_below_each_other_share_rows(
    group: int,
    stride: int,
    spatial: tuple[int, int],
    stacked: int,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A strip packs the rows that several tiles below each other read once; the last strip overlaps."""
    monkeypatch.setattr(integer_segments, "STACKED", (stacked,))
    ways = _in_segments(monkeypatch, group)
    rng = np.random.default_rng(group + stride)
    constants = {"w": _bytes(rng, np.int8, (5, 9, 3, 3)), "xz": _bytes(rng, np.uint8, ())}
    window = {"pads": (1,) * 4, "kernel_shape": (3, 3), "strides": (stride,) * 2}
    x = _bytes(rng, np.uint8, (1, 9, *(stride * size for size in spatial)))
    node = Node("ConvInteger", ("x", "w", "xz"), ("y",), window, "conv")
    check_node(node, {"x": x}, constants, target=target, threads=2, tolerance=0)
    assert ("segments" in _tiles(node, {"x": x}, constants, target)) == bool(ways)
    assert bool(ways) == ((RUN_TARGETS | WIDTHS)[target].lanes(I32) in (8, 16))


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("segmented", [False, True])
def test_strips_that_come_from_memory(segmented: bool, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next strip is asked for, of whatever size and number of channels."""
    asked = list[Value]()
    ask = asking.Asking.ask

    def recorded(self: asking.Asking, planes: Value, row: Value, channels: Value | int) -> None:
        asked.append(row)
        ask(self, planes, row, channels)

    monkeypatch.setattr(asking.Asking, "ask", recorded)
    monkeypatch.setattr(integer_code, "is_far", lambda *_: True)
    monkeypatch.setattr(integer_panel, "choose", lambda *_: None)
    monkeypatch.setattr(integer_wired, "is_possible", lambda *_: False)
    if segmented:
        _in_segments(monkeypatch)
    for seed in range(400, 406):
        node, feeds, constants = (_segmented if segmented else _case)(seed)
        check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)
    assert asked


@pytest.mark.parametrize("target", [*TARGETS, "16 lanes"])
@pytest.mark.parametrize("spatial", [(11, 130), (14, 14), (7, 7), (19, 40), (19, 64)])
@pytest.mark.parametrize(
    ("group", "signed"),
    [
        (8, False),
        (16, True),
        pytest.param(8, True, marks=pytest.mark.slow),
        pytest.param(16, False, marks=pytest.mark.slow),
    ],
)
def test_chains_in_segments(
    spatial: tuple[int, int], group: int, signed: bool, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residuals are spread as sums are."""
    _in_segments(monkeypatch, group)
    graph, x = _quantised(np.random.default_rng(5), True, signed, 3, spatial)
    wanted = evaluate(graph, {"x": x})[graph.outputs[0]]
    assert len(np.unique(wanted)) > 10
    on = (RUN_TARGETS | WIDTHS)[target]
    (got,) = run_graph(graph, {"x": x}, on, threads=2)
    np.testing.assert_array_equal(got, wanted)
    assert any("segments" in step.info.get("tile", "") for step in planned(graph, on, 2).steps)


def _transposed(seed: int) -> tuple[Node, dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 3]))
    shuffle = rng.random() < 0.4
    strides = tuple(int(s) for s in rng.integers(1, 4, rank)) if not shuffle else (2,) * rank
    kernel = strides if shuffle else tuple(int(k) for k in rng.integers(1, 5, rank))
    pads = (
        (0,) * 2 * rank
        if shuffle
        else tuple(int(p) for p in rng.integers(0, 2, 2 * rank) * (min(kernel) > 2))
    )
    group, per_group = int(rng.choice([1, 1, 2])), int(rng.integers(1, 8))
    inputs = group * int(rng.integers(1, 12))
    spatial = tuple(int(s) for s in rng.choice([2, 5, 8, 9, 17], rank))
    x_type, w_type = rng.choice([np.uint8, np.int8], 2)
    constants = {"w": _bytes(rng, w_type, (inputs, per_group, *kernel))}
    if rng.random() < 0.5:
        constants["wz"] = _bytes(rng, w_type, () if rng.random() < 0.5 else (group * per_group,))
    if rng.random() < 0.7:
        constants["xz"] = _bytes(rng, x_type, ())
    if rng.random() < 0.7:
        constants["b"] = rng.integers(-10000, 10000, group * per_group).astype(np.int32)
    names = ("x", "w", *(name if name in constants else "" for name in ("xz", "wz", "b")))
    attributes = {"strides": strides, "pads": pads, "group": group, "kernel_shape": kernel}
    x = _bytes(rng, x_type, (int(rng.integers(1, 3)), inputs, *spatial))
    return Node("ConvTransposeInteger", names, ("y",), attributes, "transposed"), {"x": x}, constants


@pytest.mark.parametrize("target", [*TARGETS, "4 lanes"])
@pytest.mark.parametrize("seed", range(15))
def test_random_transposed_convolutions(seed: int, target: str) -> None:
    node, feeds, constants = _transposed(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


class _Plain(Dot):
    """Products that any CPU computes, in the form of vpdpbusd (unsigned activations) or sdot (signed)."""

    def add(self, f: Function, total: Value, quads: Sequence[Value], weights: Sequence[Value]) -> Value:
        for x, w in zip(quads, weights):
            for k in range(4):
                a, b = ((v << (24 - 8 * k)) >> 24 for v in (x, w))
                total = total + (a if self.signed else a & 255) * b
        return total


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", few(range(200, 215), 6))
def test_forms_of_other_targets(seed: int, signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = _Plain("plain", 4, signed, 1, False, -127 if signed else -128, 127)
    monkeypatch.setattr(Dot, "of", lambda target: dot)
    monkeypatch.setattr(Dot, "all", lambda target: [dot])
    for node, feeds, constants in (_case(seed), _transposed(seed)):
        check_node(node, feeds, constants, tolerance=0)


@pytest.mark.parametrize("value", [-128, 127])
def test_the_largest_products_do_not_overflow(value: int) -> None:
    w = np.full((9, 70, 3, 3), value, np.int8)
    w[::2, ::3] = -128
    node = Node("ConvInteger", ("x", "w"), ("y",), {"pads": (1, 1, 1, 1), "kernel_shape": (3, 3)}, "conv")
    check_node(node, {"x": np.full((1, 70, 9, 11), 255, np.uint8)}, {"w": w}, tolerance=0)


def _quantised(
    rng: np.random.Generator, residual: bool, signed: bool, hosts: int, spatial: tuple[int, int] = (13, 10)
) -> tuple[Graph, Array]:
    """A chain of convolutions, each quantised to bytes with a zero point, some with a residual."""
    dtype, point = (np.int8, -3) if signed else (np.uint8, 7)
    nodes: list[Node] = []
    constants: dict[str, Array] = {"z": np.array(point, dtype), "s": np.array(0.05, np.float32)}
    value, channels = "x", 11
    x = rng.integers(0, 100, (2, channels, *spatial)).astype(dtype)
    for i in range(hosts):
        size, stride = (3, 1 + i % 2) if i % 3 != 2 else (1, 1)
        keep = residual and stride == 1
        constants[f"w{i}"] = rng.integers(-127, 128, (channels, channels, size, size)).astype(np.int8)
        constants[f"m{i}"] = rng.uniform(1e-4, 1e-3, (channels, 1, 1)).astype(np.float32)
        steps = [Apply("Cast", (0,), (("to", "float32"),)), Apply("Mul", (0, 1))]
        inputs = 5 if keep else 4
        extras = [f"m{i}", "s", "z"]
        if keep:
            steps += [Apply("DequantizeLinear", (4, 2, 3)), Apply("Add", (0, 0)), Apply("Relu", (0,))]
            extras.append(value)
        else:
            steps.append(Apply("Relu", (0,)))
        # Steps refer to the one before them, a sum to the two before.
        fixed = []
        for k, step in enumerate(steps):
            here = inputs + k - 1
            arguments = {
                "Cast": (0,),
                "Mul": (here, 1),
                "DequantizeLinear": (4, 2, 3),
                "Add": (here - 1, here),
                "Relu": (here,),
            }[step.op]
            fixed.append(Apply(step.op, arguments, step.attributes))
        fixed.append(Apply("QuantizeLinear", (inputs + len(fixed) - 1, 2, 3)))
        attributes = {
            "kernel_shape": (size, size),
            "pads": (size // 2,) * 4,
            "strides": (stride, stride),
            "epilogue": Expression(inputs, tuple(fixed)),
        }
        names = (value, f"w{i}", "z", "", "", *extras)
        nodes.append(Node("ConvInteger", names, (f"v{i}",), attributes, f"conv{i}"))
        value = f"v{i}"
    return graph_of(nodes, {"x": x}, [value], constants), x


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("target", [*TARGETS, "16 lanes"])
@pytest.mark.parametrize("seed", few(range(500, 512), 4))
def test_quantised_phases(seed: int, target: str, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases that take turns as they are stored, and phases that are put together after."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(cost, "copy", lambda machine, size: 1e9 if together else -1e9)
    dtype, point = (np.int8, -3) if seed % 2 else (np.uint8, 7)
    rank = 3 if seed % 5 == 4 else 2
    group, per_group = int(rng.choice([1, 2])), int(rng.integers(1, 6))
    outputs, inputs = group * per_group, group * int(rng.integers(1, 9))
    spatial = (*(int(n) for n in rng.integers(1, 5, rank - 1)), int(rng.integers(1, 70)))
    constants = {
        "w": _bytes(rng, np.int8, (inputs, per_group, *(2,) * rank)),
        "m": rng.uniform(1e-4, 1e-3, (outputs, *(1,) * rank)).astype(np.float32),
        "s": np.array(0.05, np.float32),
        "z": np.array(point, dtype),
        "b": rng.integers(-1000, 1000, outputs).astype(np.int32),
    }
    steps = (
        Apply("Cast", (0,), (("to", "float32"),)),
        Apply("Mul", (4, 1)),
        Apply("QuantizeLinear", (5, 2, 3)),
    )
    attributes = {
        "kernel_shape": (2,) * rank,
        "strides": (2,) * rank,
        "group": group,
        "epilogue": Expression(4, steps),
    }
    names = ("x", "w", "z", "", "b", "m", "s", "z")
    x = rng.integers(0, 100, (2, inputs, *spatial)).astype(dtype)
    graph = graph_of(
        [Node("ConvTransposeInteger", names, ("y",), attributes, "t")], {"x": x}, ["y"], constants
    )
    wanted = evaluate(graph, {"x": x})["y"]
    (got,) = run_graph(graph, {"x": x}, (RUN_TARGETS | WIDTHS)[target], threads=1 + seed % 2)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_chains_of_quantised_convolutions(residual: bool, signed: bool, target: str) -> None:

    graph, x = _quantised(np.random.default_rng(3), residual, signed, 5)
    wanted = evaluate(graph, {"x": x})[graph.outputs[0]]
    assert len(np.unique(wanted)) > 10
    (got,) = run_graph(graph, {"x": x}, (RUN_TARGETS | WIDTHS)[target], threads=2)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize(("place", "dtype"), [(0, "uint8"), (7, "int8"), (128, "int8"), (255, "uint8")])
def test_bytes_between_a_product_and_a_residual(place: int, dtype: str, target: str) -> None:
    """Sums on both sides of the limits, wherever 0 lies between these."""
    rng = np.random.default_rng(place)
    point = np.array(place + np.iinfo(dtype).min, dtype)
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 8, 32)
    r = rng.permutation(np.arange(256) + np.iinfo(dtype).min).astype(dtype).reshape(1, 1, 8, 32)
    r = np.repeat(r, 9, axis=1)
    constants = {
        "w": np.array([-127, -40, -3, -1, 0, 1, 3, 40, 127], np.int8).reshape(9, 1, 1, 1),
        "m": np.full((9, 1, 1), 0.03, np.float32),
        "s": np.array(0.25, np.float32),
        "t": np.array(0.31, np.float32),
        "z": point,
    }
    steps = (
        Apply("Cast", (0,), (("to", "float32"),)),
        Apply("Mul", (6, 1)),
        Apply("QuantizeLinear", (7, 2, 3)),
        Apply("DequantizeLinear", (8, 2, 3)),
        Apply("DequantizeLinear", (4, 2, 3)),
        Apply("Add", (9, 10)),
        Apply("QuantizeLinear", (11, 5, 3)),
    )
    attributes = {"kernel_shape": (1, 1), "epilogue": Expression(6, steps)}
    node = Node("ConvInteger", ("x", "w", "", "", "", "m", "s", "z", "r", "t"), ("y",), attributes, "conv")
    feeds = {"x": x, "r": r}
    graph = graph_of([node], feeds, ["y"], constants)
    wanted = evaluate(graph, feeds)["y"]
    (got,) = run_graph(graph, feeds, (RUN_TARGETS | WIDTHS)[target])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_convolutions_around_one_that_reads_planes(
    density: float, threads: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks as MobileNetV2 has them, whose threads make channels of their own."""
    made = list[bool]()
    work = integer_code.Choice.work
    monkeypatch.setattr(
        integer_code.Choice, "work", lambda c, *a: made.append(work(c, *a).channels_first) or work(c, *a)
    )
    rng = np.random.default_rng(threads)
    shapes = {"w0": (83, 36, 1, 1), "w1": (83, 1, 3, 3), "w2": (19, 83, 1, 1)}
    constants: dict[str, Array] = {"z": np.array(7, np.uint8), "s": np.array(0.05, np.float32)}
    steps = (
        Apply("Cast", (0,), (("to", "float32"),)),
        Apply("Mul", (4, 1)),
        Apply("QuantizeLinear", (5, 2, 3)),
    )
    x, nodes = rng.integers(0, 100, (1, 36, 14, 14)).astype(np.uint8), list[Node]()
    for i, (name, shape) in enumerate(shapes.items()):
        zero = rng.random((shape[0], -(-shape[1] // 4), 1, 1)).repeat(4, axis=1)[:, : shape[1]] > density
        constants[name] = np.where(zero, 0, rng.integers(-127, 128, shape)).astype(np.int8)
        constants[f"m{i}"] = rng.uniform(1e-4, 1e-3, (shape[0], 1, 1)).astype(np.float32)
        attributes = {
            "kernel_shape": shape[2:],
            "pads": (shape[2] // 2,) * 4,
            "group": 83 if i == 1 else 1,
            "epilogue": Expression(4, steps),
        }
        inputs = (f"v{i - 1}" if i else "x", name, "z", "", "", f"m{i}", "s", "z")
        nodes.append(Node("ConvInteger", inputs, (f"v{i}",), attributes, f"conv{i}"))
    graph = graph_of(nodes, {"x": x}, ["v2"], constants)
    (got,) = run_graph(graph, {"x": x}, (RUN_TARGETS | WIDTHS)[target], threads)
    np.testing.assert_array_equal(got, evaluate(graph, {"x": x})["v2"])
    if density < 1:
        assert made[0]
        assert not any(made[1:])


@pytest.mark.parametrize("name", INTEGER_TARGETS)
def test_code_is_made_for_other_targets(name: str) -> None:
    for seed in (0, 3, 8):
        node, feeds, constants = _case(seed)
        Planner(graph_of([node], feeds, ["y"], constants), INTEGER_TARGETS[name], 2).program()
