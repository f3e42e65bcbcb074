"""Quantised networks through the session: products stay integers, results are ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import quantised

from coresident import Session
from coresident.compiler import bind
from coresident.graph.graph import Graph
from coresident.graph.operator import evaluate
from coresident.onnx.reader import read
from coresident.passes.pipeline import optimise

Array = np.ndarray[Any, Any]


def theirs(model: bytes, x: Array, as_written: bool = False) -> list[Array]:
    """ONNX Runtime's outputs; `as_written` without its own fusion, which reorders steps in floats."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, {"x": x})]


def unit(array: Array) -> float:
    """The least difference between numbers that differ: one step of their quantisation."""
    steps = np.diff(np.unique(array))
    return float(steps[steps > 1e-6 * np.abs(array).max()].min(initial=np.inf))


def optimised(model: bytes) -> Graph:
    return optimise(bind(read(model), {}), verify=True)


def check(model: bytes, exactly: bool = False, units: float = 2, floats: int = 0) -> None:
    """Compare the session with the reference of its graph and with ONNX Runtime.

    Args:
        exactly: whether ONNX Runtime as written computes the same integers.
        units: of the outputs' quantisation that may lie between the two otherwise: one for a step that is
            reordered, which a later layer may make two.
        floats: how many of the outputs, the first, are not quantised: 1 % of their range is allowed.
    """
    graph, x = optimised(model), quantised.picture(99)
    got = Session(model, threads=2, cache=False).run(None, {"x": x})
    reference = evaluate(graph, {"x": x})
    wanted = theirs(model, x, as_written=exactly)
    for i, (name, mine, other) in enumerate(zip(graph.outputs, got, wanted)):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        step = 0.01 * float(np.ptp(other)) if i < floats else unit(other)
        apart = np.abs(mine - reference[name])
        assert apart.max() <= 1.01 * step, name
        assert np.mean(apart > 0.5 * step) < 0.01, name
        apart = np.abs(mine - other)
        assert apart.max() <= (0.01 if exactly else units + 0.01) * step, name


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize(
    ("activations", "weights", "per_channel"),
    [("uint8", "int8", True), ("uint8", "uint8", False), ("int8", "int8", True)],
)
def test_statically_quantised(
    tmp_path: Path, form: str, activations: str, weights: str, per_channel: bool
) -> None:
    if form == "QOperator" and activations == "int8":
        pytest.skip("ONNX Runtime can't run what its tool makes of these types")
    model = quantised.statically_quantised(tmp_path, form, activations, weights, per_channel)
    graph = optimised(model)
    # The tool leaves transposed convolutions in floats in one of its forms.
    assert quantised.products([node.op for node in graph.nodes]) == ((8, 0) if form == "QDQ" else (7, 1))
    inner = {graph.facts[n].dtype for node in graph.nodes for n in node.outputs} - {np.dtype(np.float32)}
    assert inner == {np.dtype(activations)}
    check(model, exactly=form == "QOperator")


def test_dynamically_quantised(tmp_path: Path) -> None:
    model = quantised.dynamically_quantised(tmp_path)
    assert quantised.products([node.op for node in optimised(model).nodes]) == (7, 1)
    x = quantised.picture(99)
    got = Session(model, threads=2, cache=False).run(None, {"x": x})
    for mine, other in zip(got, theirs(model, x, as_written=True)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_weights_that_the_graph_quantises() -> None:
    model = quantised.with_quantised_weights_in_floats()
    assert quantised.products([node.op for node in optimised(model).nodes]) == (4, 0)
    check(model, floats=1)


def test_mixed_precision() -> None:
    model = quantised.mixed()
    graph = optimised(model)
    assert quantised.products([node.op for node in graph.nodes]) == (2, 1)
    (plain,) = (node for node in graph.nodes if node.op == "Conv")
    assert "its weights are not quantised" in plain.get("remark")
    x = quantised.picture(99)
    got = Session(model, threads=2, cache=False).run(None, {"x": x})
    for mine, other in zip(got, theirs(model, x)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=0.02 * np.abs(other).max())


def test_why_a_product_stays_in_floats_is_told() -> None:
    session = Session(quantised.mixed(), threads=1, cache=False)
    steps = session.program({"x": quantised.picture(0)}).steps
    reasons = [why for step in steps for why in step.info.get("why", ())]
    assert any("computed in floats" in why for why in reasons)
