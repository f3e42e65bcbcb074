import pytest
from networks import Net, applied, only

from coresident.passes.recognise_activations import PASS


def relu6(n, x):
    return n("Clip", n("Add", x, n.constant(3)), n.constant(0), n.constant(6))


def erf(n, x):
    return n("Add", n("Erf", n("Div", x, n.constant(2**0.5))), n.constant(1))


def tanh(n, x, cube):
    inner = n("Add", x, n("Mul", n.constant(0.044715), cube))
    return n("Add", n.constant(1), n("Tanh", n("Mul", inner, n.constant(0.7978845834732056))))


CASES = {
    "hard sigmoid": ("HardSigmoid", lambda n, x: n("Div", relu6(n, x), n.constant(6))),
    "hard sigmoid by product": ("HardSigmoid", lambda n, x: n("Mul", n.constant(1 / 6), relu6(n, x))),
    "hard swish": ("HardSwish", lambda n, x: n("Mul", x, n("Div", relu6(n, x), n.constant(6)))),
    "hard swish, late": ("HardSwish", lambda n, x: n("Div", n("Mul", x, relu6(n, x)), n.constant(6))),
    "hard swish by gate": ("HardSwish", lambda n, x: n("Mul", n("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)),
    "swish": ("Swish", lambda n, x: n("Mul", x, n("Sigmoid", x))),
    "swish, turned": ("Swish", lambda n, x: n("Mul", n("Sigmoid", x), x)),
    "swish, steep": ("Swish", lambda n, x: n("Mul", x, n("Sigmoid", n("Mul", x, n.constant(1.702))))),
    "mish": ("Mish", lambda n, x: n("Mul", x, n("Tanh", n("Softplus", x)))),
    "gelu": ("Gelu", lambda n, x: n("Mul", n("Mul", x, n.constant(0.5)), erf(n, x))),
    "gelu, late": ("Gelu", lambda n, x: n("Mul", n("Mul", x, erf(n, x)), n.constant(0.5))),
    "gelu, inner": ("Gelu", lambda n, x: n("Mul", n("Mul", n.constant(0.5), erf(n, x)), x)),
    "gelu by tanh": (
        "Gelu",
        lambda n, x: n("Mul", n("Mul", x, n.constant(0.5)), tanh(n, x, n("Pow", x, n.constant(3)))),
    ),
    "gelu by tanh, cube of products": (
        "Gelu",
        lambda n, x: n("Mul", n("Mul", x, n.constant(0.5)), tanh(n, x, n("Mul", n("Mul", x, x), x))),
    ),
}
OTHERS = {
    "other value": lambda n, x: n("Mul", x, n("Sigmoid", n.input(2, 3, 4))),
    "broadcast": lambda n, x: n("Mul", n.input(5, 2, 3, 4), n("Sigmoid", x)),
    "other bounds": lambda n, x: n(
        "Div", n("Clip", n("Add", x, n.constant(3)), n.constant(0), n.constant(5)), n.constant(6)
    ),
    "other scale": lambda n, x: n("Div", n("Mul", x, relu6(n, x)), n.constant(5)),
    "other gate": lambda n, x: n("Mul", x, n("HardSigmoid", x)),
    "gelu without half": lambda n, x: n("Mul", x, erf(n, x)),
}


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_becomes(name, product):
    op, build = CASES[name]
    net = Net()
    x = net.input(2, 3, 4)
    if product:
        # What is activated may be a product itself.
        x = net("Mul", net("Mul", x, net.constant(0.3)), net.input(2, 3, 4))
    graph = applied(PASS, net.graph(build(net, x)))
    assert only(graph, op) is graph.nodes[-1]
    assert len(graph.nodes) == (3 if product else 1)


@pytest.mark.parametrize("name", OTHERS)
def test_stays(name):
    net = Net()
    graph = net.graph(OTHERS[name](net, net.input(2, 3, 4)))
    ops = {node.op for node in applied(PASS, graph).nodes}
    assert ops == {node.op for node in graph.nodes}
