"""`coresident demo`: counts cell nuclei with a network and pictures that come with the package."""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from coresident.cli import report
from coresident.cli.command import OK, Command, add_json, add_threads
from coresident.errors import Error, InputError
from coresident.measure.turns import Result, Turn, take_turns
from coresident.session import Session
from coresident.vision import images, nuclei

Array = np.ndarray[Any, Any]
_DENSE, _PEER = "coresident-dense", "onnxruntime"
_ROUNDS, _SECONDS = 3, 0.4
_MARGIN, _CAPTION = 6, 16
"""Pixels between the pictures of the sheet, and of the line under each."""
_ASPECT = 1.4
"""Of the sheet, about: the square root of its width over its height."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("coresident-demo.png"),
        metavar="FILE.png",
        help="where the outlined pictures go (default: coresident-demo.png)",
    )
    add_threads(parser)
    add_json(parser)


@dataclass(frozen=True)
class _Counted:
    """A sample picture and what was found in it."""

    name: str
    found: int
    truth: int
    tensor: Array
    drawn: Array


def _run(arguments: argparse.Namespace) -> int:
    if arguments.output.suffix.lower() != ".png" or not arguments.output.absolute().parent.is_dir():
        raise InputError("--output must be a .png in a folder that exists", file=arguments.output)
    data = importlib.resources.files("coresident") / "demo_data"
    truth = _truth(data)
    engines = ["coresident", _DENSE] + [_PEER] * (importlib.util.find_spec(_PEER) is not None)
    with (
        report.steps(None, arguments.quiet) as progress,
        importlib.resources.as_file(data / "nuclei.onnx") as model,
    ):
        progress.now("compiling")
        with Session(model, threads=arguments.threads) as session:
            threads = session.threads
            counted = []
            for name in sorted(truth):
                progress.now(f"counting in {name}")
                counted.append(_count(session, data, name, truth[name]))
        images.write_picture(arguments.output, _sheet(counted))
        sample = max(counted, key=lambda one: one.tensor.size)
        feeds = {session.get_inputs()[0].name: sample.tensor}
        results, failures = take_turns(
            {name: Turn(name, model) for name in engines},
            feeds,
            threads,
            rounds=_ROUNDS,
            seconds=_SECONDS,
            progress=progress.now,
        )
    if problem := failures.get("coresident") or failures.get(_DENSE):
        raise Error(problem)
    record = _record(counted, sample, results, threads)
    record |= {"overlay": str(arguments.output), "failures": failures}
    if arguments.json:
        report.print_json(record)
    else:
        _tell(record)
    return OK


def _truth(data: Traversable) -> dict[str, int]:
    """The sample pictures, and how many nuclei there are in each."""
    known: dict[str, Any] = json.loads((data / "truth.json").read_text("utf-8"))
    return {name: int(count) for name, count in known.items() if name.endswith(".png")}


def _count(session: Session, data: Traversable, name: str, truth: int) -> _Counted:
    with importlib.resources.as_file(data / name) as file:
        picture = images.read_picture(file)
    tensor = nuclei.preprocess(picture)
    probability = session.run(None, {session.get_inputs()[0].name: tensor})[0]
    labels, found = nuclei.count(nuclei.crop(probability[0], *picture.shape[:2]))
    return _Counted(name, found, truth, tensor, nuclei.overlay(picture, labels))


def _sheet(counted: Sequence[_Counted]) -> Array:
    """All pictures on one, in rows from high to low, uint8 [H, W, 3]."""
    pictures = sorted(counted, key=lambda one: -one.drawn.shape[0])
    sizes = [(one.drawn.shape[1] + _MARGIN, one.drawn.shape[0] + _CAPTION + _MARGIN) for one in pictures]
    limit = max(max(width for width, _ in sizes), round(_ASPECT * math.sqrt(sum(w * h for w, h in sizes))))
    places, left, top, bottom, right = [], 0, 0, 0, 0
    for width, height in sizes:
        if left + width > limit:
            left, top = 0, bottom
        places.append((left + _MARGIN, top + _MARGIN))
        left, bottom = left + width, max(bottom, top + height)
        right = max(right, left)
    sheet = Image.new("RGB", (right + _MARGIN, bottom + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for one, (x, y) in zip(pictures, places):
        sheet.paste(Image.fromarray(one.drawn), (x, y))
        caption = f"{one.found} found, {one.truth} by hand"
        draw.text((x, y + one.drawn.shape[0] + 2), caption, fill="black")
    return np.asarray(sheet)


def _record(
    counted: Sequence[_Counted], sample: _Counted, results: Mapping[str, Result], threads: int
) -> dict[str, Any]:
    ours = results["coresident"]
    return {
        "threads": threads,
        "pictures": [{"name": one.name, "found": one.found, "truth": one.truth} for one in counted],
        "found": sum(one.found for one in counted),
        "truth": sum(one.truth for one in counted),
        "measured_on": {"name": sample.name, "shape": list(sample.tensor.shape)},
        "median_ms": {name: result.median * 1e3 for name, result in results.items()},
        "times_faster_than": {
            name: ours.faster_than(result) for name, result in results.items() if name != "coresident"
        },
        "max_error": ours.error(results[_PEER]) if _PEER in results else None,
    }


def _tell(record: Mapping[str, Any]) -> None:
    report.print_table(
        "Cell nuclei",
        [
            report.Column("picture"),
            report.Column("found", number=True),
            report.Column("by hand", number=True),
        ],
        [
            *([one["name"], str(one["found"]), str(one["truth"])] for one in record["pictures"]),
            ["all", str(record["found"]), str(record["truth"])],
        ],
    )
    size = report.sizes(record["measured_on"]["shape"])
    report.say(f"one inference, {size}, {record['threads']} threads, median:")
    titles = {"coresident": "coresident", _DENSE: "  zeros treated as dense", _PEER: "  ONNX Runtime"}
    for name, median in record["median_ms"].items():
        ratio = record["times_faster_than"].get(name)
        text = "" if ratio is None else f"   coresident is {ratio:.2f}x as fast"
        report.say(f"  {titles[name]:26}{median:9.3f} ms{text}")
    if _PEER not in record["median_ms"]:
        report.say(f"  {titles[_PEER]:26}   did not run: {record['failures'].get(_PEER, 'not installed')}")
    report.say(f"outlines drawn to {record['overlay']}")


COMMAND = Command(
    "demo",
    "count cell nuclei in sample pictures",
    "Compiles a small pruned U-Net that comes with the package, counts the nuclei in sample pictures that "
    "it was not trained on (BBBC038, CC0), draws them, and compares its speed with that of the same network "
    "with zeros treated as numbers, and with ONNX Runtime where it is installed.",
    _configure,
    _run,
)
