import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes import fuse_epilogue
from coresident.passes.fuse_epilogue import PASS


def convolution(net, x, channels=4, bias=True):
    return net(
        "Conv", x, net.random(channels, 4, 3, 3), *([net.random(channels)] if bias else []), pads=(1,) * 4
    )


HOSTS = {
    "Conv": lambda n: convolution(n, n.input(2, 4, 5, 6)),
    "Conv without bias": lambda n: convolution(n, n.input(2, 4, 5, 6), bias=False),
    "ConvTranspose": lambda n: n("ConvTranspose", n.input(1, 3, 4, 4), n.random(3, 4, 2, 2), strides=(2, 2)),
    "Gemm": lambda n: n("Gemm", n.input(3, 5), n.random(5, 7)),
    "MatMul": lambda n: n("MatMul", n.input(2, 3, 5), n.random(5, 7)),
}


@pytest.mark.parametrize("name", HOSTS)
def test_activations_and_constants(name):
    net = Net()
    y = HOSTS[name](net)
    y = net("Mul", net("Relu", y), net.constant(0.5))
    y = net("Clip", net("Add", net.constant([0.1]), y), net.constant(0), net.constant(1))
    y = net("LeakyRelu", net("Sub", y, net.constant(0.5)), alpha=0.2)
    graph = applied(PASS, net.graph(y))
    (node,) = graph.nodes
    assert node.outputs == (y,)
    assert str(node.get("epilogue")) == "Relu Mul Add Clip Sub LeakyRelu"
    assert all(graph.initializers[extra].shape == () for extra in node.inputs[fuse_epilogue.HOSTS[node.op] :])


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_constants_per_channel(shape):
    net = Net()
    y = net("PRelu", convolution(net, net.input(2, 4, 5, 6), bias=False), net.random(*shape))
    graph = applied(PASS, net.graph(y))
    (node,) = graph.nodes
    assert node.inputs[2] == ""
    assert graph.initializers[node.inputs[3]].shape == (4, 1, 1)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 1, 1, 1), (4, 5, 6)])
def test_constants_that_vary_otherwise_stay(shape):
    net = Net()
    y = net("Mul", convolution(net, net.input(2, 4, 5, 6)), net.random(*shape))
    assert counts(applied(PASS, net.graph(y))) == {"Conv": 1, "Mul": 1}


def test_columns_of_a_product():
    net = Net()
    y = net("Mul", net("Relu", net("MatMul", net.input(2, 7, 5), net.random(5, 7))), net.random(1, 1, 7))
    z = net("Mul", net("Relu", net("MatMul", net.input(2, 7, 5), net.random(5, 7))), net.random(7, 1))
    graph = applied(PASS, net.graph(y, z))
    assert counts(graph) == {"MatMul": 2, "Mul": 1}
    assert graph.initializers[graph.nodes[0].inputs[2]].shape == (7,)


def test_a_residual_block():
    net = Net()
    x = net.input(2, 4, 5, 6)
    y = net("Relu", convolution(net, x))
    y = net("Relu", net("Add", convolution(net, y), x))
    graph = applied(PASS, net.graph(y))
    assert [str(node.get("epilogue")) for node in graph.nodes] == ["Relu", "Add Relu"]
    assert graph.nodes[1].inputs[3:] == (x,)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_later_of_two_hosts_takes_the_sum(swapped):
    net = Net()
    x = net.input(2, 4, 5, 6)
    first = net("Sigmoid", convolution(net, x))
    second = net("Tanh", convolution(net, net("Exp", net.input(2, 4, 5, 6))))
    y = net("Relu", net("Add", *((second, first) if swapped else (first, second))))
    graph = applied(PASS, net.graph(y))
    assert [(node.op, str(node.get("epilogue", ""))) for node in graph.nodes] == [
        ("Conv", "Sigmoid"),
        ("Exp", ""),
        ("Conv", "Tanh Add Relu"),
    ]


def test_a_result_that_is_read_elsewhere_or_handed_out_stays():
    net = Net()
    x = net.input(2, 4, 5, 6)
    y, z = convolution(net, x), convolution(net, x)
    graph = applied(
        PASS, net.graph(net("Relu", y), net("MaxPool", y, kernel_shape=(2, 2)), z, net("Relu", z))
    )
    assert counts(graph) == {"Conv": 2, "Relu": 2, "MaxPool": 1}


def test_a_value_that_depends_on_the_result_stays_out():
    net = Net()
    y = convolution(net, net.input(2, 4, 5, 6))
    gate = net("Sigmoid", net("GlobalAveragePool", y))
    assert counts(applied(PASS, net.graph(net("Mul", y, gate))))["Mul"] == 1


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 1, 5, 6), (1,)])
def test_a_value_of_another_shape_stays_out(shape):
    net = Net()
    y = net("Mul", convolution(net, net.input(2, 4, 5, 6)), net.input(*shape))
    assert counts(applied(PASS, net.graph(y))) == {"Conv": 1, "Mul": 1}


def test_a_change_of_shape_or_type_stays_out():
    net = Net()
    x = net.input(1, 4, 5, 6)
    made = [
        net("Greater", convolution(net, x), net.constant(0)),
        net("Cast", convolution(net, x), to="float64"),
        net("Add", convolution(net, x), net.random(3, 1, 1, 1)),
    ]
    graph = applied(PASS, net.graph(*made))
    assert counts(graph) == {"Conv": 3, "Greater": 1, "Cast": 1, "Add": 1}


def test_limits():
    net = Net()
    y = convolution(net, net.input(2, 4, 5, 6))
    for _ in range(3):
        y = net("Mul", y, net.input(2, 4, 5, 6))
    graph = applied(PASS, net.graph(y))
    assert counts(graph) == {"Conv": 1, "Mul": 1}
    net = Net()
    y = convolution(net, net.input(2, 4, 5, 6))
    for i in range(fuse_epilogue.STEPS + 2):
        y = net("Sin" if i % 2 else "Cos", y)
    graph = applied(PASS, net.graph(y))
    assert len(graph.nodes) == 3
    assert len(only(graph, "Conv").get("epilogue").steps) == fuse_epilogue.STEPS


def test_the_same_value_twice():
    net = Net()
    r = net.input(2, 4, 5, 6)
    y = convolution(net, net.input(2, 4, 5, 6))
    y = net("Mul", y, y)
    y = net("Add", net("Mul", net("Add", y, r), r), net.constant(np.float32(0.25)))
    (node,) = applied(PASS, net.graph(y)).nodes
    assert node.inputs.count(r) == 1
    assert node.get("epilogue").inputs == 3


def test_reasons():
    net = Net()
    x = net.input(2, 4, 5, 6)
    shared = convolution(net, x)
    made = {
        "2 readers": net("Relu", shared),
        "another shape": net("Mul", convolution(net, x), net.input(2, 1, 5, 6)),
        "other axes": net("Mul", convolution(net, x), net.random(6)),
    }
    fused = net("Relu", convolution(net, x))
    elsewhere = net("Relu", net("Sin", x))
    graph = applied(PASS, net.graph(*made.values(), net("Sin", shared), fused, elsewhere))
    reasons = fuse_epilogue.reasons(graph)
    for text, output in made.items():
        assert reasons[output].startswith("not fused into Conv ")
        assert text in reasons[output]
    assert len(reasons) == len(made) + 1
