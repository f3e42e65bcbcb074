"""What is sampled at computed places, or written there, against the reference; places may be any numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded import Bench, check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, TARGETS, graph_of, run_graph

from coresident.graph.graph import Node
from coresident.graph.operators.sampling import GRID_PADDINGS

Array = np.ndarray[Any, Any]
SEED = 23


def _check(
    node: Node,
    feeds: dict[str, Array],
    seed: int,
    target: str,
    constants: dict[str, Array] | None = None,
    tolerance: float = 2e-4,
) -> None:
    """In random layouts for each other seed, else in C order."""
    graph = graph_of([node], feeds, node.outputs, constants)
    rng = np.random.default_rng(seed)
    layouts = {}
    if seed % 2:
        shapes = {name: graph.fact(name).sizes for name in (*feeds, *node.outputs)}  # type: ignore[union-attr]
        layouts = {name: random_layout(rng, shape) for name, shape in shapes.items()}
    hint = (seed, node, {name: a.shape for name, a in feeds.items()})
    check_lowering(
        graph,
        feeds,
        RUN_TARGETS[target],
        layouts=layouts,
        threads=1 + seed % 3,
        tolerance=tolerance,
        hint=hint,
    )


def _sizes(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.choice((1, 2, 3, 5, 8, 9), count))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(36))
def test_grid_sample(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    x = random_array(rng, (*_sizes(rng, 2), *_sizes(rng, rank)), (np.float32, np.float64)[seed % 5 == 4])
    grid = rng.uniform(-1.4, 1.4, (x.shape[0], *_sizes(rng, rank), rank)).astype(x.dtype)
    mode = ("nearest", "linear", "cubic")[seed % 3] if rank < 3 else ("nearest", "linear")[seed % 2]
    attributes = {"mode": mode, "padding_mode": GRID_PADDINGS[seed // 3 % 3], "align_corners": seed // 9 % 2}
    _check(Node("GridSample", ("x", "grid"), ("y",), attributes), {"x": x, "grid": grid}, seed, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [7, 15, 16, 17, 33])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample_of_many_channels(mode: str, channels: int, target: str) -> None:
    """Vectors of channels."""
    rng = np.random.default_rng([SEED, channels])
    x = random_array(rng, (2, channels, 5, 7), np.float32)
    grid = rng.uniform(-1.4, 1.4, (2, 6, 9, 2)).astype(np.float32)
    node = Node("GridSample", ("x", "grid"), ("y",), {"mode": mode, "padding_mode": "zeros"})
    for seed in (channels, channels + 1):
        _check(node, {"x": x, "grid": grid}, seed, target)


@pytest.mark.parametrize("channels", [1, 17])
def test_what_is_outside_hides_infinities(channels: int) -> None:
    feeds = {
        "x": np.full((1, channels, 5, 7), np.inf, np.float32),
        "grid": np.full((1, 6, 9, 2), -3, np.float32),
    }
    node = Node("GridSample", ("x", "grid"), ("y",), {"mode": "linear", "padding_mode": "zeros"})
    assert not run_graph(graph_of([node], feeds, ["y"]), feeds)[0].any()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("groups", "channels"), [(1, 17), (2, 32), (3, 27), (2, 48)])
def test_deformed_columns_of_many_channels(groups: int, channels: int, target: str) -> None:
    rng = np.random.default_rng([SEED, groups, channels])
    feeds = {
        "x": random_array(rng, (2, channels, 6, 5), np.float32),
        "offset": rng.uniform(-2, 2, (2, groups * 18, 6, 5)).astype(np.float32),
        "mask": rng.random((2, groups * 9, 6, 5)).astype(np.float32),
    }
    attributes = {"kernel_shape": (3, 3), "offset_group": groups, "pads": (1, 1, 1, 1)}
    for seed in (channels, channels + 1):
        _check(Node("DeformedColumns", tuple(feeds), ("y",), attributes), feeds, seed, target)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", GRID_PADDINGS)
def test_any_place_is_held_to_the_picture(mode: str, padding: str) -> None:
    x = random_array(np.random.default_rng(0), (1, 2, 5, 7), np.float32)
    places = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, 0.1]
    grid = np.array([[[[a, b] for a in places] for b in places]], np.float32)
    node = Node("GridSample", ("x", "grid"), ("y",), {"mode": mode, "padding_mode": padding})
    graph = graph_of([node], {"x": x, "grid": grid}, ["y"])
    bench = Bench(graph)
    bench.place("x", bench.tensor("x").layout, x.dtype, x)
    bench.place("grid", bench.tensor("grid").layout, grid.dtype, grid)
    bench.lower()
    assert not bench.overrun()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(16))
def test_roi_align(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    x = random_array(rng, (*_sizes(rng, 2), *_sizes(rng, 2)), np.float32)
    count = int(rng.integers(0, 5))
    corners = np.sort(rng.uniform(-2, 12, (count, 2, 2)), axis=1)
    rois = corners.reshape(count, 4).astype(np.float32)
    batch = rng.integers(-1, x.shape[0] + 1, count)
    attributes = {
        "output_height": int(rng.integers(1, 4)),
        "output_width": int(rng.integers(1, 4)),
        "sampling_ratio": int(rng.integers(0, 3)),
        "spatial_scale": float(rng.choice((1.0, 0.5))),
        "mode": ("avg", "max")[seed % 2],
        "coordinate_transformation_mode": ("half_pixel", "output_half_pixel")[seed // 2 % 2],
    }
    node = Node("RoiAlign", ("x", "rois", "batch"), ("y",), attributes)
    _check(node, {"x": x, "rois": rois, "batch": batch}, seed, target)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 3])
def test_regions_beyond_the_picture(mode: str, ratio: int) -> None:
    """A region as large as it likes takes no longer than the picture is large."""
    x = -1 - np.random.default_rng(0).random((1, 700, 5, 6), np.float32)
    ends = [(-9, -9, 30, 40), (2, 1, 900, 3), (-5, -7, 3, 2), (3, 3, 1, 2), (-1e20, -1e20, 1e20, 1e20)]
    rois, batch = np.array(ends, np.float32), np.zeros(len(ends), np.int64)
    attributes = {"output_height": 2, "output_width": 3, "mode": mode, "sampling_ratio": ratio}
    node = Node("RoiAlign", ("x", "rois", "batch"), ("y",), attributes)
    few = {"x": x[:, :2], "rois": rois[:-1], "batch": batch[:-1]}
    _check(node, few, 0, TARGETS[0], tolerance=1e-4)
    feeds = {"x": x, "rois": rois, "batch": batch}
    (y,) = run_graph(graph_of([node], feeds, ["y"]), feeds)
    assert np.abs(y[-1]).max() <= (2 if ratio else 1e-3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(16))
def test_deformed_columns(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    x = random_array(rng, (int(rng.integers(1, 3)), groups * 2, *rng.integers(3, 8, rank)), np.float32)
    kernel = tuple(int(n) for n in rng.integers(1, 4, rank))
    pads = tuple(int(n) for n in rng.integers(0, 2, 2 * rank))
    attributes = {"kernel_shape": kernel, "pads": pads, "offset_group": groups}
    output = [n + a + b - k + 1 for n, a, b, k in zip(x.shape[2:], pads, pads[rank:], kernel)]
    taps = int(np.prod(kernel))
    offset = rng.uniform(-2, 2, (x.shape[0], groups * taps * rank, *output)).astype(np.float32)
    feeds = {"x": x, "offset": offset}
    if seed % 2:
        feeds["mask"] = rng.random((x.shape[0], groups * taps, *output)).astype(np.float32)
    _check(Node("DeformedColumns", tuple(feeds), ("y",), attributes), feeds, seed, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(20))
def test_scattered_rows(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, count = (int(n) for n in rng.choice((1, 2, 7, 8, 17), 3))
    dtype = (np.float32, np.int64, np.int32, np.uint8)[seed % 4]
    how = ("none", "add", "mul", "max", "min")[seed % 5]
    # Indices far outside are held to the rows that there are.
    low, high = (0, rows) if seed % 4 else (-(2**40), 2**40)
    feeds = {
        "x": random_array(rng, (rows, columns), dtype),
        "i": rng.integers(low, high, count),
        "u": random_array(rng, (count, columns), dtype),
    }
    if seed % 4 == 0:
        feeds["i"] = np.abs(feeds["i"])
    _check(Node("ScatterRows", ("x", "i", "u"), ("y",), {"reduction": how}), feeds, seed, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(12))
def test_running_sums(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    shape = _sizes(rng, int(rng.integers(1, 4)))
    attributes = {"exclusive": seed // 2 % 2, "reverse": seed // 4 % 2}
    dtype = (np.float32, np.int32, np.int64, np.float64)[seed % 4]
    constants = {"axis": np.array(int(rng.integers(-len(shape), len(shape))))}
    node = Node("CumSum", ("x", "axis"), ("y",), attributes)
    _check(node, {"x": random_array(rng, shape, dtype)}, seed, target, constants, 1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(16))
def test_pools_with_indices(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    kernel = tuple(int(n) for n in rng.integers(1, 4, rank))
    attributes = {
        "kernel_shape": kernel,
        "strides": tuple(int(n) for n in rng.integers(1, 3, rank)),
        "dilations": tuple(int(n) for n in rng.integers(1, 3, rank)),
        "pads": tuple(int(rng.integers(0, k)) for k in (*kernel, *kernel)),
        "ceil_mode": int(rng.integers(2)),
        "storage_order": int(rng.integers(2)),
    }
    x = random_array(rng, (2, 3, *rng.integers(5, 9, rank)), (np.float32, np.int8, np.uint8)[seed % 3])
    if seed % 3 == 0:
        x[rng.random(x.shape) < 0.1] = np.nan
    _check(Node("MaxPool", ("x",), ("y", "i"), attributes), {"x": x}, seed, target, tolerance=0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(16))
def test_columns_and_their_sum(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    kernel, strides, dilations = (tuple(int(n) for n in rng.integers(1, 4, rank)) for _ in range(3))
    pads = tuple(int(n) for n in rng.integers(0, 3, 2 * rank))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    spatial = [e + int(rng.integers(0, 6)) for e in extent]
    shared = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    x = random_array(rng, (2, 3, *spatial), np.float32)
    _check(Node("Columns", ("x",), ("y",), {**shared, "pads": pads}), {"x": x}, seed, target)
    windows = tuple(
        (n + a + b - e) // s + 1 for n, a, b, e, s in zip(spatial, pads, pads[rank:], extent, strides)
    )
    folded = {**shared, "pads_begin": pads[:rank], "image_shape": tuple(spatial), "windows": windows}
    columns = random_array(rng, (2, 3, int(np.prod(kernel)), int(np.prod(windows))), np.float32)
    graph = graph_of([Node("Fold", ("x",), ("y",), folded)], {"x": columns}, ["y"])
    check_lowering(graph, {"x": columns}, RUN_TARGETS[target], tolerance=1e-4, hint=seed)


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS)
def test_other_machines(target: Any) -> None:
    x, index = np.ones((1, 2, 5, 5), np.float32), np.zeros(3, np.int64)
    grid, rois = np.ones((1, 3, 3, 2), np.float32), np.ones((3, 4), np.float32)
    rows = {"x": x[0, 0], "i": index, "u": x[0, 0, :3]}
    offset = np.ones((1, 18, 3, 3), np.float32)
    fold = {
        "kernel_shape": (2,), "strides": (1,), "dilations": (1,), "pads_begin": (1,), "image_shape": (4,),
        "windows": (5,),
    }  # fmt: skip
    for node, feeds in (
        (Node("GridSample", ("x", "g"), ("y",), {"mode": "cubic"}), {"x": x, "g": grid}),
        (Node("RoiAlign", ("x", "r", "i"), ("y",)), {"x": x, "r": rois, "i": index}),
        (Node("DeformedColumns", ("x", "o"), ("y",), {"kernel_shape": (3, 3)}), {"x": x, "o": offset}),
        (Node("ScatterRows", ("x", "i", "u"), ("y",), {"reduction": "max"}), rows),
        (Node("MaxPool", ("x",), ("y", "j"), {"kernel_shape": (2, 2)}), {"x": x}),
        (Node("Columns", ("x",), ("y",), {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}), {"x": x}),
        (Node("Fold", ("x",), ("y",), fold), {"x": x[:, :, :2]}),
    ):
        check_emission(graph_of([node], feeds, ["y"]), feeds, target)
