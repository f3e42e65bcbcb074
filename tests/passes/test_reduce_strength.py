import numpy as np
import pytest
from networks import Net, applied, counts

from coresident.passes.reduce_strength import PASS

CASES = {
    "Sum": ({"Add": 2}, lambda n, x: n("Sum", x, n.input(3, 1), n.constant(2))),
    "Mean": ({"Add": 2, "Mul": 1}, lambda n, x: n("Mean", x, n.input(3, 1), n.constant(2))),
    "Max": ({"Max": 2}, lambda n, x: n("Max", x, n.input(4), n.constant(1))),
    "square": ({"Mul": 1}, lambda n, x: n("Pow", x, n.constant(2))),
    "cube": ({"Mul": 2}, lambda n, x: n("Pow", x, n.constant([3]))),
    "root": ({"Abs": 1, "Sqrt": 1}, lambda n, x: n("Pow", n("Abs", x), n.constant(0.5))),
    "reciprocal": ({"Reciprocal": 1}, lambda n, x: n("Pow", x, n.constant(-1))),
    "other power": ({"Abs": 1, "Pow": 1}, lambda n, x: n("Pow", n("Abs", x), n.constant(1.5))),
    "halves": ({"Mul": 1}, lambda n, x: n("Div", x, n.constant([2, -4, 0.5, 1]))),
    "thirds": ({"Div": 1}, lambda n, x: n("Div", x, n.constant(3))),
    "Max with 0": ({"Relu": 1}, lambda n, x: n("Max", n.constant(0), x)),
    "Max with 1": ({"Max": 1}, lambda n, x: n("Max", x, n.constant(1))),
    "Clip from 0": ({"Relu": 1}, lambda n, x: n("Clip", x, n.constant(0))),
    "Clip from 0 to infinity": ({"Relu": 1}, lambda n, x: n("Clip", x, n.constant(0), n.constant(np.inf))),
    "relu6": ({"Clip": 1}, lambda n, x: n("Clip", x, n.constant(0), n.constant(6))),
}


@pytest.mark.parametrize("name", CASES)
def test_becomes(name):
    expected, build = CASES[name]
    net = Net()
    assert counts(applied(PASS, net.graph(build(net, net.input(2, 3, 4))))) == expected


def test_bounds_of_clip_become_plain_scalars():
    net = Net()
    x = net.input(3)
    upper = net("Clip", x, "", net.constant([1]))
    lower = net("Clip", x, net.constant([-1]), "")
    graph = applied(PASS, net.graph(upper, lower))
    first, second = graph.nodes
    assert [graph.initializers[name].shape for name in first.inputs[1:]] == [(), ()]
    assert graph.initializers[first.inputs[1]] == -np.inf
    assert [graph.initializers[name].shape for name in second.inputs[1:]] == [()]


def test_the_least_integer_bounds_a_clip_of_integers():
    net = Net()
    x = net.input(3, dtype="int32")
    graph = applied(PASS, net.graph(net("Clip", x, "", net.constant(1, "int32"))))
    assert graph.initializers[graph.nodes[0].inputs[1]] == np.iinfo(np.int32).min
