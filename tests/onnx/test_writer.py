"""The writer: what is read comes back, and ONNX Runtime computes the same from it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import assets
import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from coresident.errors import Error, ResourceError, UnsupportedModel
from coresident.graph.expression import Expression
from coresident.graph.graph import Fact, Graph, Node
from coresident.onnx import writer
from coresident.onnx.reader import read
from coresident.onnx.writer import serialize

MODELS = [
    "cifar10_resnet/resnet20_cifar10.onnx",
    "face_ultralight/version-RFB-320.onnx",
    "fastestdet/FastestDet.onnx",
    "ffn_fib25/ffn_fib25.onnx",
    "nuclei_unet2d/weights.onnx",
    "squeezenet/squeezenet_v1.1.onnx",
]

# Families whose forms changed with the opsets, or whose attributes are of all kinds.
OPERATORS = (
    *("test_averagepool", "test_batchnorm", "test_cast_FLOAT", "test_clip", "test_concat_2d", "test_conv"),
    *("test_dequantizelinear", "test_gemm", "test_gridsample", "test_hardsigmoid", "test_leakyrelu"),
    *("test_maxpool_2d", "test_pad", "test_prelu", "test_quantizelinear", "test_reduce_sum", "test_resize"),
    *(
        "test_slice",
        "test_softmax",
        "test_split",
        "test_squeeze",
        "test_swish",
        "test_top_k",
        "test_unsqueeze",
    ),
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def same_values(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)


def check_round_trip(graph: Graph) -> bytes:
    content = serialize(graph)
    again = read(content)
    assert again.inputs == graph.inputs
    assert again.outputs == graph.outputs
    assert len(again.nodes) == len(graph.nodes)
    for ours, theirs in zip(graph.nodes, again.nodes):
        assert (ours.op, ours.inputs, ours.outputs, ours.name) == (
            theirs.op,
            theirs.inputs,
            theirs.outputs,
            theirs.name,
        )
        assert same_values(ours.attributes, theirs.attributes), (ours, theirs)
    assert same_values(graph.initializers, again.initializers)
    assert graph.metadata == again.metadata
    for name in graph.inputs:
        assert again.facts[name].shape == graph.facts[name].shape
        assert again.facts[name].dtype == graph.facts[name].dtype
    assert serialize(again) == content, "not the same bytes twice"
    return content


@pytest.mark.parametrize("name", MODELS)
def test_real_models_come_back(name: str) -> None:
    path = assets.path("models", *name.split("/"))
    check_round_trip(read(path))


def test_a_real_model_in_onnxruntime() -> None:
    path = assets.path("models", "cifar10_resnet", "resnet20_cifar10.onnx")
    content = check_round_trip(read(path))
    before, after = onnx.load(path), onnx.load_from_string(content)
    assert after.opset_import[0].version == writer.LEAST_OPSET
    name = before.graph.input[0].name
    x = np.random.default_rng(3).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for want, have in zip(
        onnx_models.onnxruntime_outputs(before, {name: x}), onnx_models.onnxruntime_outputs(after, {name: x})
    ):
        np.testing.assert_array_equal(have, want)


@functools.cache
def cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return {case.name: case for case in found if case.name.startswith(OPERATORS)}


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_node_tests_come_back(step: int) -> None:
    checked = 0
    for case in list(cases().values())[::step]:
        try:
            graph = read(case.model.SerializeToString())
        except Error:
            continue
        check_round_trip(graph)
        checked += 1
    assert checked > 200 / step


@pytest.mark.parametrize(
    "name",
    [
        "test_split_equal_parts_1d_opset13",
        "test_split_variable_parts_2d_opset18",
        "test_resize_downsample_scales_linear",
        "test_gridsample_bilinear",
        "test_reduce_sum_default_axes_keepdims_random",
        "test_quantizelinear_axis",
        "test_top_k",
    ],
)
def test_node_tests_in_onnxruntime(name: str) -> None:
    case = cases()[name]
    inputs, outputs = case.data_sets[0]
    content = serialize(read(case.model.SerializeToString()))
    model = onnx.load_from_string(content)
    feeds = {i.name: np.asarray(a) for i, a in zip(model.graph.input, inputs)}
    for have, want in zip(onnx_models.onnxruntime_outputs(model, feeds), outputs):
        np.testing.assert_allclose(have, want, 1e-5, 1e-6)


def test_names_free_dimensions_metadata_and_types() -> None:
    x = np.zeros((2, 3), np.float32)
    types = ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool")
    constants = {f"c_{dtype}": np.array([[1, 0, 1]], dtype) for dtype in types}
    nodes = [helper.make_node("Add", ["x", "c_float32"], ["y"], name="sum")]
    proto = onnx_models.model_of(nodes, {"x": x}, ["y"], constants)
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", None]))
    proto.metadata_props.add(key="classes", value="häuser")
    graph = read(proto.SerializeToString())
    assert graph.facts["x"].shape == ("N", "")
    check_round_trip(graph)


def test_a_value_made_an_output() -> None:
    """As graphs are cut to look inside: nothing is declared of it."""
    x = np.array([-1, 2], np.float32)
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    graph = read(onnx_models.model_of(nodes, {"x": x}, ["y"]).SerializeToString())
    content = serialize(graph.with_(outputs=("y", "h")))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    y, h = session.run(None, {"x": x})
    np.testing.assert_array_equal(np.asarray(h), [0, 2])
    np.testing.assert_array_equal(np.asarray(y), [0, -2])


def test_a_later_opset_only_where_it_is_needed() -> None:
    def opset(op: str, attributes: Mapping[str, Any]) -> int:
        fact = Fact(np.dtype(np.float32), (2,))
        graph = Graph(("x",), ("y",), (Node(op, ("x",), ("y",), attributes),), {}, {"x": fact, "y": fact})
        return int(onnx.load_from_string(serialize(graph)).opset_import[0].version)

    assert opset("Relu", {}) == 21
    assert opset("Swish", {"alpha": 1.0}) == 24
    assert opset("Cast", {"to": "float16"}) == 21
    assert opset("Cast", {"to": "float16", "round_mode": "up"}) == 24


@pytest.mark.parametrize(
    ("node", "match"),
    [
        (Node("Elementwise", ("x",), ("y",), {"expression": Expression(1, ())}, "n"), "ONNX doesn't have"),
        (Node("Relu", ("x",), ("y",), {"epilogue": Expression(1, ())}, "n"), "'epilogue'"),
        (Node("ConvInteger", ("x", "w", "", "", "b"), ("y",), {}, "n"), "5 inputs"),
    ],
)
def test_nodes_that_passes_make_are_refused(node: Node, match: str) -> None:
    fact = Fact(np.dtype(np.float32), (2,))
    with pytest.raises(UnsupportedModel, match=match) as caught:
        serialize(Graph(("x",), ("y",), (node,), {}, {"x": fact}))
    assert caught.value.node == "n"


def test_more_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_BYTES", 1000)
    proto = onnx_models.model_of(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        {"x": np.zeros(300, np.float32)},
        ["y"],
        {"c": np.zeros(300, np.float32)},
    )
    assert numpy_helper.to_array(proto.graph.initializer[0]).nbytes == 1200
    with pytest.raises(ResourceError, match="1200 bytes"):
        serialize(read(proto.SerializeToString()))
