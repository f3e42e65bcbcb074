"""Old forms of operators, brought to the newest and compared with ONNX Runtime, which has the old."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import bound, check_model, check_operator, model_of

from coresident.errors import UnsupportedModel
from coresident.graph.operator import evaluate, infer
from coresident.onnx.reader import read

SEED = 19


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng([SEED, *shape]).standard_normal(shape) * 3).astype(dtype)


@pytest.mark.parametrize("opset", [7, 9, 11])
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Squeeze", (1, 3, 1), {"axes": [0]}),
        ("Squeeze", (1, 3, 1), {}),
        ("Unsqueeze", (3, 4), {"axes": [0, 3]}),
        ("ReduceSum", (3, 4, 5), {"axes": [0, 2], "keepdims": 0}),
        ("ReduceMean", (3, 4, 5), {"axes": [1]}),
        ("ReduceMax", (3, 4, 5), {}),
        ("ReduceL2", (3, 4, 5), {"axes": [2]}),
        ("Flatten", (3, 4, 5), {"axis": 2}),
        ("MaxPool", (1, 2, 9, 9), {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("AveragePool", (1, 2, 9, 9), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("LRN", (1, 7, 3, 3), {"size": 3}),
        ("LogSoftmax", (3, 4, 5), {}),
        ("Softmax", (3, 4, 5), {}),
        ("Softmax", (3, 4, 5), {"axis": 0}),
        ("Softmax", (3, 4, 5), {"axis": 2}),
        ("Hardmax", (3, 4, 5), {"axis": 1}),
    ],
)
def test_attributes(op: str, shape: tuple[int, ...], attributes: dict[str, Any], opset: int) -> None:
    check_operator(op, [normal(*shape)], attributes, opset=opset)


@pytest.mark.parametrize("opset", [11, 13, 15])
def test_reductions_up_to_opset_17(opset: int) -> None:
    check_operator("ReduceMean", [normal(3, 4, 5)], {"axes": [-1, 0]}, opset=opset)


def test_softmax_of_a_negative_axis() -> None:
    check_operator("Softmax", [normal(3, 4, 5)], {"axis": -1}, opset=11)
    check_operator("Softmax", [normal(3, 4, 5)], {"axis": -2}, opset=11)


@pytest.mark.parametrize("attributes", [{"min": -1.0}, {"max": 1.5}, {"min": 0.0, "max": 2.0}, {}])
def test_clip(attributes: dict[str, float]) -> None:
    check_operator("Clip", [normal(3, 5)], attributes, opset=7)


def test_constants_take_the_type_of_the_data() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["t"], to=onnx.TensorProto.DOUBLE),
        helper.make_node("Mul", ["t", "t"], ["u"]),
        helper.make_node("Clip", ["u"], ["v"], max=10.0),
        helper.make_node("Pad", ["v"], ["y"], pads=[1, 0], value=0.5),
    ]
    x = normal(2, 3, 4)
    graph = read(model_of(nodes, {"x": x}, ["y"], opset=9).SerializeToString())
    y = evaluate(infer(bound(graph, {"x": x.shape})), {"x": x})["y"]
    np.testing.assert_array_equal(y, np.array([0.5, 4, 9, 10]))
    assert y.dtype == np.float64


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode: str) -> None:
    attributes = {"pads": [0, 1, 2, 0], "mode": mode} | ({"value": 1.5} if mode == "constant" else {})
    check_operator("Pad", [normal(4, 5)], attributes, opset=7)


def test_slice() -> None:
    check_operator(
        "Slice", [normal(4, 5, 6)], {"starts": [1, -3], "ends": [100, -1], "axes": [0, 2]}, opset=9
    )
    check_operator("Slice", [normal(4, 5)], {"starts": [1], "ends": [3]}, opset=7)


def test_split() -> None:
    check_operator("Split", [normal(4, 6)], {"axis": 1, "split": [1, 2, 3]}, outputs=3, opset=11)
    check_operator("Split", [normal(4, 6)], {"axis": 1}, outputs=3, opset=7)
    check_operator("Split", [normal(4, 6), np.array([2, 4])], {"axis": 1}, constants=[1], outputs=2, opset=13)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_and_resize_10(mode: str) -> None:
    factors = np.array([1, 1, 2, 3], np.float32)
    check_operator("Upsample", [normal(1, 2, 3, 4)], {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7)
    check_operator("Upsample", [normal(1, 2, 3, 4), factors], {"mode": mode}, constants=[1], opset=9)
    check_operator("Resize", [normal(1, 2, 3, 4), factors], {"mode": mode}, constants=[1], opset=10)


def test_resize_11_leaves_scales_empty() -> None:
    empty = np.zeros(0, np.float32)
    operands = [normal(1, 2, 3, 4), empty, empty, np.array([1, 2, 5, 7])]
    check_operator("Resize", operands, {"mode": "linear"}, constants=[1, 2, 3], opset=11)


@pytest.mark.parametrize("opset", [7, 10])
def test_dropout(opset: int) -> None:
    check_operator("Dropout", [normal(3, 4)], {"ratio": 0.3}, opset=opset)


@pytest.mark.parametrize("opset", [7, 9])
def test_batch_normalization(opset: int) -> None:
    operands = [normal(2, 3, 5), normal(3), normal(3), normal(3), np.abs(normal(3))]
    check_operator("BatchNormalization", operands, {"momentum": 0.8, "epsilon": 1e-3}, opset=opset)


def test_gemm() -> None:
    check_operator("Gemm", [normal(3, 4), normal(5, 4), normal(5)], {"transB": 1, "beta": 0.5}, opset=7)


def _opset_6(node: onnx.NodeProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """ONNX Runtime has no opset 6 forms any more."""
    model = model_of([node], feeds, ["y"], opset=6)
    graph = read(model.SerializeToString())
    shapes = {name: a.shape for name, a in feeds.items()}
    assert infer(bound(graph, shapes)).facts["y"].shape == evaluate(graph, feeds)["y"].shape
    return evaluate(graph, feeds)["y"]


def test_broadcasting_from_an_axis() -> None:
    a, b = normal(2, 3, 4, 5), normal(3, 4)
    y = _opset_6(helper.make_node("Add", ["a", "b"], ["y"], broadcast=1, axis=1), {"a": a, "b": b})
    np.testing.assert_array_equal(y, a + b[:, :, None])
    y = _opset_6(helper.make_node("Mul", ["a", "b"], ["y"], broadcast=1), {"a": a, "b": normal(5)})
    np.testing.assert_array_equal(y, a * normal(5))


def test_slope_of_each_channel() -> None:
    a, b = normal(2, 3, 4, 5), normal(3)
    y = _opset_6(helper.make_node("PRelu", ["a", "b"], ["y"]), {"a": a, "b": b})
    np.testing.assert_array_equal(y, np.where(a < 0, a * b[:, None, None], a))


def test_gemm_6() -> None:
    a, b, c = normal(3, 4), normal(4, 5), normal(5)
    y = _opset_6(helper.make_node("Gemm", ["a", "b", "c"], ["y"], broadcast=1), {"a": a, "b": b, "c": c})
    np.testing.assert_allclose(y, a @ b + c, rtol=1e-5, atol=1e-5)


def _old(node: onnx.NodeProto, x: np.ndarray, opset: int) -> np.ndarray:
    """What is made of a form that ONNX Runtime no longer has."""
    graph = read(model_of([node], {"x": x}, ["y"], opset=opset).SerializeToString())
    return evaluate(infer(bound(graph, {"x": x.shape})), {"x": x})["y"]


def test_forms_before_opset_6() -> None:
    x = normal(2, 3, 4)
    reshape = helper.make_node("Reshape", ["x"], ["y"], shape=[2, -1], consumed_inputs=[0])
    np.testing.assert_array_equal(_old(reshape, x, 1), x.reshape(2, 12))
    cast = helper.make_node("Cast", ["x"], ["y"], to="INT64")
    np.testing.assert_array_equal(_old(cast, x, 5), x.astype(np.int64))
    pad = helper.make_node("Pad", ["x"], ["y"], paddings=[0, 1, 0, 0, 0, 2], value=3.0)
    np.testing.assert_array_equal(_old(pad, x, 1), np.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=3))
    relu = helper.make_node("Relu", ["x"], ["y"], consumed_inputs=[0])
    np.testing.assert_array_equal(_old(relu, x, 1), np.maximum(x, 0))
    selu = helper.make_node("Selu", ["x"], ["y"])
    np.testing.assert_allclose(_old(selu, x, 1), np.where(x > 0, x, 1.6732 * np.expm1(x)) * 1.0507, rtol=1e-5)
    tile = helper.make_node("Tile", ["x", "x", "x"], ["y"])
    with pytest.raises(UnsupportedModel, match="Tile"):
        read(model_of([tile], {"x": x}, ["y"], opset=1).SerializeToString())


def test_forms_without_a_newest_one() -> None:
    x, s = normal(2, 3, 5), normal(3)
    feeds = {"x": x, "s": s}
    training = helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "m"])
    with pytest.raises(UnsupportedModel, match="training mode"):
        read(model_of([training], feeds, ["y", "m"], opset=9).SerializeToString())
    pixels = helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], spatial=0)
    with pytest.raises(UnsupportedModel, match="spatial=0"):
        read(model_of([pixels], feeds, ["y"], opset=7).SerializeToString())
    nodes = [
        helper.make_node("Relu", ["x"], ["z"]),
        helper.make_node("Add", ["z", "s"], ["y"], broadcast=1, axis=1),
    ]
    with pytest.raises(UnsupportedModel, match="declares no shape"):
        read(model_of(nodes, feeds, ["y"], opset=6).SerializeToString())


def test_a_chain_of_old_forms() -> None:
    """What exporters of 2018 wrote: a flattening computed from the shape, then a classifier."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "v"], ["n"]),
        helper.make_node("Clip", ["n"], ["r"], min=0.0, max=6.0),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch"], ["batch1"], axes=[0]),
        helper.make_node("Unsqueeze", ["minus"], ["minus1"], axes=[0]),
        helper.make_node("Concat", ["batch1", "minus1"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"]),
    ]
    constants = {
        "w": normal(4, 3, 3, 3), "s": normal(4), "v": np.abs(normal(4)),
        "zero": np.array(0), "minus": np.array(-1),
    }  # fmt: skip
    x = normal(2, 3, 6, 5)
    check_model(model_of(nodes, {"x": x}, ["y"], constants, opset=9), {"x": x})
