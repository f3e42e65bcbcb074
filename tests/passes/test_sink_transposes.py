import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes.sink_transposes import PASS

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def channels_last(net, *shape):
    return net("Transpose", net("Exp", net.input(*shape)), perm=LAST)


def channels_first(net, x):
    return net("Neg", net("Transpose", x, perm=FIRST))


CASES = {
    "Relu": lambda n, x: n("Relu", x),
    "chain": lambda n, x: n("Tanh", n("LeakyRelu", n("Relu", x), alpha=0.2)),
    "scalar": lambda n, x: n("Mul", n.constant(2), x),
    "channels": lambda n, x: n("Add", x, n.random(3)),
    "rows": lambda n, x: n("Sub", n.random(4, 1, 1), x),
    "table": lambda n, x: n("PRelu", x, n.random(5, 3)),
    "bounds": lambda n, x: n("Clip", x, n.constant(0.1), n.constant(0.9)),
    "two": lambda n, x: n("Mul", x, channels_last(n, 2, 3, 4, 5)),
    "broadcast": lambda n, x: n("Mul", x, channels_last(n, 2, 3, 1, 1)),
    "Softmax": lambda n, x: n("Softmax", x, axis=-1),
    "LogSoftmax": lambda n, x: n("LogSoftmax", x, axis=1),
    "Concat": lambda n, x: n("Concat", x, channels_last(n, 2, 7, 4, 5), axis=3),
    "ReduceMean": lambda n, x: n("ReduceMean", x, n.integers(1, 2), keepdims=1),
    "Pad": lambda n, x: n("Pad", x, n.integers(0, 1, 2, 3, 0, 0, 1, 2)),
    "several readers": lambda n, x: n(
        "Mul", x, n("Sigmoid", n("ReduceMean", x, n.integers(1, 2), keepdims=1))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_transposes_cancel_behind(name):
    net = Net()
    y = channels_first(net, CASES[name](net, channels_last(net, 2, 3, 4, 5)))
    assert "Transpose" not in counts(applied(PASS, net.graph(y)))


def test_reductions_that_drop_axes_leave_no_transpose_when_the_rest_is_in_order():
    net = Net()
    y = net("ReduceMean", channels_last(net, 2, 3, 4, 5), net.integers(1, 2), keepdims=0)
    z = net("ReduceSum", channels_last(net, 2, 3, 4, 5), net.integers(1), keepdims=0)
    graph = applied(PASS, net.graph(y, z))
    assert counts(graph) == {"Exp": 2, "ReduceMean": 1, "ReduceSum": 1, "Transpose": 1}
    np.testing.assert_array_equal(graph.initializers[only(graph, "ReduceMean").inputs[1]], [2, 3])


def test_a_residual_block_with_channels_last():
    net = Net()

    def convolve(x):
        first = net("Transpose", x, perm=FIRST)
        return net("Transpose", net("Conv", first, net.random(3, 3, 3, 3), pads=(1, 1, 1, 1)), perm=LAST)

    x = net("Relu", convolve(net.input(1, 6, 7, 3)))
    y = net("Relu", net("Add", convolve(net("Relu", convolve(x))), x))
    graph = applied(PASS, net.graph(convolve(y)), tolerance=1e-4)
    assert counts(graph)["Transpose"] == 2


def test_squeeze_and_excitation_with_channels_last():
    net = Net()
    x = net("Transpose", net("Conv", net.input(1, 3, 6, 7), net.random(8, 3, 3, 3)), perm=LAST)
    mean = net("Transpose", net("ReduceMean", x, net.integers(1, 2), keepdims=1), perm=FIRST)
    gate = net("Transpose", net("Conv", mean, net.random(8, 8, 1, 1)), perm=LAST)
    y = net("Transpose", net("Mul", x, net("Sigmoid", gate)), perm=FIRST)
    graph = applied(PASS, net.graph(net("Conv", y, net.random(8, 8, 1, 1))), tolerance=1e-4)
    assert "Transpose" not in counts(graph)


def test_halves_of_the_channels():
    net = Net()
    first, second = net("Split", channels_last(net, 2, 6, 4, 5), outputs=2, axis=3, num_outputs=2)
    graph = applied(PASS, net.graph(channels_first(net, net("Mul", first, net("Sigmoid", second)))))
    assert "Transpose" not in counts(graph)


@pytest.mark.parametrize("name", ["other order", "other value", "other reader"])
def test_stays(name):
    net = Net()
    x = net("Transpose", net.input(2, 3, 3, 3), perm=LAST)
    other = {
        "other order": lambda: net("Transpose", net.input(2, 3, 3, 3), perm=(0, 2, 1, 3)),
        "other value": lambda: net.input(2, 3, 3, 3),
        "other reader": lambda: net.constant(1),
    }[name]()
    y = net("Add", x, other)
    graph = applied(
        PASS, net.graph(y, net("MatMul", x, net.random(3, 3))) if name == "other reader" else net.graph(y)
    )
    assert graph.nodes[-1].op != "Transpose"


@pytest.mark.parametrize(
    ("shape", "flat", "axis", "moved"),
    [
        ((2, 3, 4), (6, 4), -1, 2),
        ((2, 3, 4, 5), (2, 3, 20), 1, 1),
        ((2, 12), (2, 3, 4), 1, None),
        ((2, 3, 4), (2, 12), 1, None),
    ],
)
def test_softmax_goes_before_a_reshape_that_keeps_its_dimension(shape, flat, axis, moved):
    net = Net()
    y = net("Softmax", net("Reshape", net("Exp", net.input(*shape)), net.integers(*flat)), axis=axis)
    graph = applied(PASS, net.graph(net("Neg", net("Reshape", y, net.integers(*shape)))))
    assert ("Reshape" not in counts(graph)) == (moved is not None)
    if moved is not None:
        assert only(graph, "Softmax").get("axis") == moved


def test_element_wise_operators_go_before_a_reshape():
    net = Net()
    y = net("Reshape", net("Exp", net.input(2, 3, 4)), net.integers(2, 12))
    y = net("Add", net("Relu", net("Mul", y, net.constant(2))), net.random(12))
    graph = applied(PASS, net.graph(y))
    assert [node.op for node in graph.nodes] == ["Exp", "Mul", "Relu", "Reshape", "Add"]
