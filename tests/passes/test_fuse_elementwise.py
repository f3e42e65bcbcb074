import numpy as np
from networks import Net, applied, counts, only

from coresident.passes import fuse_elementwise
from coresident.passes.fuse_elementwise import PASS


def test_a_chain():
    net = Net()
    y = net.input(2, 17)
    for op in ("Exp", "Neg", "Sigmoid", "Tanh"):
        y = net(op, y)
    graph = applied(PASS, net.graph(y))
    assert str(only(graph, "Elementwise").get("expression")) == "Exp Neg Sigmoid Tanh"


def test_a_tree_with_shared_inputs_and_broadcast_operands():
    net = Net()
    x, z = net.input(2, 3, 5), net.input(2, 3, 5)
    left = net("Mul", net("Exp", x), net.input(3, 1))
    right = net("Sub", net("Relu", z), x)
    y = net("Max", net("Add", left, right), net("Mul", x, net.constant(0.1)))
    graph = applied(PASS, net.graph(y))
    node = only(graph, "Elementwise")
    assert len(graph.nodes) == 1
    assert node.get("expression").inputs == 4


def test_both_arguments_from_one_node():
    net = Net()
    y = net("Exp", net.input(7))
    y = net("Mul", y, y)
    assert counts(applied(PASS, net.graph(net("Neg", y)))) == {"Elementwise": 1}


def test_a_diamond():
    net = Net()
    x = net("Exp", net.input(7))
    y = net("Mul", net("Sin", x), net("Cos", x))
    (node,) = applied(PASS, net.graph(y)).nodes
    assert len(node.get("expression").steps) == 4


def test_single_nodes_stay_themselves():
    net = Net()
    y = net("MaxPool", net("Exp", net.input(1, 2, 5, 5)), kernel_shape=(2, 2))
    assert counts(applied(PASS, net.graph(net("Relu", y)))) == {"Exp": 1, "MaxPool": 1, "Relu": 1}


def test_values_that_others_read_or_that_are_outputs_stay():
    net = Net()
    x = net("Exp", net.input(7))
    y = net("Sin", x)
    assert counts(applied(PASS, net.graph(y, net("Neg", y), net("Softmax", x)))) == {
        "Exp": 1,
        "Sin": 1,
        "Neg": 1,
        "Softmax": 1,
    }


def test_what_would_be_computed_many_times_stays():
    net = Net()
    gate = net("Sigmoid", net.input(1, 3, 1, 1))
    y = net("Relu", net("Mul", net.input(1, 3, 5, 5), gate))
    assert counts(applied(PASS, net.graph(y))) == {"Sigmoid": 1, "Elementwise": 1}


def test_types_change_within():
    net = Net()
    x = net.input(33)
    mask = net("Greater", x, net.constant(0))
    y = net("Where", net("And", mask, net("Less", x, net.constant(2))), x, net.constant(-1))
    y = net("Cast", net("Mul", net("Cast", y, to="int32"), net.constant(3, "int32")), to="float32")
    graph = applied(PASS, net.graph(y))
    assert counts(graph) == {"Elementwise": 1}
    assert graph.facts[y].dtype == np.float32


def test_limits():
    net = Net()
    y = net.input(9)
    for i in range(fuse_elementwise.STEPS + 3):
        y = net("Sin" if i % 2 else "Cos", y)
    assert counts(applied(PASS, net.graph(y)))["Elementwise"] == 2
    net = Net()
    y = net.input(9)
    for _ in range(fuse_elementwise.INPUTS + 3):
        y = net("Add", y, net.input(9))
    graph = applied(PASS, net.graph(y))
    assert max(len(node.inputs) for node in graph.nodes) <= fuse_elementwise.INPUTS
