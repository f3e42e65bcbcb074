"""Compare the cost model with measurements: `python bench/cost.py MODEL.onnx ...`.

On one thread, for each kind of kernel: measured over estimated time, its median and its spread. Choices
between kernels are right where the medians are the same, whatever their value.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from support import feeds_of, print_markdown

import coresident
from coresident import compiler
from coresident.cli.command import positive
from coresident.codegen import peak
from coresident.codegen.target import Target
from coresident.codegen.types import F32
from coresident.kernels.cost import Machine
from coresident.measure.layers import Layer, layers


def cycles_per_second(target: Target, ceilings: peak.Peak) -> float:
    """The clock, of the multiply-adds that a core was measured to do and those that it does in a cycle."""
    machine = Machine.of(target)
    return ceilings.macs / (target.lanes(F32) * machine.fmas * machine.pace)


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Compare the cost model with measurements.")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--repeats", type=positive, default=20)
    parser.add_argument(
        "--worst", type=int, default=5, help="layers to name, of those furthest from their kind"
    )
    options = parser.parse_args()
    target = compiler.host_target()
    ceilings = peak.measure(target, 1)
    clock, pace = cycles_per_second(target, ceilings), Machine.of(target).pace
    print(f"{target.cpu} at {clock / 1e9:.2f} GHz\n")
    ratios: dict[str, list[tuple[float, Path, Layer]]] = defaultdict(list)
    for path in options.models:
        with coresident.Session(path, threads=1) as session:
            profile = session.profile(feeds_of(session), options.repeats)
        for layer in layers(profile, ceilings):
            if layer.estimated_cycles:
                measured = layer.seconds * clock * pace
                ratios[layer.kernel].append((measured / layer.estimated_cycles, path, layer))
    rows = []
    for kernel, found in ratios.items():
        values = np.array([ratio for ratio, _, _ in found])
        low, middle, high = np.percentile(values, (10, 50, 90))
        rows.append(
            [kernel, str(len(values)), *(f"{v:.2f}" for v in (middle, low, high, values.min(), values.max()))]
        )
    print_markdown(["kernel", "layers", "median", "10 %", "90 %", "least", "greatest"], rows)
    print()
    for kernel, found in ratios.items():
        middle = float(np.median([ratio for ratio, _, _ in found]))
        furthest = sorted(found, key=lambda entry: -abs(np.log(entry[0] / middle)))
        for ratio, path, layer in furthest[: options.worst]:
            shape = "x".join(map(str, layer.shape))
            print(f"{kernel}: {ratio:.2f} {path.stem} {layer.nodes[0]} {shape}, {layer.tile}")


if __name__ == "__main__":
    main()
