"""`coresident sparsify`: a dense network to a sparse one in 8 bits that this CPU runs faster."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from coresident.cli import report as console
from coresident.cli.command import OK, PARTLY, Command, add_json, add_threads, positive, shape
from coresident.cli.pictures import add_preprocessing, preprocessing
from coresident.errors import ResourceError
from coresident.sparsification.report import Report
from coresident.sparsification.report_text import agreement, summary

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_TASKS = ("classifier", "segmenter", "detector", "other")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a trained ONNX model of floats")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="pictures such as the model will see: a folder, .npy, or .npz with an array for each input",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the result and its report")
    _add_targets(parser)
    parser.add_argument(
        "--pattern",
        choices=("auto", "unstructured", "4block"),
        default="auto",
        help="of the zeros: anywhere, or four input channels at a time (default: auto, the better one)",
    )
    parser.add_argument(
        "--quantize",
        choices=("auto", "int8", "none"),
        default="auto",
        help="to 8 bits (default: auto, where it helps)",
    )
    parser.add_argument(
        "--effort",
        choices=("fast", "default", "max"),
        default="default",
        help="how much time to spend on accuracy; max trains, too, 5 to 10 minutes, if PyTorch is there",
    )
    parser.add_argument(
        "--budget", type=_span, metavar="TIME", help="for everything, as 30m, 90s or 1h; none by custom"
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NODE,...",
        help="nodes to leave as they are, or re:PATTERN; may be repeated",
    )
    parser.add_argument(
        "--labels",
        metavar="LABELS",
        help="to show accuracy too: a .csv of names and classes, an .npy, a folder of masks or of YOLO's "
        ".txt, or 'folders' where the folders of --data are classes",
    )
    parser.add_argument("--task", choices=_TASKS, help="default: by the outputs' shapes")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="pictures to use at most, drawn at random"
    )
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="sizes of an input that the model leaves open; may be repeated",
    )
    parser.add_argument("--seed", type=_natural, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--no-resume", action="store_true", help="begin anew, whatever an interrupted run has left in --out"
    )
    add_threads(parser)
    add_json(parser)
    add_preprocessing(parser)


def _add_targets(parser: argparse.ArgumentParser) -> None:
    targets = parser.add_argument_group(
        "target", "one of them; without any, twice the speed (--target-speedup 2)"
    ).add_mutually_exclusive_group()
    targets.add_argument(
        "--target-speedup", type=_factor, metavar="X", help="times as fast as the dense float32 model here"
    )
    targets.add_argument("--latency-ms", type=_amount, metavar="MS", help="milliseconds of one call")
    targets.add_argument(
        "--sparsity", type=_share, metavar="S", help="share of the weights that become zero, as 0.6 or 60%%"
    )
    targets.add_argument(
        "--max-drop",
        type=_share,
        metavar="D",
        help="of agreement with the model, or of accuracy with --labels, as 0.01 or 1%%",
    )


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _factor(text: str) -> float:
    return _amount(text.removesuffix("x"))


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 0.6 or 60%")
    return value


def _span(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 90s, 30m or 1h")
    return seconds


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _names(given: list[str]) -> tuple[str, ...]:
    """Lists with commas; a pattern may have commas of its own."""
    names = [name for one in given for name in ([one] if one.startswith("re:") else one.split(","))]
    return tuple(name.strip() for name in names if name.strip())


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    options = preprocessing(arguments)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"the folder can't be made: {error.strerror}", file=out) from error

    from coresident.sparsification.pipeline import sparsify

    try:
        with console.stages(arguments.quiet) as progress:
            result = sparsify(
                arguments.model,
                arguments.data,
                target_speedup=arguments.target_speedup,
                latency_ms=arguments.latency_ms,
                sparsity=arguments.sparsity,
                max_drop=arguments.max_drop,
                pattern=arguments.pattern,
                quantize=arguments.quantize,
                effort=arguments.effort,
                budget=arguments.budget,
                skip=_names(arguments.skip),
                threads=arguments.threads,
                seed=arguments.seed,
                preprocessing=options,
                labels=arguments.labels,
                task=arguments.task,
                shapes=dict(arguments.shape),
                limit=arguments.limit,
                output=out,
                progress=progress,
                resume=not arguments.no_resume,
            )
            result.save(out)
    except KeyboardInterrupt:
        without = " without --no-resume" if arguments.no_resume else ""
        console.remark(f"what is done so far is kept in {out}: the same command{without} goes on from there")
        raise
    if arguments.json:
        console.print_json({"output": str(out), **result.report.record()})
    else:
        _tell(result.report, out)
    return OK if result.report.target.feasible else PARTLY


def _tell(report: Report, out: Path) -> None:
    for line in summary(report, str):
        console.say(line)
    columns = [console.Column("layer"), console.Column("zeros", number=True), console.Column("pattern")]
    columns += [console.Column("type"), console.Column("ms before", number=True)]
    columns += [console.Column("ms after", number=True), console.Column("kept")]
    console.print_table(
        "",
        columns,
        [
            [
                layer.name,
                f"{layer.sparsity:.0%}",
                layer.pattern,
                layer.dtype,
                console.milliseconds(layer.seconds_before),
                console.milliseconds(layer.seconds_after),
                layer.kept,
            ]
            for layer in report.layers
        ],
    )
    found = [f"{name} {value}" for name, value in agreement(report)]
    if found:
        console.say(f"agreement on {report.held_back_samples} samples held back: {', '.join(found)}")
    if report.accuracy is not None:
        one = report.accuracy
        console.say(f"{one.metric} {one.before:.4g} became {one.after:.4g}")
    for note in report.notes:
        console.say(note)
    console.say(f"written to {out}; report.md there says more")


COMMAND = Command(
    "sparsify",
    "make a dense model sparse and 8-bit, to a speed asked for",
    "Makes a trained dense model several times faster on this CPU: sets weights to zero and computes in "
    "8 bits where this CPU gains by it, with some of the pictures and without labels or training, and shows "
    "on the others what that cost. Writes an ONNX model, the compiled one and a report. An interrupted run "
    "goes on where it was when the same command is given again.",
    _configure,
    _run,
)
