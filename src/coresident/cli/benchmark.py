"""`coresident benchmark`: latency and throughput, alone or with other engines taking turns."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coresident.cli import report
from coresident.cli.command import (
    OK,
    PARTLY,
    Command,
    add_json,
    add_shapes,
    add_threads,
    duration,
    positive,
)
from coresident.errors import Error
from coresident.measure.feeds import fixed_shapes, random_feeds
from coresident.measure.turns import Result, Turn, take_turns
from coresident.measure.worker import ENGINES
from coresident.runtime import cpu
from coresident.session import Session

OURS = "coresident"


def _engines(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [name for name in ENGINES if name != OURS]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no engine {unknown[0]!r}; there are {', '.join(known)}")
    return names


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX model")
    parser.add_argument(
        "--against",
        type=_engines,
        default=[],
        metavar="ENGINE,...",
        help=f"engines to compare with, where installed: {', '.join(n for n in ENGINES if n != OURS)}",
    )
    parser.add_argument("--seconds", type=duration, default=1.0, help="of one engine's turn (default: 1)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each engine (default: 5)")
    add_threads(parser)
    parser.add_argument(
        "--streams",
        type=positive,
        default=1,
        metavar="K",
        help="inferences under way at once, which share the threads: more a second, each slower "
        "(default: 1, the shortest time of one inference)",
    )
    add_shapes(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    threads = arguments.threads or cpu.usable_cores().count
    with Session(arguments.model, threads=threads, streams=arguments.streams) as session:
        inputs = session.get_inputs()
    shapes = fixed_shapes({one.name: one.shape for one in inputs}, dict(arguments.shape), arguments.batch)
    feeds = random_feeds(shapes, {one.name: np.dtype(one.dtype) for one in inputs})
    turns = {name: Turn(name, arguments.model) for name in [OURS, *arguments.against]}
    with report.steps(None, arguments.quiet) as progress:
        results, failures = take_turns(
            turns,
            feeds,
            threads,
            streams=arguments.streams,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            progress=progress.now,
        )
    if OURS not in results:
        raise Error(failures[OURS])
    record = summary(results, failures, _batch(shapes), arguments.streams)
    record = {
        "model": str(arguments.model),
        "threads": threads,
        "streams": arguments.streams,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        **record,
    }
    if arguments.json:
        report.print_json(record)
    else:
        _tell(record)
    return PARTLY if failures else OK


def _batch(shapes: Mapping[str, Sequence[int]]) -> int:
    return next((shape[0] for shape in shapes.values() if shape), 1)


def summary(
    results: Mapping[str, Result], failures: Mapping[str, str], batch: int, streams: int = 1
) -> dict[str, Any]:
    """The figures of a comparison as JSON values; errors are shares of the outputs' range.

    How many times slower the others are is of the time of an inference or, with several streams, of the
    inferences a second. Outputs are compared with those of onnxruntime, or of the first other engine where it
    did not run.
    """
    others = [name for name in results if name != OURS]
    reference = "onnxruntime" if "onnxruntime" in results else next(iter(others), None)
    engines = {}
    for name, result in results.items():
        times, ours = result.times * 1e3, results[OURS]
        slower = ours.faster_than(result) if streams == 1 else ours.serves_more_than(result)
        engines[name] = {
            "median_ms": result.median * 1e3,
            "mean_ms": float(times.mean()),
            "p95_ms": float(np.percentile(times, 95)),
            "p99_ms": float(np.percentile(times, 99)),
            "min_ms": float(times.min()),
            "runs": len(times),
            "per_second": batch * len(times) / sum(result.walls),
            "ready_s": result.ready,
            "resident_mb": result.resident_bytes / 1e6,
            "times_slower": None if name == OURS else slower,
            "max_error": None if reference in (name, None) else result.error(results[reference]),
        }
    return {"batch": batch, "reference": reference, "engines": engines, "failures": dict(failures)}


def _tell(record: Mapping[str, Any]) -> None:
    shapes = ", ".join(f"{name} {report.sizes(shape)}" for name, shape in record["shapes"].items())
    streams = f" in {record['streams']} streams" if record["streams"] > 1 else ""
    title = f"{record['model']}, {record['threads']} threads{streams}, {shapes}"
    titles = (
        "median ms",
        "mean",
        "p95",
        "p99",
        "least",
        "per second",
        "ready s",
        "MB",
        "ours faster",
        "error",
    )
    rows = []
    for name, figures in record["engines"].items():
        times = [f"{figures[key]:.3f}" for key in ("median_ms", "mean_ms", "p95_ms", "p99_ms", "min_ms")]
        slower, error = figures["times_slower"], figures["max_error"]
        rows.append(
            [
                name,
                *times,
                f"{figures['per_second']:.4g}",
                f"{figures['ready_s']:.2f}",
                f"{figures['resident_mb']:.0f}",
                "" if slower is None else f"{slower:.2f}x",
                "" if error is None else f"{error:.1e}",
            ]
        )
    report.print_table(
        title, [report.Column("engine"), *(report.Column(title, number=True) for title in titles)], rows
    )
    if record["reference"]:
        report.say(
            f"error: the largest difference from {record['reference']}, as a share of its outputs' range"
        )
    for name, message in record["failures"].items():
        report.remark(f"{name} did not run: {message}")


COMMAND = Command(
    "benchmark",
    "measure latency and throughput, also against other engines",
    "Measures a model on random inputs. Other engines take turns with it, each in a process of its own, "
    "and their outputs are compared.",
    _configure,
    _run,
)
