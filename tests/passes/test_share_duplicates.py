from networks import Net, applied, counts

from coresident.passes.share_duplicates import PASS


def test_equal_nodes_become_one_in_chains():
    net = Net()
    x = net.input(2, 8)
    parts = [net("Slice", x, net.integers(0), net.integers(4), net.integers(1)) for _ in range(3)]
    waves = [net("LeakyRelu", net("Sin", part), alpha=0.3) for part in parts]
    graph = applied(PASS, net.graph(net("Sum", *waves)))
    assert counts(graph) == {"Slice": 1, "Sin": 1, "LeakyRelu": 1, "Sum": 1}


def test_nodes_that_differ_stay():
    net = Net()
    x = net.input(2, 8)
    made = [
        net("LeakyRelu", x, alpha=0.1),
        net("LeakyRelu", x, alpha=0.2),
        net("Add", x, net.constant(1)),
        net("Add", x, net.constant([1])),
        net("Sub", x, net.constant(1)),
    ]
    assert len(applied(PASS, net.graph(*made)).nodes) == 5


def test_two_outputs_that_are_equal_keep_their_names():
    net = Net()
    x = net.input(4)
    y, z = net("Exp", x), net("Exp", x)
    graph = applied(PASS, net.graph(z, y))
    assert counts(graph) == {"Exp": 1, "Identity": 1}


def test_an_output_takes_over_the_value():
    net = Net()
    x = net.input(4)
    y, z = net("Exp", x), net("Exp", x)
    graph = applied(PASS, net.graph(z, net("Neg", y)))
    assert counts(graph) == {"Exp": 1, "Neg": 1}
