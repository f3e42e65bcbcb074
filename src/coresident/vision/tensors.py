"""Between pictures and a network's tensors: levels, channels, size and layout, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from coresident.errors import ImageError, InputError, ResourceError
from coresident.runtime.files import write_atomically

Array = np.ndarray[Any, Any]
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]
Fit = Literal["stretch", "letterbox", "crop"]

Window = tuple[int, int, int, int]
"""Top, left, rows, columns."""

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
        fit: what becomes of the picture's proportions. "stretch" gives them up; "letterbox" keeps them and
            fills what is left over on both sides with `pad` (as YOLO does); "crop" keeps them and cuts away
            what is too much on both sides.
        pad: a level of 8 bits; that of pictures of 16 bits is as bright.
        crop_share: how much of the picture's shorter side "crop" keeps, where the proportions agree: 0.875
            is resizing the shorter side to 256 and cutting 224 from the middle.

    Raises:
        InputError: no such options.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    channels: Channels | None = None
    scale: float | None = None
    layout: Layout | None = None
    fit: Fit = "stretch"
    pad: float = 114.0
    crop_share: float = 0.875

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.std, self.pad, 1.0 if self.scale is None else self.scale]
        if not all(math.isfinite(value) for value in numbers):
            raise InputError("a mean, standard deviation, scale or pad that is not finite")
        if any(value == 0 for value in self.std):
            raise InputError("a standard deviation of 0")
        if not 0 < self.crop_share <= 1:
            raise InputError(f"a share of {self.crop_share} to crop; it is more than 0 and at most 1")
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"a size of {self.size[0]}x{self.size[1]}")

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @staticmethod
    def of(record: object) -> Preprocessing:
        """What `record` gave; what is missing has its default.

        Raises:
            InputError: names or values that are none of its.
        """
        if not isinstance(record, Mapping):
            raise InputError("preprocessing is an object of options")
        known = asdict(Preprocessing())
        if unknown := sorted(map(str, set(record) - set(known))):
            raise InputError(f"no preprocessing option {unknown[0]!r}; there are {', '.join(known)}")
        return Preprocessing(**{name: _option(name, value) for name, value in record.items()})

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            ResourceError: the disk does not take it.
        """
        write_atomically(path, [(json.dumps(self.record(), indent=1) + "\n").encode()])

    @staticmethod
    def read(path: Path) -> Preprocessing:
        """What `save` wrote.

        Raises:
            InputError: the file holds something else.
            ResourceError: it can't be read.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error
        try:
            return Preprocessing.of(json.loads(content))
        except (ValueError, RecursionError):
            raise InputError("not JSON", file=path) from None
        except InputError as error:
            raise error.at(file=path) from None


_CHOICES: dict[str, tuple[str, ...]] = {
    "channels": get_args(Channels),
    "layout": get_args(Layout),
    "fit": get_args(Fit),
}


def _option(name: str, value: object) -> Any:
    """A JSON value as that of an option."""
    if value is None and name in ("size", "channels", "scale", "layout"):
        return None
    if name in _CHOICES and value in _CHOICES[name]:
        return value
    if name in ("scale", "pad", "crop_share") and _is_number(value):
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, list) and value and all(map(_is_number, value)):
        if name in ("mean", "std"):
            return tuple(map(float, value))
        if name == "size" and len(value) == 2 and all(isinstance(one, int) for one in value):
            return tuple(value)
    raise InputError(f"the preprocessing option {name!r} can't be {value!r:.80}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Form:
    """An input's shape, read as that of a picture; None where it is free."""

    layout: Layout
    channels: int | None
    height: int | None
    width: int | None
    rank: int


