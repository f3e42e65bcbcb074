"""Rows cut into stripes: what lies between sparse convolutions of larger kernels.

Hundreds with

    python -m pytest -m slow tests/kernels/test_stripes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import HOST, RUN_TARGETS, TARGETS, check_graph, few, graph_of

from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.graph.graph import Graph, Node
from coresident.kernels import geometry, sparse, sparse_stripes, wired
from coresident.kernels.layout import Layout
from coresident.passes.pipeline import optimise
from coresident.schedule import layouts

Array = np.ndarray[Any, Any]

LANES = HOST.lanes(F32)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CPU and no share of zeros is a reason against stripes, nor are volumes."""
    monkeypatch.setattr(layouts, "STRIPED_LOADS", 0)
    monkeypatch.setattr(Target, "shuffles_apart", False)
    monkeypatch.setattr(sparse_stripes, "STRIPED_ZEROS", 0.05)
    monkeypatch.setattr(sparse_stripes, "MOST_IN_VOLUMES", 1.0)


class Drawing:
    """A network drawn by a seed, of what can read and write striped rows: convolutions, residuals and
    activations behind them, pools, transposed convolutions, concatenations; and sometimes of what can't.

    Of pictures, or of volumes."""

    def __init__(self, seed: int, rank: int = 2) -> None:
        self.rng, self.rank = np.random.default_rng(seed), rank
        heights, columns = [1, 4, 6, 8, 16, 30, 33], [2, 3, 4, 6, 8, 12]
        size = (int(self.rng.choice(heights)), LANES * int(self.rng.choice(columns)))
        if rank == 3:
            depth, height = (int(self.rng.choice([1, 2, 4, 5, 6])) for _ in range(2))
            size = (depth, height, LANES * int(self.rng.choice([2, 3, 4])))
        shape = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 5)), *size)
        self.feeds = {"x": self.rng.standard_normal(shape, dtype=np.float32)}
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": shape}
        self.made: list[str] = []

    def graph(self, steps: int) -> Graph:
        self._convolve("x")
        for _ in range(steps):
            kinds = ["wide"] * 5 + ["residual", "pool", "down", "up", "resize", "concat"] * 2
            getattr(self, f"_{self.rng.choice(kinds)}")()
        if self.rng.random() < 0.1:
            self._convolve(self.made[-1], strides=(2,) * self.rank)
        else:
            self._convolve(self.made[-1], outputs=int(self.rng.integers(1, 4)), kernel=(1,) * self.rank)
        outputs = [self.made[-1]]
        if self.rng.random() < 0.2:
            outputs.append(str(self.rng.choice(self.made[:-1])))
        return graph_of(self.nodes, self.feeds, outputs, self.constants)

    def _add(self, op: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attributes, name))
        self.shapes[name] = graph_of(self.nodes, self.feeds, [name], self.constants).facts[name].sizes
        self.made.append(name)
        return name

    def _weights(self, shape: tuple[int, ...], density: float) -> str:
        w = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        name = f"w{len(self.constants)}"
        self.constants[name] = (w * (self.rng.random(shape) < density)).astype(np.float32)
        return name

    def _convolve(
        self,
        x: str,
        outputs: int = 0,
        kernel: tuple[int, ...] = (),
        strides: tuple[int, ...] = (),
    ) -> str:
        outputs = outputs or int(self.rng.integers(5, 40))
        kernel, strides = kernel or (3,) * self.rank, strides or (1,) * self.rank
        dilations = (*(int(self.rng.integers(1, 3)) for _ in kernel[1:]), 1)
        pads = tuple(k // 2 * d for k, d in zip(kernel, dilations))
        density = float(self.rng.choice([0.05, 0.2, 0.5]))
        w = self._weights((outputs, self.shapes[x][1], *kernel), density)
        b = f"b{len(self.constants)}"
        self.constants[b] = self.rng.standard_normal(outputs).astype(np.float32)
        window = {"kernel_shape": kernel, "pads": (*pads, *pads), "dilations": dilations, "strides": strides}
        return self._add("Conv", (x, w, b), **window)

    def _recent(self) -> str:
        return str(self.rng.choice(self.made[-3:]))

    def _wide(self) -> None:
        kernels = [(3, 3), (3, 3), (3, 3), (1, 1), (5, 1), (1, 3)]
        if self.rank == 3:
            kernels = [(3, 3, 3), (3, 3, 3), (1, 1, 1), (3, 1, 1), (1, 1, 3), (1, 3, 3)]
        y = self._convolve(self._recent(), kernel=kernels[self.rng.integers(len(kernels))])
        if self.rng.random() < 0.6:
            self._add(str(self.rng.choice(["Relu", "Sigmoid", "HardSwish"])), (y,))

    def _residual(self) -> None:
        x = self._recent()
        y = self._convolve(self._convolve(x), self.shapes[x][1])
        total = self._add("Add", (x, y) if self.rng.random() < 0.5 else (y, x))
        if self.rng.random() < 0.6:
            self._add("Relu", (total,))

    def _down(self) -> None:
        strides = (*(int(self.rng.integers(1, 3)) for _ in range(self.rank - 1)), 2)
        if all(size % stride == 0 for size, stride in zip(self.shapes[self.made[-1]][2:], strides)):
            kernel = (3 if self.rng.random() < 0.7 else 1,) * self.rank
            self._convolve(self.made[-1], kernel=kernel, strides=strides)

    def _pool(self) -> None:
        x, kernel = self._recent(), tuple(map(int, self.rng.choice([1, 2, 2, 3], self.rank)))
        if all(size % k == 0 for size, k in zip(self.shapes[x][2:], kernel)):
            self._add(
                str(self.rng.choice(["MaxPool", "AveragePool", "LpPool"])),
                (x,),
                kernel_shape=kernel,
                strides=kernel,
            )

    def _up(self) -> None:
        x = self._recent()
        if self.shapes[x][-1] < 16 * LANES:
            window = (*(int(self.rng.integers(1, 3)) for _ in range(self.rank - 1)), 2)
            w = self._weights((self.shapes[x][1], int(self.rng.integers(5, 20)), *window), 1.0)
            self._add("ConvTranspose", (x, w), kernel_shape=window, strides=window)

    def _resize(self) -> None:
        x = self._recent()
        if self.shapes[x][-1] < 16 * LANES:
            factors = [self.rng.choice([1, 2, 3]) for _ in range(self.rank - 1)]
            scales = np.float32([1, 1, *factors, self.rng.choice([1, 2, 2, 4])])
            name = f"s{len(self.constants)}"
            self.constants[name] = scales
            mode = str(self.rng.choice(["nearest", "linear"]))
            corners = "asymmetric" if mode == "nearest" else "half_pixel"
            how = {"mode": mode, "coordinate_transformation_mode": corners, "nearest_mode": "floor"}
            self._add("Resize", (x, "", name), **how)

    def _concat(self) -> None:
        x = self._recent()
        self._add("Concat", (self._convolve(x), self._convolve(x)), axis=1)


def skip_zeros_by(monkeypatch: pytest.MonkeyPatch, code: bool) -> None:
    """Over stripes, by code or by streams, where the CPU can; in tiles as usual."""
    if not code:
        monkeypatch.setattr(sparse_stripes, "CODE_MARGIN", 1e9)
        return
    by_streams = sparse_stripes.ways

    def never(*arguments: Any) -> Iterator[tuple[geometry.Tiles, int, float]]:
        return ((tiles, block, 1e9 * cycles) for tiles, block, cycles in by_streams(*arguments))

    monkeypatch.setattr(sparse_stripes, "ways", never)
    monkeypatch.setattr(sparse, "MARGIN", 1e9)
    monkeypatch.setattr(sparse_stripes, "CODE_MARGIN", 0.3)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("seed", few(range(600), 16))
def test_random_networks(seed: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target = RUN_TARGETS[TARGETS[seed % len(TARGETS)]]
    skip_zeros_by(monkeypatch, bool(seed // 2 % 2) and wired.is_possible(target))
    drawing = Drawing(seed, rank)
    graph = drawing.graph(int(drawing.rng.integers(1, 7 if rank == 2 else 5)))
    check_graph(graph, drawing.feeds, target, threads=1 + seed % 3, tolerance=3e-5)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("height", [1, 2])
def test_strides_in_single_rows(height: int, code: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they read lies further apart than what is written."""
    skip_zeros_by(monkeypatch, code and wired.is_possible(HOST))
    drawing, shape = Drawing(0), (1, 4, height, 16 * LANES)
    drawing.feeds = {"x": drawing.rng.standard_normal(shape, dtype=np.float32)}
    drawing.shapes = {"x": shape}
    x = drawing._convolve("x", 16)
    for strides in ((1, 2), (height, 1), (1, 2)):
        x = drawing._convolve(x, 24, strides=strides)
    graph = graph_of(drawing.nodes, drawing.feeds, [x], drawing.constants)
    assert len(layouts.striped_values(optimise(graph), HOST)) > 2
    check_graph(graph, drawing.feeds, HOST, tolerance=3e-5)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("rank", [2, 3])
def test_most_drawn_networks_have_stripes(rank: int) -> None:
    """Else the test above says little."""
    graphs = [optimise(Drawing(seed, rank).graph(4)) for seed in range(60)]
    striped = [layouts.striped_values(graph, HOST) for graph in graphs]
    assert sum(map(bool, striped)) > 30


@pytest.mark.parametrize("seed", range(20))
def test_successive_planes_begin_in_sets_of_l1_far_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 70)), 16 * int(rng.integers(2, 20))
    layout = Layout.striped((2, 3, height, width), ((1, 1), (1, 1)), 16)
    lines = layout.strides[1] // 16
    for planes in (4, 8, 16, 32, 64):
        begins = np.sort(np.arange(planes) * lines % 64)
        assert np.diff([*begins, begins[0] + 64]).min() * planes > 64 / 3


@pytest.mark.parametrize(
    ("height", "columns", "across", "below", "overlap"),
    [(8, 4, 2, 4, False), (8, 4, 4, 1, False), (8, 3, 2, 1, True), (9, 4, 2, 4, True), (3, 5, 5, 3, False)],
)
def test_rectangles_cover_each_pixel(
    height: int, columns: int, across: int, below: int, overlap: bool
) -> None:
    """Once, unless it is said that they overlap: what is added to in place must not be added to twice."""
    layout = Layout.striped((1, 1, height, columns * LANES), ((1, 1), (1, 1)), LANES)
    tiles = geometry.rectangles(layout.strides[2:], layout, [], LANES, across, (below,))
    found = np.zeros((height, columns), int)
    for _, place, ends in tiles.table:
        row, element = divmod(int(place), layout.strides[2])
        column = element // LANES
        found[row : row + below, column : column + across] += 1
        first, last = column == 0, column + across == columns
        assert ends == geometry.FIRST * first + geometry.LAST * last
    assert found.min() == 1
    assert tiles.overlap == overlap == (found.max() > 1)


def test_rectangles_of_volumes_cover_each_pixel() -> None:
    shape, runs, across = (5, 6, 3), (2, 4), 2
    layout = Layout.striped((1, 1, *shape[:2], shape[2] * LANES), ((1, 1),) * 3, LANES)
    tiles = geometry.rectangles(layout.strides[2:], layout, [], LANES, across, runs)
    places = np.arange(shape[0])[:, None, None] * layout.strides[2]
    places = places + np.arange(shape[1])[:, None] * layout.strides[3] + np.arange(shape[2]) * LANES
    written = (tiles.table[:, 1:2] + np.array(tiles.rows[1]))[..., None] + np.arange(across) * LANES
    assert set(written.ravel()) == set(places.ravel())
    assert tiles.overlap
    assert (tiles.below, tiles.across, tiles.vectors) == (8, 2, 16)


def _chain(last: str, between: str, pool: str = "MaxPool") -> Graph:
    """Sparse convolutions, with a pool behind the second, something before the third and something at the
    end."""
    rng = np.random.default_rng(0)
    constants, nodes = {}, []
    for x, shape, y in (("x", (8, 3), "a"), ("a", (16, 8), "b"), ("q", (8, 16), "c")):
        w = rng.standard_normal((*shape, 3, 3)) * (rng.random((*shape, 3, 3)) < 0.1)
        constants[f"w{x}"] = w.astype(np.float32)
        nodes.append(Node("Conv", (x, f"w{x}"), (y,), {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}, y))
    window = {"kernel_shape": (2, 2), "strides": (2, 2)}
    then = {"kernel_shape": (2, 1), "strides": (2, 1)} if between == "MaxPool" else {}
    nodes[2:2] = [Node(pool, ("b",), ("p",), window, "p"), Node(between, ("p",), ("q",), then, "q")]
    constants["last"] = np.ones((2, 8, 1, 1), np.float32)
    nodes.append(Node(last, ("c", "last") if last == "Conv" else ("c",), ("y",), {}, "y"))
    return graph_of(nodes, {"x": np.zeros((1, 3, 32, 64), np.float32)}, ["y"], constants)


@pytest.mark.parametrize(
    ("last", "between", "striped"),
    [("Conv", "Relu", ""), ("Conv", "Identity", "abpc"), ("Softmax", "Identity", "abp")],
)
def test_stripes_are_taken_where_all_that_is_between_can(
    last: str, between: str, striped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't is copied to, or from, if that is little."""
    monkeypatch.setattr(layouts, "STRIPED_LOADS", 0)
    graph = _chain(last, between)
    assert layouts.striped_values(optimise(graph) if between == "Identity" else graph, HOST) == set(striped)
    monkeypatch.setattr(layouts, "MOST_COPIED", 1e-3)
    assert not layouts.striped_values(graph, HOST)


@pytest.mark.usefixtures("anywhere")
def test_what_would_lie_in_no_planes_lies_in_no_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LpPool makes for a pool."""
    monkeypatch.setattr(layouts, "MOST_COPIED", 10.0)
    graph = optimise(_chain("Conv", "MaxPool", "LpPool"))
    assert "p" not in layouts.planar_values(graph)
    assert "b" in layouts.striped_values(graph, HOST)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 64), dtype=np.float32)
    check_graph(graph, {"x": x}, tolerance=3e-5)


@pytest.mark.skipif(HOST.load_bits < layouts.STRIPED_LOADS, reason="no stripes here")
def test_what_pays_is_striped_here() -> None:
    graph = optimise(_chain("Conv", "Identity"))
    assert layouts.assign(graph, HOST).places["b"].layout.stripes == LANES
    assert not any(place.layout.stripes for place in layouts.assign(graph, HOST, False).places.values())
