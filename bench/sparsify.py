"""What sparsifying without labels costs real networks, and what plain magnitude and rounding would cost.

    python bench/sparsify.py ASSETS [CASE ...] [--threads N] [--seed N] [--json FILE]

ASSETS holds `models/` and `data/`. Every case is calibrated on some pictures and judged by others. Beside
the result stands the baseline at the same budget: the smallest weights (or four-blocks) of each layer are
removed, and, where the result is in int8, ONNX Runtime's `quantize_static` with its defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import real
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from support import print_markdown

import coresident
from coresident.onnx.reader import read
from coresident.onnx.writer import serialize
from coresident.sparsification import network, reconstruction
from coresident.sparsification.moments import Moments

Array = np.ndarray[Any, Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Args:
    load: the network and its data.
    settings: of `coresident.sparsify`.
    most_lost: of accuracy (of agreement where `by_agreement`), as the project promises.
    """

    load: Callable[[Path], real.Case]
    settings: Settings
    most_lost: float
    by_agreement: bool = False


FLOAT = {"pattern": "unstructured", "quantize": "none"}
BYTES = {"pattern": "4block", "quantize": "int8"}
EXPERIMENTS = {
    "resnet20": Experiment(lambda a: real.cifar(a, 20), {"sparsity": 0.6, **FLOAT}, 0.015),
    "resnet20-int8": Experiment(lambda a: real.cifar(a, 20), {"sparsity": 0.5, **BYTES}, 0.02),
    "resnet56": Experiment(lambda a: real.cifar(a, 56), {"sparsity": 0.6, **FLOAT}, 0.015),
    "resnet56-int8": Experiment(lambda a: real.cifar(a, 56), {"sparsity": 0.5, **BYTES}, 0.02),
    "squeezenet-int8": Experiment(
        real.squeezenet, {"sparsity": 0.4, "effort": "max", **BYTES}, 0.07, by_agreement=True
    ),
    "nuclei-int8": Experiment(real.nuclei, {"sparsity": 0.6, **BYTES}, 0.01),
    "fastestdet-int8": Experiment(real.fastestdet, {"sparsity": 0.0, **BYTES}, 0.01),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("cases", nargs="*", choices=[[], *EXPERIMENTS], default=[])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0, help="what a result owes to chance, others tell")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, records = [], {}
    for name in options.cases or EXPERIMENTS:
        records[name] = figures(EXPERIMENTS[name], options.assets, options.threads, options.seed)
        rows.append(row(name, records[name]))
        print(rows[-1], flush=True)
    heads = [
        "network",
        "asked",
        "dense",
        "result",
        "lost",
        "most",
        "agreement",
        "magnitude",
        "speed-up",
        "min",
    ]
    print_markdown(heads, rows)
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def figures(experiment: Experiment, assets: Path, threads: int | None, seed: int = 0) -> dict[str, Any]:
    """Everything measured of one experiment."""
    case = experiment.load(assets)
    start = time.monotonic()
    result = coresident.sparsify(
        case.model,
        case.calibration,
        threads=threads,
        seed=seed,
        progress=Stages(),
        **experiment.settings,
    )
    minutes = (time.monotonic() - start) / 60
    dense = _judged(case, case.model.read_bytes(), threads)
    ours = _judged(case, result.model, threads)
    plain = _judged(case, baseline(case, experiment.settings), threads)
    lost = 1 - ours.agreement(dense) if experiment.by_agreement else dense.accuracy - ours.accuracy
    return {
        "settings": dict(experiment.settings),
        "dense": dense.accuracy,
        "result": ours.accuracy,
        "lost": lost,
        "most_lost": experiment.most_lost,
        "agreement": ours.agreement(dense),
        "baseline": plain.accuracy,
        "baseline_agreement": plain.agreement(dense),
        "speedup": result.report.latency.speedup,
        "sparsity": result.report.target.reached,
        "minutes": minutes,
    }


class Stages:
    """Tells on the standard error when each stage began."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        print(f"{time.monotonic() - self._start:7.1f} s  {name}", file=sys.stderr, flush=True)

    def advance(self, n: int = 1, note: str = "") -> None:
        pass


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """Of the table."""
    settings = found["settings"]
    asked = (
        f"{settings['sparsity']:.0%} {settings['pattern']} {settings['quantize'].replace('none', 'float32')}"
    )
    shares = ("dense", "result", "lost", "most_lost", "agreement", "baseline")
    return [
        name,
        asked,
        *(f"{100 * found[each]:.2f}" for each in shares),
        f"{found['speedup']:.2f}x",
        f"{found['minutes']:.1f}",
    ]


def _judged(case: real.Case, model: bytes, threads: int | None) -> real.Score:
    with coresident.Session(model, threads=threads, cache=False) as session:
        return case.judge(session)


def baseline(case: real.Case, settings: Settings) -> bytes:
    """Magnitude pruning, the same share of every layer, and ONNX Runtime's quantiser."""
    shapes = {name: array.shape for name, array in case.calibration[0].items()}
    graph = network.prepare(read(case.model), shapes)
    initializers = dict(graph.initializers)
    for layer in network.layers(graph, shapes):
        if not layer.prunable or not settings["sparsity"]:
            continue
        weights = network.matrices(layer, initializers[layer.weight])
        # Magnitude asks no moments; their shape alone is looked at.
        unknown = [Moments(1, np.zeros(w.shape[1]), np.eye(w.shape[1], dtype=np.float32)) for w in weights]
        (level,) = reconstruction.magnitude(
            weights, unknown, network.blocks(layer), [settings["sparsity"]], settings["pattern"]
        )
        initializers[layer.weight] = network.weight_of(layer, level.weights, initializers[layer.weight])
    pruned = serialize(graph.with_(initializers=initializers))
    return pruned if settings["quantize"] == "none" else rounded(pruned, case.calibration)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[real.Feeds]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> real.Feeds | None:
        return next(self._left, None)


def rounded(model: bytes, calibration: Sequence[real.Feeds]) -> bytes:
    """In int8 by ONNX Runtime: extremes as ranges, to nearest, a scale for each output channel."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(model)
        quantize_static(before, after, _Reader(calibration), per_channel=True, reduce_range=True)
        return after.read_bytes()


if __name__ == "__main__":
    main()
