"""Samples to calibrate and to judge with: read from pictures, array files or any iterable, checked, kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from coresident.errors import CoresidentWarning, ImageError, InputError, ResourceError
from coresident.graph.graph import Fact, Graph
from coresident.limits import DEFAULT
from coresident.sparsification.folders import files_in
from coresident.sparsification.labels import labels_of, stacked, whole
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.samples import Samples, whole_batches
from coresident.sparsification.sources import (
    Array,
    Item,
    Picture,
    Values,
    digest_of,
    not_finite,
    plain,
    sample_of,
    stack_of,
    wish,
)
from coresident.vision import images
from coresident.vision.tensors import Preprocessing, tensor_of

__all__ = ["Samples", "inputs_of", "read"]

FEW = 32
"""Fewer samples than these are worth a warning."""
_LABEL_NAMES = ("labels", "label", "targets", "y")
"""Names of the array of labels in an .npz and of the label in a dict of inputs."""
_SHOWN = 5
"""How many of the files that can't be used a message names."""
_NO_SIZE = (0, 0)
_SIZES = 8
"""More different sizes of pictures than these are worth a warning: the network is compiled for each."""


def inputs_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Fact]:
    """The inputs of a graph; a first dimension that is free stays free.

    Args:
        shapes: sizes for what the graph leaves open, by the names of inputs.

    Raises:
        InputError: shapes for no input, or that contradict what the graph fixes.
    """
    given = dict(shapes or {})
    if unknown := sorted(set(given) - set(graph.inputs)):
        names = ", ".join(map(repr, graph.inputs))
        raise InputError(f"the model has no input {unknown[0]!r}; it has {names}")
    facts = {}
    for name in graph.inputs:
        fact = graph.facts[name]
        sizes = given.get(name, fact.shape)
        fits = len(sizes) == len(fact.shape) and all(
            not isinstance(have, int) or have == want for have, want in zip(fact.shape, sizes)
        )
        if not fits:
            raise InputError(f"the input {name!r} is {list(fact.shape)}", shape=list(sizes))
        first = [size for size in fact.shape[:1] if not isinstance(size, int)]
        facts[name] = Fact(fact.dtype, (*first, *sizes[len(first) :]))
    return facts


