import pytest
from networks import Net, applied, counts

from coresident.passes.recognise_pooling import PASS


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, 2)])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(
    ("op", "pool"), [("ReduceMean", "GlobalAveragePool"), ("ReduceMax", "GlobalMaxPool")]
)
def test_reduction_over_all_spatial_axes(axes, keep, op, pool):
    net = Net()
    y = net(op, net.input(2, 3, 7, 9), net.integers(*axes), keepdims=keep)
    assert counts(applied(PASS, net.graph(y))) == ({pool: 1} if keep else {pool: 1, "Reshape": 1})


@pytest.mark.parametrize("shape", [(2, 3, 17), (1, 2, 4, 5, 3)])
def test_one_and_three_dimensions(shape):
    net = Net()
    y = net("ReduceMean", net.input(*shape), net.integers(*range(2, len(shape))))
    assert counts(applied(PASS, net.graph(y))) == {"GlobalAveragePool": 1}


@pytest.mark.parametrize("axes", [(2,), (1, 2, 3), (1,)])
def test_other_axes_stay(axes):
    net = Net()
    y = net("ReduceMean", net.input(2, 3, 7, 9), net.integers(*axes))
    assert counts(applied(PASS, net.graph(y))) == {"ReduceMean": 1}


def test_a_window_as_large_as_the_input():
    net = Net()
    x = net.input(2, 3, 7, 5)
    made = [
        net("AveragePool", x, kernel_shape=(7, 5)),
        net("MaxPool", x, kernel_shape=(7, 5), strides=(2, 2)),
        net("AveragePool", x, kernel_shape=(7, 5), pads=(1, 0, 0, 0)),
        net("AveragePool", x, kernel_shape=(7, 4)),
    ]
    found = counts(applied(PASS, net.graph(*made)))
    assert found == {"GlobalAveragePool": 1, "GlobalMaxPool": 1, "AveragePool": 2}
