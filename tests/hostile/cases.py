"""One case of the fuzzer: a mutated file goes where its kind goes, and a typed error or success comes out."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import seeds

import coresident
from coresident.runtime import artifact, cpu
from coresident.runtime.executor import Executor
from coresident.vision.images import ARRAYS, read_arrays, read_picture

KINDS = ("model", "artifact", "image")
LIMITS = coresident.Limits(
    model_bytes=1 << 24, external_bytes=1 << 24, nodes=1000, attribute_elements=1000, memory_bytes=1 << 26
)


def run(kind: str, seed: int, folder: Path) -> str:
    """The outcome of a case: "well", or the name of a `coresident.Error`.

    Raises:
        Exception: any other, which is a finding.
    """
    rng = random.Random(f"{kind} {seed}")
    try:
        {"model": _model, "artifact": _artifact, "image": _image}[kind](rng, folder)
    except coresident.Error as error:
        str(error)
        return type(error).__name__
    return "well"


def _model(rng: random.Random, folder: Path) -> None:
    path = folder / "m.onnx"
    known = seeds.models()
    path.write_bytes(mutations.model_changed(rng.choice(known), known, rng))
    (folder / "w.bin").write_bytes(bytes(48))
    with coresident.Session(path, threads=1, cache=False, limits=LIMITS) as session:
        feeds = {one.name: _fed(one.shape, np.dtype(one.dtype), rng) for one in session.get_inputs()}
        for array in session.run(None, feeds):
            array.tobytes()


def _fed(shape: tuple[Any, ...], dtype: np.dtype[Any], rng: random.Random) -> np.ndarray[Any, Any]:
    sizes = [size if isinstance(size, int) else rng.choice((0, 1, 2, 3)) for size in shape]
    # numpy has no array of nothing either, if its other sizes are too many.
    if math.prod(size or 1 for size in sizes) * dtype.itemsize > LIMITS.memory_bytes:
        raise coresident.InputError("more than is fed here")
    values = np.random.default_rng(rng.randrange(1 << 30))
    if dtype.kind == "f":
        array = values.standard_normal(sizes) * rng.choice((1, 1, 1e20))
        flat = array.reshape(-1)
        if flat.size and rng.random() < 0.3:
            flat[values.integers(0, flat.size, 3)] = rng.choice(mutations.FLOATS)
    elif dtype.kind == "b":
        array = values.integers(0, 2, sizes)
    else:
        bounds = np.iinfo(dtype)
        low, high = rng.choice(((0, 4), (-9, 9), (bounds.min, bounds.max)))
        array = values.integers(max(low, bounds.min), min(high, bounds.max), sizes, dtype, endpoint=True)
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(dtype)


def _artifact(rng: random.Random, folder: Path) -> None:
    whole = rng.choice(seeds.artifacts())
    content, signed = mutations.artifact_changed(whole, rng)
    try:
        found = artifact.parse(content)
    except coresident.ArtifactError:
        raise
    assert signed or content == whole, "damage that was not found"
    program = found.program_for(cpu.machine(), cpu.features())
    # What a stranger can sign is loaded, but not run (writers are, by loading): it is code, and may do what
    # it likes.
    Executor(replace(program, writers=()), 1, cpu.features()).close()


def _image(rng: random.Random, folder: Path) -> None:
    extension, content = rng.choice(seeds.pictures())
    path = folder / f"i{rng.choice((extension, extension, extension, '.png', '.npy'))}"
    path.write_bytes(mutations.bytes_changed(content, rng))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if path.suffix in ARRAYS:
            read_arrays(path)
        else:
            read_picture(path)
