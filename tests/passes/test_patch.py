from dataclasses import replace

import numpy as np
import pytest
from networks import Net, applied, counts

from coresident.graph.graph import Node
from coresident.graph.operator import evaluate
from coresident.passes.patch import Patch, View, pattern_pass
from coresident.passes.verify import verify


def double_negation(view: View, node: Node) -> Patch | None:
    inner = view.maker(node.inputs[0])
    if node.op != "Neg" or inner is None or inner.op != "Neg":
        return None
    return Patch((node,), renames={node.outputs[0]: inner.inputs[0]})


PASS = pattern_pass("remove_double_negation", double_negation)


def test_rules_run_to_a_fixed_point_and_dead_nodes_and_constants_go():
    net = Net()
    x = net.input(2, 3)
    y = net("Add", x, net.constant(1.0))
    for _ in range(6):
        y = net("Neg", y)
    net("Mul", y, net.constant(2.0))
    graph = applied(PASS, net.graph(net("Relu", y)))
    assert counts(graph) == {"Add": 1, "Relu": 1}
    assert len(graph.initializers) == 1


def test_an_output_keeps_its_name_when_its_maker_goes():
    net = Net()
    x = net.input(2, 3)
    y = net("Relu", x)
    z = net("Neg", net("Neg", y))
    graph = applied(PASS, net.graph(z, net("Abs", y)))
    assert graph.outputs == (z, "abs3")
    assert counts(graph) == {"Relu": 1, "Abs": 1}
    assert graph.nodes[0].outputs == (z,)


def test_an_output_that_would_be_an_input_becomes_an_identity():
    net = Net()
    x = net.input(2, 3)
    y = net("Neg", net("Neg", x))
    graph = applied(PASS, net.graph(y, net("Relu", y)))
    assert counts(graph) == {"Identity": 1, "Relu": 1}


def test_two_outputs_of_one_value_both_survive():
    net = Net()
    x = net("Relu", net.input(4))
    graph = applied(PASS, net.graph(x, net("Neg", net("Neg", x))))
    assert counts(graph) == {"Relu": 1, "Identity": 1}


def test_rules_without_end_are_reported():
    def swap(view: View, node: Node) -> Patch:
        return Patch((node,), (node.with_(inputs=node.inputs[::-1]),))

    net = Net()
    graph = net.graph(net("Add", net.input(2), net.input(2)))
    with pytest.raises(RuntimeError, match="swap"):
        pattern_pass("swap", swap).run(graph)


def test_patches_keep_the_order_topological():
    def later_operand(view: View, node: Node) -> Patch | None:
        # Makes the first node of the graph read the last.
        if node.op != "Neg":
            return None
        return Patch((node,), (Node("Add", (node.inputs[0], "exp1"), node.outputs),))

    net = Net()
    x = net.input(3)
    y, e = net("Neg", x), net("Exp", x)
    before = net.graph(y, e)
    after = pattern_pass("later", later_operand).run(before)
    assert [node.op for node in after.nodes] == ["Exp", "Add"]
    given = {x: np.arange(3, dtype=np.float32)}
    np.testing.assert_array_equal(evaluate(after, given)[y], given[x] + np.exp(given[x]))


def test_verify_finds_what_is_wrong():
    net = Net()
    x = net.input(2, 3)
    graph = net.graph(net("Exp", net("Relu", x)))
    verify(graph, graph, "nothing")
    with pytest.raises(RuntimeError, match="before they are made"):
        verify(graph, graph.with_(nodes=graph.nodes[::-1]), "order")
    with pytest.raises(RuntimeError, match="again"):
        verify(graph, graph.with_(nodes=(*graph.nodes, graph.nodes[0])), "twice")
    with pytest.raises(RuntimeError, match="nothing makes"):
        verify(graph, graph.with_(nodes=graph.nodes[:1]), "missing")
    with pytest.raises(RuntimeError, match="names"):
        verify(graph, graph.with_(outputs=("relu0",)), "names")
    wrong = {**graph.facts, "relu0": replace(graph.facts["relu0"], shape=(3, 2))}
    with pytest.raises(RuntimeError, match="relu0"):
        verify(graph, graph.with_(facts=wrong), "facts")
    with pytest.raises(RuntimeError, match="nothing is known"):
        verify(graph, graph.with_(facts={x: graph.facts[x], "exp1": graph.facts["exp1"]}), "facts")
