"""Between pictures and a network's tensors: levels, channels, size and layout, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from coresident.errors import ImageError, InputError

Array = np.ndarray[Any, Any]
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601: grey of red, green, blue."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input: ((level x scale) - mean) / std, channel by channel.

    Args:
        mean, std: one number, or one a channel, in the order of `channels`.
        size: (height, width) to resize to; None is the size that the input fixes, or else the picture's own.
        channels: their order; None is gray for an input of one channel, rgb for one of three.
        scale: what levels are multiplied by; None takes the type's range to 0..1 for inputs of floats and
            keeps levels as they are for inputs of integers.
        layout: where the channels stand; None reads it off the input's shape.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    channels: Channels | None = None
    scale: float | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if any(value == 0 for value in self.std):
            raise InputError("a standard deviation of 0")


@dataclass(frozen=True)
class _Form:
    """An input's shape, read as that of a picture; None where it is free."""

    layout: Layout
    channels: int | None
    height: int | None
    width: int | None
    rank: int


def _form(shape: Sequence[int | str | None], layout: Layout | None, name: str) -> _Form:
    sizes = [size if isinstance(size, int) else None for size in shape]
    rank = len(sizes)
    if rank == 2:
        return _Form("nchw", 1, sizes[0], sizes[1], rank)
    if rank not in (3, 4) or (rank == 4 and sizes[0] not in (1, None)):
        raise InputError(
            f"the input {name!r} does not take one picture, as [1, C, H, W], [1, H, W, C], [C, H, W], "
            "[H, W, C] and [H, W] do; give an array instead",
            shape=list(shape),
        )
    first, second, last = sizes[-3:]
    if layout is None:
        layout = "nhwc" if last in (1, 3) and first not in (1, 3) else "nchw"
    if layout == "nhwc":
        return _Form(layout, last, first, second, rank)
    return _Form(layout, first, second, last, rank)


def tensor_of(
    picture: Array, options: Preprocessing, shape: Sequence[int | str | None], dtype: Any, name: str = ""
) -> Array:
    """A picture as a network's input.

    Args:
        picture: [H, W] or [H, W, 3] (red, green, blue), of any levels.
        options: what to do with it.
        shape: of the input; sizes that are no numbers are free.
        dtype: of the input.
        name: of the input, for messages.

    Returns:
        An array of the input's rank and dtype. Sizes are changed by Pillow's bilinear filter, which averages
        when it shrinks.

    Raises:
        InputError: the input does not take a picture, or not with these options.
    """
    dtype = np.dtype(dtype)
    form = _form(shape, options.layout, name)
    channels = options.channels or ("gray" if form.channels == 1 else "rgb")
    count = 1 if channels == "gray" else 3
    if form.channels not in (count, None):
        raise InputError(
            f"the input {name!r} has {form.channels} channels; {channels} has {count}", shape=list(shape)
        )
    levels = _with_channels(picture.astype(np.float32), channels)
    size = options.size or (form.height or picture.shape[0], form.width or picture.shape[1])
    for want, have in zip((form.height, form.width), size):
        if want not in (have, None):
            raise InputError(f"the input {name!r} can't take {size[0]}x{size[1]}", shape=list(shape))
    levels = _resized(levels, size)
    scale = options.scale
    if scale is None:
        scale = 1.0
        if dtype.kind == "f" and picture.dtype.kind == "u":
            scale = 1.0 / np.iinfo(picture.dtype).max
    mean, std = (_each(values, count, name) for values in (options.mean, options.std))
    levels = (levels * np.float32(scale) - mean) / std
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        levels = np.clip(np.rint(levels), limits.min, limits.max)
    if form.layout == "nchw":
        levels = levels.transpose(2, 0, 1)
    if form.rank == 2:
        levels = levels[0]
    if form.rank == 4:
        levels = levels[None]
    return np.ascontiguousarray(levels, dtype)


def _with_channels(levels: Array, channels: Channels) -> Array:
    """[H, W] or [H, W, 3] to [H, W, channels]."""
    if channels == "gray":
        grey = levels if levels.ndim == 2 else levels @ _LUMA
        return np.asarray(grey[:, :, None])
    colours = np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels
    return colours[:, :, ::-1] if channels == "bgr" else colours


def _resized(levels: Array, size: tuple[int, int]) -> Array:
    if levels.shape[:2] == size:
        return levels
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(levels[:, :, channel])).resize(
                (size[1], size[0]), Image.Resampling.BILINEAR
            )
        )
        for channel in range(levels.shape[2])
    ]
    return np.stack(planes, axis=2)


def _each(values: tuple[float, ...], count: int, name: str) -> Array:
    if len(values) not in (1, count):
        raise InputError(f"{len(values)} values for the {count} channels of the input {name!r}")
    return np.array(values, np.float32)


def picture_of(output: Array) -> tuple[Array, str]:
    """A picture-like output as a picture.

    Args:
        output: [H, W], [1, H, W], [3, H, W], [1, 1, H, W] or [1, 3, H, W].

    Returns:
        uint8 [H, W] or [H, W, 3], and how levels were made of values: uint8 and bool are kept, values within
        0..1 are multiplied by 255, all others are stretched from least to greatest.

    Raises:
        ImageError: it has no such shape, or no finite values.
    """
    planes = output[0] if output.ndim == 4 and output.shape[0] == 1 else output
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or planes.size == 0:
        raise ImageError(
            "the output is not like a picture ([1, 1, H, W] or [1, 3, H, W]); write it as .npy or .npz",
            shape=list(output.shape),
        )
    if planes.dtype == np.uint8:
        levels, how = planes, "levels kept"
    elif planes.dtype == np.bool_:
        levels, how = planes.astype(np.uint8) * np.uint8(255), "true is 255"
    else:
        levels, how = _levels(planes.astype(np.float64), output)
    return np.ascontiguousarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)), how


def _levels(values: Array, output: Array) -> tuple[Array, str]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ImageError("the output has no finite values", shape=list(output.shape))
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1:
        low, high, how = 0.0, 1.0, "0..1 scaled to 0..255"
    else:
        how = f"{low:.6g}..{high:.6g} stretched to 0..255"
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255.0 / ((high - low) or 1.0))
    return np.rint(scaled).astype(np.uint8), how
