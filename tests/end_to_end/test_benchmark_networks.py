"""The benchmark's networks on small inputs, dense and pruned, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import architectures
import numpy as np
import pytest
from engines import close, onnxruntime_session, run_theirs

from coresident import Session
from coresident.runtime.executor import Executor

SEED = 29
PRUNED = 0.9
SMALL: dict[str, Callable[[float], bytes]] = {
    "resnet50": lambda sparsity: architectures.resnet50(64, (2, 1, 1, 1), sparsity),
    "mobilenet_v2": lambda sparsity: architectures.mobilenet_v2(64, sparsity),
    "unet": lambda sparsity: architectures.unet((48, 64), 32, 4, sparsity),
    "unet3d": lambda sparsity: architectures.unet((16, 16, 24), 16, 3, sparsity),
}
FULL: dict[str, Callable[[float], bytes]] = {
    "resnet50": lambda sparsity: architectures.resnet50(224, sparsity=sparsity),
    "mobilenet_v2": lambda sparsity: architectures.mobilenet_v2(224, sparsity),
    "unet": lambda sparsity: architectures.unet((512, 512), 32, 4, sparsity),
    "unet3d": lambda sparsity: architectures.unet((64, 64, 64), 16, 3, sparsity),
}


def check(model: bytes, threads: int, hint: str) -> None:
    """A program for so many threads: right, and bit for bit the same from run to run and on one thread."""
    session = Session(model, threads=threads, cache=False)
    (port,) = session.get_inputs()
    x = np.random.default_rng(SEED).standard_normal(port.shape, np.float32)
    feeds = {port.name: x}
    got = session.run(None, feeds)
    close(got, run_theirs(onnxruntime_session(model), feeds), hint)
    for again in (
        *(session.run(None, feeds) for _ in range(5)),
        Executor(session.program(feeds), 1).run([x]),
    ):
        assert np.array_equal(got[0], again[0]), f"{hint}: not the same bits"


@pytest.mark.parametrize("sparsity", [0.0, PRUNED])
@pytest.mark.parametrize("name", SMALL)
def test_small_inputs(name: str, sparsity: float) -> None:
    model = SMALL[name](sparsity)
    check(model, 2, f"{name}, {sparsity:.0%}, seed {SEED}")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sparsity", [0.0, 0.8, PRUNED])
@pytest.mark.parametrize("name", FULL)
def test_inputs_of_full_size(name: str, sparsity: float, threads: int) -> None:
    check(FULL[name](sparsity), threads, f"{name}, {sparsity:.0%}, {threads} threads, seed {SEED}")
