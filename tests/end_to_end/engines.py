"""The assets' networks, ready to run by this project and by ONNX Runtime, and how their outputs are
compared."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import assets
import numpy as np
import onnxruntime
from PIL import Image

from coresident import Session

Array = np.ndarray[Any, Any]

THREADS = 2
TOLERANCE = 1e-4
"""Largest difference from ONNX Runtime, relative to the range of its output."""


@cache
def ours(*parts: str) -> Session:
    """A network of the assets, compiled once for all tests, without the cache of programs."""
    return Session(assets.path("models", *parts), threads=THREADS, cache=False)


@cache
def theirs(*parts: str) -> onnxruntime.InferenceSession:
    """The same for ONNX Runtime."""
    return onnxruntime_session(assets.path("models", *parts))


def onnxruntime_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime that prints nothing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_theirs(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> list[Array]:
    return [np.asarray(array) for array in session.run(None, dict(feeds))]


def close(got: list[Array], wanted: list[Array], hint: object, tolerance: float = TOLERANCE) -> None:
    """Same types, shapes and, within the tolerance of each output's range, values."""
    assert len(got) == len(wanted), hint
    for i, (mine, other) in enumerate(zip(got, wanted)):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape), (hint, i)
        assert np.isfinite(other).all(), (hint, i)
        bound = tolerance * max(float(np.ptp(other)), 1e-30)
        np.testing.assert_allclose(mine, other, rtol=0, atol=bound, err_msg=f"{hint}, output {i}")


def pictures(*parts: str, suffix: str) -> list[Path]:
    """The files of a folder of the assets, by name."""
    return sorted(assets.path("data", *parts).glob(f"*{suffix}"))


def picture(path: Path, size: tuple[int, int]) -> Array:
    """RGB bytes [height, width, 3], resized bilinearly to (width, height)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def planes(pixels: Array) -> Array:
    """[height, width, channels] as float32 [1, channels, height, width]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
