"""Networks compiled here for AArch64, run under qemu-user and compared with what this machine computes.

`python -m pytest -m aarch64` needs an emulator (`emulation`). The kernels' own tests run there as well, with
`CORESIDENT_TEST_TARGETS=aarch64-neon,aarch64-dotprod python -m pytest tests/kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architectures
import emulation
import numpy as np
import onnx
import pytest
import quantised
from onnx import TensorProto, numpy_helper
from support import graph_of

import coresident
from coresident.codegen.target import NAMED
from coresident.compiler import Options, compile_graph
from coresident.graph.graph import Node
from coresident.runtime import artifact
from coresident.runtime.program import Program

pytestmark = [
    pytest.mark.aarch64,
    pytest.mark.skipif(
        emulation.emulator() is None, reason=f"no qemu-aarch64 on PATH, nor in {emulation.VARIABLE}"
    ),
]

_PLAIN = {"fp-armv8", "neon"}
FEATURES = {"cortex-a72": _PLAIN, "cortex-a76": _PLAIN | {"dotprod"}, "max": _PLAIN | {"dotprod"}}
"""Of CPUs that are emulated, as the loader would ask for them."""


def _sparse(model: bytes, share: float) -> bytes:
    """The model with so much of its weights of bytes zero, in blocks of four input channels."""
    parsed, rng = onnx.load_from_string(model), np.random.default_rng(0)
    for tensor in parsed.graph.initializer:
        if tensor.data_type != TensorProto.INT8 or len(tensor.dims) != 4 or tensor.dims[1] < 4:
            continue
        weights = numpy_helper.to_array(tensor).copy()
        blocks = rng.random((len(weights), -(-weights.shape[1] // 4), *weights.shape[2:])) < share
        weights[np.repeat(blocks, 4, axis=1)[:, : weights.shape[1]]] = 0
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return bytes(parsed.SerializeToString())


def _bytes(folder: Path, activations: str = "uint8") -> bytes:
    return quantised.statically_quantised(folder, "QDQ", activations, "int8", per_channel=True)


NETWORKS: dict[str, Callable[[Path], bytes]] = {
    "dense floats": lambda folder: architectures.mobilenet_v2(39),
    "sparse floats": lambda folder: architectures.mobilenet_v2(39, sparsity=0.9),
    "sparse residual blocks": lambda folder: architectures.resnet50(35, (1, 1, 1, 1), sparsity=0.85),
    "a sparse U-Net": lambda folder: architectures.unet((24, 36), width=9, depth=2, sparsity=0.9),
    "a U-Net of three dimensions": lambda folder: architectures.unet((8, 12, 20), width=5, depth=2),
    "dense bytes": _bytes,
    "dense signed bytes": lambda folder: _bytes(folder, "int8"),
    "sparse bytes": lambda folder: _sparse(_bytes(folder), 0.85),
    "sparse signed bytes": lambda folder: _sparse(_bytes(folder, "int8"), 0.85),
    "dynamic bytes": quantised.dynamically_quantised,
    "bytes and floats": lambda folder: quantised.mixed(),
}


@pytest.fixture(scope="module", params=NETWORKS)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[artifact.Artifact, np.ndarray, list[np.ndarray]]:
    """One artifact for all CPUs of AArch64, an input, and the outputs of this machine's own code."""
    folder = tmp_path_factory.mktemp("aarch64")
    model = NETWORKS[request.param](folder)
    path = folder / "network.cres"
    coresident.compile(model, path, targets=list(emulation.CPUS), threads=1)
    with coresident.Session(model, threads=1, cache=False) as session:
        (one,) = session.get_inputs()
        x = np.random.default_rng(1).standard_normal(one.shape).astype(np.float32)
        return artifact.read(path), x, session.run(None, {one.name: x})


@pytest.mark.parametrize("cpu", FEATURES)
def test_networks(
    compiled: tuple[artifact.Artifact, np.ndarray, list[np.ndarray]], cpu: str, request: pytest.FixtureRequest
) -> None:
    found, x, wanted = compiled
    program = found.program_for("aarch64", FEATURES[cpu])
    assert ("dotprod" in program.features) == ("dotprod" in FEATURES[cpu])
    got = emulation.run(program, [x], cpu)
    whole = "bytes" in request.node.callspec.params["compiled"]
    for a, b in zip(got, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        # Sums are made in another order; where that moves a float across a step of a scale, a byte differs.
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=scale * (0.02 if whole else 1e-4))
        assert np.mean(np.abs(a - b)) < scale * 1e-4


def test_code_with_dot_products_needs_them() -> None:
    """What tells that the emulator does distinguish its CPUs."""
    program = _program("aarch64-dotprod")
    x = np.zeros((1, 16, 5, 5), np.uint8)
    np.testing.assert_array_equal(emulation.run(program, [x])[0], 0)
    with pytest.raises(RuntimeError, match="SIGILL"):
        emulation.run(program, [x], "cortex-a72")


def _program(target: str) -> Program:
    x = np.zeros((1, 16, 5, 5), np.uint8)
    node = Node("ConvInteger", ("x", "w"), ("y",), {}, "c")
    graph = graph_of([node], {"x": x}, ["y"], {"w": np.ones((8, 16, 3, 3), np.int8)})
    return compile_graph(graph, Options(target=NAMED[target], threads=1))
