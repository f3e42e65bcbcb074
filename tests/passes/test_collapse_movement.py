import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes.collapse_movement import PASS

INPUT = (2, 3, 4, 5)
CASES = {
    "Flatten": ({"Reshape": 1}, lambda n, x: n("Flatten", x, axis=2)),
    "Unsqueeze, Squeeze": (
        {"Reshape": 1},
        lambda n, x: n("Squeeze", n("Unsqueeze", x, n.integers(0, 3)), n.integers(0)),
    ),
    "Reshape twice": (
        {"Reshape": 1},
        lambda n, x: n("Reshape", n("Reshape", x, n.integers(0, -1)), n.integers(6, 20)),
    ),
    "Reshape and back": ({}, lambda n, x: n("Reshape", n("Flatten", x), n.integers(*INPUT))),
    "Transpose twice": (
        {"Transpose": 1},
        lambda n, x: n("Transpose", n("Transpose", x, perm=(1, 2, 3, 0)), perm=(3, 0, 2, 1)),
    ),
    "Transpose and back": (
        {},
        lambda n, x: n("Transpose", n("Transpose", x, perm=(0, 2, 3, 1)), perm=(0, 3, 1, 2)),
    ),
    "Transpose of ones": (
        {"Reshape": 1},
        lambda n, x: n("Transpose", n("Unsqueeze", x, n.integers(1)), perm=(0, 2, 3, 1, 4)),
    ),
    "reversing Transpose": ({"Transpose": 1}, lambda n, x: n("Transpose", x)),
    "Gather one": ({"Slice": 1, "Reshape": 1}, lambda n, x: n("Gather", x, n.constant(-1, "int64"), axis=2)),
    "Gather a list of one": ({"Slice": 1}, lambda n, x: n("Gather", x, n.integers(1), axis=-1)),
    "Gather evenly": ({"Slice": 1}, lambda n, x: n("Gather", x, n.integers(0, 2, 4), axis=3)),
    "Gather backwards": ({"Gather": 1}, lambda n, x: n("Gather", x, n.integers(2, 1), axis=3)),
    "Gather unevenly": ({"Gather": 1}, lambda n, x: n("Gather", x, n.integers(0, 1, 3), axis=3)),
    "Gather a table": ({"Gather": 1}, lambda n, x: n("Gather", x, n.constant([[0, 1]], "int64"), axis=3)),
    "Slice twice": (
        {"Slice": 1},
        lambda n, x: n(
            "Slice",
            n("Slice", x, n.integers(1, 0), n.integers(5, 9), n.integers(3, 2), n.integers(1, 2)),
            n.integers(1),
            n.integers(-1),
            n.integers(3),
            n.integers(2),
        ),
    ),
    "Slice backwards twice": (
        {"Slice": 2},
        lambda n, x: n(
            "Slice",
            n("Slice", x, n.integers(-1), n.integers(-9), n.integers(3), n.integers(-1)),
            n.integers(1),
            n.integers(3),
            n.integers(3),
        ),
    ),
    "Slice of Transpose": (
        {"Slice": 1, "Transpose": 1},
        lambda n, x: n("Slice", n("Transpose", x), n.integers(1), n.integers(3), n.integers(1)),
    ),
    "Slice of an outer factor": (
        {"Slice": 1, "Reshape": 1},
        lambda n, x: n(
            "Slice", n("Reshape", x, n.integers(2, 3, 2, 2, 5)), n.integers(1), n.integers(2), n.integers(2)
        ),
    ),
    "Slice of a part of Concat": (
        {"Slice": 1},
        lambda n, x: n(
            "Slice",
            n("Concat", n("Neg", x), x, axis=1),
            n.integers(4, 1),
            n.integers(6, 4),
            n.integers(1, 3),
            n.integers(1, 2),
        ),
    ),
    "Slice across parts of Concat": (
        {"Neg": 1, "Concat": 1, "Slice": 1},
        lambda n, x: n(
            "Slice", n("Concat", n("Neg", x), x, axis=1), n.integers(2), n.integers(6), n.integers(1)
        ),
    ),
    "Concat of Concat": (
        {"Neg": 1, "Concat": 1},
        lambda n, x: n("Concat", x, n("Concat", n("Neg", x), x, axis=-3), x, axis=1),
    ),
    "Concat of Concat along another dimension": (
        {"Concat": 3},
        lambda n, x: n("Concat", n("Concat", x, x, axis=2), n("Concat", x, x, axis=2), axis=1),
    ),
    "Slice across dimensions": (
        {"Slice": 1, "Reshape": 1},
        lambda n, x: n("Slice", n("Flatten", x), n.integers(1), n.integers(2), n.integers(1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_becomes(name):
    expected, build = CASES[name]
    net = Net()
    y = net("Exp", build(net, net("Relu", net.input(*INPUT))))
    found = counts(applied(PASS, net.graph(y)))
    assert found == {"Relu": 1, "Exp": 1, **expected}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_channel_shuffle_that_is_split_takes_every_second_channel(batch):
    net = Net()
    x = net("Relu", net.input(batch, 8, 3, 5))
    y = net("Reshape", x, net.integers(batch * 4, 2, 15))
    y = net("Transpose", y, perm=(1, 0, 2))
    y = net("Reshape", y, net.integers(2, -1, 4, 3, 5))
    parts = [net("Gather", y, net.constant(i, "int64"), axis=0) for i in (0, 1)]
    graph = applied(PASS, net.graph(*[net("Exp", part) for part in parts]))
    if batch == 1:
        assert counts(graph) == {"Relu": 1, "Slice": 2, "Exp": 2}
        steps = [graph.initializers[node.inputs[4]] for node in graph.nodes if node.op == "Slice"]
        assert [int(step[0]) for step in steps] == [2, 2]


def test_a_channel_shuffle_read_whole_stays():
    net = Net()
    y = net("Reshape", net("Relu", net.input(1, 8, 3, 5)), net.integers(1, 2, 4, 3, 5))
    y = net("Reshape", net("Transpose", y, perm=(0, 2, 1, 3, 4)), net.integers(1, 8, 3, 5))
    found = counts(applied(PASS, net.graph(net("Exp", y))))
    assert found == {"Relu": 1, "Reshape": 2, "Transpose": 1, "Exp": 1}


def test_parts_of_one_projection_are_sliced_before_they_are_transposed():
    net = Net()
    x = net("Relu", net.input(2, 5, 3 * 2 * 4))
    y = net("Transpose", net("Reshape", x, net.integers(2, 5, 3, 2, 4)), perm=(2, 0, 3, 1, 4))
    parts = [net("Gather", y, net.constant(i, "int64"), axis=0) for i in range(3)]
    found = counts(applied(PASS, net.graph(net("Exp", parts[0]), net("Exp", parts[1]), net("Exp", parts[2]))))
    assert found["Slice"] == found["Transpose"] == 3
    assert "Gather" not in found


def test_reshape_to_the_shape_of_an_input_keeps_the_output():
    net = Net()
    x = net.input(2, 3)
    y = net("Reshape", x, net.integers(-1, 3))
    graph = applied(PASS, net.graph(y))
    assert graph.outputs == (y,)
    np.testing.assert_array_equal(graph.initializers[only(graph, "Reshape").inputs[1]], [2, 3])
