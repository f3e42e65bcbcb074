"""Trained networks: all of them read, and the small ones agree with ONNX Runtime by the references."""

from __future__ import annotations

import assets
import numpy as np
import onnx
import pytest
from onnx_models import bound, close, onnxruntime_outputs

from coresident.graph.graph import Graph
from coresident.graph.operator import evaluate, infer
from coresident.onnx.reader import read

SEED = 23
MODELS = [
    "cifar10_resnet/resnet20_cifar10.onnx",
    "cifar10_resnet/resnet56_cifar10.onnx",
    "face_ultralight/version-RFB-320.onnx",
    "face_ultralight/version-RFB-320_simplified.onnx",
    "fastestdet/FastestDet.onnx",
    "ffn_fib25/ffn_fib25.onnx",
    "nuclei_unet2d/weights.onnx",
    "squeezenet/squeezenet_v1.1.onnx",
]


def with_sizes(graph: Graph, size: int) -> Graph:
    """The graph with its free dimensions bound: batches of 1, others of this size."""
    shapes = {
        name: tuple(d if isinstance(d, int) else 1 if d == "N" else size for d in graph.facts[name].shape)
        for name in graph.inputs
    }
    return infer(bound(graph, shapes))


@pytest.mark.parametrize("name", MODELS)
def test_reads_and_infers(name: str) -> None:
    path = assets.path("models", *name.split("/"))
    graph = with_sizes(read(path), 17)
    for output in onnx.load(path).graph.output:
        declared = [d.dim_value for d in output.type.tensor_type.shape.dim]
        found = graph.facts[output.name].sizes
        assert len(found) == len(declared)
        assert all(want in (0, size) for want, size in zip(declared, found)), (declared, found)


@pytest.mark.parametrize("name", [name for name in MODELS if "nuclei" not in name])
def test_references_agree_with_onnxruntime(name: str) -> None:
    path = assets.path("models", *name.split("/"))
    graph = with_sizes(read(path), 9)
    rng = np.random.default_rng(SEED)
    feeds = {n: rng.standard_normal(graph.facts[n].sizes).astype(np.float32) for n in graph.inputs}
    values = evaluate(graph, feeds)
    for output, wanted in zip(graph.outputs, onnxruntime_outputs(onnx.load(path), feeds)):
        close(values[output], wanted, 1e-4)
    for node in graph.nodes:
        for out in node.outputs:
            assert graph.facts[out].shape == values[out].shape, f"{node.op} {node.name}"
