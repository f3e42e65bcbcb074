import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes.fold_batch_norm import PASS


def normalise(net, x, channels):
    parameters = [net.random(channels) for _ in range(3)]
    return net("BatchNormalization", x, *parameters, net.random(channels, low=0.1, high=2.0), epsilon=1e-3)


def sparse(net, *shape):
    name = net.random(*shape)
    net.constants[name][net.constants[name] < 0.3] = 0
    return name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("spatial", [(9,), (7, 5), (3, 4, 5)])
def test_normalisation_after_convolution(bias, group, spatial):
    net = Net()
    kernel = (3,) * len(spatial)
    weights = sparse(net, 6, 6 // group, *kernel)
    y = net(
        "Conv",
        net.input(2, 6, *spatial),
        weights,
        *([net.random(6)] if bias else []),
        group=group,
        pads=(1,) * 2 * len(spatial),
    )
    graph = applied(PASS, net.graph(normalise(net, y, 6)))
    assert counts(graph) == {"Conv": 1}
    folded = graph.initializers[only(graph, "Conv").inputs[1]]
    assert folded.dtype == np.float32
    np.testing.assert_array_equal(folded == 0, net.constants[weights] == 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_normalisation_after_transposed_convolution(bias, group):
    net = Net()
    weights, extra = net.random(4, 6 // group, 2, 2), [net.random(6)] if bias else []
    y = net("ConvTranspose", net.input(1, 4, 5, 7), weights, *extra, group=group, strides=(2, 2))
    assert counts(applied(PASS, net.graph(normalise(net, y, 6)))) == {"ConvTranspose": 1}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (7,), (1, 7), (3, 1), (3, 7), ()])
def test_normalisation_after_gemm(transposed, bias):
    net = Net()
    weights = net.random(7, 5) if transposed else net.random(5, 7)
    extra = [] if bias is None else [net.random(*bias)]
    y = net("Gemm", net.input(3, 5), weights, *extra, transB=transposed, alpha=0.7, beta=1.3)
    assert counts(applied(PASS, net.graph(normalise(net, y, 7)))) == {"Gemm": 1}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_constants_after_convolution(op, shape, swapped):
    net = Net()
    y = net("Conv", net.input(1, 3, 6, 6), net.random(4, 3, 3, 3), net.random(4))
    operands = (y, net.random(*shape, low=0.5, high=2.0))
    y = net(op, *(operands[::-1] if swapped else operands))
    expected = {"Conv": 1, "Div": 1} if op == "Div" and swapped else {"Conv": 1}
    assert counts(applied(PASS, net.graph(y))) == expected


@pytest.mark.parametrize("shape", [(4, 1), (1, 1, 4), (4, 4), (1, 1, 1, 1, 1), (4, 4, 4)])
def test_constants_that_vary_otherwise_stay(shape):
    net = Net()
    y = net("Conv", net.input(1, 4, 6, 6), net.random(4, 4, 3, 3))
    assert counts(applied(PASS, net.graph(net("Add", y, net.random(*shape))))) == {"Conv": 1, "Add": 1}


def test_a_result_with_other_readers_stays():
    net = Net()
    y = net("Conv", net.input(1, 3, 6, 6), net.random(4, 3, 3, 3))
    graph = applied(PASS, net.graph(normalise(net, y, 4), net("Relu", y)))
    assert counts(graph) == {"Conv": 1, "Relu": 1, "Mul": 1, "Add": 1}


def test_what_is_not_finite_is_not_folded():
    net = Net()
    y = net("Conv", net.input(1, 3, 6, 6), sparse(net, 2, 3, 3, 3))
    y = net("Mul", y, net.constant(np.array([1, np.inf], np.float32).reshape(2, 1, 1)))
    assert counts(PASS.run(net.graph(y))) == {"Conv": 1, "Mul": 1}


def test_products_of_matrices():
    net = Net()
    y = net("MatMul", net.input(3, 5), net.random(5, 7))
    y = net("Add", net("Mul", y, net.random(7)), net.random(1, 7))
    assert counts(applied(PASS, net.graph(y))) == {"Gemm": 1}


def test_products_of_stacked_matrices_take_the_scale_alone():
    net = Net()
    y = net("MatMul", net.input(2, 3, 5), net.random(5, 7))
    y = net("Add", net("Mul", y, net.random(7)), net.random(1, 7))
    assert counts(applied(PASS, net.graph(y))) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("pads", [0, 1])
def test_constants_before_convolution(group, pads):
    net = Net()
    y = net("Div", net("Sub", net.input(1, 4, 6, 6), net.random(4, 1, 1)), net.random(4, 1, 1, low=1, high=2))
    y = net("Conv", y, net.random(6, 4 // group, 3, 3), group=group, pads=(pads,) * 4)
    expected = {"Conv": 1, "Sub": 1} if pads else {"Conv": 1}
    assert counts(applied(PASS, net.graph(y))) == expected


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7), (2, 3, 4, 5)])
def test_normalisation_alone(shape):
    net = Net()
    graph = applied(PASS, net.graph(normalise(net, net.input(*shape), 3)))
    assert counts(graph) == {"Mul": 1, "Add": 1}
    across = graph.initializers[graph.nodes[0].inputs[1]].shape
    assert across == (3, *(1,) * (len(shape) - 2))
