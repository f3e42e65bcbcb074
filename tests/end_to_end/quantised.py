"""Small quantised networks, as the tools of the field write them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

SHAPE = (1, 3, 22, 26)
"""Of the networks' input "x"."""

OPSET = 13


class Builder:
    """An ONNX graph, node by node: each method returns the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weights(self, *shape: int) -> Array:
        spread = 1.5 / np.sqrt(max(np.prod(shape[1:]), 4))
        return (self.rng.standard_normal(shape) * spread).astype(np.float32)

    def fake(self, x: str, scale: Any, point: Any, **attributes: int) -> str:
        """Quantised and dequantised."""
        operands = self.constant(np.asarray(scale, np.float32)), self.constant(point)
        quantised = self.node("QuantizeLinear", x, *operands, **attributes)
        return self.node("DequantizeLinear", quantised, *operands, **attributes)

    def model(self, *outputs: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "quantised",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model).SerializeToString()


def floats() -> bytes:
    """A network with what lies between convolutions in practice."""
    b = Builder(1)

    def conv(x: str, inputs: int, outputs: int, kernel: int, bias: bool = True, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        operands = [b.constant(b.weights(outputs, inputs // group, kernel, kernel))]
        operands += [b.constant(b.weights(outputs))] if bias else []
        return b.node("Conv", x, *operands, pads=[kernel // 2] * 4, **attributes)

    a = b.node("Relu", conv("x", 3, 16, 3, strides=[2, 2]))
    m = b.node("MaxPool", a, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    d = b.node("Clip", conv(m, 16, 16, 3, group=16), b.constant(np.float32(0)), b.constant(np.float32(6)))
    s = b.node("Relu", b.node("Add", conv(d, 16, 16, 1, bias=False), m))
    t = conv(s, 16, 24, 1)
    silu = b.node("Mul", t, b.node("Sigmoid", t))
    leaky = b.node("LeakyRelu", conv(silu, 24, 16, 3), alpha=0.1)
    average = b.node("AveragePool", leaky, kernel_shape=[3, 3], pads=[1] * 4)
    sizes = b.constant(np.int64([1, 16, 11, 13]))
    grown = b.node("Resize", average, "", "", sizes, mode="nearest", nearest_mode="floor")
    kernel = b.constant(b.weights(16, 8, 2, 2))
    larger = b.node("ConvTranspose", average, kernel, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0])
    joined = b.node("Relu", conv(b.node("Concat", grown, larger, a, axis=1), 40, 24, 3))
    flat = b.node("Flatten", b.node("GlobalAveragePool", joined))
    out = b.node("Gemm", flat, b.constant(b.weights(10, 24)), b.constant(b.weights(10)), transB=1)
    return b.model(out, joined)


class _Pictures:
    """What calibration reads."""

    def __init__(self) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter([{"x": picture(seed)} for seed in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def picture(seed: int) -> Array:
    return np.random.default_rng([SEED, seed]).standard_normal(SHAPE).astype(np.float32)


SEED = 20_240_801


def statically_quantised(folder: Path, form: str, activations: str, weights: str, per_channel: bool) -> bytes:
    """`floats` through ONNX Runtime's tool.

    Args:
        folder: for its files.
        form: "QDQ" or "QOperator".
        activations, weights: "uint8" or "int8"; weights have 7 bits, so that ONNX Runtime's sums do not
            saturate on CPUs without VNNI.
        per_channel: whether each output channel has its own scale.
    """
    from onnxruntime import quantization

    types = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
    source, target = folder / "floats.onnx", folder / "quantised.onnx"
    source.write_bytes(floats())
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            source,
            target,
            _Pictures(),
            quant_format=quantization.QuantFormat[form],
            activation_type=types[activations],
            weight_type=types[weights],
            per_channel=per_channel,
            reduce_range=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    return target.read_bytes()


def dynamically_quantised(folder: Path) -> bytes:
    """`floats` through ONNX Runtime's tool, scales of activations computed while the network runs."""
    from onnxruntime import quantization

    source, target = folder / "floats.onnx", folder / "quantised.onnx"
    source.write_bytes(floats())
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QUInt8)
    finally:
        logging.disable(logging.NOTSET)
    return target.read_bytes()


def with_quantised_weights_in_floats() -> bytes:
    """As NNCF and SparseML export: weights are floats that the graph quantises, biases stay floats, the
    result is not quantised."""
    b = Builder(2)

    def conv(x: str, inputs: int, outputs: int, kernel: int, scale: float, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        array = b.weights(outputs, inputs // group, kernel, kernel)
        scales = np.abs(array).reshape(outputs, -1).max(1) / 63
        weights = b.fake(b.constant(array), scales, np.zeros(outputs, np.int8), axis=0)
        pads = [kernel // 2] * 4
        y = b.node(
            "Relu", b.node("Conv", x, weights, b.constant(b.weights(outputs)), pads=pads, **attributes)
        )
        return b.fake(y, scale, np.uint8(0))

    x = b.fake("x", 0.03, np.uint8(120))
    first = conv(x, 3, 16, 3, 0.02, strides=[2, 2])
    second = conv(first, 16, 16, 3, 0.03, group=16)
    third = conv(second, 16, 16, 1, 0.02)
    y = b.fake(b.node("Relu", b.node("Add", third, first)), 0.04, np.uint8(0))
    flat = b.node("Flatten", b.node("GlobalAveragePool", y))
    weights = b.weights(10, 16)
    quantised = b.fake(b.constant(weights), np.abs(weights).max() / 63, np.int8(0))
    turned = b.node("Transpose", quantised, perm=[1, 0])
    product = b.node("MatMul", b.fake(flat, 0.01, np.uint8(0)), turned)
    return b.model(b.node("Softmax", b.node("Add", product, b.constant(b.weights(10))), axis=-1), y)


def mixed() -> bytes:
    """A network of which one convolution stays in floats, and whose sums have operands of both kinds."""
    b = Builder(3)

    def conv(x: str, quantised: bool, inputs: int, outputs: int) -> str:
        array = b.weights(outputs, inputs, 3, 3)
        name = b.constant(array)
        weights = b.fake(name, np.abs(array).max() / 63, np.int8(0)) if quantised else name
        return b.node("Conv", x, weights, b.constant(b.weights(outputs)), pads=[1] * 4)

    first = b.fake(b.node("Relu", conv(b.fake("x", 0.03, np.uint8(120)), True, 3, 16)), 0.03, np.uint8(0))
    plain = b.node("Relu", conv(first, False, 16, 16))
    total = b.fake(b.node("Add", plain, first), 0.06, np.uint8(0))
    return b.model(b.node("Sigmoid", conv(total, True, 16, 8)), plain)


def products(names: Sequence[str]) -> tuple[int, int]:
    """How many of these operators are products of bytes, and how many of floats."""
    whole = ("ConvInteger", "ConvTransposeInteger", "MatMulInteger")
    single = ("Conv", "ConvTranspose", "MatMul", "Gemm")
    return sum(name in whole for name in names), sum(name in single for name in names)
