"""Pixels in blocks: what lies between sparse convolutions of single pixels.

Hundreds with

    python -m pytest -m slow tests/kernels/test_blocks.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import HOST, check_graph, few, graph_of

from coresident.graph.graph import Graph, Node
from coresident.kernels import geometry, sparse, subsample, wired
from coresident.kernels.layout import Layout
from coresident.schedule import layouts

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(not wired.is_possible(HOST), reason="no code here that reads blocks")


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, few pixels and few zeros are no reason against blocks."""
    monkeypatch.setattr(layouts, "FEWEST_BLOCKS", 0)
    monkeypatch.setattr(layouts, "FEWEST_PAGES", 0)
    monkeypatch.setattr(sparse, "BLOCKED_ZEROS", (0.05, 0.99))


class Drawing:
    """A network drawn by a seed: convolutions of single pixels, some with strides, residuals and activations
    behind them, and some of whose values others read as well."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = int(self.rng.choice([1, 2, 2, 2, 3]))
        sizes = self.rng.choice([3, 7, 14, 15, 16, 17, 33] if self.rank < 3 else [3, 5, 8], self.rank)
        shape = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 50)), *map(int, sizes))
        self.feeds = {"x": self.rng.standard_normal(shape, dtype=np.float32)}
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": shape}

    def graph(self, steps: int) -> Graph:
        self._convolve("x", 1)
        for _ in range(steps):
            kinds = ["pointwise"] * 5 + ["residual"] * 3 + ["wide", "concat"]
            getattr(self, f"_{self.rng.choice(kinds)}")()
        made = [node.outputs[0] for node in self.nodes]
        outputs = [made[-1]]
        if self.rng.random() < 0.3:
            outputs.append(str(self.rng.choice(made[:-1])))
        return graph_of(self.nodes, self.feeds, outputs, self.constants)

    def _add(self, op: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attributes, name))
        self.shapes[name] = graph_of(self.nodes, self.feeds, [name], self.constants).facts[name].sizes
        return name

    def _convolve(
        self, x: str, kernel: int, outputs: int = 0, strides: tuple[int, ...] = (), bias: bool = True
    ) -> str:
        outputs = outputs or int(self.rng.integers(1, 70))
        shape = (outputs, self.shapes[x][1], *[kernel] * self.rank)
        w = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        w *= self.rng.random(shape) < self.rng.choice([0.05, 0.2, 0.5])
        count = len(self.constants)
        self.constants[f"w{count}"] = w.astype(np.float32)
        self.constants[f"b{count}"] = self.rng.standard_normal(outputs).astype(np.float32)
        window = {"kernel_shape": (kernel,) * self.rank, "pads": (kernel // 2,) * (2 * self.rank)}
        if strides:
            window["strides"] = strides
        return self._add("Conv", (x, f"w{count}", f"b{count}"), **window)

    def _recent(self) -> str:
        return str(self.rng.choice(list(self.shapes)[-3:]))

    def _pointwise(self) -> None:
        x = self._recent()
        strides: tuple[int, ...] = ()
        if self.rng.random() < 0.3 and max(self.shapes[x][2:]) > 2:
            strides = tuple(int(s) for s in self.rng.integers(1, 4, self.rank))
        y = self._convolve(x, 1, strides=strides)
        if self.rng.random() < 0.6:
            self._add(str(self.rng.choice(["Relu", "Sigmoid", "HardSwish"])), (y,))

    def _residual(self) -> None:
        x = self._recent()
        y = self._convolve(self._convolve(x, 1), 1, self.shapes[x][1])
        total = self._add("Add", (x, y) if self.rng.random() < 0.5 else (y, x))
        if self.rng.random() < 0.6:
            self._add(str(self.rng.choice(["Relu", "Sigmoid"])), (total,))

    def _wide(self) -> None:
        self._convolve(self._recent(), 3)

    def _concat(self) -> None:
        x = self._recent()
        if self.shapes[x][1] < 60:
            self._add("Concat", (x, self._convolve(x, 1)), axis=1)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("seed", few(range(400), 30))
def test_random_networks(seed: int) -> None:
    drawing = Drawing(seed)
    graph = drawing.graph(int(drawing.rng.integers(2, 7)))
    check_graph(graph, drawing.feeds, threads=1 + seed % 3, tolerance=3e-5)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("seed", few(range(400), 20))
def test_random_networks_whose_strides_read_planes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = geometry._subsampled
    monkeypatch.setattr(geometry, "_subsampled", lambda node, plan, w, blocked: taken(node, plan, w, False))
    drawing = Drawing(seed)
    graph = drawing.graph(int(drawing.rng.integers(2, 7)))
    check_graph(graph, drawing.feeds, threads=1 + seed % 3, tolerance=3e-5)


def _chain(channels: int, size: int, density: float) -> tuple[Graph, dict[str, Array]]:
    """Convolutions of single pixels: two read what one makes, of them one with a stride."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, size, size), dtype=np.float32)
    constants: dict[str, Array] = {}
    nodes = []
    for i, (source, made) in enumerate((("x", "z"), ("z", "a"), ("a", "b"), ("a", "c"))):
        w = rng.standard_normal((channels, channels, 1, 1)) * (
            rng.random((channels, channels, 1, 1)) < density
        )
        constants[f"w{i}"] = w.astype(np.float32)
        strides = {"strides": (2, 2)} if made == "c" else {}
        window = {"kernel_shape": (1, 1), **strides}
        nodes.append(Node("Conv", (source, f"w{i}"), (made,), window, made))
    nodes += [Node("MaxPool", (name,), (f"{name}_",), {"kernel_shape": (2, 2)}, name + "_") for name in "bc"]
    return graph_of(nodes, {"x": x}, ["b_", "c_"], constants), {"x": x}


@pytest.mark.parametrize(
    ("channels", "size", "density", "block"),
    [(256, 40, 0.2, 16), (64, 40, 0.2, 0), (256, 40, 0.5, 0), (256, 8, 0.2, 0)],
)
def test_blocks_are_taken_where_they_pay(channels: int, size: int, density: float, block: int) -> None:
    """Not for few channels, few zeros, few pixels; and what a pool reads lies in planes."""
    graph, _ = _chain(channels, size, density)
    places = layouts.assign(graph, HOST).places
    assert [places[name].layout.block for name in "abc"] == [block, 0, 0]
    assert not any(place.layout.block for place in layouts.assign(graph, HOST, sparse=False).places.values())


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (3, 1), (4, 4)])
@pytest.mark.parametrize("spatial", [(56, 56), (7, 7), (5, 100), (1, 40)])
def test_each_pixel_comes_from_its_block(spatial: tuple[int, int], strides: tuple[int, int]) -> None:
    x = Layout.planar((2, 3, *spatial), (1, 1), ((0, 0), (0, 0)), 16).blocked(16)
    sizes = tuple(-(-size // stride) for size, stride in zip(spatial, strides))
    y = Layout.planar((2, 3, *sizes), (1, 1), ((0, 0), (0, 0)), 16)
    sources, taken = subsample._table(x, y, strides)
    buffer = np.arange(x.extent)
    for row, column in np.ndindex(sizes):
        block, lane = divmod(row * y.strides[2] + column, 16)
        (pair,) = np.flatnonzero(taken[block, :, lane] >= 0)
        half, index = divmod(taken[block, pair, lane], 16)
        wanted = x.place(row * strides[0] * x.strides[2] + column * strides[1])
        assert buffer[sources[block, 2 * pair + half] + index] == wanted
