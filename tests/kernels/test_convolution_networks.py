"""Random networks of convolutions and what stands between them, against the reference.

Borders, gaps between rows, places inside concatenations and buffers that are used again depend on all readers
of a value: what one convolution alone does not show. Thousands with

    python -m pytest -m slow tests/kernels/test_convolution.py tests/kernels/test_convolution_networks.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import graph_of, run_graph

from coresident.graph.graph import Graph, Node
from coresident.graph.operator import evaluate

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


class Drawing:
    """A network drawn by a seed, operator by operator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rank = int(self.rng.choice([1, 2, 2, 2, 3]))
        sizes = self.rng.choice([5, 7, 8, 9, 15, 16, 17] if self.rank < 3 else [4, 5, 7, 8], self.rank)
        shape = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 9)), *map(int, sizes))
        self.feeds = {"x": self.rng.standard_normal(shape, dtype=np.float32)}
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, Shape] = {"x": shape}

    def graph(self, steps: int) -> Graph:
        """After so many steps; the last value and one of the others are outputs."""
        while len(self.nodes) < steps:
            kinds = ["convolve", "convolve", "convolve", "depthwise", "pool", "activate", "join", "grow"]
            getattr(self, f"_{self.rng.choice(kinds)}")()
        made = [name for node in self.nodes for name in node.outputs]
        outputs = list(dict.fromkeys((made[-1], str(self.rng.choice(made)))))
        return graph_of(self.nodes, self.feeds, outputs, self.constants)

    def _recent(self) -> str:
        names = list(self.shapes)[-3:]
        return str(self.rng.choice(names))

    def _add(self, op: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attributes, name))
        graph = graph_of(self.nodes, self.feeds, [name], self.constants)
        self.shapes[name] = graph.facts[name].sizes
        return name

    def _weights(self, *shape: int, density: float = 1.0) -> str:
        name = f"w{len(self.constants)}"
        w = self.rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        self.constants[name] = (w * (self.rng.random(shape) < density)).astype(np.float32)
        return name

    def _window(self, spatial: Shape) -> dict[str, Any]:
        """A kernel with dilation, stride and padding that fits."""
        kernel = [
            int(k) for k in self.rng.choice([1, 1, 2, 3, 3, 5] if self.rank < 3 else [1, 2, 3], self.rank)
        ]
        dilations = [int(d) for d in self.rng.choice([1, 1, 1, 2], self.rank)]
        strides = [int(s) for s in self.rng.choice([1, 1, 1, 2], self.rank)]
        pads = []
        for d, (k, size) in enumerate(zip(kernel, spatial)):
            if (k - 1) * dilations[d] >= size:
                kernel[d], k = 1, 1
            if strides[d] > 1 and size < 6:
                strides[d] = 1
            pads.append(int(self.rng.integers(0, (k - 1) * dilations[d] + 1)))
        ends = [p if self.rng.random() < 0.6 else 0 for p in pads]
        return {"kernel_shape": kernel, "dilations": dilations, "strides": strides, "pads": (*pads, *ends)}

    def _convolve(self) -> None:
        x = self._recent()
        channels, outputs = self.shapes[x][1], int(self.rng.integers(1, 24))
        window = self._window(self.shapes[x][2:])
        density = float(self.rng.choice([0.05, 0.2, 1.0, 1.0]))
        w = self._weights(outputs, channels, *window["kernel_shape"], density=density)
        self._add("Conv", (x, w, self._weights(outputs)), **window)

    def _depthwise(self) -> None:
        x = self._recent()
        channels = self.shapes[x][1]
        window = self._window(self.shapes[x][2:])
        self._add("Conv", (x, self._weights(channels, 1, *window["kernel_shape"])), group=channels, **window)

    def _pool(self) -> None:
        x = self._recent()
        window = self._window(self.shapes[x][2:])
        extents = [(k - 1) * d for k, d in zip(window["kernel_shape"], window["dilations"])] * 2
        window["pads"] = tuple(min(p, e) for p, e in zip(window["pads"], extents))
        self._add(str(self.rng.choice(["MaxPool", "AveragePool"])), (x,), **window)

    def _activate(self) -> None:
        self._add(str(self.rng.choice(["Relu", "Sigmoid", "HardSwish"])), (self._recent(),))

    def _join(self) -> None:
        """Added to, multiplied with, or put beside another value of its size."""
        x = self._recent()
        shape = self.shapes[x]
        same = [name for name, other in self.shapes.items() if other == shape and name != x]
        beside = [
            name for name, other in self.shapes.items() if (other[0], *other[2:]) == (shape[0], *shape[2:])
        ]
        if same and self.rng.random() < 0.5:
            self._add(str(self.rng.choice(["Add", "Mul"])), (x, str(self.rng.choice(same))))
        elif shape[1] < 40:
            self._add("Concat", (x, str(self.rng.choice(beside))), axis=1)

    def _grow(self) -> None:
        x = self._recent()
        shape = self.shapes[x]
        if max(shape[2:]) > 17:
            return self._activate()
        if self.rng.random() < 0.5:
            kernel = [int(k) for k in self.rng.choice([2, 3], self.rank)]
            w = self._weights(shape[1], int(self.rng.integers(1, 12)), *kernel)
            self._add("ConvTranspose", (x, w), strides=[2] * self.rank)
        else:
            self.constants.setdefault("scales", np.array([1, 1, *[2] * self.rank], np.float32))
            mode = str(self.rng.choice(["nearest", "linear"]))
            self._add("Resize", (x, "", "scales"), mode=mode)
        return None


def _check(seed: int) -> None:
    drawing = Drawing(seed)
    graph = drawing.graph(int(drawing.rng.integers(2, 8)))
    wanted = evaluate(graph, dict(drawing.feeds))
    results = run_graph(graph, drawing.feeds, threads=1 + seed % 3)
    listed = [(node.op, node.inputs, dict(node.attributes)) for node in graph.nodes]
    for name, got in zip(graph.outputs, results):
        want = wanted[name]
        scale = max(float(np.abs(want).max(initial=0)), 1e-30)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * scale, err_msg=f"seed {seed}, {listed}")


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 3000))
def test_many_random_networks(seed: int) -> None:
    _check(seed)
