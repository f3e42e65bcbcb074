"""What the samples are said to show: classes from a table, a list or folders' names, masks from pictures,
boxes from YOLO's files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from coresident.errors import ImageError, InputError, ResourceError
from coresident.graph.graph import Fact
from coresident.sparsification.folders import files_in
from coresident.sparsification.sources import Array, plain, wish
from coresident.vision import images
from coresident.vision.tensors import Preprocessing, corners_of, mask_of

FOLDERS = "folders"
"""Asks for classes numbered by the sorted names of the topmost folders."""
_LONGEST_TABLE = 64 << 20
_LONGEST_BOXES = 1 << 20


class Labels(Protocol):
    """Where labels come from."""

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        """A sample's label.

        Args:
            index: of the sample among all that the source has.
            name: of its file, relative to the source's folder.
            size: of its picture.

        Raises:
            ImageError: this label can't be read.
            InputError: the labels are not for these samples.
        """


class Unlabelled:
    """No labels."""

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        return None


@dataclass(frozen=True)
class Listed:
    """One for each sample, in the order of the sorted names."""

    values: Array

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        return np.asarray(self.values[index])


@dataclass(frozen=True)
class Named:
    """Classes by the files' names."""

    classes: Mapping[str, int]
    table: Path

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        pure = PurePosixPath(name)
        for key in (name, pure.name, str(pure.with_suffix("")), pure.stem):
            if key in self.classes:
                return np.asarray(self.classes[key])
        raise InputError(f"no label for {name!r}", file=self.table)


@dataclass(frozen=True)
class _Beside:
    """Files by the names of the pictures that they belong to (endings may differ).

    Args:
        folder: that holds them.
        paths: by their names without endings.
        fact, input, preprocessing: of what pictures become.
    """

    folder: Path
    paths: Mapping[str, Path]
    fact: Fact
    input: str
    preprocessing: Preprocessing

    def path_of(self, name: str) -> Path | None:
        """The file of a picture."""
        stem = PurePosixPath(name).with_suffix("")
        return self.paths.get(str(stem)) or self.paths.get(stem.name)


class Masks(_Beside):
    """Pictures of labels."""

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        path = self.path_of(name)
        if path is None:
            raise ImageError("there is no mask of this name", file=self.folder)
        mask = images.read_mask(path)
        if mask.shape != size:
            raise ImageError(
                f"the mask is {mask.shape[0]}x{mask.shape[1]}, its picture {size[0]}x{size[1]}", file=path
            )
        return mask_of(mask, self.preprocessing, wish(self.fact), self.input)


class BoxFiles(_Beside):
    """YOLO's files of boxes; a picture without one has none.

    A line is a box: class, centre x and y, width and height, in shares of the picture.
    """

    def of(self, index: int, name: str, size: tuple[int, int]) -> Array | None:
        """float64 [boxes, 5]: class, left, top, right and bottom in shares of the input."""
        path = self.path_of(name)
        rows = np.zeros((0, 5)) if path is None else _boxes(path)
        centre, half = rows[:, 1:3], rows[:, 3:] / 2
        corners = np.hstack([centre - half, centre + half])
        shape = wish(self.fact)
        corners = np.clip(corners_of(corners, size, self.preprocessing, shape, self.input), 0, 1)
        seen = np.all(corners[:, :2] < corners[:, 2:], axis=1)
        return np.column_stack([rows[:, 0], corners])[seen]


def labels_of(
    source: object, names: Sequence[str], inputs: Mapping[str, Fact], preprocessing: Preprocessing
) -> Labels:
    """The labels for files, or for the samples of an array.

    Args:
        source: None; "folders"; a .csv, .npy, or folder of masks or of YOLO's .txt; or an array with a label
            for each name.
        names: of all samples, sorted; files relative to their folder.

    Raises:
        InputError: the source is none of these, or not for these samples.
        ResourceError: it can't be read.
    """
    if source is None:
        return Unlabelled()
    if isinstance(source, str) and source == FOLDERS:
        return Listed(_folders(names))
    if not isinstance(source, str | Path):
        return Listed(_listed(source, len(names), "the labels"))
    path = Path(source)
    if path.is_dir():
        return _beside(path, names, inputs, preprocessing)
    if not path.is_file():
        raise InputError(
            f"no such labels; they are {FOLDERS!r}, a .csv or .npy, or a folder of masks or of YOLO's .txt",
            file=path,
        )
    if path.suffix.lower() == ".npy":
        return Listed(_listed(images.read_arrays(path)[""], len(names), "the file of labels"))
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return Named(_table(path), path)
    raise InputError("labels are read from .csv and .npy", file=path)


