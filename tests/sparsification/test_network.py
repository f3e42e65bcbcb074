"""Preparation, the list of layers, and weights as matrices."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_networks import CASES, evaluated, graph_of_case, prepared

from coresident.errors import InputError, UnsupportedModel
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.sparsification.network import blocks, layers, matrices, prepare, problems, weight_of
from coresident.sparsification.unfolding import columns, positions

FLOAT = np.dtype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_products_of_matrices_and_columns_are_what_the_layer_computes(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(5)
    graph, layer = prepared(case, rng)
    x = rng.standard_normal(case.x).astype(np.float32)
    wanted = evaluated(graph, x)
    bias = graph.initializers[layer.bias]
    assert bias.shape == (layer.channels,)
    parts = matrices(layer, graph.initializers[layer.weight])
    sums: list[float] = []
    for number, (problem, w) in enumerate(zip(problems(layer), parts, strict=True)):
        count = positions(layer, number, x.shape)
        y = w @ columns(layer, number, x, np.arange(count))
        y += bias.reshape(layer.groups, -1)[problem.group][:, None]
        sums += y.ravel().tolist()
    got, want = np.sort(np.array(sums)), np.sort(wanted.ravel())
    if len(got) < len(want):
        # Outputs that no tap reaches are the bias, and belong to no problem.
        assert name in ("up sparse", "up dilated")
        assert np.all(np.min(np.abs(got[:, None] - want), axis=1) < 2e-5)
        return
    # Orders differ, positions of a problem are tested below; values must be the same ones.
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "asymmetric", "same upper", "1-D", "3-D"])
def test_positions_are_in_the_order_of_the_output(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(6)
    graph, layer = prepared(case, rng)
    x = rng.standard_normal(case.x).astype(np.float32)
    wanted = np.moveaxis(evaluated(graph, x), 1, 0).reshape(layer.channels, -1)
    chosen = rng.permutation(positions(layer, 0, x.shape))[:7]
    (w,) = matrices(layer, graph.initializers[layer.weight])
    got = w @ columns(layer, 0, x, chosen) + graph.initializers[layer.bias][:, None]
    np.testing.assert_allclose(got, wanted[:, chosen], atol=2e-5)


def test_phases_of_a_transposed_convolution_are_in_the_order_of_their_outputs() -> None:
    case, rng = CASES["up overlapping"], np.random.default_rng(7)
    graph, layer = prepared(case, rng)
    x = rng.standard_normal(case.x).astype(np.float32)
    wanted = evaluated(graph, x)
    pads = case.attributes["pads"]
    parts = matrices(layer, graph.initializers[layer.weight])
    for number, problem in enumerate(problems(layer)):
        starts = [(p - b) % s for p, b, s in zip(problem.phase, pads, (2, 2))]
        part = np.moveaxis(wanted[:, :, starts[0] :: 2, starts[1] :: 2], 1, 0).reshape(layer.channels, -1)
        got = parts[number] @ columns(layer, number, x, np.arange(positions(layer, number, x.shape)))
        np.testing.assert_allclose(got + graph.initializers[layer.bias][:, None], part, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_weights_go_to_matrices_and_back(name: str) -> None:
    graph, layer = prepared(CASES[name], np.random.default_rng(8))
    weight = graph.initializers[layer.weight]
    parts = matrices(layer, weight)
    np.testing.assert_array_equal(weight_of(layer, parts, weight), weight)
    assert sum(part.size for part in parts) == weight.size
    parts[0][:] = 0
    assert np.any(graph.initializers[layer.weight]), "matrices are copies"


@pytest.mark.parametrize("name", ["plain", "pointwise", "grouped", "up overlapping", "gemm scaled"])
def test_blocks_are_consecutive_channels_at_one_tap(name: str) -> None:
    _, layer = prepared(CASES[name], np.random.default_rng(9))
    # Each weight tells its input channel and tap.
    index = np.indices(layer.shape)
    channel_axis = {"Conv": 1, "ConvTranspose": 0}.get(layer.op, 1 if layer.is_transposed_product else 0)
    channel = index[channel_axis].astype(np.float32)
    if layer.op == "ConvTranspose":
        channel = channel % layer.inputs_in_group
    tap = np.zeros(layer.shape)
    for axis in range(2, len(layer.shape)):
        tap = tap * layer.shape[axis] + index[axis]
    for part, taps, numbers in zip(
        matrices(layer, channel), matrices(layer, tap.astype(np.float32)), blocks(layer), strict=True
    ):
        assert numbers[0] == 0
        assert set(np.diff(numbers)) <= {0, 1}
        for number in range(numbers[-1] + 1):
            inside = numbers == number
            assert inside.sum() <= 4
            assert len(set(taps[0][inside])) == 1
            assert len(set(part[0][inside] // 4)) == 1
            assert np.all(np.diff(part[0][inside]) == 1)


@pytest.mark.parametrize("name", CASES)
def test_preparation_keeps_what_the_network_computes_and_gives_a_bias(name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(10)
    graph = graph_of_case(case, rng, bias=False)
    x = rng.standard_normal(case.x).astype(np.float32)
    ready = prepare(graph)
    (layer,) = layers(ready)
    assert layer.output == "y"
    assert not np.any(ready.initializers[layer.bias])
    np.testing.assert_allclose(evaluated(ready, x), evaluated(graph, x), atol=1e-5)
    moved = ready.with_(
        initializers={**ready.initializers, layer.bias: np.arange(layer.channels, dtype=FLOAT)}
    )
    change = evaluated(moved, x) - evaluated(ready, x)
    shape = [1] * change.ndim
    shape[layer.channel_axis] = -1
    np.testing.assert_allclose(
        change, np.broadcast_to(np.arange(layer.channels).reshape(shape), change.shape), atol=1e-4
    )


def _residual() -> Graph:
    """Free sizes; batch norms, a shared bias, a computed shape, float16 weights, an Identity."""
    rng = np.random.default_rng(11)

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    constants = {
        "w0": some(16, 3, 3, 3),
        "w1": some(16, 16, 3, 3),
        "w2": some(16, 16, 3, 3).astype(np.float16),
        "w3": some(10, 16),
        "b": some(16),
        "scale": some(16),
        "mean": some(16),
        "variance": np.abs(some(16)) + 0.5,
        "start": np.array([0]),
        "end": np.array([1]),
        "rest": np.array([-1]),
    }
    pads = {"pads": (1, 1, 1, 1)}
    nodes = (
        Node("Conv", ("x", "w0", "b"), ("c0",), pads, "first"),
        Node("BatchNormalization", ("c0", "scale", "b", "mean", "variance"), ("n0",), {}, "norm"),
        Node("Relu", ("n0",), ("r0",), {}, "relu"),
        Node("Conv", ("r0", "w1", "b"), ("c1",), pads, "same name"),
        Node("Relu", ("c1",), ("r1",), {}, "relu"),
        Node("Cast", ("w2",), ("w2.f",), {"to": "float32"}, "cast"),
        Node("Identity", ("r1",), ("i1",), {}, "identity"),
        Node("Conv", ("i1", "w2.f"), ("c2",), pads, "same name"),
        Node("BatchNormalization", ("c2", "scale", "b", "mean", "variance"), ("n2",), {}, "norm"),
        Node("Add", ("n2", "r0"), ("s",), {}, "sum"),
        Node("GlobalAveragePool", ("s",), ("g",), {}, "pool"),
        Node("Shape", ("x",), ("shape",), {}, "shape"),
        Node("Slice", ("shape", "start", "end"), ("n",), {}, "slice"),
        Node("Concat", ("n", "rest"), ("to",), {"axis": 0}, "concat"),
        Node("Reshape", ("g", "to"), ("flat",), {}, "reshape"),
        Node("Gemm", ("flat", "w3"), ("y",), {"transB": 1}, "head"),
    )
    facts = {"x": Fact(FLOAT, ("N", 3, "H", "W")), "y": Fact(FLOAT, ("N", 10))}
    return Graph(("x",), ("y",), nodes, constants, facts)


def test_a_network_is_prepared_with_its_free_sizes() -> None:
    graph = _residual()
    ready = prepare(graph, {"x": (1, 3, 9, 9)})
    assert ready.facts["x"].shape == ("N", 3, "H", "W")
    assert {node.op for node in ready.nodes} == {
        "Conv", "Relu", "Add", "GlobalAveragePool", "Shape", "Slice", "Concat", "Reshape", "Gemm"
    }  # fmt: skip
    names = [node.name for node in ready.nodes]
    assert len(set(names)) == len(names)
    for shape in ((2, 3, 8, 10), (3, 3, 5, 7)):
        x = np.random.default_rng(12).standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(evaluated(ready, x), evaluate(graph, {"x": x})["y"], atol=1e-4)
    found = layers(ready, {"x": (1, 3, 9, 9)})
    assert [layer.op for layer in found] == ["Conv", "Conv", "Conv", "Gemm"]
    assert len({layer.bias for layer in found}) == 4, "no two layers share a bias"
    assert [layer.prunable for layer in found] == [False, True, True, False]
    assert found[0].why == "3 input channels"
    assert found[3].why == "the last layer before an output"
    assert found[1].macs == 16 * 16 * 9 * 81
    again = prepare(ready, {"x": (1, 3, 9, 9)})
    assert [node.name for node in again.nodes] == names


def test_layers_to_skip_are_named_or_matched() -> None:
    ready = prepare(_residual(), {"x": (1, 3, 9, 9)})
    shapes = {"x": (1, 3, 9, 9)}
    assert [layer.why for layer in layers(ready, shapes, ["same name"])][1] == "skipped, as asked"
    skipped = layers(ready, shapes, ["re:same"])
    assert [layer.prunable for layer in skipped] == [False] * 4
    with pytest.raises(InputError, match=r"no layer matches 'other'.*same name"):
        layers(ready, shapes, ["other"])
    with pytest.raises(InputError, match="no regular expression"):
        layers(ready, shapes, ["re:("])


def test_sizes_must_be_given() -> None:
    graph = _residual()
    with pytest.raises(InputError, match="the size of 'N' must be given"):
        prepare(graph)
    with pytest.raises(InputError, match="3 where the model takes"):
        prepare(graph.with_(inputs=("x", "z"), facts={**graph.facts, "z": Fact(FLOAT, ("N",))}),
                {"x": (2, 3, 9, 9), "z": (3,)})  # fmt: skip


def test_quantised_models_are_refused() -> None:
    graph = _residual()
    node = Node("DequantizeLinear", ("x", "scale"), ("q",), {}, "dq")
    with pytest.raises(UnsupportedModel, match="quantised already"):
        prepare(graph.with_(nodes=(node, *graph.nodes)), {"x": (1, 3, 9, 9)})


def test_shared_and_special_weights_are_left_alone() -> None:
    rng = np.random.default_rng(13)
    w = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
    constants = {
        "w": w,
        "d": w[:, :1],
        "g": w[:, :4],
        "p": w[:, :, :1, :1].copy(),
        "bins": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
    }
    pads = {"pads": (1, 1, 1, 1)}
    nodes = (
        Node("Conv", ("x", "w"), ("a",), pads, "one"),
        Node("Conv", ("a", "w"), ("b",), pads, "two"),
        Node("Conv", ("b", "d"), ("c",), {**pads, "group": 16}, "depthwise"),
        Node("Conv", ("c", "g"), ("e",), {**pads, "group": 4}, "narrow"),
        Node("Conv", ("e", "p"), ("f",), {}, "small"),
        Node("Conv", ("f", "p2"), ("h",), {}, "head"),
        Node("Softmax", ("h",), ("i",), {"axis": 1}, "softmax"),
        Node("Conv", ("i", "bins"), ("y",), {}, "expectation"),
    )
    constants["p2"] = constants["p"].copy()
    graph = Graph(("x",), ("y",), nodes, constants, {"x": Fact(FLOAT, (1, 16, 5, 5))})
    why = {layer.name: layer.why for layer in layers(prepare(graph))}
    assert why == {
        "one": "it shares its weights with other nodes",
        "two": "it shares its weights with other nodes",
        "depthwise": "depthwise",
        "narrow": "4 input channels a group",
        "small": "256 weights",
        "head": "the last layer before an output",
        "expectation": "16 weights",
    }
