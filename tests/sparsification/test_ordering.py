"""Channels: which of them may be reordered, what must follow, and orders that lose less by four-blocks."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import assets
import numpy as np
import pytest

from coresident import Session
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.onnx.reader import read
from coresident.onnx.writer import serialize
from coresident.sparsification.channels import Channels, channels
from coresident.sparsification.network import SKIPPED, blocks, layers, matrices
from coresident.sparsification.ordering import grouped, ordered
from coresident.sparsification.preparation import bound, prepare

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)


class Built:
    """Grows a network of one input x; nodes are named after what they make."""

    def __init__(self, shape: tuple[int, ...] = (2, 8, 6, 6), seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._shape = shape
        self._nodes: list[Node] = []
        self._constants: dict[str, Array] = {}

    def constant(self, name: str, *shape: int) -> str:
        self._constants[name] = self._rng.standard_normal(shape).astype(np.float32)
        return name

    def integers(self, name: str, *values: int) -> str:
        self._constants[name] = np.array(values, np.int64)
        return name

    def node(self, op: str, inputs: str, output: str, **attributes: Any) -> str:
        self._nodes.append(Node(op, tuple(inputs.split(",")), tuple(output.split(",")), attributes, output))
        return output

    def conv(self, x: str, y: str, *shape: int, op: str = "Conv", **attributes: Any) -> str:
        outputs = shape[1] if op == "ConvTranspose" else shape[0]
        names = f"{x},{self.constant(f'{y}.w', *shape)},{self.constant(f'{y}.b', outputs)}"
        if op == "Conv":
            attributes.setdefault("pads", (shape[2] // 2,) * 4)
        return self.node(op, names, y, **attributes)

    def graph(self, *outputs: str) -> Graph:
        facts = {"x": Fact(FLOAT, self._shape)}
        return prepare(Graph(("x",), outputs, tuple(self._nodes), self._constants, facts))


def residual() -> Graph:
    net = Built()
    net.conv("x", "a", 16, 8, 3, 3)
    net.node("Relu", "a", "b")
    net.conv("b", "c", 16, 16, 3, 3)
    net.node("Add", "c,b", "d")
    net.node("MaxPool", "d", "e", kernel_shape=(2, 2), strides=(2, 2))
    net.conv("e", "f", 24, 16, 1, 1)
    net.node("GlobalAveragePool", "f", "g")
    net.node("Flatten", "g", "h")
    net.node("Gemm", f"h,{net.constant('fc', 5, 24)}", "y", transB=1)
    return net.graph("y")


def joined() -> Graph:
    """What two layers make, joined; a depthwise layer, constants for each channel, and a transposed layer."""
    net = Built()
    net.conv("x", "a", 12, 8, 1, 1)
    net.conv("x", "b", 8, 8, 3, 3)
    net.node("Concat", "a,b", "c", axis=1)
    net.node("PRelu", f"c,{net.constant('slope', 20, 1, 1)}", "d")
    net.conv("d", "e", 20, 1, 3, 3, group=20)
    net.node("Mul", f"e,{net.constant('factor', 1, 20, 1, 1)}", "f")
    net.conv("f", "g", 20, 12, 2, 2, op="ConvTranspose", strides=(2, 2))
    net.node("Resize", f"g,,{net.constant('scales', 4)}", "h")
    net._constants["scales"] = np.array([1, 1, 2, 2], np.float32)
    net.node("Pad", f"h,{net.integers('widths', 0, 0, 1, 0, 0, 0, 0, 1)}", "i")
    net.conv("i", "y", 4, 12, 3, 3)
    return net.graph("y")


def gated() -> Graph:
    """Squeeze and excitation."""
    net = Built()
    net.conv("x", "a", 16, 8, 3, 3)
    net.node("ReduceMean", f"a,{net.integers('axes', 2, 3)}", "b", keepdims=1)
    net.conv("b", "c", 8, 16, 1, 1)
    net.node("Relu", "c", "d")
    net.conv("d", "e", 16, 8, 1, 1)
    net.node("Sigmoid", "e", "f")
    net.node("Mul", "a,f", "g")
    net.conv("g", "y", 4, 16, 1, 1)
    return net.graph("y")


def products() -> Graph:
    net = Built((3, 8))
    net.node("MatMul", f"x,{net.constant('w', 8, 12)}", "a")
    net.node("Add", f"a,{net.constant('b', 12)}", "c")
    net.node("Tanh", "c", "d")
    net.node("Gemm", f"d,{net.constant('v', 12, 16)},{net.constant('u', 16)}", "e")
    net.node("Relu", "e", "f")
    net.node("MatMul", f"f,{net.constant('t', 16, 5)}", "y")
    return net.graph("y")


def held() -> Graph:
    """Channels that are to stay: of a Split, a grouped layer, a Softmax, a shared weight, and an output."""
    net = Built()
    net.conv("x", "a", 8, 8, 3, 3)
    net.node("Split", "a", "b,c", axis=1, num_outputs=2)
    net.node("Concat", "c,b", "d", axis=1)
    net.conv("d", "e", 8, 8, 1, 1)
    net.conv("e", "f", 8, 4, 3, 3, group=2)
    net.conv("f", "g", 8, 8, 1, 1)
    net.node("Softmax", "g", "h", axis=1)
    net.node("Conv", f"h,{net.constant('shared', 8, 8, 1, 1)}", "i")
    net.node("Relu", "i", "j")
    net.node("Conv", "j,shared", "k")
    net.conv("k", "l", 8, 8, 1, 1)
    net.node("Relu", "l", "m")
    net.conv("m", "y", 4, 8, 1, 1)
    return net.graph("y", "l")


FREE = {residual: [16, 24], joined: [8, 12, 12], gated: [8, 16], products: [12, 16], held: []}


def sizes(found: Channels) -> list[int]:
    """Of the free segments that constants lie along."""
    read = {segment for axis in found.axes for segment in axis.segments}
    return sorted(found.sizes[segment] for segment in found.free & read)


@pytest.mark.parametrize("network", FREE)
def test_any_order_of_free_channels_computes_the_same(network: Any) -> None:
    graph, rng = network(), np.random.default_rng(1)
    found = channels(bound(graph))
    assert sizes(found) == FREE[network]
    other = found.reordered(graph, {segment: rng.permutation(found.sizes[segment]) for segment in found.free})
    x = rng.standard_normal(graph.facts["x"].sizes).astype(np.float32)
    before, after = evaluate(graph, {"x": x}), evaluate(other, {"x": x})
    for name in graph.outputs:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6 * float(np.ptp(before[name])))
    changed = [n for n in graph.initializers if np.any(graph.initializers[n] != other.initializers[n])]
    assert bool(changed) == bool(FREE[network])


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("cifar10_resnet/resnet20_cifar10.onnx", 9),
        ("squeezenet/squeezenet_v1.1.onnx", 25),
        ("nuclei_unet2d/weights.onnx", 17),
        ("face_ultralight/version-RFB-320.onnx", 25),
        ("fastestdet/FastestDet.onnx", 21),
    ],
)
def test_real_networks_compute_the_same_with_their_channels_in_any_order(name: str, most: int) -> None:
    original, rng = read(assets.path("models", name).read_bytes()), np.random.default_rng(2)
    shapes = {
        n: tuple(s if isinstance(s, int) else 1 for s in original.facts[n].shape) for n in original.inputs
    }
    graph = prepare(original, shapes)
    x = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    found = channels(bound(graph, shapes))
    assert len(sizes(found)) == most
    other = found.reordered(graph, {segment: rng.permutation(found.sizes[segment]) for segment in found.free})
    results = []
    for each in (graph, other):
        with Session(serialize(each), cache=False) as session:
            results.append(session.run(None, x))
    for before, after in zip(*results, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * float(np.ptp(before)))


def test_nodes_without_inputs_or_with_outputs_left_out_hold_channels() -> None:
    net = Built()
    net.conv("x", "a", 8, 8, 1, 1)
    net.node("MaxPool", "a", ",i", kernel_shape=(2, 2))
    net.node("RandomNormal", "", "r", shape=(2, 8, 6, 6))
    nodes = [node.with_(inputs=()) if node.op == "RandomNormal" else node for node in net._nodes]
    facts = {name: Fact(FLOAT, (2, 8, 6, 6)) for name in ("x", "a", "r")} | {"i": Fact(FLOAT, (2, 8, 3, 3))}
    assert not sizes(channels(Graph(("x",), ("i", "r"), tuple(nodes), net._constants, facts)))


def test_what_is_skipped_stays_as_it_is() -> None:
    graph = residual()
    some = layers(graph, skip=["c"])
    assert next(layer.why for layer in some if layer.name == "c") == SKIPPED
    now = ordered(graph, some)
    for name in ("a.w", "a.b", "c.w", "c.b"):
        np.testing.assert_array_equal(now.initializers[name], graph.initializers[name])


def lost(graph: Graph, name: str, share: float) -> float:
    """What a layer's weights lose of their squares where so many of its four-blocks go, the least ones."""
    layer = next(one for one in layers(graph) if one.name == name)
    (matrix,), (block,) = matrices(layer, graph.initializers[layer.weight]), blocks(layer)
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    sums = np.sort(np.add.reduceat(np.square(matrix), starts, axis=1).ravel())
    return float(sums[: int(share * len(sums))].sum() / sums.sum())


