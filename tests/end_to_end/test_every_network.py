"""Every network of the assets through a session, against ONNX Runtime, on noise."""

from __future__ import annotations

import assets
import numpy as np
import pytest
from engines import THREADS, close, ours, run_theirs, theirs
from support import HOST, RUN_TARGETS

from coresident import compiler
from coresident.runtime.pictures import executor_of

SEED = 41
NETWORKS = {
    ("cifar10_resnet", "resnet20_cifar10.onnx"): {"input": (10, 3, 32, 32)},
    ("cifar10_resnet", "resnet56_cifar10.onnx"): {"input": (10, 3, 32, 32)},
    ("face_ultralight", "version-RFB-320.onnx"): {"input": (1, 3, 240, 320)},
    ("face_ultralight", "version-RFB-320_simplified.onnx"): {"input": (1, 3, 240, 320)},
    ("fastestdet", "FastestDet.onnx"): {"input.1": (1, 3, 352, 352)},
    ("ffn_fib25", "ffn_fib25.onnx"): {"image": (1, 1, 33, 33, 33), "seed": (1, 1, 33, 33, 33)},
    ("nuclei_unet2d", "weights.onnx"): {"input.1": (1, 1, 512, 512)},
    ("squeezenet", "squeezenet_v1.1.onnx"): {"data": (1, 3, 227, 227)},
}
"""Inputs of each; free dimensions as in the other tests of this folder, so that each compiles once."""
NARROWER = [target for target in RUN_TARGETS.values() if target is not HOST]


def noise(parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in NETWORKS[parts].items()}


@pytest.mark.parametrize("parts", NETWORKS, ids="/".join)
def test_agrees_with_onnxruntime(parts: tuple[str, ...]) -> None:
    session, feeds = ours(*parts), noise(parts)
    got = session.run(None, feeds)
    close(got, run_theirs(theirs(*parts), feeds), f"seed {SEED}")
    again = session.run(None, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(got, again)), "not the same bits from run to run"


def test_no_network_is_forgotten() -> None:
    found = {path.relative_to(assets.path("models")).parts for path in assets.path("models").rglob("*.onnx")}
    assert found == set(NETWORKS)


@pytest.mark.skipif(not NARROWER, reason="this machine has no wider vectors than those of AVX2")
@pytest.mark.parametrize("parts", [parts for parts in NETWORKS if "nuclei" not in parts[0]], ids="/".join)
def test_narrower_vectors_agree_with_the_hosts(parts: tuple[str, ...]) -> None:
    feeds = noise(parts)
    model = compiler.load(assets.path("models", *parts))
    shapes = {name: array.shape for name, array in feeds.items()}
    for target in NARROWER:
        program = compiler.compile(model, shapes, compiler.Options(target=target, threads=THREADS))
        got = executor_of(program, THREADS).run([feeds[port.name] for port in program.inputs])
        close(got, ours(*parts).run(None, feeds), f"seed {SEED}, {target.cpu}")
