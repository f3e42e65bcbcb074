"""What PyTorch and TensorFlow export, against what they compute themselves (`make_exports.py`)."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import onnxruntime_outputs

from coresident import Session
from coresident.runtime import artifact
from coresident.runtime.artifact import Artifact
from coresident.runtime.kernels import Kernels

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
MODELS = Path(__file__).parent / "models"
FILES = sorted(MODELS.glob("*/*.onnx.gz"))
NETWORKS = sorted(path.name for path in MODELS.iterdir())
SEED = 17
TOLERANCE = 1e-5
"""Largest difference, relative to the range of the output."""
HALF = 2e-3
"""The same for networks whose weights are rounded to float16."""
KERNELS = Kernels()
"""Exports of one network, and its sizes, share most of their kernels."""

FREEST = {
    "anchor_based": "torchscript-17-free",
    "anchor_free": "dynamo-20-free",
    "end_to_end": "torchscript-17-free",
    "keras_classifier": "tf2onnx-18-free",
    "keras_segmenter": "tf2onnx-18-free",
    "mobile": "dynamo-21-free",
    "next": "dynamo-20-free-external",
    "residual": "torchscript-9-free",
    "shuffle": "dynamo-22-free",
    "transformer": "dynamo-23-free",
    "unet": "dynamo-18-free-raw",
}
"""Of each network the export that runs at several sizes."""

WRITTEN_OUT = frozenset(
    ("BatchNormalization", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Pow", "Relu")
)
"""Operators that are to become part of another's kernel, however an exporter writes them."""


def unpacked(packed: Path, folder: Path) -> Path:
    """The model as the exporter wrote it, with its external data."""
    for file in packed.parent.glob(f"{packed.name.removesuffix('.gz')}*.gz"):
        (folder / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    return folder / packed.name.removesuffix(".gz")


def truth(network: str) -> list[tuple[Array, Array]]:
    """Inputs and outputs of the framework."""
    with np.load(MODELS / network / "truth.npz") as arrays:
        count = len(arrays.files) // 2
        return [(arrays[f"x{i}"], arrays[f"y{i}"]) for i in range(count)]


def close(got: Array, want: Array, hint: object, tolerance: float) -> None:
    assert got.shape == want.shape, hint
    bound = tolerance * max(float(np.ptp(want)), 1e-30)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=0, atol=bound, err_msg=str(hint))


@pytest.mark.parametrize("network", NETWORKS)
def test_agrees_with_the_framework(network: str, tmp_path: Path) -> None:
    """By every exporter, for the sizes that it was run at, stored and loaded again, in as few steps."""
    found: dict[str, Counter[str]] = {}
    for packed in (file for file in FILES if file.parent.name == network):
        name = packed.name.removesuffix(".onnx.gz")
        stored = tmp_path / "stored.cres"
        with Session(unpacked(packed, tmp_path), threads=1, cache=False, kernels=KERNELS) as session:
            takes = session.get_inputs()[0]
            for x, y in truth(network)[: 2 if name == FREEST.get(network) else 1]:
                feeds = {takes.name: x.astype(takes.dtype)}
                got = session.run(None, feeds)[0]
                close(got, y, name, HALF if "half" in name else TOLERANCE)
            program = session.program(feeds)
            # Whether a kernel wants its input split by phase is its choice, which the CPU decides.
            kept = (step.info for step in program.steps if "phase split" not in step.info.get("kernel", ""))
            found[name] = Counter(info["op"] for info in kept)
        artifact.write(Artifact((program,)), stored)
        with Session(stored, threads=1) as loaded:
            assert loaded.run(None, feeds)[0].tobytes() == got.tobytes(), name
    for name, of in found.items():
        assert not of.keys() & WRITTEN_OUT, (name, of)
        # Pixels come last in TensorFlow's arrays: no Transpose may be left, but one at the end.
        assert of["Transpose"] <= ("keras" in network), (name, of)
    counts = [sum(of.values()) for name, of in found.items() if "half" not in name]
    # tf2onnx leaves dilation as a batch of phases where it does not know the sizes.
    assert max(counts) - min(counts) <= (7 if network == "keras_segmenter" else 3), found


# The heads of two detectors differ from the third's in nothing that sizes could touch.
@pytest.mark.parametrize("network", [name for name in FREEST if name not in ("anchor_based", "end_to_end")])
def test_other_sizes(network: str, tmp_path: Path) -> None:
    """Sizes that the framework was not asked for, against ONNX Runtime."""
    model = unpacked(MODELS / network / f"{FREEST[network]}.onnx.gz", tmp_path)
    with Session(model, threads=1, cache=False, kernels=KERNELS) as session:
        takes = session.get_inputs()[0]
        shape = [
            want if isinstance(want, int) else 48 if axis else 3 for axis, want in enumerate(takes.shape)
        ]
        x = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
        got = session.run(None, {takes.name: x})[0]
        if not isinstance(takes.shape[0], int) and network not in ("keras_segmenter", "transformer"):
            # The batch of these two is joined with phases, and with heads.
            batch = session.free_dimensions({takes.name: x})[0]
            assert batch.in_pieces, batch.why
    close(got, onnxruntime_outputs(onnx.load(model), {takes.name: x})[0], f"{model.name}, seed {SEED}", 1e-4)
