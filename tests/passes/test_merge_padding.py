import numpy as np
import pytest
from networks import Net, applied, counts, only

from coresident.passes.merge_padding import PASS

SPATIAL = (0, 0, 1, 2, 0, 0, 0, 3)


def pad(net, x, widths=SPATIAL, value=None, **attributes):
    inputs = (net.integers(*widths),) if value is None else (net.integers(*widths), net.constant(value))
    return net("Pad", x, *inputs, **attributes)


def test_pad_of_pad():
    net = Net()
    y = pad(net, pad(net, net.input(1, 2, 4, 5), value=1.5), (0, 1, 0, 1, 0, 0, 2, 0), value=1.5)
    assert counts(applied(PASS, net.graph(y))) == {"Pad": 1}


def test_pads_with_other_values_or_that_cut_stay():
    net = Net()
    x = net.input(1, 2, 4, 5)
    made = [pad(net, pad(net, x), value=1.0), pad(net, pad(net, x), (0, 0, -1, 0, 0, 0, 0, 0))]
    assert counts(applied(PASS, net.graph(*made))) == {"Pad": 4}


@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_into_convolution(auto, stride):
    net = Net()
    y = net(
        "Conv",
        pad(net, net.input(1, 2, 7, 8)),
        net.random(3, 2, 3, 3),
        auto_pad=auto,
        strides=(stride, stride),
    )
    assert counts(applied(PASS, net.graph(y))) == {"Conv": 1}


def test_padding_by_axes_adds_to_the_convolutions_own():
    net = Net()
    padded = net("Pad", net.input(1, 2, 7, 8), net.integers(1, 2), "", net.integers(-1))
    y = net("Conv", padded, net.random(3, 2, 3, 3), pads=(1, 0, 0, 1))
    assert only(applied(PASS, net.graph(y)), "Conv").get("pads") == (1, 1, 0, 3)


@pytest.mark.parametrize(
    ("widths", "value", "mode"),
    [(SPATIAL, 1.0, "constant"), (SPATIAL, None, "edge"), ((0, 1, 0, 0, 0, 1, 0, 0), None, "constant")],
)
def test_other_padding_stays_before_convolution(widths, value, mode):
    net = Net()
    padded = pad(net, net.input(1, 2, 7, 8), widths, value, mode=mode)
    y = net("Conv", padded, net.random(3, 2 + 2 * widths[1], 3, 3))
    assert counts(applied(PASS, net.graph(y))) == {"Pad": 1, "Conv": 1}


@pytest.mark.parametrize(
    ("attributes", "merged"),
    [
        ({}, True),
        ({"pads": (1, 1, 1, 1), "count_include_pad": 1}, True),
        ({"pads": (1, 1, 1, 1)}, False),
        ({"ceil_mode": 1}, False),
    ],
)
def test_into_average_pool(attributes, merged):
    net = Net()
    padded = pad(net, net.input(1, 2, 7, 9), (0, 0, 1, 1, 0, 0, 1, 1))
    y = net("AveragePool", padded, kernel_shape=(3, 3), strides=(2, 2), **attributes)
    expected = {"AveragePool": 1} if merged else {"Pad": 1, "AveragePool": 1}
    assert counts(applied(PASS, net.graph(y))) == expected


@pytest.mark.parametrize(
    ("value", "before", "widths", "merged"),
    [
        (-np.inf, "Neg", (0, 0, 1, 1, 0, 0, 1, 1), True),
        (0.0, "Relu", (0, 0, 1, 1, 0, 0, 1, 1), True),
        (0.0, "Neg", (0, 0, 1, 1, 0, 0, 1, 1), False),
        (0.0, "Relu", (0, 0, 3, 1, 0, 0, 1, 1), False),
    ],
)
def test_into_max_pool(value, before, widths, merged):
    net = Net()
    y = net("MaxPool", pad(net, net(before, net.input(1, 2, 7, 9)), widths, value), kernel_shape=(3, 3))
    found = counts(applied(PASS, net.graph(y)))
    assert found == ({before: 1, "MaxPool": 1} if merged else {before: 1, "Pad": 1, "MaxPool": 1})


@pytest.mark.parametrize(
    "attributes", [{}, {"pads": (1, 0, 0, 1)}, {"output_padding": (1, 1)}, {"dilations": (2, 1)}]
)
def test_a_crop_joins_a_transposed_convolution(attributes):
    net = Net()
    made = net("ConvTranspose", net.input(1, 2, 5, 6), net.random(2, 3, 3, 3), strides=(2, 2), **attributes)
    y = net("Slice", made, net.integers(1, 0), net.integers(-1, 9), net.integers(2, 3))
    assert counts(applied(PASS, net.graph(y))) == {"ConvTranspose": 1}


@pytest.mark.parametrize(("axis", "start", "end", "step"), [(1, 0, 2, 1), (2, 0, 5, 2), (2, -1, -99, -1)])
def test_a_slice_that_takes_channels_or_steps_stays(axis, start, end, step):
    net = Net()
    made = net("ConvTranspose", net.input(1, 2, 5, 6), net.random(2, 3, 3, 3), strides=(2, 2))
    y = net("Slice", made, *(net.integers(number) for number in (start, end, axis, step)))
    assert counts(applied(PASS, net.graph(y))) == {"ConvTranspose": 1, "Slice": 1}
