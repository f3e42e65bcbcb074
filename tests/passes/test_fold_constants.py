import numpy as np
import pytest
from networks import Net, applied, counts

from coresident.errors import InvalidModel
from coresident.passes import fold_constants

PASS = fold_constants.PASS


def test_shape_arithmetic_of_exporters_disappears():
    net = Net()
    x = net.input(2, 3, 4, 5)
    batch = net("Gather", net("Shape", x), net.constant(0, "int64"), axis=0)
    parts = [net("Unsqueeze", batch, net.integers(0)), net.integers(-1), net.integers(2)]
    graph = applied(PASS, net.graph(net("Reshape", x, net("Concat", *parts, axis=0))))
    assert counts(graph) == {"Reshape": 1}
    np.testing.assert_array_equal(graph.initializers[graph.nodes[0].inputs[1]], [2, -1, 2])


def test_size_and_partial_shape():
    net = Net()
    x = net.input(2, 3, 5)
    size = net("Cast", net("Size", x), to="float32")
    shape = net("Cast", net("Shape", x, start=1), to="float32")
    graph = applied(PASS, net.graph(net("Add", x, size), net("Mul", shape, net("Relu", net.input(2)))))
    assert counts(graph) == {"Add": 1, "Mul": 1, "Relu": 1}


def test_a_constant_output_keeps_its_name():
    net = Net()
    x = net.input(2, 3)
    y = net("Add", net.constant([1.0, 2.0]), net.constant(1.0))
    graph = applied(PASS, net.graph(y, net("Relu", x)))
    assert graph.outputs[0] == y
    assert counts(graph) == {"Identity": 1, "Relu": 1}


def test_what_is_larger_than_the_limit_stays(monkeypatch):
    monkeypatch.setattr(fold_constants, "LIMIT", 4 * 5000)
    net = Net()
    small = net("ConstantOfShape", net.integers(50, 100))
    large = net("ConstantOfShape", net.integers(50, 101))
    graph = applied(PASS, net.graph(net("Add", net.input(1), small), net("Add", net.input(1), large)))
    assert counts(graph) == {"Add": 2, "ConstantOfShape": 1}


def test_constants_that_do_not_fit_name_the_node():
    net = Net()
    net.constant(0)
    index = net.constant(9, "int64")
    with pytest.raises(InvalidModel, match="gather0"):
        PASS.run(net.graph(net("Gather", net.random(3), index, axis=0)))
