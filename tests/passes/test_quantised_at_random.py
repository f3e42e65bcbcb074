"""Random quantised networks: compiled code, the optimised graph and the graph as written compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from networks import QuantisedNet
from support import run_graph

from coresident.graph.graph import Graph
from coresident.graph.operator import evaluate
from coresident.passes.pipeline import optimise

SEEDS = 24


class RandomNet:
    """Grows a network whose values are quantised one after another.

    Args:
        seed: of all choices.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = QuantisedNet()
        self.rank = int(self.rng.choice([2, 2, 2, 1, 3]))
        self.dtype = str(self.rng.choice(["uint8", "int8"]))
        spatial = (int(size) for size in self.rng.integers(6, 20, self.rank))
        channels = int(self.rng.choice([3, 4, 8]))
        self.values = [self.quantised(self.net.input(1, channels, *spatial))]

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def each(self, value: int) -> tuple[int, ...]:
        return (value,) * self.rank

    def shape(self, value: str) -> tuple[int, ...]:
        return self.net.graph(value).facts[value].sizes

    def quantised(self, value: str) -> str:
        bounds = np.iinfo(self.dtype)
        point = self.pick(0, int(bounds.min), int(self.rng.integers(bounds.min, bounds.max)))
        return self.net.qdq(value, float(self.rng.uniform(0.02, 0.08)), point, self.dtype)

    def convolution(self, x: str) -> str | None:
        channels, kernel, dilation = self.shape(x)[1], self.pick(1, 3), self.pick(1, 1, 2)
        pad = int(self.rng.integers(0, kernel // 2 * dilation + 1))
        if min(self.shape(x)[2:]) + 2 * pad < (kernel - 1) * dilation + 1:
            return None
        group = self.pick(1, 1, 2 if channels % 2 == 0 else 1, channels)
        outputs = channels if group == channels else self.pick(4, 6, 8, 16)
        weights = self.net.weights(
            *(outputs, channels // group, *self.each(kernel)),
            axis=self.pick(0, 0, None),
            dtype=self.pick("int8", "int8", "uint8"),
            point=self.pick(0, 0, 5),
        )
        bias = self.pick((), (self.net.random(outputs),))
        geometry = {"strides": self.each(self.pick(1, 1, 2)), "dilations": self.each(dilation)}
        y = self.net("Conv", x, weights, *bias, group=group, pads=self.each(pad) * 2, **geometry)
        return str(self.pick(y, self.net("Relu", y), self.net("LeakyRelu", y)))

    def transposed(self, x: str) -> str:
        weights = self.net.weights(self.shape(x)[1], self.pick(4, 5, 8), *self.each(2), axis=1)
        return str(self.net("ConvTranspose", x, weights, strides=self.each(2)))

    def pool(self, x: str) -> str:
        kernel, stride = self.pick(2, 3), self.pick(1, 2)
        geometry = {"kernel_shape": self.each(kernel), "strides": self.each(stride)}
        geometry["pads"] = self.each(kernel // 2) * 2
        if self.rng.random() < 0.5:
            return str(self.net("MaxPool", x, ceil_mode=self.pick(0, 1), **geometry))
        return str(self.net("AveragePool", x, count_include_pad=self.pick(0, 1), **geometry))

    def two(self, x: str) -> str:
        other = self.pick(*(v for v in self.values if self.shape(v) == self.shape(x)))
        y = self.net(self.pick("Add", "Add", "Sub", "Mul"), x, other)
        return str(self.pick(y, self.net("Relu", y)))

    def joined(self, x: str) -> str:
        other = self.pick(*(v for v in self.values if self.shape(v)[2:] == self.shape(x)[2:]))
        return str(self.net("Concat", x, other, axis=1))

    def moved(self, x: str) -> str:
        net, channels = self.net, self.shape(x)[1]
        padded = net("Pad", x, net.integers(0, 0, *self.each(1), 0, 0, *self.each(2)))
        sliced = net("Slice", x, net.integers(0), net.integers(max(1, channels - 1)), net.integers(1))
        return str(self.pick(padded, sliced))

    def function(self, x: str) -> str:
        return str(self.net(self.pick("Sigmoid", "HardSwish", "Tanh"), x))

    def resized(self, x: str) -> str:
        scales = self.net.constant([1, 1, *self.each(2)])
        return str(self.net("Resize", x, "", scales, mode=self.pick("nearest", "linear")))

    def graph(self) -> Graph:
        steps: tuple[Callable[[str], str | None], ...] = (
            *(self.convolution, self.convolution, self.convolution, self.transposed, self.pool),
            *(self.two, self.joined, self.moved, self.function, self.resized),
        )
        for _ in range(int(self.rng.integers(2, 7))):
            y = self.pick(*steps)(self.pick(*self.values[-2:]))
            if y is not None and np.prod(self.shape(y)) < 1 << 15:
                self.values.append(self.quantised(y) if self.rng.random() < 0.9 else y)
        outputs = self.values[-self.pick(1, 2) :]
        return self.net.graph(*dict.fromkeys(outputs))


def units(a: Any, b: Any) -> float:
    """How many steps of quantisation two results lie apart at most."""
    steps = np.diff(np.unique(b))
    steps = steps[steps > 1e-5 * np.abs(b).max(initial=1e-9)]
    return float(np.abs(a - b).max(initial=0) / steps.min(initial=np.inf))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_network(seed: int) -> None:
    graph = RandomNet(seed).graph()
    feeds = {
        name: (np.random.default_rng(seed).standard_normal(graph.facts[name].sizes) * 2).astype(np.float32)
        for name in graph.inputs
    }
    after = optimise(graph, verify=True)
    written, optimised = evaluate(graph, dict(feeds)), evaluate(after, dict(feeds))
    for name, got in zip(graph.outputs, run_graph(graph, feeds, threads=1 + seed % 2)):
        assert units(got, optimised[name]) <= 1.01, (seed, name)
        # Steps that are reordered may differ by a unit, which later layers may enlarge.
        assert units(written[name], optimised[name]) <= 4, (seed, name)
