import numpy as np
import pytest
from networks import Net, applied, counts

from coresident.passes.remove_identities import PASS


def gone(build):
    """Whether only the Relu and Exp around what `build` makes of [2, 3, 4, 5] remain."""
    net = Net()
    y = build(net, net("Relu", net.input(2, 3, 4, 5)))
    found = counts(applied(PASS, net.graph(net("Exp", y))))
    return found == {"Relu": 1, "Exp": 1}


SAME = {
    "Identity": lambda n, x: n("Identity", x),
    "Dropout": lambda n, x: n("Dropout", x),
    "Dropout with a mask that nobody reads": lambda n, x: n("Dropout", x, outputs=2)[0],
    "Cast": lambda n, x: n("Cast", x, to="float32"),
    "Reshape": lambda n, x: n("Reshape", x, n.integers(0, -1, 4, 5)),
    "Expand": lambda n, x: n("Expand", x, n.integers(1, 4, 1)),
    "Tile": lambda n, x: n("Tile", x, n.integers(1, 1, 1, 1)),
    "Transpose": lambda n, x: n("Transpose", x, perm=(0, 1, 2, 3)),
    "Slice": lambda n, x: n("Slice", x, n.integers(0), n.integers(2**62), n.integers(1)),
    "Split": lambda n, x: n("Split", x, num_outputs=1, axis=1),
    "Pad": lambda n, x: n("Pad", x, n.integers(*[0] * 8)),
    "Concat": lambda n, x: n("Concat", x, axis=1),
    "Concat with nothing": lambda n, x: n("Concat", x, n.constant(np.zeros((2, 0, 4, 5))), axis=1),
    "Resize by scales": lambda n, x: n("Resize", x, "", n.constant([1, 1, 1, 1]), mode="linear"),
    "Resize by sizes": lambda n, x: n("Resize", x, "", "", n.integers(2, 3, 4, 5), mode="nearest"),
    "MaxPool": lambda n, x: n("MaxPool", x, kernel_shape=(1, 1)),
    "AveragePool": lambda n, x: n("AveragePool", x, kernel_shape=(1, 1), strides=(1, 1)),
    "Add 0": lambda n, x: n("Add", x, n.constant(0)),
    "0 Add": lambda n, x: n("Add", n.constant(np.zeros((3, 1, 1))), x),
    "Sub 0": lambda n, x: n("Sub", x, n.constant([0])),
    "Mul 1": lambda n, x: n("Mul", n.constant(1), x),
    "Div 1": lambda n, x: n("Div", x, n.constant(1)),
    "Pow 1": lambda n, x: n("Pow", x, n.constant(1)),
    "Clip": lambda n, x: n("Clip", x),
    "Clip at infinity": lambda n, x: n("Clip", x, n.constant(-np.inf), n.constant(np.inf)),
    "Sum": lambda n, x: n("Sum", x),
    "Mean": lambda n, x: n("Mean", x),
    "Max": lambda n, x: n("Max", x),
}
DIFFERENT = {
    "Cast": lambda n, x: n("Cast", x, to="float64"),
    "Reshape": lambda n, x: n("Reshape", x, n.integers(2, 3, 5, 4)),
    "Expand": lambda n, x: n("Expand", x, n.integers(2, 1, 1, 1, 1)),
    "Transpose": lambda n, x: n("Transpose", x, perm=(0, 1, 3, 2)),
    "Slice": lambda n, x: n("Slice", x, n.integers(0), n.integers(2), n.integers(1)),
    "reversing Slice": lambda n, x: n(
        "Slice", x, n.integers(-1), n.integers(-9), n.integers(1), n.integers(-1)
    ),
    "Pad": lambda n, x: n("Pad", x, n.integers(0, 0, 0, 1, 0, 0, 0, 0)),
    "Concat": lambda n, x: n("Concat", x, x, axis=1),
    "Resize": lambda n, x: n("Resize", x, "", n.constant([1, 1, 1.1, 1.1]), mode="linear"),
    "MaxPool": lambda n, x: n("MaxPool", x, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    "indices of MaxPool": lambda n, x: n(
        "Sub", *(n("Cast", y, to="float32") for y in n("MaxPool", x, kernel_shape=(1, 1), outputs=2))
    ),
    "Add": lambda n, x: n("Add", x, n.constant(1)),
    "0 Sub": lambda n, x: n("Sub", n.constant(0), x),
    "broadcasting Add": lambda n, x: n("Add", x, n.constant(np.zeros((7, 1, 1, 1, 1)))),
    "Clip": lambda n, x: n("Clip", x, "", n.constant(1)),
}


@pytest.mark.parametrize("name", SAME)
def test_hands_on_what_it_reads(name):
    assert gone(SAME[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_stays(name):
    assert not gone(DIFFERENT[name])


def test_an_identity_that_names_an_input_or_output_stays():
    net = Net()
    x = net.input(3)
    y = net("Identity", x)
    z = net("Relu", x)
    graph = applied(PASS, net.graph(y, z, net("Identity", z)))
    assert counts(graph) == {"Identity": 2, "Relu": 1}