def whole(values: object, what: str) -> Array:
    """Labels as int64.

    Raises:
        InputError: they are no whole numbers.
    """
    array = plain(values, what)
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{what}: labels are whole numbers")
    with np.errstate(invalid="ignore"):
        return array.astype(np.int64)


def stacked(labels: Sequence[Array]) -> Array | tuple[Array, ...]:
    """Labels in one array where they are of one shape."""
    if len({label.shape for label in labels}) == 1:
        return np.stack(labels)
    return tuple(labels)


def _listed(values: object, count: int, what: str) -> Array:
    array = whole(values, what)
    if array.ndim == 0 or len(array) != count:
        raise InputError(f"{what} must be {count}, one for each sample", shape=list(array.shape))
    return array


def _folders(names: Sequence[str]) -> Array:
    tops = [PurePosixPath(name).parts[0] if "/" in name else "" for name in names]
    if "" in tops:
        raise InputError(f"labels by folders, and {names[tops.index('')]!r} is in none")
    numbers = {top: number for number, top in enumerate(sorted(set(tops)))}
    return np.array([numbers[top] for top in tops], np.int64)


def _beside(
    folder: Path, names: Sequence[str], inputs: Mapping[str, Fact], preprocessing: Preprocessing
) -> Labels:
    """Files of boxes where pictures have some of their names, otherwise masks."""
    if len(inputs) != 1:
        raise InputError("masks and boxes are for networks of one input", file=folder)
    ((name, fact),) = inputs.items()
    texts = _by_stem(folder, (".txt",), "files of boxes")
    boxes = BoxFiles(folder, texts, fact, name, preprocessing)
    if any(boxes.path_of(each) for each in names):
        return boxes
    masks = _by_stem(folder, images.PICTURES, "masks")
    if not masks:
        known = ", ".join(images.PICTURES)
        raise InputError(f"no masks, which are {known}, nor a .txt named like a picture", file=folder)
    return Masks(folder, masks, fact, name, preprocessing)


def _by_stem(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Files by their names without endings."""
    paths: dict[str, Path] = {}
    for name, path in files_in(folder, suffixes)[0]:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in paths:
            raise InputError(f"two {what} of the name {stem!r}", file=folder)
        paths[stem] = path
    return paths


def _boxes(path: Path) -> Array:
    """float64 [boxes, 5]."""
    try:
        if path.stat().st_size > _LONGEST_BOXES:
            raise ImageError(f"boxes of more than {_LONGEST_BOXES >> 20} MiB", file=path)
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror or error}", file=path) from error
    except UnicodeDecodeError:
        raise ImageError("not boxes: no UTF-8", file=path) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = [math.nan]
        if not row:
            continue
        if len(row) != 5 or not all(map(math.isfinite, row)) or row[0] < 0 or row[0] % 1:
            raise ImageError(
                f"line {number} is not CLASS X Y WIDTH HEIGHT in shares of the picture", file=path
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 5)


def _table(path: Path) -> dict[str, int]:
    """The first two columns of a table: a file's name and the number of a class."""
    try:
        if path.stat().st_size > _LONGEST_TABLE:
            raise InputError(f"a table of labels has at most {_LONGEST_TABLE >> 20} MiB", file=path)
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error
    except UnicodeDecodeError:
        raise InputError("not a table: no UTF-8", file=path) from None
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    classes: dict[str, int] = {}
    try:
        for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1):
            if not row or (number == 1 and not _is_whole(row)):
                continue
            if not _is_whole(row):
                raise InputError(
                    f"line {number} is not like NAME,CLASS with the number of a class", file=path
                )
            name, value = row[0].strip(), int(row[1])
            if classes.setdefault(name, value) != value:
                raise InputError(f"line {number}: another label for {name!r}", file=path)
    except csv.Error as error:
        raise InputError(f"not a table: {error}", file=path) from None
    if not classes:
        raise InputError("no labels; lines are like NAME,CLASS", file=path)
    return classes


def _is_whole(row: Sequence[Any]) -> bool:
    text = row[1].strip() if len(row) > 1 else ""
    return text.isascii() and text.isdigit() and len(text) < 10
