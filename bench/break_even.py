"""Is any layer slower for being pruned? `python bench/break_even.py`

Single convolutions at several densities, compiled as they are and with their zeros counted as numbers,
taking turns:
the ratio of the times is the speed-up of skipping zeros, and where the cost model prefers the dense kernel
it is one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from support import print_markdown

from coresident.compiler import Options, compile_graph
from coresident.graph import operators
from coresident.graph.graph import Fact, Graph, Node
from coresident.runtime.executor import Executor

assert operators, "the table of operators is filled"

LAYERS = (
    (64, 64, 56, 3),
    (64, 256, 56, 1),
    (256, 64, 56, 1),
    (128, 128, 28, 3),
    (512, 128, 28, 1),
    (256, 256, 14, 3),
    (1024, 256, 14, 1),
    (512, 512, 7, 3),
    (512, 2048, 7, 1),
    (32, 32, 112, 3),
)
"""Input channels, output channels, height and width, kernel."""


def graph(layer: tuple[int, int, int, int], density: float) -> Graph:
    """A convolution between two element-wise operators, as it stands in a network, with random zeros."""
    inputs, outputs, size, k = layer
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((outputs, inputs, k, k)).astype(np.float32)
    weights *= rng.random(weights.shape) < density
    pads = (k // 2,) * 4
    nodes = (
        Node("Relu", ("x",), ("a",), {}, "before"),
        Node("Conv", ("a", "w", ""), ("b",), {"pads": pads, "kernel_shape": (k, k)}, "conv"),
        Node("MaxPool", ("b",), ("y",), {"kernel_shape": (1, 1), "strides": (1, 1)}, "after"),
    )
    return Graph(
        ("x",), ("y",), nodes, {"w": weights}, {"x": Fact(np.dtype(np.float32), (1, inputs, size, size))}
    )


def seconds(executor: Executor, x: np.ndarray) -> float:
    """Of the convolution alone, one profiled run."""
    steps = executor.profile([x], 3)
    convolutions = [i for i, step in enumerate(executor.program.steps) if step.info["op"] == "Conv"]
    return sum(steps[i] for i in convolutions)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.7])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = []
    for layer in LAYERS:
        row = [f"{layer[0]}→{layer[1]}, {layer[2]}x{layer[2]}, {layer[3]}x{layer[3]}"]
        for density in args.densities:
            network = graph(layer, density)
            x = np.random.default_rng(1).standard_normal((1, layer[0], layer[2], layer[2]), dtype=np.float32)
            engines = []
            kinds = []
            for sparse in (True, False):
                program = compile_graph(network, Options(threads=args.threads, sparse=sparse))
                kinds.append(next(s.info["kernel"] for s in program.steps if s.info["op"] == "Conv"))
                engines.append(Executor(program, args.threads))
            times: list[list[float]] = [[], []]
            for _ in range(args.rounds):
                for engine, taken in zip(engines, times):
                    taken.append(seconds(engine, x))
                    time.sleep(0.0)
            ratio = statistics.median(d / s for s, d in zip(*times))
            row.append(f"{ratio:.2f}{'' if kinds[0].startswith('sparse') else ' (dense)'}")
            for engine in engines:
                engine.close()
        rows.append(row)
    print_markdown(["speed-up of skipping zeros", *(f"{1 - d:.0%} zeros" for d in args.densities)], rows)


if __name__ == "__main__":
    main()
