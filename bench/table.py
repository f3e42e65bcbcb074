"""Print the README's table: `python bench/table.py FOLDER`, with the models of bench/models.py in the folder.

The engines take turns on each model, each in a process of its own; figures are medians in milliseconds, and
ratios are of rounds. An engine that lives in another Python is named by `--engine deepsparse=PYTHON`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from support import feeds_of, print_markdown

import coresident
from coresident.cli.command import duration, positive
from coresident.errors import Error
from coresident.measure.turns import Result, Turn, take_turns
from coresident.measure.worker import ENGINES
from coresident.runtime import cpu

OURS = "coresident"
PEERS = ("onnxruntime", "openvino", "openvino-f32")
MODELS = (
    "rn50",
    "rn50_s80",
    "rn50_s90",
    "rn50_s95",
    "mbv2",
    "mbv2_s90",
    "unet",
    "unet_s90",
    "unet3d",
    "unet3d_s90",
    "rn50_q",
    "rn50_q7",
    "rn50_b85_q",
    "rn50_s90_q",
    "mbv2_q",
    "mbv2_b85_q",
    "unet_q",
    "unet_b85_q",
)
QUANTISED = ("_q", "_q7")
BF16 = "openvino"
"""Computes networks of floats in bf16 by default, where the CPU has it: no equal of those in float32."""
TOLERANCE = 1e-4
"""Outputs may differ from those of ONNX Runtime by this share of their range. Those of quantised networks
(`QUANTISED`) are printed alone: on CPUs without VNNI ONNX Runtime lets products overflow; `tests/end_to_end`
compares with it told not to."""


def engine(text: str) -> tuple[str, str]:
    """NAME or NAME=PYTHON."""
    name, _, python = text.partition("=")
    if name not in ENGINES:
        raise argparse.ArgumentTypeError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    return name, python


def with_batch(path: Path, batch: int, folder: Path) -> Path:
    """A copy of a model for another batch."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    # Sizes between are those of the batch that it was written for.
    del model.graph.value_info[:]
    copy = folder / path.name
    onnx.save(model, copy)
    return copy


def measure(path: Path, engines: dict[str, str], options: argparse.Namespace) -> dict[str, Result]:
    """All engines on one model."""
    if options.batch > 1:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(with_batch(path, options.batch, Path(folder)), engines, options)
    return _measure(path, engines, options)


def _measure(path: Path, engines: dict[str, str], options: argparse.Namespace) -> dict[str, Result]:
    with coresident.Session(path, threads=options.threads) as session:
        feeds = feeds_of(session)
    turns = {name: Turn(name, path, python) for name, python in engines.items()}
    results, failures = take_turns(
        turns, feeds, options.threads, rounds=options.rounds, seconds=options.seconds
    )
    for name, message in failures.items():
        print(f"{path.name}: {name} did not run: {message}", file=sys.stderr)
    return results


def record(results: dict[str, Result]) -> dict[str, Any]:
    """The figures of one model as JSON values."""
    ours, reference = results[OURS], results.get("onnxruntime")
    return {
        "median_ms": {name: result.median * 1e3 for name, result in results.items()},
        "ready_s": {name: result.ready for name, result in results.items()},
        "resident_mb": {name: result.resident_bytes / 1e6 for name, result in results.items()},
        "faster_than": {name: ours.faster_than(result) for name, result in results.items() if name != OURS},
        "error": {name: result.error(reference) for name, result in results.items()} if reference else {},
    }


def _equals(name: str, figures: dict[str, Any]) -> list[str]:
    """The peers that compute as we do."""
    return [peer for peer in figures["faster_than"] if peer != BF16 or name.endswith(QUANTISED)]


def _ratio(figures: dict[str, Any], peers: list[str]) -> str:
    """How much faster we are than the fastest of some peers."""
    if not peers:
        return ""
    fastest = min(peers, key=figures["median_ms"].__getitem__)
    return f"{figures['faster_than'][fastest]:.2f}x ({fastest})"


def row(name: str, figures: dict[str, Any], engines: list[str]) -> list[str]:
    """One model's line of the table."""
    medians = [f"{figures['median_ms'][e]:.2f}" if e in figures["median_ms"] else "" for e in engines]
    ratios = [_ratio(figures, _equals(name, figures)), _ratio(figures, list(figures["faster_than"]))]
    error = figures["error"].get(OURS)
    return [
        name,
        *medians,
        *ratios,
        "" if error is None else f"{error:.0e}",
        f"{figures['resident_mb'][OURS]:.0f}",
    ]


def main() -> int:
    """As the module's docstring says; 1 if an output was wrong or a model missing."""
    parser = argparse.ArgumentParser(description="Print the README's table.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "models", nargs="*", default=MODELS, metavar="MODEL", help=f"default: {' '.join(MODELS)}"
    )
    parser.add_argument("--threads", type=positive, default=cpu.usable_cores().count)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--seconds", type=duration, default=1.0)
    parser.add_argument("--engine", type=engine, action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw the median speeds as bars (needs matplotlib)"
    )
    options = parser.parse_args()
    engines = {OURS: "", **dict.fromkeys(PEERS, ""), **dict(options.engine)}
    print(f"{cpu.model_name()}, {options.threads} threads, batch {options.batch}; milliseconds\n")
    figures: dict[str, Any] = {}
    sound = True
    rows = []
    for name in options.models:
        try:
            figures[name] = record(measure(options.folder / f"{name}.onnx", engines, options))
        except (Error, KeyError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            sound = False
            continue
        rows.append(row(name, figures[name], list(engines)))
        print(" ".join(rows[-1]), file=sys.stderr)
        sound = sound and (name.endswith(QUANTISED) or figures[name]["error"].get(OURS, 0.0) <= TOLERANCE)
    titles = ["model", *engines, "faster than the fastest in kind", "than the fastest", "error", "MB"]
    print_markdown(titles, rows)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "models": figures}, indent=1) + "\n")
    if options.plot:
        draw(figures, list(engines), options.plot)
    return 0 if sound else 1


def draw(figures: dict[str, Any], engines: list[str], path: Path) -> None:
    """Bars for each model: inferences a second of each engine, over those of the fastest other that computes
    as we do."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(1.5 + 0.75 * len(figures), 3.6), layout="constrained")
    axes = drawing.add_subplot()
    width = 0.8 / len(engines)
    for i, name in enumerate(engines):
        medians = [figures[model]["median_ms"] for model in figures]
        peers = [
            min((each[peer] for peer in _equals(model, figures[model])), default=0.0)
            for model, each in zip(figures, medians)
        ]
        heights = [peer / each[name] if name in each else 0.0 for each, peer in zip(medians, peers)]
        places = [m + (i - (len(engines) - 1) / 2) * width for m in range(len(figures))]
        colour = "tab:orange" if name == OURS else str(0.35 + 0.12 * i)
        bars = axes.bar(places, heights, width, label=name, color=colour)
        if name == OURS:
            axes.bar_label(bars, fmt="%.1fx", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set_xticks(range(len(figures)), list(figures), rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("speed, fastest other in kind = 1")
    drawing.legend(loc="outside upper center", fontsize=8, ncols=len(engines))
    drawing.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
