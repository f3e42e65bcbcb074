"""Where a sample's arrays come from: a picture that is decoded, or values that are given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coresident.errors import InputError
from coresident.graph.graph import Fact
from coresident.vision import images
from coresident.vision.tensors import Preprocessing, form_of, resized, tensor_of

Array = np.ndarray[Any, Any]


class Item(Protocol):
    """One sample."""

    @property
    def digest(self) -> str:
        """Of its arrays."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its arrays, in the order of the inputs."""

    def load(self) -> dict[str, Array]:
        """Its arrays by the names of the inputs, each a batch of 1 where the input takes batches.

        Raises:
            ImageError, InputError: the file is no longer what it was.
        """


@dataclass(frozen=True, eq=False)
class Values:
    """Arrays in memory."""

    values: Mapping[str, Array]
    digest: str

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(value.shape for value in self.values.values())

    def load(self) -> dict[str, Array]:
        return dict(self.values)

    @staticmethod
    def of(values: Mapping[str, Array]) -> Values:
        return Values(dict(values), digest_of(values.values()))


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is decoded again each time."""

    path: Path
    name: str
    fact: Fact
    preprocessing: Preprocessing
    digest: str
    shapes: tuple[tuple[int, ...], ...]

    def load(self) -> dict[str, Array]:
        picture = images.read_picture(self.path)
        value = tensor_of(picture, self.preprocessing, wish(self.fact), self.fact.dtype, self.name)
        if value.shape != self.shapes[0]:
            raise InputError("the picture has changed while it was in use", file=self.path)
        return {self.name: value}


@dataclass(frozen=True, eq=False)
class Augmented:
    """A part of another sample's pictures, at their size, perhaps mirrored.

    Args:
        base: the sample.
        facts: of the inputs; those that take no pictures stay as they are.
        window: top, left, height and width of the part, as shares of the picture's.
        mirrored: left to right.
    """

    base: Item
    facts: Mapping[str, Fact]
    window: tuple[float, float, float, float]
    mirrored: bool

    @property
    def digest(self) -> str:
        text = f"{self.base.digest} {self.window} {self.mirrored}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.base.shapes

    def load(self) -> dict[str, Array]:
        return {name: self._part(value, self.facts[name]) for name, value in self.base.load().items()}

    def _part(self, value: Array, fact: Fact) -> Array:
        if not takes_pictures(fact):
            return value
        planar = form_of(fact.shape).layout == "nchw" and value.ndim > 2
        planes = value.reshape(value.shape[-3:]) if value.ndim > 2 else value[:, :, None]
        levels = planes.transpose(1, 2, 0) if planar else planes
        height, width = levels.shape[:2]
        top, left = int(self.window[0] * height), int(self.window[1] * width)
        rows, columns = max(1, round(self.window[2] * height)), max(1, round(self.window[3] * width))
        part = levels[top : top + rows, left : left + columns].astype(np.float32)
        part = resized(part, (height, width))
        part = part[:, ::-1] if self.mirrored else part
        part = part.transpose(2, 0, 1) if planar else part
        if value.dtype.kind in "iu":
            part = np.rint(part)
        return np.ascontiguousarray(part.reshape(value.shape), value.dtype)


def digest_of(arrays: Iterable[Array]) -> str:
    """Of the content, types and shapes of arrays."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def not_finite(value: Array) -> str:
    """What is wrong with values that should all be finite; "" if they are."""
    if value.dtype.kind != "f" or np.isfinite(value).all():
        return ""
    return "holds NaN" if np.isnan(value).any() else "holds infinities"


def takes_pictures(fact: Fact) -> bool:
    """Whether an input is like a picture: one, or a batch, of 1 or 3 channels."""
    try:
        form = form_of(wish(fact))
    except InputError:
        return False
    return form.channels in (1, 3, None) and form.rank != 2