def test_blocks_cost_less_in_the_order_found() -> None:
    graph = residual()
    rng = np.random.default_rng(3)
    weights = dict(graph.initializers)
    # Rows that use some channels little, as trained ones do.
    for name in ("c.w", "f.w"):
        use = np.exp(1.5 * rng.standard_normal(weights[name].shape[:2]))[..., None, None]
        weights[name] = (weights[name] * use).astype(np.float32)
    graph = graph.with_(initializers=weights)
    now = ordered(graph, layers(graph))
    x = rng.standard_normal((2, 8, 6, 6)).astype(np.float32)
    y, z = (evaluate(each, {"x": x})["y"] for each in (graph, now))
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-4 * float(np.ptp(y)))
    before, after = (sum(lost(each, name, 0.5) for name in ("c", "f")) for each in (graph, now))
    assert after < 0.97 * before
    again = ordered(graph, layers(graph))
    assert all(np.array_equal(again.initializers[n], now.initializers[n]) for n in now.initializers)


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_eight_channels_are_as_good_as_the_best_there_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = np.square(rng.standard_normal((24, 8))) * np.exp(rng.standard_normal((24, 8)))

    def cost(group: tuple[int, ...]) -> float:
        rest = [c for c in range(8) if c not in group]
        sums = np.stack([part[:, list(group)].sum(1), part[:, rest].sum(1)])
        return float(np.sort(sums.ravel())[: sums.size // 2].sum())

    order = grouped([part], rng)
    assert sorted(order.tolist()) == list(range(8))
    every = sorted(cost(group) for group in combinations(range(8), 4))
    assert cost(tuple(order[:4].tolist())) <= every[len(every) // 10]


def test_channels_that_go_together_come_to_lie_together() -> None:
    rng = np.random.default_rng(5)
    order = rng.permutation(32)
    used = np.repeat(rng.random((40, 8)) < 0.5, 4, axis=1).astype(np.float32)
    part = (used + 0.01 * rng.random(used.shape))[:, order]
    found = order[grouped([part, part[:7]], rng)].reshape(-1, 4) // 4
    assert np.all(found == found[:, :1])


def test_readers_in_the_middle_of_a_block_are_left_out_of_account() -> None:
    """A segment of six channels shifts the next one's blocks; both keep their order."""
    net = Built()
    net.conv("x", "a", 6, 8, 1, 1)
    net.conv("x", "b", 16, 8, 1, 1)
    net.node("Concat", "a,b", "c", axis=1)
    net.conv("c", "d", 32, 22, 1, 1)
    net.conv("d", "y", 4, 32, 1, 1)
    graph = net.graph("y")
    found = [replace(layer, prunable=layer.name == "d") for layer in layers(graph)]
    now = ordered(graph, found)
    for name, constant in graph.initializers.items():
        np.testing.assert_array_equal(now.initializers[name], constant)
