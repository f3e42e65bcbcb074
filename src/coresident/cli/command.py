"""What a verb of the command line is, and the arguments that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

OK, FAILED, USAGE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""


@dataclass(frozen=True)
class Command:
    """A verb.

    Args:
        name: as it is typed.
        help: one line.
        description: more, for its own --help.
        configure: adds its arguments to a parser.
        run: does it and returns the exit code; a `coresident.Error` that it raises becomes exit code 1.
    """

    name: str
    help: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def duration(text: str) -> float:
    """Seconds, more than none and no more than a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=1x3x224x224."""
    name, sign, sizes = text.rpartition("=")
    parts = sizes.split("x")
    if not sign or not name or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like NAME=1x3x224x224")
    return name, tuple(map(int, parts))


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads to run on (default: the physical cores usable)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")


def add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="sizes of an input that the model leaves open; may be repeated",
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="first dimension of the inputs without --shape"
    )
