"""Compare predicted with measured times of pruned networks: `python bench/timing_table.py MODEL.onnx ...`.

Times all layers in some forms (`coresident.sparsification.timing`), lets layers take random forms, and forms
allocated for asked speed-ups with random errors, and runs networks that really are so, in turn with the dense
one. Zeros stand in random places.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from support import print_markdown

from coresident import Session, compiler
from coresident.cli.command import positive
from coresident.graph.graph import Graph
from coresident.measure.feeds import fixed_shapes, random_feeds
from coresident.onnx.writer import serialize
from coresident.runtime import cpu
from coresident.sparsification import network, timing
from coresident.sparsification.allocation import allocate
from coresident.sparsification.execution import Engine
from coresident.sparsification.forms import FLOAT_DENSE, INT8_DENSE, Form, Timings
from coresident.sparsification.quantization import quantize
from coresident.sparsification.random_zeros import with_random_zeros
from coresident.sparsification.ranges import ranges

Array = np.ndarray[Any, Any]
Choice = Mapping[str, Form]

FORMS = {
    "float": [
        FLOAT_DENSE,
        *(Form("float32", "unstructured", s) for s in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)),
    ],
    "int8": [INT8_DENSE, *(Form("int8", "4block", s) for s in (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95))],
}
SPEEDUPS = (1.5, 2.0, 3.0, 5.0)


def choices(timings: Timings, forms: list[Form], count: int, rng: np.random.Generator) -> dict[str, Choice]:
    """Random forms, and forms for asked speed-ups, each with what it is called."""
    found: dict[str, Choice] = {
        f"random {number + 1}": {name: forms[rng.integers(len(forms))] for name in timings.layers}
        for number in range(count)
    }
    for speedup in SPEEDUPS:
        scales = rng.uniform(0.1, 1.0, len(timings.layers))
        errors = {
            name: {form: scale * form.sparsity**2 for form in forms}
            for name, scale in zip(timings.layers, scales)
        }
        allocation = allocate(errors, timings, timings.measured[FLOAT_DENSE] / speedup)
        if allocation.feasible:
            found[f"asked {speedup:g}x"] = allocation.choice
    return found


def measured(dense: Session, session: Session, feeds: Mapping[str, Array], rounds: int) -> float:
    """The median ratio of a call's time to the dense network's."""
    ratios = []
    for _ in range(rounds):
        seconds = []
        for one in (dense, session):
            one.run(None, feeds)
            times: list[float] = []
            while sum(times) < timing.TURN or len(times) < 2:
                start = time.perf_counter()
                one.run(None, feeds)
                times.append(time.perf_counter() - start)
            seconds.append(float(np.median(times)))
        ratios.append(seconds[1] / seconds[0])
    return float(np.median(ratios))


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Compare predicted with measured times of pruned networks.")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--dtype", choices=FORMS, default="float")
    parser.add_argument("--random", type=int, default=2, help="choices of random forms (default: 2)")
    parser.add_argument("--rounds", type=positive, default=timing.ROUNDS)
    parser.add_argument("--threads", type=positive, default=cpu.usable_cores().count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="folder to keep timings in")
    options = parser.parse_args()
    forms = FORMS[options.dtype]
    rows = []
    for path in options.models:
        graph = compiler.load(path).graph
        shapes = fixed_shapes({name: graph.facts[name].shape for name in graph.inputs}, {})
        feeds = random_feeds(shapes, {name: graph.facts[name].dtype for name in graph.inputs})
        graph = network.prepare(graph, shapes)
        layers = network.layers(graph, shapes)
        base = quantised(graph, feeds, options.threads) if options.dtype == "int8" else graph
        start = time.perf_counter()
        timings = timing.measure(
            graph,
            layers,
            forms,
            feeds,
            engine=Engine(options.threads),
            quantise=lambda _, base=base: base,
            rounds=options.rounds,
            store=options.store,
        )
        print(f"{path.stem}: layers timed in {time.perf_counter() - start:.0f} s", flush=True)
        whole = timings.measured[FLOAT_DENSE]
        rng = np.random.default_rng(options.seed)
        with Session(serialize(graph), options.threads, cache=False) as dense:
            for name, choice in choices(timings, forms, options.random, rng).items():
                mixed = with_random_zeros(base, layers, choice, options.seed + 1)
                with Session(serialize(mixed), options.threads, cache=False) as one:
                    found = measured(dense, one, feeds, options.rounds)
                expected = timings.total(choice) / whole
                row = [path.stem, name, f"{1e3 * expected * whole:.2f}", f"{1e3 * found * whole:.2f}"]
                rows.append([*row, f"{expected / found - 1:+.1%}", f"{1 / found:.2f}"])
    print_markdown(["network", "choice", "predicted ms", "measured ms", "error", "speed-up"], rows)


def quantised(graph: Graph, feeds: Mapping[str, Array], threads: int) -> Graph:
    """The network in int8, with ranges of one input."""
    return quantize(graph, ranges(graph, [feeds], engine=Engine(threads), method="minmax"))


if __name__ == "__main__":
    main()
