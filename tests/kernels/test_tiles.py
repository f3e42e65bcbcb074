"""How pixels are cut into tiles, and tiles into the tasks of threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support import RUN_TARGETS, TARGETS, check_node, graph_of, run_graph

from coresident.graph.graph import Node
from coresident.graph.operator import evaluate
from coresident.kernels import sparse
from coresident.kernels.frame import Frame
from coresident.kernels.geometry import can_run_flat, tiles, tiles_of_spans
from coresident.kernels.layout import Layout
from coresident.kernels.tiling import Cut, cut, evened, unevenness


@pytest.mark.parametrize("spans", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 13, 14, 28, 56])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_spans_are_equal_and_cover_each_vector_once(lanes: int, size: int, spans: int) -> None:
    layout = Layout.planar((1, 1, size, size), (0, 1), ((0, 0), (0, 0)), lanes)
    strides = layout.strides[2:]
    assert can_run_flat(strides, layout, [layout], lanes)
    pixels = (size - 1) * strides[0] + size
    found = 0
    for vectors in range(1, 12):
        t = tiles_of_spans(strides, layout, [layout], lanes, vectors, True, spans)
        if t is None:
            continue
        found += 1
        held = [(int(row[1]) // lanes, size) for row, size in zip(t.table, t.sizes)]
        covered = [first + i for first, size in held for i in range(size)]
        assert covered == list(range(-(-pixels // lanes)))
        assert t.vector_steps == len(covered)
        assert sum(size == t.vectors for _, size in held) == t.full
        bounds = [-(-len(covered) * i // spans) for i in range(spans)]
        assert not set(bounds) - {first for first, _ in held} - {len(covered)}
    assert found


def test_tiles_of_rows_know_which_are_full() -> None:
    layout = Layout.planar((1, 1, 3, 21), (0, 0), ((0, 0), (0, 0)), 8)
    t = tiles(layout.strides[2:], layout, [], 8, 2, flat=False)
    assert t.mixed
    assert (t.full, t.rest_vectors, t.rest_last) == (3, 1, 5)
    np.testing.assert_array_equal(t.table[:, -1], [1, 0] * 3)
    assert t.sizes == [2, 1] * 3


def test_threads_that_share_evenly_wait_for_nobody() -> None:
    assert unevenness(cut(34, 64, 1, 2, 1e6), [3] * 34, 2) == 1
    assert unevenness(cut(13, 64, 1, 2, 1e6), [4] * 13, 2) == pytest.approx(14 / 13)
    sizes = [5, 5, 5, 5, 5, 1, 5, 5, 5, 5, 5]
    assert unevenness(cut(11, 64, 1, 2, 1e6), sizes, 2) == pytest.approx(52 / 51)
    # Who is done takes what nobody has begun.
    assert unevenness(Cut(6, 6, 1, 1, 1, 1), [5, 5, 5, 3, 3, 3], 2) == pytest.approx(28 / 24)
    assert unevenness(Cut(6, 6, 1, 1, 1, 1), [5, 5, 5, 5, 5, 3], 2) == pytest.approx(30 / 28)
    assert unevenness(Cut(8, 8, 1, 1, 1, 1), [5, 5, 5, 5, 2, 2, 2, 2], 2) == pytest.approx(30 / 28)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 16])
def test_tiles_at_which_threads_meet_are_cut_by_rows(threads: int) -> None:
    cut_any = 0
    for tiles_, rows in itertools.product(range(1, 60), (1, 3, 12, 65)):
        grid = cut(tiles_, rows, 1, threads, 1e7)
        work = evened(grid, threads)
        if not work.pieces:
            assert work == grid
            continue
        cut_any += 1
        done = np.zeros((tiles_, rows), int)
        for first, end, first_part, end_part in work.pieces:
            begin, stop = work.row_range(first_part)[0], work.row_range(end_part - 1)[1]
            done[first:end, begin:stop] += 1
        assert (done == 1).all()
        assert work.begun == len(work.pieces)
        assert work.tasks == len(work.pieces)
        whole = [(first, end) == (0, work.row_parts) for _, _, first, end in work.pieces]
        starts = [-(-len(whole) * thread // threads) for thread in range(threads + 1)]
        if threads == 2:  # more may start within what was made for another
            assert all(sorted(own, reverse=True) == own for own in (whole[: starts[1]], whole[starts[1] :]))
        before, after = (unevenness(way, [1] * tiles_, threads) for way in (grid, work))
        assert (after, work.begun) < (before, grid.begun)
    assert (cut_any > 0) == (threads > 1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [28, 43])
def test_sparse_tiles_that_are_cut_by_rows(
    size: int, kernel: int, threads: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tile at which threads meet is cut, whatever that costs."""
    taken = list[Cut]()
    monkeypatch.setattr(
        sparse.Choice, "together", lambda c, *a: c.cycles * (1.0 if c.work(*a).pieces else 1e6)
    )
    opened = Frame.open
    monkeypatch.setattr(Frame, "open", lambda *a, **k: taken.append(a[4]) or opened(*a, **k))
    rng = np.random.default_rng(size)
    weights = rng.standard_normal((37, 40, kernel, kernel)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.85] = 0
    constants = {"w": weights, "b": rng.standard_normal(37).astype(np.float32)}
    x = rng.standard_normal((1, 40, size, size)).astype(np.float32)
    node = Node("Conv", ("x", "w", "b"), ("y",), {"pads": (kernel // 2,) * 4, "kernel_shape": (kernel,) * 2})
    check_node(node, {"x": x}, constants, target=target, threads=threads)
    assert any(work.pieces for work in taken)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_get_channels_of_their_own_where_planes_are_read(threads: int) -> None:
    for tiles_, rows, unit in itertools.product(range(1, 20), range(threads, 70, 5), (1, 3)):
        if -(-rows // unit) < threads:
            continue
        work = cut(tiles_, rows, 1, threads, 1e7, unit, channels_first=True)
        assert work.channels_first
        assert work.row_parts % threads == 0
        assert work.tasks <= 4 * threads
        assert evened(work, threads) == work
        sizes = [end - first for first, end in map(work.row_range, range(work.row_parts))]
        assert sum(sizes) == rows
        each = len(sizes) // threads
        most = max(sum(sizes[thread * each : (thread + 1) * each]) for thread in range(threads))
        assert unevenness(work, [1] * tiles_, threads) <= most * threads / rows + 1e-9


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize(("size", "channels"), [(14, 83), (7, 64), (5, 7)])
def test_convolutions_around_one_that_reads_planes(
    channels: int, size: int, density: float, threads: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks as MobileNetV2 has them, whose threads make channels of their own where there are enough."""
    taken = list[Cut]()
    opened = Frame.open
    monkeypatch.setattr(Frame, "open", lambda *a, **k: taken.append(a[4]) or opened(*a, **k))
    rng = np.random.default_rng(channels)

    def weights(*shape: int, density: float = density) -> np.ndarray:
        return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)

    constants = {
        "w": weights(channels, 96, 1, 1),
        "d": weights(channels, 1, 3, 3, density=1.0),
        "p": weights(32, channels, 1, 1),
    }
    x = {"x": rng.standard_normal((1, 96, size, size)).astype(np.float32)}
    nodes = [
        Node("Conv", ("x", "w"), ("e",), {"kernel_shape": (1, 1)}),
        Node("Conv", ("e", "d"), ("s",), {"kernel_shape": (3, 3), "pads": (1,) * 4, "group": channels}),
        Node("Conv", ("s", "p"), ("y",), {"kernel_shape": (1, 1)}),
    ]
    graph = graph_of(nodes, x, ["y"], constants)
    wanted = evaluate(graph, x)["y"]
    (found,) = run_graph(graph, x, RUN_TARGETS[target], threads)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if size == 14 and density < 1:
        assert taken[0].channels_first
        assert not any(work.channels_first for work in taken[1:])