def pixels_of(fact: Fact, shape: Sequence[int]) -> int:
    """How many pixels an array of some shape holds; 0 where the input takes no pictures."""
    if not takes_pictures(fact):
        return 0
    return int(np.prod(shape)) // (form_of(wish(fact)).channels or 1)


def takes_batches(fact: Fact) -> bool:
    """Whether an input's first dimension counts samples: it is free, 1, or one of four or more."""
    return bool(fact.shape) and (
        not isinstance(fact.shape[0], int) or fact.shape[0] == 1 or len(fact.shape) >= 4
    )


def wish(fact: Fact) -> tuple[int | str, ...]:
    """The shape of an input for one sample."""
    return (1, *fact.shape[1:]) if takes_batches(fact) else fact.shape


def plain(value: object, what: str) -> Array:
    """Anything like an array (a list, a tensor of PyTorch's) as one of numbers.

    Raises:
        InputError: it is not.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{what} is not an array: {line}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} holds {array.dtype}, not numbers", shape=list(array.shape))
    return array


def stack_of(array: Array, name: str, fact: Fact, what: str) -> Array:
    """An array of one sample, or of several in its first dimension, as one of several: a view.

    Args:
        name, fact: of the input that it is for.
        what: names the array in messages.

    Returns:
        Parts for `sample_of`: pictures, or values without the input's first dimension where that counts
        samples.

    Raises:
        InputError: its shape does not fit.
    """
    if _is_of_pictures(array, fact):
        return _pictures(array, what)
    alone = len(fact.shape) - takes_batches(fact)
    if array.ndim == alone:
        return array[None]
    if array.ndim != alone + 1:
        raise InputError(f"{what} does not fit the input {name!r}, {_text(fact)}", shape=list(array.shape))
    return array


def sample_of(part: Array, name: str, fact: Fact, preprocessing: Preprocessing, what: str) -> Array:
    """A part of what `stack_of` returned, as the input for one sample.

    Bytes and 16-bit integers for an input of floats that takes pictures are pictures and preprocessed;
    everything else is taken as it is, in the input's type.

    Raises:
        InputError: shape or type do not fit.
    """
    if _is_of_pictures(part, fact):
        return tensor_of(part, preprocessing, wish(fact), fact.dtype, name)
    return _typed(part[None] if takes_batches(fact) else part, name, fact, what)


def _is_of_pictures(array: Array, fact: Fact) -> bool:
    return fact.dtype.kind == "f" and array.dtype in (np.uint8, np.uint16) and takes_pictures(fact)


def _pictures(array: Array, what: str) -> Array:
    """[H, W], [H, W, C], [N, H, W] or [N, H, W, C] as [N, H, W] or [N, H, W, 3]."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)):
        array = array[None]
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3):
        return array
    raise InputError(
        f"{what} holds {array.dtype}, which are pictures, as [N, H, W] or [N, H, W, 3]; "
        "what is not to be preprocessed is given as floats",
        shape=list(array.shape),
    )


def _typed(value: Array, name: str, fact: Fact, what: str) -> Array:
    shape = wish(fact)
    if len(value.shape) != len(shape) or any(
        isinstance(want, int) and want != have for want, have in zip(shape, value.shape)
    ):
        raise InputError(f"{what} does not fit the input {name!r}, {_text(fact)}", shape=list(value.shape))
    if value.size == 0:
        raise InputError(f"{what} is empty", shape=list(value.shape))
    if value.dtype.kind == "f" and fact.dtype.kind != "f":
        raise InputError(f"{what} holds {value.dtype}; the input {name!r} takes {fact.dtype}")
    if fact.dtype.kind in "iu":
        limits = np.iinfo(fact.dtype)
        if value.min() < limits.min or value.max() > limits.max:
            raise InputError(f"{what} holds values that the input {name!r}, of {fact.dtype}, can't hold")
    with np.errstate(over="ignore"):
        return np.array(value, fact.dtype, order="C")


def _text(fact: Fact) -> str:
    return f"{fact.dtype} [{', '.join(str(size) if size != '' else '?' for size in fact.shape)}]"
