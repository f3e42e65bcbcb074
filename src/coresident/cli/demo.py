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
_OURS, _DENSE, _PEER, _DENSE_PEER = "coresident", "dense", "onnxruntime", "onnxruntime_dense"
_TITLES = {
    _OURS: "coresident, sparse 8-bit",
    _DENSE: "coresident, dense float",
    _PEER: "ONNX Runtime, sparse 8-bit",
    _DENSE_PEER: "ONNX Runtime, dense float",
}
_INPUT = "image"
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
    """A sample picture and what was found in it, by the network and by its dense float original."""

    name: str
    found: int
    dense: int
    truth: int
    tensor: Array
    drawn: Array


def _run(arguments: argparse.Namespace) -> int:
    if arguments.output.suffix.lower() != ".png" or not arguments.output.absolute().parent.is_dir():
        raise InputError("--output must be a .png in a folder that exists", file=arguments.output)
    data = importlib.resources.files("coresident") / "demo_data"
    truth = _truth(data)
    with (
        report.steps(None, arguments.quiet) as progress,
        importlib.resources.as_file(data / "nuclei.onnx") as sparse,
        importlib.resources.as_file(data / "nuclei_dense.onnx") as dense,
    ):
        progress.now("compiling")
        with (
            Session(sparse, threads=arguments.threads) as session,
            Session(dense, threads=arguments.threads) as original,
        ):
            threads = session.threads
            counted = []
            for name in sorted(truth):
                progress.now(f"counting in {name}")
                counted.append(_count(session, original, data, name, truth[name]))
        images.write_picture(arguments.output, _sheet(counted))
        sample = max(counted, key=lambda one: one.tensor.size)
        turns = {_OURS: Turn("coresident", sparse), _DENSE: Turn("coresident", dense)}
        if importlib.util.find_spec("onnxruntime") is not None:
            turns |= {_PEER: Turn("onnxruntime", sparse), _DENSE_PEER: Turn("onnxruntime", dense)}
        results, failures = take_turns(
            turns,
            {_INPUT: sample.tensor},
            threads,
            rounds=_ROUNDS,
            seconds=_SECONDS,
            progress=progress.now,
        )
        sizes = {_OURS: sparse.stat().st_size, _DENSE: dense.stat().st_size}
    if problem := failures.get(_OURS) or failures.get(_DENSE):
        raise Error(problem)
    record = _record(counted, sample, results, threads)
    record |= {"bytes": sizes, "overlay": str(arguments.output), "failures": failures}
    if arguments.json:
        report.print_json(record)
    else:
        _tell(record)
    return OK


def _truth(data: Traversable) -> dict[str, int]:
    """The sample pictures, and how many nuclei there are in each."""
    known: dict[str, Any] = json.loads((data / "truth.json").read_text("utf-8"))
    return {name: int(count) for name, count in known.items() if name.endswith(".png")}


def _count(session: Session, original: Session, data: Traversable, name: str, truth: int) -> _Counted:
    with importlib.resources.as_file(data / name) as file:
        picture = images.read_picture(file)
    tensor = nuclei.preprocess(picture)
    (labels, found), (_, dense) = (
        nuclei.count(nuclei.crop(one.run(None, {_INPUT: tensor})[0][0], *picture.shape[:2]))
        for one in (session, original)
    )
    return _Counted(name, found, dense, truth, tensor, nuclei.overlay(picture, labels))


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
    ours = results[_OURS]
    return {
        "threads": threads,
        "pictures": [
            {"name": one.name, "found": one.found, "found_dense": one.dense, "truth": one.truth}
            for one in counted
        ],
        "found": sum(one.found for one in counted),
        "found_dense": sum(one.dense for one in counted),
        "truth": sum(one.truth for one in counted),
        "measured_on": {"name": sample.name, "shape": list(sample.tensor.shape)},
        "median_ms": {name: result.median * 1e3 for name, result in results.items()},
        "times_faster_than": {
            name: ours.faster_than(result) for name, result in results.items() if name != _OURS
        },
        "max_error": ours.error(results[_PEER]) if _PEER in results else None,
    }


def _tell(record: Mapping[str, Any]) -> None:
    report.print_table(
        "Cell nuclei",
        [
            report.Column("picture"),
            report.Column("found", number=True),
            report.Column("by the dense network", number=True),
            report.Column("by hand", number=True),
        ],
        [
            *(
                [one["name"], str(one["found"]), str(one["found_dense"]), str(one["truth"])]
                for one in record["pictures"]
            ),
            ["all", str(record["found"]), str(record["found_dense"]), str(record["truth"])],
        ],
    )
    size = report.sizes(record["measured_on"]["shape"])
    report.say(f"one inference, {size}, {record['threads']} threads, median:")
    for name, median in record["median_ms"].items():
        ratio = record["times_faster_than"].get(name)
        text = "" if ratio is None else f"   the first is {ratio:.2f}x as fast"
        report.say(f"  {_TITLES[name]:28}{median:9.3f} ms{text}")
    for name in (_PEER, _DENSE_PEER):
        if name not in record["median_ms"]:
            report.say(f"  {_TITLES[name]:28}   did not run: {record['failures'].get(name, 'not installed')}")
    small, large = (record["bytes"][name] / 1024 for name in (_OURS, _DENSE))
    report.say(f"model files: {small:.0f} KiB sparse 8-bit, {large:.0f} KiB dense float")
    report.say(f"outlines drawn to {record['overlay']}")


COMMAND = Command(
    "demo",
    "count cell nuclei in sample pictures",
    "Compiles a small U-Net that comes with the package, pruned in blocks of four channels and quantised to "
    "8 bits by this project's own training tools, counts the nuclei in sample pictures that it was not "
    "trained on (BBBC038, CC0), draws them, and shows what that bought: counts and speed beside those of "
    "the dense float network that it was made from, here and in ONNX Runtime where that is installed.",
    _configure,
    _run,
)
