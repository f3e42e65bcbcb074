"""The arguments of verbs that feed pictures to a network."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

from coresident.vision.tensors import Channels, Fit, Layout, Preprocessing


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Options of what happens to pictures."""
    pictures = parser.add_argument_group("pictures", "they become (level * scale - mean) / std, resized")
    pictures.add_argument(
        "--preprocessing",
        type=Path,
        metavar="JSON",
        help="options saved before, as `coresident sparsify` does; those below go before them",
    )
    pictures.add_argument(
        "--mean", type=_numbers, metavar="M,M,M", help="a number, or one a channel (default: 0)"
    )
    pictures.add_argument(
        "--std", type=_numbers, metavar="S,S,S", help="a number, or one a channel (default: 1)"
    )
    pictures.add_argument(
        "--size", type=_size, metavar="HxW", help="default: what the model fixes, else the picture's own"
    )
    pictures.add_argument("--channels", choices=get_args(Channels), help="default: by the model's input")
    pictures.add_argument(
        "--scale", type=float, help="default: 1/255 (1/65535 of 16 bits) for float inputs, 1 for integers"
    )
    pictures.add_argument(
        "--layout", choices=("auto", *get_args(Layout)), help="default: auto, by the model's input"
    )
    pictures.add_argument(
        "--fit",
        choices=get_args(Fit),
        help="what becomes of proportions: given up (stretch, the default), kept between bars (letterbox), "
        "kept by cutting the middle out (crop)",
    )
    pictures.add_argument("--pad", type=float, metavar="LEVEL", help="of a letterbox's bars (default: 114)")
    pictures.add_argument(
        "--crop-share",
        type=float,
        metavar="SHARE",
        help="of the shorter side that crop keeps (default: 0.875, 224 of 256)",
    )


def preprocessing(arguments: argparse.Namespace) -> Preprocessing:
    """What the options say.

    Raises:
        InputError: no such options, or no such file.
        ResourceError: the file can't be read.
    """
    saved = Preprocessing.read(arguments.preprocessing) if arguments.preprocessing else Preprocessing()
    given = {one.name: getattr(arguments, one.name) for one in fields(Preprocessing)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("layout") == "auto":
        chosen["layout"] = None
    return replace(saved, **chosen)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or several with commas") from None


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 224 or 480x640 (height x width)")
    return int(parts[0]), int(parts[-1])
