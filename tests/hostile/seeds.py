"""What the fuzzer mutates: small models of many operators, an artifact, pictures and array files."""

from __future__ import annotations

import functools
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_models import model_of
from PIL import Image

import coresident

Array = np.ndarray[Any, Any]


def _array(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(len(shape)).integers(0, 3, shape).astype(dtype)


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Array], opset: int = 21, **constants: Array
) -> bytes:
    """From these inputs to the first output of the last node."""
    made = model_of(nodes, inputs, [nodes[-1].output[0]], constants, opset)
    helper.set_model_props(made, {"names": "{0: 'cell'}"})
    return bytes(made.SerializeToString())


def _node(op: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def _functions() -> bytes:
    body = [helper.make_node("Add", ["a", "a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    function = helper.make_function("my", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = helper.make_graph([_node("Twice", "x", domain="my")], "f", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my", 1)]
    return bytes(
        helper.make_model(
            graph, functions=[function], opset_imports=opsets, ir_version=10
        ).SerializeToString()
    )


def _external() -> bytes:
    made = onnx.load_from_string(model([_node("MatMul", "x", "w")], {"x": _array(2, 3)}, w=_array(3, 4)))
    (tensor,) = made.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    return bytes(made.SerializeToString())


def _control_flow() -> bytes:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        m (float[3] x) => (float[3] y, float[T, 3] rows) <int64 n = {3}, bool yes = {1}> {
            y, rows = Loop (n, yes, x) <
                body = b (int64 i, bool c, float[3] a) => (bool c, float[3] p, float[3] a) {
                    p = If (c) <
                        then_branch = f () => (float[3] o) <float w = {2.0}> { o = Mul(a, w) },
                        else_branch = g () => (float[3] a) { }
                    >
                }
            >
        }"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


@functools.cache
def models() -> tuple[bytes, ...]:
    """A model each; the file w.bin beside them is 48 bytes."""
    image, index = {"x": _array(1, 4, 7, 9)}, {"x": _array(5, 4), "i": _array(3, dtype=np.int64)}
    weights = {"w": _array(6, 4, 3, 3), "b": _array(6)}
    conv = _node("Conv", "x", "w", "b", output="c", pads=[1] * 4, strides=[2, 2])
    pool = _node("MaxPool", "r", output="p", kernel_shape=[3, 2], strides=[1, 2])
    network = [conv, _node("Relu", "c", output="r"), pool, _node("ReduceMean", "p", keepdims=0)]
    quantized = [
        _node("QuantizeLinear", "x", "s", "z", output="q"),
        _node("DequantizeLinear", "q", "s", "z", output="d"),
        _node("DequantizeLinear", "w", "s", output="v"),
        _node("Conv", "d", "v", pads=[1] * 4),
    ]
    shapes = [
        _node("Shape", "x", output="s"),
        _node("Gather", "s", "i", output="g", axis=0),
        _node("Concat", "g", "m", output="t", axis=0),
        _node("Reshape", "x", "t"),
    ]
    scalar = {"s": np.float32(0.5), "z": np.uint8(3)}
    return (
        model(network, image, **weights),
        model([_node("ConvTranspose", "x", "w", strides=[2, 1], group=2)], image, w=_array(4, 2, 2, 3)),
        model([_node("Conv", "x", "w", dilations=[2, 1], group=4)], image, w=_array(4, 1, 3, 3)),
        model(quantized, image, **scalar, w=_array(3, 4, 3, 3, dtype=np.int8)),
        model(shapes, {"x": _array(2, 3, 4)}, i=np.array([0]), m=np.array([-1])),
        model([_node("Gather", "x", "i", axis=0)], index),
        model([_node("GatherElements", "x", "i", axis=1)], {"x": _array(5, 4), "i": _array(5, 2, dtype=int)}),
        model([_node("GatherND", "x", "i")], {"x": _array(5, 4), "i": _array(3, 2, dtype=int)}),
        model(
            [_node("ScatterND", "x", "i", "u", reduction="add")],
            {"x": _array(5, 4), "i": _array(3, 1, dtype=int), "u": _array(3, 4)},
        ),
        model(
            [_node("ScatterElements", "x", "i", "u", axis=1)],
            {"x": _array(5, 4), "i": _array(5, 2, dtype=int), "u": _array(5, 2)},
        ),
        model(
            [helper.make_node("TopK", ["x", "k"], ["y", "j"], axis=1)], {"x": _array(5, 9)}, k=np.array([3])
        ),
        model(
            [_node("OneHot", "i", "d", "v", axis=-1)],
            {"i": _array(5, dtype=np.int64)},
            d=np.array(3),
            v=np.float32([0, 1]),
        ),
        model(
            [_node("RoiAlign", "x", "r", "i", output_height=2, output_width=3)],
            {"x": _array(2, 3, 8, 8), "r": _array(3, 4), "i": _array(3, dtype=np.int64)},
        ),
        model([_node("GridSample", "x", "g", mode="linear")], {**image, "g": _array(1, 3, 4, 2)}),
        model(
            [_node("NonMaxSuppression", "b", "x", "k")],
            {"b": _array(1, 6, 4), "x": _array(1, 2, 6)},
            k=np.array([3]),
        ),
        model([_node("Resize", "x", "", "by", mode="cubic")], image, by=np.float32([1, 1, 2, 1.5])),
        model(
            [_node("Slice", "x", "s", "e", "a", "t")],
            {"x": _array(5, 9)},
            s=np.array([1]),
            e=np.array([8]),
            a=np.array([1]),
            t=np.array([2]),
        ),
        model([_node("Pad", "x", "p", mode="reflect")], {"x": _array(5, 9)}, p=np.array([1, 0, 2, 1])),
        model(
            [_node("Expand", "x", "n", output="e"), _node("Tile", "e", "m")],
            {"x": _array(3)},
            n=np.array([2, 3]),
            m=np.array([1, 2]),
        ),
        model(
            [_node("ConstantOfShape", "n", output="c"), _node("Add", "c", "x")],
            {"x": _array(3)},
            n=np.array([2, 3]),
        ),
        model([_node("Einsum", "x", "w", equation="ij,jk->ik")], {"x": _array(3, 4), "w": _array(4, 5)}),
        model([_node("Gemm", "x", "w", transB=1)], {"x": _array(3, 4)}, 9, w=_array(5, 4)),
        model([_node("Upsample", "x", "s")], image, 9, s=np.float32([1, 1, 2, 2])),
        model([_node("BatchNormalization", "x", "s", "s", "s", "s")], image, 9, s=_array(4)),
        _functions(),
        _external(),
        _control_flow(),
    )


@functools.cache
def artifacts() -> tuple[bytes, ...]:
    """A network of convolutions, compiled for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cres"
        coresident.compile(models()[0], path, threads=1)
        return (path.read_bytes(),)


@functools.cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """(extension, content)."""
    found = []
    levels = np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)
    for extension in ("png", "jpeg", "tiff", "bmp"):
        for picture in (levels, levels[..., 0]):
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, extension)
            found.append((f".{extension}", stream.getvalue()))
    stream = io.BytesIO()
    Image.fromarray(levels[..., 0].astype(np.uint16) << 8).save(stream, "png")
    found.append((".png", stream.getvalue()))
    stream = io.BytesIO()
    np.save(stream, levels)
    array = stream.getvalue()
    found.append((".npy", array))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive:
            archive.writestr("x.npy", array)
        found.append((".npz", stream.getvalue()))
    return tuple(found)
