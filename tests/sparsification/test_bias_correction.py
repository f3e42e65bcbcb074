"""Biases that make up for rounding: the means of each layer's outputs are those of the float network."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_networks import ENGINE
from test_quantizing import NETWORKS, SEED, built

from coresident.errors import InputError
from coresident.graph.operator import evaluate
from coresident.onnx.writer import serialize
from coresident.sparsification.bias_correction import correct_biases
from coresident.sparsification.quantization import quantize
from coresident.sparsification.ranges import ranges


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", [1 << 30, 40_000])
def test_means_come_nearer(name: str, memory: int) -> None:
    graph, batches = built(name)
    found = ranges(graph, batches, engine=ENGINE)
    before = quantize(graph, found, weight_bits=7)
    after = correct_biases(graph, before, lambda: batches, engine=ENGINE, memory=memory)
    # Only biases are different.
    changed = [n for n, a in after.initializers.items() if not np.array_equal(a, before.initializers[n])]
    assert changed
    assert all(after.initializers[n].dtype == np.int32 for n in changed)
    serialize(after)

    def shift(other: object) -> float:
        total = 0.0
        for feeds in batches[:2]:
            exact, rounded = evaluate(graph, feeds), evaluate(other, feeds)  # type: ignore[arg-type]
            axes = (0, *range(2, exact[graph.outputs[0]].ndim))
            total = total + (exact[graph.outputs[0]] - rounded[graph.outputs[0]]).mean(axes)
        return float(np.abs(total).mean())

    assert shift(after) < shift(before), f"seed {SEED}"


def test_a_layer_with_a_shift() -> None:
    """Its first layer's mean is right to a unit of the bias, on the samples that it was corrected by."""
    graph, batches = built("residual")
    before = quantize(graph, ranges(graph, batches, engine=ENGINE), weight_bits=7)
    node = before.producers()["first"]
    bias = before.producers()[node.inputs[2]].inputs[0]
    shifted = before.with_(initializers={**before.initializers, bias: before.initializers[bias] + 1000})
    corrected = correct_biases(graph, shifted, lambda: batches, engine=ENGINE)
    means = [
        np.mean([evaluate(each, feeds)["first"].mean((0, 2, 3)) for feeds in batches], 0)
        for each in (graph, corrected)
    ]
    np.testing.assert_allclose(means[0], means[1], atol=1e-4)


def test_no_samples() -> None:
    graph, batches = built("residual")
    quantised = quantize(graph, ranges(graph, batches, engine=ENGINE))
    with pytest.raises(InputError, match="no samples"):
        correct_biases(graph, quantised, list, engine=ENGINE)