def read(
    source: object,
    inputs: Mapping[str, Fact],
    preprocessing: Preprocessing | None = None,
    labels: object = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    most_rejected: float = 0.2,
    memory: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Samples:
    """Read samples.

    Args:
        source: a folder of pictures, and of .npy and .npz files of one sample each, with the folders inside
            it; one such file; an .npy [N, ...], or .npz with such an array for each input and perhaps one
            named "labels"; such arrays themselves; samples read before; or any iterable of arrays, dicts of
            arrays by input, or pairs of these with a label, each of one sample or a batch. Arrays are fed as
            they are, but bytes and 16-bit integers for an input of floats are pictures, [H, W] or [H, W, 3],
            and preprocessed.
        inputs: of the network (`inputs_of`).
        labels: "folders" for classes numbered by the sorted names of the topmost folders; a .csv of names
            and numbers of classes; a folder of masks, grey or with a palette, of the pictures' names; an
            .npy or array with one for each sample in the order of the sorted names.
        limit: samples at most: drawn at random of files and arrays, the first of an iterable.
        most_rejected: share of samples that may be unreadable or hold NaN.
        memory: bytes of samples that are kept; pictures beyond are decoded at each use. None is a quarter of
            the machine's, at most 4 GiB.

    Raises:
        InputError: none, too many unreadable, or such as do not fit the network.
        ImageError: the array file can't be read.
        ResourceError: arrays or iterables larger than `memory`, a folder that can't be read.

    Warns:
        CoresidentWarning: samples skipped, few samples, many sizes.
    """
    if not inputs:
        raise InputError("the network has no inputs")
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} samples")
    if isinstance(source, Samples):
        return _again(source, inputs, labels, limit, seed)
    options = preprocessing or Preprocessing()
    bound = memory if memory is not None else min(DEFAULT.memory_bytes // 4, 4 << 30)
    reader = _Reader(inputs, options, limit, seed, most_rejected, bound, progress)
    if isinstance(source, str | Path):
        reader.path(Path(source), labels)
    elif isinstance(source, np.ndarray) or hasattr(source, "detach"):
        reader.arrays({"": plain(source, "the array")}, labels, None)
    elif isinstance(source, Mapping):
        arrays = {str(name): plain(value, f"{name!r}") for name, value in source.items()}
        reader.arrays(arrays, labels, None)
    elif isinstance(source, Iterable):
        reader.stream(source, labels)
    else:
        raise InputError(
            f"data can't be read from {type(source).__name__}, but from a path, an array, a dict of arrays "
            "or any iterable of these"
        )
    return reader.finish()


def _again(
    samples: Samples, inputs: Mapping[str, Fact], labels: object, limit: int | None, seed: int
) -> Samples:
    if labels is not None:
        raise InputError("samples that were read before have their labels")
    same = [(name, fact.dtype, fact.shape) for name, fact in samples.inputs.items()] == [
        (name, fact.dtype, fact.shape) for name, fact in inputs.items()
    ]
    if not same:
        raise InputError("the samples were read for other inputs")
    return whole_batches(samples.subset(_drawn(len(samples), limit, seed)[: limit or len(samples)]))


def _drawn(count: int, limit: int | None, seed: int) -> list[int]:
    """Indices in the order in which they are tried."""
    if limit is None or limit >= count:
        return list(range(count))
    return [int(index) for index in np.random.default_rng(seed).permutation(count)]


class _Reader:
    """Collects samples and what is wrong with others."""

    def __init__(
        self,
        inputs: Mapping[str, Fact],
        options: Preprocessing,
        limit: int | None,
        seed: int,
        most_rejected: float,
        memory: int,
        progress: Progress,
    ) -> None:
        self._inputs, self._options, self._limit, self._seed = inputs, options, limit, seed
        self._most_rejected, self._memory, self._progress = most_rejected, memory, progress
        self._found: list[tuple[int, str, Item, Array | None]] = []
        self._rejected: list[tuple[str, str]] = []
        self._kept = 0
        self._what = "samples"

    @property
    def _full(self) -> bool:
        return self._limit is not None and len(self._found) >= self._limit

    def path(self, path: Path, labels: object) -> None:
        """A folder or a file."""
        suffix = path.suffix.lower()
        if path.is_dir():
            self._folder(path, labels)
        elif not path.exists():
            raise InputError("no such file or folder of data", file=path)
        elif suffix in images.ARRAYS:
            self.arrays(images.read_arrays(path), labels, path)
        elif suffix in images.PICTURES:
            self._files([(path.name, path)], labels)
        else:
            known = ", ".join((*images.PICTURES, *images.ARRAYS))
            raise InputError(f"data is a folder or a file with {known}", file=path)

    def _folder(self, folder: Path, labels: object) -> None:
        known = (*images.PICTURES, *images.ARRAYS)
        files, failed = files_in(folder, known)
        self._rejected += failed
        if not files and not failed:
            raise InputError(f"no files with {', '.join(known)} in the folder", file=folder)
        self._files(files, labels)

    def _files(self, files: Sequence[tuple[str, Path]], labels: object) -> None:
        self._what = "files"
        given = labels_of(labels, [name for name, _ in files], self._inputs, self._options)
        order = _drawn(len(files), self._limit, self._seed)
        wanted = min(len(files), self._limit or len(files))
        self._progress.stage("reading the data", wanted)
        for index in order:
            if self._full:
                break
            name, path = files[index]
            try:
                item, size = self._item(path)
                label = given.of(index, name, size)
            except ImageError as error:
                place = f" ({error.file})" if error.file not in (None, path) else ""
                self._reject(name, error.message + place, wanted)
                continue
            self._add(index, name, item, label)

    def _item(self, path: Path) -> tuple[Item, tuple[int, int]]:
        """A file's one sample, and its picture's size."""
        if path.suffix.lower() in images.ARRAYS:
            stacks, count = self._stacks(images.read_arrays(path), path)
            if count != 1:
                raise ImageError(f"holds {count} samples; in a folder each file is one", file=path)
            return self._values(stacks, 0, path), _NO_SIZE
        if len(self._inputs) != 1:
            names = ", ".join(map(repr, self._inputs))
            raise InputError(f"pictures are for networks of one input; this one has {names}: give .npz")
        ((name, fact),) = self._inputs.items()
        picture = images.read_picture(path)
        try:
            value = tensor_of(picture, self._options, wish(fact), fact.dtype, name)
        except InputError as error:
            raise error.at(file=path) from None
        if problem := not_finite(value):
            raise ImageError(problem, file=path)
        size = (picture.shape[0], picture.shape[1])
        if self._kept + value.nbytes <= self._memory:
            self._kept += value.nbytes
            return Values.of({name: value}), size
        return Picture(path, name, fact, self._options, digest_of([value]), (value.shape,)), size

    def _stacks(self, arrays: Mapping[str, Array], path: Path | None) -> tuple[dict[str, Array], int]:
        """The arrays for all inputs, samples first, and how many samples they are."""
        if set(arrays) == {""} and len(self._inputs) == 1:
            arrays = {next(iter(self._inputs)): arrays[""]}
        if set(arrays) != set(self._inputs):
            have = ", ".join(repr(name) if name else "one without a name" for name in arrays) or "none"
            want = ", ".join(map(repr, self._inputs))
            raise InputError(f"the arrays are {have}; the inputs are {want}", file=path)
        try:
            stacks = {
                name: stack_of(plain(arrays[name], f"the array {name!r}"), name, fact, f"the array {name!r}")
                for name, fact in self._inputs.items()
            }
        except InputError as error:
            raise error.at(file=path) from None
        lengths = {name: len(stack) for name, stack in stacks.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name!r} {count}" for name, count in lengths.items())
            raise InputError(f"arrays of different numbers of samples: {counts}", file=path)
        return stacks, next(iter(lengths.values()))

    def _values(self, stacks: Mapping[str, Array], index: int, path: Path | None) -> Item:
        """A sample of arrays, to be kept.

        Raises:
            ImageError: it holds NaN.
            InputError: it does not fit.
            ResourceError: there is no room.
        """
        values = {}
        try:
            for name, fact in self._inputs.items():
                part, what = stacks[name][index], f"the array {name!r}"
                values[name] = sample_of(part, name, fact, self._options, what)
                if problem := not_finite(values[name]):
                    raise ImageError(problem, file=path)
        except InputError as error:
            raise error.at(file=path) from None
        self._kept += sum(value.nbytes for value in values.values())
        if self._kept > self._memory:
            bound = self._memory / 2**20
            raise ResourceError(f"the samples take more than {bound:.0f} MiB; limit their number", file=path)
        return Values.of(values)

    def arrays(self, arrays: Mapping[str, Array], labels: object, path: Path | None) -> None:
        """Arrays of samples, perhaps with their labels."""
        rest, inside = self._without_labels(arrays)
        if inside is not None and labels is not None:
            raise InputError("labels are given twice: in the file and beside it", file=path)
        stacks, count = self._stacks(rest, path)
        names = [f"{path.name if path else 'sample'}[{index}]" for index in range(count)]
        given = labels_of(labels if inside is None else inside, names, self._inputs, self._options)
        wanted = min(count, self._limit or count)
        self._progress.stage("reading the data", wanted)
        for index in _drawn(count, self._limit, self._seed):
            if self._full:
                break
            try:
                item = self._values(stacks, index, path)
                label = given.of(index, names[index], _NO_SIZE)
            except ImageError as error:
                self._reject(names[index], error.message, wanted)
                continue
            self._add(index, names[index], item, label)

    def stream(self, source: Iterable[Any], labels: object) -> None:
        """What an iterable yields, until there is enough."""
        if labels is not None:
            raise InputError("the labels of an iterable come with its elements, as (input, label)")
        total = len(source) if isinstance(source, Sized) else 0
        wanted = min(total, self._limit or total) or self._limit or 0
        self._progress.stage("reading the data", wanted)
        for number, element in enumerate(source):
            self._element(number, element)
            if self._full:
                break

    def _element(self, number: int, element: Any) -> None:
        """One sample or a batch, perhaps with its label."""
        what = f"element {number} of the data"
        label = None
        if _is_pair(element):
            element, label = element
        if isinstance(element, Mapping):
            arrays = {str(name): plain(value, f"{name!r} in {what}") for name, value in element.items()}
            arrays, inside = self._without_labels(arrays)
            label = inside if inside is not None else label
        else:
            arrays = {"": plain(element, what)}
        try:
            stacks, count = self._stacks(arrays, None)
            marks = _labels_of_element(label, count, what)
            for index in range(count):
                if self._full:
                    return
                name = f"{number}" if count == 1 else f"{number}[{index}]"
                try:
                    item = self._values(stacks, index, None)
                except ImageError as error:
                    self._reject(name, error.message, self._limit or 0)
                    continue
                self._add(number, name, item, None if marks is None else marks[index])
        except InputError as error:
            if error.message.startswith(what):
                raise
            raise InputError(f"{what}: {error.message}", shape=error.shape) from None

    def _without_labels(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], Array | None]:
        """The arrays of inputs, and that of labels."""
        rest = dict(arrays)
        name = next((name for name in _LABEL_NAMES if name in rest and name not in self._inputs), None)
        return rest, None if name is None else rest.pop(name)

    def _add(self, index: int, name: str, item: Item, label: Array | None) -> None:
        self._found.append((index, name, item, label))
        self._progress.advance()

    def _reject(self, name: str, why: str, wanted: int) -> None:
        """Leave a sample out.

        Raises:
            InputError: so many are, that with the rest good there would still be too many.
        """
        self._rejected.append((name, why))
        share = self._most_rejected
        if wanted and len(self._rejected) * (1 - share) > share * wanted:
            raise self._refusal()

    def _refusal(self) -> InputError:
        count, shown = len(self._rejected), self._rejected[:_SHOWN]
        tried = count + len(self._found)
        reasons = "; ".join(f"{name}: {why}" for name, why in shown)
        more = f"; and {count - len(shown)} more" if count > len(shown) else ""
        return InputError(
            f"{count} of {tried} {self._what} tried can't be used, more than {self._most_rejected:.0%}: "
            f"{reasons}{more}"
        )

    def finish(self) -> Samples:
        """The samples, after a last look at all of them."""
        tried = len(self._found) + len(self._rejected)
        if tried == 0:
            raise InputError("there are no samples")
        if not self._found or len(self._rejected) > self._most_rejected * tried:
            raise self._refusal()
        labels = [label for *_, label in self._found if label is not None]
        if labels and len(labels) != len(self._found):
            raise InputError(f"{len(labels)} of {len(self._found)} samples have labels; all or none must")
        order = self._order()
        samples = whole_batches(
            Samples(
                names=tuple(self._found[position][1] for position in order),
                items=tuple(self._found[position][2] for position in order),
                inputs=dict(self._inputs),
                labels=stacked([labels[position] for position in order]) if labels else None,
                rejected=tuple(self._rejected),
                preprocessing=self._options,
            )
        )
        self._warn(samples)
        return samples

    def _order(self) -> list[int]:
        """Positions of what was found: as the source has them, those of one shape together."""
        order = sorted(range(len(self._found)), key=lambda position: self._found[position][0])
        first: dict[Any, int] = {}
        for position in order:
            first.setdefault(self._found[position][2].shapes, len(first))
        return sorted(order, key=lambda position: first[self._found[position][2].shapes])

    def _warn(self, samples: Samples) -> None:
        if self._rejected:
            name, why = self._rejected[0]
            more = f" and {len(self._rejected) - 1} more" if len(self._rejected) > 1 else ""
            _tell(f"skipped {name} ({why}){more}")
        if len(samples) < FEW:
            _tell(f"{len(samples)} samples are few to calibrate with; {FEW} or more are better")
        if len(samples.groups()) > _SIZES:
            _tell(
                f"the samples have {len(samples.groups())} different sizes, and the network is compiled for "
                "each; a size to resize them to would save that time"
            )


def _tell(message: str) -> None:
    warnings.warn(message, CoresidentWarning, stacklevel=5)


def _is_pair(element: object) -> bool:
    """Whether an element is inputs with their label."""
    if not isinstance(element, tuple | list) or len(element) != 2:
        return False
    return isinstance(element[0], Mapping) or getattr(element[0], "ndim", 0) > 0


def _labels_of_element(label: Any, count: int, what: str) -> list[Array] | None:
    if label is None:
        return None
    values = whole(label, f"the label of {what}")
    if values.ndim and len(values) == count:
        return list(values)
    if count == 1:
        return [values]
    raise InputError(f"the label of {what} must be {count}, one for each sample", shape=list(values.shape))
