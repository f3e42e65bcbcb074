"""The whole pipeline: sound after every pass, the same results, nothing left that should go."""

import numpy as np
import pytest
from assets import path
from networks import Net, counts, only, same

from coresident.graph.graph import Fact, Graph
from coresident.onnx.reader import read
from coresident.passes.pipeline import optimise

SIZES = {"N": 1, "D": 9, "H": 10, "W": 11}


def load(*parts: str) -> Graph:
    graph = read(path("models", *parts))
    facts = {
        name: Fact(fact.dtype, tuple(SIZES[d] if isinstance(d, str) else d for d in fact.shape))
        for name, fact in graph.facts.items()
        if name in graph.inputs
    }
    return graph.with_(facts=facts)


NETWORKS = {
    ("cifar10_resnet", "resnet20_cifar10.onnx"): {
        "Conv": 19,
        "Slice": 2,
        "Pad": 2,
        "GlobalAveragePool": 1,
        "Reshape": 1,
        "Gemm": 1,
    },
    ("face_ultralight", "version-RFB-320_simplified.onnx"): {
        "Conv": 52,
        "Concat": 3,
        "Transpose": 8,
        "Reshape": 8,
        "Softmax": 1,
    },
    ("fastestdet", "FastestDet.onnx"): {
        "Conv": 70,
        "Concat": 19,
        "Slice": 26,
        "MaxPool": 1,
        "AveragePool": 1,
        "Resize": 1,
        "Softmax": 1,
    },
    ("ffn_fib25", "ffn_fib25.onnx"): {"Conv": 25, "Concat": 1, "Relu": 11},
}


@pytest.mark.parametrize("parts", NETWORKS, ids=lambda parts: parts[-1])
def test_becomes_and_computes_the_same(parts):
    graph = load(*parts)
    after = optimise(graph, verify=True)
    assert counts(after) == NETWORKS[parts]
    same(graph, after, tolerance=1e-5)


def test_shape_arithmetic_of_a_raw_export_disappears():
    graph = load("face_ultralight", "version-RFB-320.onnx")
    found = counts(optimise(graph, verify=True))
    assert not found.keys() & {"Shape", "Gather", "Unsqueeze", "BatchNormalization", "Constant", "Relu"}
    assert found["Conv"] == 52


def test_an_inverted_residual_with_squeeze_and_excitation():
    net = Net()

    def convolve(x, channels, group=1):
        inputs = 1 if group > 1 else 8 if channels == 16 else 16
        y = net("Conv", x, net.random(channels, inputs, 1, 1), group=group)
        parameters = [net.random(channels) for _ in range(3)]
        return net("BatchNormalization", y, *parameters, net.random(channels, low=0.5, high=2))

    def hard_swish(x):
        gate = net("Clip", net("Add", x, net.constant(3)), net.constant(0), net.constant(6))
        return net("Mul", x, net("Div", gate, net.constant(6)))

    x = net.input(1, 8, 7, 9)
    y = hard_swish(convolve(x, 16))
    y = convolve(y, 16, group=16)
    gate = net("ReduceMean", y, net.integers(2, 3), keepdims=1)
    gate = net("HardSigmoid", net("Conv", gate, net.random(16, 16, 1, 1)))
    y = convolve(hard_swish(net("Mul", y, gate)), 8)
    graph = net.graph(net("Add", x, y))
    after = optimise(graph, verify=True)
    assert counts(after) == {"Conv": 4, "GlobalAveragePool": 1, "Elementwise": 1}
    assert str(only(after, "Elementwise").get("expression")) == "Mul HardSwish"
    same(graph, after, tolerance=1e-5)


def test_a_network_with_channels_last_ends_without_transposes_inside():
    net = Net()
    first, last = (0, 3, 1, 2), (0, 2, 3, 1)

    def convolve(x, inputs, channels):
        y = net("Conv", net("Transpose", x, perm=first), net.random(channels, inputs, 3, 3), pads=(1,) * 4)
        return net("Add", net("Transpose", y, perm=last), net.random(channels))

    x = net("Relu", convolve(net.input(2, 7, 9, 3), 3, 6))
    y = net("Relu", net("Add", convolve(net("Relu", convolve(x, 6, 6)), 6, 6), x))
    y = net("Concat", convolve(y, 6, 5), y, axis=3)
    y = net("ReduceMean", net("Clip", y, net.constant(0), net.constant(6)), net.integers(1, 2), keepdims=0)
    y = net("Softmax", net("Add", net("MatMul", y, net.random(11, 4)), net.random(4)))
    graph = net.graph(y)
    after = optimise(graph, verify=True)
    found = counts(after)
    assert found["Transpose"] == 1
    assert found["Conv"] == 4
    assert "MatMul" not in found
    same(graph, after, tolerance=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_random_element_wise_graphs_compute_the_same(seed):
    generator = np.random.default_rng(seed)
    net = Net()
    values = [net.input(2, 3, 5), net.input(3, 1), net.input(5), net.constant(0.5), net.random(2, 1, 1)]
    for _ in range(30):
        a, b = (values[i] for i in generator.integers(0, len(values), 2))
        op = generator.choice(
            ["Add", "Mul", "Sub", "Max", "Relu", "Tanh", "Sigmoid", "Clip", "Identity", "Neg"]
        )
        if op in ("Add", "Mul", "Sub", "Max"):
            values.append(net("Tanh", net(op, a, b)))
        elif op == "Clip":
            values.append(net(op, a, net.constant(-0.5), net.constant(0.7)))
        else:
            values.append(net(op, a))
    outputs = sorted({values[i] for i in generator.integers(5, len(values), 4)})
    graph = net.graph(*outputs)
    same(graph, optimise(graph, verify=True), seed)
