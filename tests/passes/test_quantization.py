"""The passes on quantised networks, one by one and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import Net, QuantisedNet, applied, counts, feeds, only

from coresident.graph.graph import Graph
from coresident.graph.operator import evaluate
from coresident.passes import (
    convert_inside,
    expand_quantization,
    fold_constants,
    integer_products,
    merge_scales,
    move_quantization,
)
from coresident.passes.pipeline import optimise
from coresident.passes.verify import verify


def settled(graph: Graph) -> Graph:
    """With quantisation written in its one form."""
    return applied(expand_quantization.PASS, graph)


def whole(graph: Graph, units: float = 0.0) -> Graph:
    """The graph after all passes, checked against itself before: bytes at most so many units apart."""
    after = optimise(graph, verify=True)
    given = feeds(graph, 5)
    wanted, got = evaluate(graph, dict(given)), evaluate(after, dict(given))
    for name in graph.outputs:
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=1e-4, err_msg=name)
        else:
            assert np.abs(got[name].astype(int) - wanted[name].astype(int)).max(initial=0) <= units, name
    return after


def epilogue(graph: Graph, op: str) -> str:
    return str(only(graph, op).get("epilogue"))


# One form


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_parameters_along_an_axis_broadcast(axis: int) -> None:
    net = QuantisedNet()
    x = net.input(3, 4, 5)
    size = (3, 4, 5)[axis]
    scale, point = net.constant(np.linspace(0.1, 0.3, size)), net.constant(np.arange(size), "uint8")
    quantised = net("QuantizeLinear", x, scale, point, axis=axis)
    after = settled(net.graph(net("DequantizeLinear", quantised, scale, point, axis=axis)))
    for node in after.nodes:
        shape = after.fact(node.inputs[1]).shape  # type: ignore[union-attr]
        assert np.broadcast_shapes(shape, (3, 4, 5)) == (3, 4, 5)
        assert not node.attributes


def test_zero_points_are_written_and_equal_numbers_become_one() -> None:
    net = QuantisedNet()
    y = net("QuantizeLinear", net.input(3, 4), net.constant(np.full(4, 0.5)))
    z = net("QuantizeLinear", net.input(3, 4), net.constant(0.5), output_dtype="int8")
    after = settled(net.graph(y, z))
    assert [after.constant(node.inputs[1]).shape for node in after.nodes] == [(), ()]  # type: ignore[union-attr]
    assert [after.facts[name].dtype for name in after.outputs] == [np.uint8, np.int8]
    assert all(len(node.inputs) == 3 for node in after.nodes)


def test_blocks_are_spread() -> None:
    net = QuantisedNet()
    x, scale = net.bytes(6, 5), net.random(3, 5, low=0.1)
    y = net("DequantizeLinear", x, scale, axis=0, block_size=2)
    after = settled(net.graph(net("Add", net.input(6, 5), y)))
    assert after.fact(only(after, "DequantizeLinear").inputs[1]).shape == (6, 5)  # type: ignore[union-attr]


def test_computed_blocks_are_repeated() -> None:
    net = QuantisedNet()
    y = net("DequantizeLinear", net.bytes(5, 4), net.input(3, 4), net.bytes(3, 4), axis=0, block_size=2)
    after = settled(net.graph(y))
    assert after.fact(only(after, "DequantizeLinear").inputs[1]).shape == (5, 4)  # type: ignore[union-attr]


def test_dynamic_quantisation_becomes_arithmetic() -> None:
    net = Net()
    names = net("DynamicQuantizeLinear", net.input(3, 5), outputs=3)
    after = settled(net.graph(*names))
    assert "DynamicQuantizeLinear" not in counts(after)


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_computed_zero_points_are_subtracted(op: str) -> None:
    net = QuantisedNet()
    x = net.input(2, 3, 6, 5)
    quantised, _, point = net("DynamicQuantizeLinear", x, outputs=3)
    if op == "ConvInteger":
        y = net(
            op, quantised, net.bytes(4, 3, 3, 3), point, net.constant(np.arange(4), "int8"), pads=(1, 0, 1, 2)
        )
    else:
        y = net(op, quantised, net.bytes(5, 4), point, net.constant(3, "int8"))
    after = settled(net.graph(y))
    assert not only(after, op).input(2)


# Products


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("point", [0, 3])
def test_convolution(axis: int | None, dtype: str, point: int) -> None:
    net = QuantisedNet()
    x = net.qdq(net.input(1, 4, 7, 6), dtype=dtype)
    weights = net.weights(6, 2, 3, 3, axis=axis, point=point)
    y = net("Conv", x, weights, group=2, pads=(1, 0, 1, 2), strides=(2, 1))
    after = whole(net.graph(net.q(y, 0.05, 100)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvInteger": 1}
    assert epilogue(after, "ConvInteger") == "Cast Mul QuantizeLinear"
    assert bool(only(after, "ConvInteger").input(3)) == bool(point)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(group: int) -> None:
    net = QuantisedNet()
    x = net.qdq(net.input(1, 4, 5, 6))
    y = net("ConvTranspose", x, net.weights(4, 3, 2, 2, axis=1), group=group, strides=(2, 2))
    after = whole(net.graph(net.q(y, 0.05, 100)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvTransposeInteger": 1}


@pytest.mark.parametrize("exact", [True, False])
def test_bias_of_the_products_scale_is_added_to_the_sums(exact: bool) -> None:
    net = QuantisedNet()
    x = net.qdq(net.input(1, 3, 5, 5))
    weights = net.weights(4, 3, 1, 1)
    scale = np.float32(0.03) * np.linspace(0.002, 0.01, 4).astype(np.float32) * (1 if exact else 2)
    bias = net("DequantizeLinear", net.constant([100, -20, 3000, 7], "int32"), net.constant(scale), axis=0)
    after = whole(net.graph(net("Conv", x, weights, bias)))
    node = only(after, "ConvInteger")
    assert (after.constant(node.input(4)) is not None) == exact
    assert epilogue(after, "ConvInteger") == ("Cast Mul" if exact else "Cast Mul Add")


def test_bias_in_floats_follows_the_scale() -> None:
    net = QuantisedNet()
    y = net("Conv", net.qdq(net.input(1, 3, 5, 5)), net.weights(4, 3, 1, 1), net.random(4))
    after = whole(net.graph(net.q(net("Relu", y), 0.02, 0)), units=1)
    assert epilogue(after, "ConvInteger") == "Cast Mul Add QuantizeLinear"


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    net = QuantisedNet()
    x = net.qdq(net.input(3, 5))
    weights = net.weights(*((4, 5) if transposed else (5, 4)), axis=0 if transposed else 1)
    y = net("Gemm", x, weights, net.random(4), transB=transposed, alpha=0.5, beta=2.0)
    after = whole(net.graph(y))
    assert counts(after) == {"QuantizeLinear": 1, "MatMulInteger": 1}


def test_matrix_product_with_weights_behind_a_transpose() -> None:
    net = QuantisedNet()
    weights = net("Transpose", net.weights(6, 5, axis=0), perm=(1, 0))
    y = net("Add", net("MatMul", net.qdq(net.input(2, 3, 5)), weights), net.random(6))
    after = whole(net.graph(net.q(y)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "MatMulInteger": 1}


def test_weights_that_are_quantised_in_the_graph() -> None:
    net = QuantisedNet()
    weights = net.qdq(net.random(4, 3, 3, 3), 0.01, 0, "int8")
    after = whole(net.graph(net.q(net("Conv", net.qdq(net.input(1, 3, 6, 6)), weights))), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvInteger": 1}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("float input", "its input is not quantised"),
        ("float weights", "its weights are not quantised"),
        ("input channels", "other axes"),
        ("scales of channels", "one scale and one zero point"),
        ("words", "quantised to uint16"),
        ("computed scale", "that the network computes"),
    ],
)
def test_what_stays_in_floats_says_why(case: str, reason: str) -> None:
    net = QuantisedNet()
    x = net.input(1, 3, 6, 6)
    data = x if case == "float input" else net.qdq(x)
    if case == "words":
        data = net.qdq(x, dtype="uint16")
    if case in ("scales of channels", "computed scale"):
        scale = net.input(1) if case == "computed scale" else net.constant([0.1, 0.2, 0.3])
        data = net("DequantizeLinear", net.input(1, 3, 6, 6, dtype="uint8"), scale)
    axis = 1 if case == "input channels" else 0
    weights = net.random(4, 3, 3, 3) if case == "float weights" else net.weights(4, 3, 3, 3, axis=axis)
    after = whole(net.graph(net.qdq(net("Conv", data, weights))))
    assert reason in only(after, "Conv").get("remark")


def test_float_networks_have_no_remarks() -> None:
    net = Net()
    graph = net.graph(net("Conv", net.input(1, 3, 6, 6), net.random(4, 3, 3, 3)))
    assert integer_products.PASS.run(graph) is graph


def test_a_normalisation_behind_a_product_is_one_scale_and_one_shift() -> None:
    net = QuantisedNet()
    y = net("Conv", net.qdq(net.input(1, 3, 6, 6)), net.weights(4, 3, 3, 3))
    parameters = [net.random(4, low=0.5, high=2.0) for _ in range(4)]
    y = net("Relu", net("BatchNormalization", y, *parameters))
    after = whole(net.graph(net.q(y, 0.1, 0)), units=1)
    assert epilogue(after, "ConvInteger") == "Cast Mul Add QuantizeLinear"


# Movement


def sinks(net: QuantisedNet, y: str, op: str) -> Graph:
    """The graph with one output, in which `op` has come to read bytes."""
    after = applied(move_quantization.PASS, settled(net.graph(y)))
    node = only(after, op)
    assert all(after.facts[name].dtype.itemsize == 1 for name in node.outputs)
    assert after.facts[node.inputs[0]].dtype.itemsize == 1
    return after


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Transpose", {"perm": (0, 2, 3, 1)}),
        ("Flatten", {"axis": 1}),
        ("MaxPool", {"kernel_shape": (2, 2), "pads": (1, 0, 0, 1)}),
        ("DepthToSpace", {"blocksize": 2}),
    ],
)
def test_dequantisation_sinks_and_quantisation_rises(op: str, attributes: dict[str, Any]) -> None:
    net = QuantisedNet()
    after = sinks(net, net(op, net.dq(net.input(1, 4, 5, 6, dtype="uint8")), **attributes), op)
    assert after.nodes[-1].op == "DequantizeLinear"
    net = QuantisedNet()
    after = sinks(net, net.q(net(op, net.input(1, 4, 5, 6), **attributes)), op)
    assert after.nodes[0].op == "QuantizeLinear"


def test_movement_with_operands() -> None:
    for op, operands in (
        ("Reshape", ((2, 12),)),
        ("Slice", ((1,), (3,), (1,))),
        ("Tile", ((1, 2, 1),)),
        ("Expand", ((5, 2, 3, 4),)),
    ):
        net = QuantisedNet()
        constants = [net.integers(*values) for values in operands]
        sinks(net, net(op, net.dq(net.input(2, 3, 4, dtype="int8"), dtype="int8"), *constants), op)


def test_split_and_resize() -> None:
    net = QuantisedNet()
    parts = net("Split", net.dq(net.input(1, 4, 3, 3, dtype="uint8")), net.integers(1, 3), outputs=2, axis=1)
    after = applied(move_quantization.PASS, settled(net.graph(*parts)))
    assert [after.facts[name].dtype for name in only(after, "Split").outputs] == [np.uint8] * 2
    net = QuantisedNet()
    grown = net("Resize", net.dq(net.input(1, 4, 3, 3, dtype="uint8")), "", net.constant((1, 1, 2, 2)))
    sinks(net, grown, "Resize")
    net = QuantisedNet()
    grown = net(
        "Resize", net.dq(net.input(1, 4, 3, 3, dtype="uint8")), "", net.constant((1, 1, 2, 2)), mode="linear"
    )
    after = applied(move_quantization.PASS, settled(net.graph(grown)))
    assert after.facts[only(after, "Resize").inputs[0]].dtype == np.float32


@pytest.mark.parametrize(("value", "moves"), [(None, True), (0.0, True), (0.03 * 4, True), (0.0123, False)])
def test_padding_by_the_value_of_an_integer(value: float | None, moves: bool) -> None:
    net = QuantisedNet()
    x = net.dq(net.input(1, 2, 3, 4, dtype="uint8"))
    number = (
        () if value is None else (net.constant(np.float32(0.03) * np.float32(4) if value == 0.12 else value),)
    )
    y = net("Pad", x, net.integers(0, 0, 1, 0, 0, 0, 1, 2), *number)
    after = applied(move_quantization.PASS, settled(net.graph(y)))
    assert (after.facts[only(after, "Pad").inputs[0]].dtype == np.uint8) == moves


def test_padding_with_the_zero_point_joins_an_integer_convolution() -> None:
    net = QuantisedNet()
    x = net.dq(net.q(net.input(1, 3, 6, 6)))
    padded = net("Pad", x, net.integers(0, 0, 1, 1, 0, 0, 1, 1))
    after = whole(net.graph(net.q(net("Conv", padded, net.weights(4, 3, 3, 3)), 0.05)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvInteger": 1}


def test_concat_of_equal_and_of_different_parameters() -> None:
    net = QuantisedNet()
    a, b = (net.dq(net.input(1, 2, 3, 3, dtype="uint8")) for _ in range(2))
    sinks(net, net("Concat", a, b, axis=1), "Concat")
    net = QuantisedNet()
    a, b = (net.dq(net.input(1, 2, 3, 3, dtype="uint8"), scale) for scale in (0.03, 0.07))
    after = sinks(net, net.q(net("Concat", a, b, axis=1)), "Concat")
    assert counts(after) == {"Concat": 1, "DequantizeLinear": 1, "QuantizeLinear": 1}


def test_there_and_back_goes_and_the_other_way_stays() -> None:
    net = QuantisedNet()
    after = applied(move_quantization.PASS, settled(net.graph(net.q(net.dq(net.input(3, 4, dtype="uint8"))))))
    assert counts(after) == {"Identity": 1}
    net = QuantisedNet()
    after = applied(move_quantization.PASS, settled(net.graph(net.qdq(net.input(3, 4)))))
    assert counts(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1}


@pytest.mark.parametrize(("point", "goes"), [(0, True), (7, False)])
def test_relu_that_saturation_does_goes(point: int, goes: bool) -> None:
    net = QuantisedNet()
    y = net.q(net("Relu", net.input(3, 40)), 0.03, point)
    after = applied(move_quantization.PASS, settled(net.graph(y)))
    assert ("Relu" not in counts(after)) == goes


@pytest.mark.parametrize(("high", "goes"), [(0.03 * 255, True), (6.0, False)])
def test_clip_that_saturation_does_goes(high: float, goes: bool) -> None:
    net = QuantisedNet()
    y = net.q(net("Clip", net.input(3, 40), net.constant(0.0), net.constant(high)), 0.03, 0)
    after = applied(move_quantization.PASS, settled(net.graph(y)))
    assert ("Clip" not in counts(after)) == goes


# Scales


def scales(graph: Graph) -> list[float]:
    """Those of all QuantizeLinear."""
    nodes = (node for node in graph.nodes if node.op == "QuantizeLinear")
    return [float(graph.initializers[node.inputs[1]]) for node in nodes]


def merged(graph: Graph) -> Graph:
    graph = settled(graph)
    after = merge_scales.PASS.run(graph)
    verify(graph, after, "merge_scales")
    given = feeds(graph, 3)
    wanted, got = evaluate(graph, dict(given)), evaluate(after, dict(given))
    for name in graph.outputs:
        assert np.abs(wanted[name].astype(int) - got[name].astype(int)).max() <= 1
    return after


@pytest.mark.parametrize("op", ["Relu", "LeakyRelu"])
def test_the_scale_joins_a_product(op: str) -> None:
    net = QuantisedNet()
    product = net("Mul", net.input(1, 4, 5, 5), net.random(4, 1, 1, low=0.5))
    y = net.q(net(op, net("Add", product, net.random(4, 1, 1))), 0.05, 100)
    after = merged(net.graph(y))
    assert scales(after) == [1.0]
    assert counts(after) == {"Mul": 1, "Add": 1, op: 1, "QuantizeLinear": 1}


def test_the_scale_joins_a_sum_of_dequantised_values() -> None:
    net = QuantisedNet()
    a, b = (net.dq(net.input(1, 4, 5, 5, dtype="uint8"), scale, 3) for scale in (0.03, 0.05))
    after = merged(net.graph(net.q(net("Clip", net("Add", a, b), net.constant(0.5)), 0.07, 5), a))
    assert scales(after) == [1.0]
    assert counts(after)["DequantizeLinear"] == 3


def test_the_scale_joins_one_factor_of_two() -> None:
    net = QuantisedNet()
    a = net("Sigmoid", net.input(1, 4, 5, 5))
    after = merged(net.graph(net.q(net("Mul", a, net.dq(net.input(1, 4, 1, 1, dtype="uint8"))), 0.07, 5)))
    assert scales(after) == [1.0]


def test_the_scale_stays_where_others_read_the_value() -> None:
    net = QuantisedNet()
    product = net("Mul", net.input(1, 4, 5, 5), net.constant(0.5))
    after = merged(net.graph(net.q(product, 0.25, 100), net.q(net("Relu", product), 0.5)))
    assert scales(after) == [0.25, 0.5]
    net = QuantisedNet()
    after = merged(net.graph(net.q(net("Sigmoid", net.input(3, 4)), 0.25)))
    assert scales(after) == [0.25]


# Pools and functions


@pytest.mark.parametrize("op", ["GlobalAveragePool", "AveragePool", "Resize"])
def test_bytes_in_and_out(op: str) -> None:
    net = QuantisedNet()
    x = net.dq(net.input(1, 3, 6, 6, dtype="uint8"))
    y = {
        "GlobalAveragePool": lambda: net(op, x),
        "AveragePool": lambda: net(op, x, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
        "Resize": lambda: net(op, x, "", net.constant((1, 1, 2, 2)), mode="linear"),
    }[op]()
    graph = settled(net.graph(net.q(y, 0.02, 9, "int8")))
    after = applied(convert_inside.PASS, graph)
    assert counts(after) == {op: 1}
    assert (only(after, op).get("from_bytes")[1], only(after, op).get("to_bytes")[1:]) == (7, (9, "int8"))
    assert counts(whole(net.graph(y))) == {op: 1}


def test_a_residual_block_is_one_node() -> None:
    net = QuantisedNet()
    x = net.q(net.input(1, 4, 6, 6), 0.02, 0)
    first = net.q(
        net("Relu", net("Conv", net.dq(x, 0.02, 0), net.weights(4, 4, 3, 3), pads=(1,) * 4)), 0.02, 0
    )
    second = net.q(net("Conv", net.dq(first, 0.02, 0), net.weights(4, 4, 1, 1)), 0.04, 120)
    y = net("Relu", net("Add", net.dq(second, 0.04, 120), net.dq(x, 0.02, 0)))
    after = whole(net.graph(net.q(y, 0.06, 0)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvInteger": 2}
    last = "Cast Mul QuantizeLinear DequantizeLinear DequantizeLinear Add QuantizeLinear"
    assert str(after.nodes[-1].get("epilogue")) == last


def test_a_function_of_a_byte_is_one_node() -> None:
    net = QuantisedNet()
    x = net.input(1, 4, 6, 6, dtype="uint8")
    gate = net.qdq(net("Sigmoid", net.dq(x)), 1 / 256, 0)
    after = whole(net.graph(net.q(net("Mul", gate, net.dq(x)), 0.03, 4)), units=1)
    assert counts(after) == {"Elementwise": 1}


def test_a_function_of_a_byte_stays_out_of_an_epilogue() -> None:
    net = QuantisedNet()
    product = net.q(net("Conv", net.qdq(net.input(1, 3, 6, 6)), net.weights(4, 3, 1, 1)))
    after = whole(net.graph(net.q(net("Sigmoid", net.dq(product)), 1 / 256, 0)), units=1)
    assert counts(after) == {"QuantizeLinear": 1, "ConvInteger": 1, "Elementwise": 1}


def test_weights_alone_quantised_are_dequantised_once() -> None:
    net = QuantisedNet()
    after = whole(net.graph(net("Conv", net.input(1, 3, 6, 6), net.weights(4, 3, 3, 3))))
    assert counts(after) == {"Conv": 1}
    kept = net.graph(net("Relu", net.weights(4, 3, 3, 3)))
    assert counts(fold_constants.ARITHMETIC.run(kept)) == {"DequantizeLinear": 1, "Relu": 1}


def test_nodes_of_channels_last_networks_come_to_channels_first() -> None:
    net = QuantisedNet()
    x = net.qdq(net("Transpose", net.input(1, 6, 6, 3), perm=(0, 3, 1, 2)))
    y = net("Transpose", net("Conv", x, net.weights(4, 3, 3, 3)), perm=(0, 2, 3, 1))
    z = net("Transpose", net.qdq(y, 0.05, 128), perm=(0, 3, 1, 2))
    after = whole(net.graph(net.q(net("Conv", z, net.weights(5, 4, 1, 1)), 0.1, 128)), units=1)
    assert counts(after) == {"Transpose": 1, "QuantizeLinear": 1, "ConvInteger": 2}