def form_of(shape: Sequence[int | str | None], layout: Layout | None = None, name: str = "") -> Form:
    """How an input takes a picture.

    Raises:
        InputError: it does not.
    """
    sizes = [size if isinstance(size, int) else None for size in shape]
    rank = len(sizes)
    if rank == 2:
        return Form("nchw", 1, sizes[0], sizes[1], rank)
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
        return Form(layout, last, first, second, rank)
    return Form(layout, first, second, last, rank)


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
        when it shrinks, and proportions as `options.fit` says.

    Raises:
        InputError: the input does not take a picture, or not with these options.
    """
    dtype = np.dtype(dtype)
    form = form_of(shape, options.layout, name)
    channels = options.channels or ("gray" if form.channels == 1 else "rgb")
    count = 1 if channels == "gray" else 3
    if form.channels not in (count, None):
        raise InputError(
            f"the input {name!r} has {form.channels} channels; {channels} has {count}", shape=list(shape)
        )
    levels = _with_channels(picture.astype(np.float32), channels)
    size = _size(options, form, picture.shape, shape, name)
    pad = options.pad * (257 if picture.dtype == np.uint16 else 1)
    levels = _fitted(levels, size, options, pad, Image.Resampling.BILINEAR)
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


def mask_of(
    mask: Array, options: Preprocessing, shape: Sequence[int | str | None], name: str = "", outside: int = 0
) -> Array:
    """A picture of labels, as it lies over what `tensor_of` makes of the picture that it belongs to.

    Args:
        mask: integers, [H, W], as large as the picture.
        options, shape, name: as for the picture.
        outside: the label of what a letterbox adds.

    Returns:
        int32 [height, width] of the input; the nearest label where sizes change.

    Raises:
        InputError: as `tensor_of`.
    """
    size = _size(options, form_of(shape, options.layout, name), mask.shape, shape, name)
    levels = mask.astype(np.int32)[:, :, None]
    return np.ascontiguousarray(_fitted(levels, size, options, outside, Image.Resampling.NEAREST)[:, :, 0])


def corners_of(
    corners: Array,
    picture: Sequence[int],
    options: Preprocessing,
    shape: Sequence[int | str | None],
    name: str = "",
) -> Array:
    """Boxes of a picture, as they lie in what `tensor_of` makes of it.

    Args:
        corners: [boxes, 4], left, top, right, bottom in shares of the picture.
        picture: its height and width.
        options, shape, name: as for the picture.

    Returns:
        float64 [boxes, 4] in shares of the input; what "crop" cuts away lies outside of 0..1.

    Raises:
        InputError: as `tensor_of`.
    """
    size = _size(options, form_of(shape, options.layout, name), picture, shape, name)
    shares = corners.astype(np.float64)
    if options.fit == "stretch":
        return shares
    if options.fit == "crop":
        top, left, rows, columns = _cropped(options, size, picture)
        whole = np.array([picture[1], picture[0]] * 2)
        return np.asarray((shares * whole - [left, top, left, top]) / [columns, rows, columns, rows])
    top, left, rows, columns = _boxed(size, picture)
    inside = shares * [columns, rows, columns, rows] + [left, top, left, top]
    return np.asarray(inside / np.array([size[1], size[0]] * 2))


def _size(
    options: Preprocessing, form: Form, picture: Sequence[int], shape: Sequence[int | str | None], name: str
) -> tuple[int, int]:
    """Height and width that a picture gets."""
    size = options.size or (form.height or picture[0], form.width or picture[1])
    for want, have in zip((form.height, form.width), size):
        if want not in (have, None):
            raise InputError(f"the input {name!r} can't take {size[0]}x{size[1]}", shape=list(shape))
    return size


def _with_channels(levels: Array, channels: Channels) -> Array:
    """[H, W] or [H, W, 3] to [H, W, channels]."""
    if channels == "gray":
        grey = levels if levels.ndim == 2 else levels @ _LUMA
        return np.asarray(grey[:, :, None])
    colours = np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels
    return colours[:, :, ::-1] if channels == "bgr" else colours


def _fitted(
    levels: Array, size: tuple[int, int], options: Preprocessing, pad: float, filter: Image.Resampling
) -> Array:
    """[H, W, channels] brought to a size as the options say."""
    if options.fit == "stretch":
        return resized(levels, size, filter)
    if options.fit == "crop":
        top, left, rows, columns = _cropped(options, size, levels.shape)
        return resized(levels[top : top + rows, left : left + columns], size, filter)
    box = np.full((*size, levels.shape[2]), pad, levels.dtype)
    top, left, rows, columns = _boxed(size, levels.shape)
    box[top : top + rows, left : left + columns] = resized(levels, (rows, columns), filter)
    return box


def _cropped(options: Preprocessing, size: tuple[int, int], picture: Sequence[int]) -> Window:
    """The part of a picture that "crop" keeps."""
    height, width = picture[:2]
    share = options.crop_share * min(height / size[0], width / size[1])
    rows, columns = (max(1, min(have, round(want * share))) for want, have in zip(size, (height, width)))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _boxed(size: tuple[int, int], picture: Sequence[int]) -> Window:
    """The part of an input that a picture takes in a letterbox."""
    height, width = picture[:2]
    share = min(size[0] / height, size[1] / width)
    rows, columns = (max(1, min(most, round(have * share))) for most, have in zip(size, (height, width)))
    return (size[0] - rows) // 2, (size[1] - columns) // 2, rows, columns


def resized(
    levels: Array, size: tuple[int, int], filter: Image.Resampling = Image.Resampling.BILINEAR
) -> Array:
    """float32 or int32 [H, W, channels] at another size, by a filter of Pillow's."""
    if levels.shape[:2] == size:
        return levels
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(levels[:, :, channel])).resize((size[1], size[0]), filter)
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
