import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes.recognise_norms import PASS


def norm(n, x, axes, square="Pow", epsilon=1e-5, mean=None):
    mean = n("ReduceMean", x, n.integers(*axes)) if mean is None else mean
    centred = n("Sub", x, mean)
    power = n("Pow", centred, n.constant(2)) if square == "Pow" else n("Mul", centred, centred)
    variance = n("ReduceMean", power, n.integers(*axes))
    return n("Div", centred, n("Sqrt", n("Add", variance, n.constant(epsilon))))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("axes", [[-1], [1, 2], [2, 1]])
def test_becomes(axes, square):
    net = Net()
    x = net.input(3, 4, 5)
    last = [4, 5] if len(axes) == 2 else [5]
    scale, bias = (net.constant(np.random.default_rng(i).random(last, np.float32)) for i in range(2))
    scaled = net("Mul", scale, norm(net, x, axes, square))
    node = only(applied(PASS, net.graph(net("Add", scaled, bias))), "LayerNormalization")
    assert node.get("axis") == 3 - len(last)
    assert node.get("epsilon") == pytest.approx(1e-5)
    assert len(node.inputs) == 3


def test_scales_after_the_bias():
    net = Net()
    x = net.input(3, 5)
    both = net("Mul", net("Add", norm(net, x, [1]), net.constant(0.5)), net.constant([1, 2, 3, 4, 5]))
    only(applied(PASS, net.graph(both)), "LayerNormalization")


OTHERS = {
    "channels": lambda n, x: norm(n, x, [1]),
    "another mean": lambda n, x: norm(n, x, [2], mean=n("ReduceMean", n.input(3, 4, 5), n.integers(2))),
    "other axes": lambda n, x: norm(n, x, [2], mean=n("ReduceMean", x, n.integers(1))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_stays(name):
    net = Net()
    after = applied(PASS, net.graph(OTHERS[name](net, net.input(3, 4, 5))))
    assert "LayerNormalization" not in counts(after)


def test_a_scale_for_each_row_stays():
    net = Net()
    rows = net.constant(np.ones((4, 1)))
    after = applied(PASS, net.graph(net("Mul", norm(net, net.input(3, 4, 5), [2]), rows)))
    assert counts(after)["Mul"] == 1
