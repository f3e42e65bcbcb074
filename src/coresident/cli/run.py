"""`coresident run`: a model over files."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coresident.cli import report
from coresident.cli.command import FAILED, OK, PARTLY, Command, add_json, add_threads
from coresident.cli.pictures import add_preprocessing, preprocessing
from coresident.errors import Error, ImageError, InputError, ModelError, ResourceError
from coresident.ports import NodeArg
from coresident.session import Session
from coresident.vision import images, tensors

Array = np.ndarray[Any, Any]

_FORMATS = ("npz", "npy", "png")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX model or a compiled one")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help=".npy, .npz (an array for each input, by name), a picture, or a folder of these",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help=".npy, .npz or .png for one input, a folder for several; without it outputs are only described",
    )
    parser.add_argument("--format", choices=_FORMATS, help="of the files in the folder --out (default: npz)")
    parser.add_argument(
        "--output-name", action="append", metavar="NAME", help="an output to compute (default: all)"
    )
    add_threads(parser)
    add_json(parser)
    add_preprocessing(parser)


@dataclass(frozen=True)
class _Done:
    """What became of one input file."""

    file: Path
    outputs: dict[str, Array]
    seconds: float
    written: Path | None
    scaling: str

    def record(self) -> dict[str, Any]:
        return {
            "input": str(self.file),
            "outputs": [{"name": name, **_summary(array)} for name, array in self.outputs.items()],
            "milliseconds": self.seconds * 1e3,
            "written": None if self.written is None else str(self.written),
            "scaling": self.scaling or None,
        }


def _summary(array: Array) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.size:
        with np.errstate(invalid="ignore", over="ignore"):
            values = array.astype(np.float64)
            found |= {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}
    return found


def _run(arguments: argparse.Namespace) -> int:
    files, several = _files(arguments.inputs)
    places = _places(files, several, arguments)
    options = preprocessing(arguments)
    done: list[_Done] = []
    failed: list[tuple[Path, str]] = []
    with report.steps(len(files), arguments.quiet) as progress:
        progress.now("loading the model")
        with Session(arguments.model, threads=arguments.threads) as session:
            for file, place in zip(files, places):
                progress.now(file.name)
                try:
                    outputs, seconds = _outputs(session, file, options, arguments.output_name)
                except (ImageError, InputError, ModelError) as error:
                    if not several:
                        raise error.at(file=file) from None
                    failed.append((file, error.message))
                else:
                    scaling = _write(place, outputs)
                    # Of several files the outputs are not kept: they may be large.
                    done.append(
                        _Done(file, outputs if not several or arguments.json else {}, seconds, place, scaling)
                    )
                progress.done()
    _tell(arguments, done, failed)
    if failed:
        return PARTLY if done else FAILED
    return OK


def _files(inputs: Sequence[str]) -> tuple[list[Path], bool]:
    """The input files, and whether results go to a folder."""
    known = (*images.PICTURES, *images.ARRAYS)
    files: list[Path] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in known and one.is_file())
        except OSError as error:
            raise ResourceError(f"the folder can't be read: {error.strerror}", file=path) from error
        if not inside:
            raise InputError(f"no files with {', '.join(known)} in the folder", file=path)
        files += inside
    return files, len(inputs) > 1 or Path(inputs[0]).is_dir()


def _places(files: list[Path], several: bool, arguments: argparse.Namespace) -> list[Path | None]:
    """Where each result goes; checked before anything is computed."""
    out: Path | None = arguments.out
    suffixes = [f".{name}" for name in _FORMATS]
    if out is None:
        if arguments.format:
            raise InputError("--format is of the files in a folder: give one by --out")
        return [None] * len(files)
    if not several:
        if arguments.format:
            raise InputError("--format is for several inputs; one result is written by its extension")
        if out.suffix.lower() not in suffixes:
            raise InputError(f"results are written as {', '.join(suffixes)}", file=out)
        if not out.parent.is_dir():
            raise InputError("the folder to write to does not exist", file=out)
        return [out]
    if out.suffix.lower() in suffixes or out.is_file():
        raise InputError("several inputs are written to a folder, not to a file", file=out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"the folder can't be made: {error.strerror}", file=out) from error
    stems = Counter(file.stem for file in files)
    names = [file.stem if stems[file.stem] == 1 else file.name for file in files]
    if len(set(names)) < len(names):
        raise InputError("two of the inputs have the same name, as their results would")
    return [out / f"{name}.{arguments.format or 'npz'}" for name in names]


def _outputs(
    session: Session, file: Path, options: tensors.Preprocessing, names: list[str] | None
) -> tuple[dict[str, Array], float]:
    feeds = _feeds(session.get_inputs(), file, options)
    start = time.perf_counter()
    arrays = session.run(names, feeds)
    seconds = time.perf_counter() - start
    return dict(zip(names or [one.name for one in session.get_outputs()], arrays)), seconds


def _feeds(inputs: Sequence[NodeArg], file: Path, options: tensors.Preprocessing) -> dict[str, Array]:
    suffix = file.suffix.lower()
    if suffix == ".npz":
        return images.read_arrays(file)
    if len(inputs) != 1:
        names = ", ".join(repr(one.name) for one in inputs)
        raise InputError(
            f"the model has {len(inputs)} inputs ({names}); give them by name in an .npz", file=file
        )
    only = inputs[0]
    if suffix == ".npy":
        return {only.name: images.read_arrays(file)[""]}
    picture = images.read_picture(file)
    return {only.name: tensors.tensor_of(picture, options, only.shape, only.dtype, only.name)}


def _write(place: Path | None, outputs: Mapping[str, Array]) -> str:
    """Write a result; says how levels were scaled where it is a picture."""
    if place is None:
        return ""
    if place.suffix.lower() != ".png":
        images.write_arrays(place, outputs)
        return ""
    if len(outputs) != 1:
        raise InputError(
            f"a picture shows one output; choose by --output-name among {', '.join(map(repr, outputs))}",
            file=place,
        )
    try:
        picture, how = tensors.picture_of(next(iter(outputs.values())))
    except Error as error:
        raise error.at(file=place) from None
    images.write_picture(place, picture)
    return how


def _tell(arguments: argparse.Namespace, done: list[_Done], failed: list[tuple[Path, str]]) -> None:
    if arguments.json:
        report.print_json(
            {
                "model": str(arguments.model),
                "done": [one.record() for one in done],
                "failed": [{"input": str(file), "error": message} for file, message in failed],
            }
        )
        return
    if len(done) == 1 and done[0].outputs:
        _describe(done[0])
    elif done:
        total = sum(one.seconds for one in done)
        report.say(
            f"{len(done)} of {len(done) + len(failed)} inputs, "
            f"{report.milliseconds(total / len(done))} ms each"
            + (f", written to {arguments.out}" if arguments.out else "")
        )
        for how in sorted({one.scaling for one in done if one.scaling}):
            report.say(f"levels: {how}")
    for file, message in failed:
        report.remark(f"skipped {file}: {' '.join(message.split())}")


def _describe(one: _Done) -> None:
    rows = []
    for name, array in one.outputs.items():
        found = _summary(array)
        statistics = [f"{found[key]:.6g}" if key in found else "" for key in ("min", "max", "mean")]
        rows.append([name, found["dtype"], report.sizes(array.shape), *statistics])
    columns = [report.Column("output"), report.Column("type"), report.Column("shape")]
    columns += [report.Column(title, number=True) for title in ("least", "greatest", "mean")]
    report.print_table("", columns, rows)
    if one.written:
        how = f" ({one.scaling})" if one.scaling else ""
        report.say(f"written to {one.written}{how}")
    report.say(f"{report.milliseconds(one.seconds)} ms")


COMMAND = Command(
    "run",
    "run a model on arrays or pictures",
    "Runs a model on an array, a picture, or a folder of them, and describes or writes its outputs.",
    _configure,
    _run,
)
