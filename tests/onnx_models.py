"""Small ONNX models, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from coresident.graph.graph import Fact, Graph
from coresident.graph.operator import evaluate, infer
from coresident.onnx.reader import read

Array = np.ndarray[Any, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model whose inputs have the shapes and types of these arrays."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 4 + opset // 3)
    )


def onnxruntime_outputs(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes, without its own rewriting of the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(a) for a in session.run(None, dict(feeds))]


def bound(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph with these shapes of its inputs."""
    return graph.with_(facts={name: Fact(graph.facts[name].dtype, shapes[name]) for name in graph.inputs})


def check_operator(
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    constants: Sequence[int] = (),
    outputs: int = 1,
    opset: int = 21,
    tolerance: float = 1e-5,
) -> None:
    """Compare a one-node model's facts and reference with ONNX Runtime.

    Args:
        op: operator.
        inputs: its inputs in order, None for one left out.
        attributes: its attributes.
        constants: which inputs are initializers; the others are fed.
        outputs: how many.
        opset: of the model.
        tolerance: of floating-point results, relative to the largest.
    """
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="node", **(attributes or {}))
    given = {name: np.asarray(a) for name, a in zip(names, inputs) if a is not None}
    fixed = {names[i]: given[names[i]] for i in constants if names[i]}
    feeds = {name: a for name, a in given.items() if name not in fixed}
    check_model(model_of([node], feeds, results, fixed, opset), feeds, tolerance)


def check_model(model: onnx.ModelProto, feeds: Mapping[str, Array], tolerance: float = 1e-5) -> None:
    """Compare a model's facts and the references' outputs with ONNX Runtime."""
    graph = infer(bound(read(model.SerializeToString()), {name: a.shape for name, a in feeds.items()}))
    results = evaluate(graph, dict(feeds))
    for node in graph.nodes:
        for name in node.outputs:
            fact, array = graph.facts[name], results[name]
            assert (fact.dtype, fact.shape) == (array.dtype, array.shape), (
                f"{node.op}: {fact} but {array.shape}"
            )
            if fact.value is not None:
                np.testing.assert_array_equal(fact.value, array)
    for name, wanted in zip(graph.outputs, onnxruntime_outputs(model, feeds)):
        close(results[name], wanted, tolerance)


def close(found: Array, wanted: Array, tolerance: float = 1e-5) -> None:
    """Same type and shape; floating-point values within `tolerance` of the largest, others equal."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.kind != "f" or not wanted.size:
        np.testing.assert_array_equal(found, wanted)
        return
    finite = np.abs(wanted[np.isfinite(wanted)]).astype(np.float64)
    np.testing.assert_allclose(
        found.astype(np.float64),
        wanted.astype(np.float64),
        rtol=0,
        atol=tolerance * max(finite.max(initial=0), 1),
    )
