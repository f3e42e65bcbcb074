"""Quantised operators in one piece, as ONNX and ONNX Runtime have them, against ONNX Runtime's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import check_model, model_of, onnxruntime_outputs

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.operator import evaluate, infer
from coresident.onnx.reader import read
from coresident.passes.pipeline import optimise

Array = np.ndarray[Any, Any]

SEED = 20_240_701


def random_bytes(*shape: int, dtype: str = "uint8", bits: int = 8) -> Array:
    """With `bits` of 7, sums of two products do not saturate in ONNX Runtime on CPUs without VNNI."""
    rng = np.random.default_rng([SEED, *shape])
    bounds = np.iinfo(dtype)
    return (rng.integers(bounds.min, bounds.max, shape, endpoint=True) >> (8 - bits)).astype(dtype)


def normal(*shape: int) -> Array:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


def model(op: str, operands: dict[str, Array | None], constant: str, domain: str, **attributes: Any) -> Any:
    """A model of one node and what is fed; operands whose names are in `constant` are initializers."""
    names = [name if value is not None else "" for name, value in operands.items()]
    node = helper.make_node(op, names, ["y"], name="node", domain=domain, **attributes)
    given = {name: np.asarray(value) for name, value in operands.items() if value is not None}
    fixed = {name: value for name, value in given.items() if name in constant.split()}
    fed = {name: value for name, value in given.items() if name not in fixed}
    proto = model_of([node], fed, ["y"], fixed, 17)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto, fed


def check(op: str, operands: dict[str, Array | None], domain: str, units: int = 0, **attributes: Any) -> None:
    """Compare with ONNX Runtime: the reference as read, and after all passes; bytes so many units apart."""
    weights = " ".join(name for name in operands if name not in ("x", "a", "b1", "condition", "x2"))
    proto, fed = model(op, operands, weights, domain, **attributes)
    (wanted,) = onnxruntime_outputs(proto, fed)
    graph = infer(read(proto.SerializeToString()))
    for each in (graph, optimise(graph, verify=True)):
        got = evaluate(each, dict(fed))["y"]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        apart = np.abs(got.astype(np.float64) - wanted)
        assert apart.max() <= (units if got.dtype.kind != "f" else 1e-5 * np.abs(wanted).max())


def parameters(prefix: str, scale: float = 0.03, point: int = 7, dtype: str = "uint8") -> dict[str, Array]:
    return {f"{prefix}_scale": np.float32(scale), f"{prefix}_zero_point": np.array(point, dtype)}


ONNX, MICROSOFT = "", "com.microsoft"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("w_type", ["int8", "uint8"])
def test_convolution(per_channel: bool, biased: bool, w_type: str) -> None:
    size = (6,) if per_channel else ()
    operands: dict[str, Array | None] = {"x": random_bytes(1, 4, 7, 6), **parameters("x")}
    operands |= {
        "w": random_bytes(6, 2, 3, 3, dtype=w_type, bits=7),
        "w_scale": np.float32(np.linspace(0.01, 0.02, 6)) if per_channel else np.float32(0.01),
        "w_zero_point": np.full(size, 0 if per_channel or w_type == "int8" else 30, w_type),
        **parameters("y", 0.9, 100),
    }
    if biased:
        operands["b"] = np.arange(6, dtype=np.int32) * 1000
    check("QLinearConv", operands, ONNX, group=2, pads=[1, 0, 1, 1], strides=[2, 1])


@pytest.mark.parametrize("per_column", [False, True])
def test_matrix_product(per_column: bool) -> None:
    scale = np.float32(np.linspace(0.01, 0.02, 5)) if per_column else np.float32(0.01)
    operands: dict[str, Array | None] = {"a": random_bytes(3, 6), **parameters("a")}
    operands |= {"b": random_bytes(6, 5, dtype="int8", bits=7), "b_scale": scale}
    operands |= {"b_zero_point": np.zeros_like(scale, np.int8), **parameters("y", 0.2, 100)}
    check("QLinearMatMul", operands, ONNX)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_of_two_values(op: str, dtype: str) -> None:
    operands = {
        "a": random_bytes(2, 3, 17, dtype=dtype),
        **parameters("a", dtype=dtype),
        "b1": random_bytes(3, 17, dtype=dtype),
        **parameters("b", 0.07, 3, dtype),
        **parameters("c", 0.1, 60, dtype),
    }
    check(op, operands, MICROSOFT, units=1)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("QLinearSigmoid", {}),
        ("QLinearLeakyRelu", {"alpha": 0.2}),
        ("QLinearGlobalAveragePool", {}),
        ("QLinearAveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}),
        ("QLinearSoftmax", {"axis": -1, "opset": 17}),
    ],
)
def test_of_one_value(op: str, attributes: dict[str, Any]) -> None:
    after = (
        parameters("y", 1 / 256, 0)
        if op in ("QLinearSigmoid", "QLinearSoftmax")
        else parameters("y", 0.02, 9)
    )
    check(op, {"x": random_bytes(1, 3, 6, 7), **parameters("x"), **after}, MICROSOFT, units=1, **attributes)


def test_concat() -> None:
    operands = {
        **parameters("y", 0.05, 20),
        "x": random_bytes(1, 2, 5),
        **parameters("x"),
        "x2": random_bytes(1, 4, 5),
        **parameters("z", 0.05, 20),
    }
    check("QLinearConcat", operands, MICROSOFT, units=1, axis=1)


@pytest.mark.parametrize("floats", [False, True])
def test_gemm(floats: bool) -> None:
    operands: dict[str, Array | None] = {"a": random_bytes(3, 6), **parameters("a")}
    operands |= {"b": random_bytes(5, 6, dtype="int8", bits=7), "b_scale": np.float32(0.01)}
    operands |= {"b_zero_point": np.array(0, np.int8), "c": np.arange(5, dtype=np.int32) * 900}
    check("QGemm", operands | ({} if floats else parameters("y", 0.2, 100)), MICROSOFT, transB=1, alpha=1.0)


def test_products_to_floats() -> None:
    operands: dict[str, Array | None] = {"a": random_bytes(3, 6), "b": random_bytes(6, 5, bits=7)}
    operands |= {"a_scale": np.float32(0.1), "b_scale": np.float32(np.linspace(0.1, 0.2, 5))}
    operands |= {"a_zero_point": np.uint8(7), "b_zero_point": np.full(5, 9, np.uint8), "bias": normal(5)}
    check("MatMulIntegerToFloat", operands, MICROSOFT)


def test_dynamic_product() -> None:
    operands: dict[str, Array | None] = {"a": normal(3, 6), "b": random_bytes(6, 5, dtype="int8", bits=7)}
    operands |= {"b_scale": np.float32(0.1), "b_zero_point": np.int8(3), "bias": normal(5)}
    check("DynamicQuantizeMatMul", operands, MICROSOFT)


def test_of_the_other_domain() -> None:
    for op, x in (("QuantizeLinear", normal(3, 4)), ("DequantizeLinear", random_bytes(3, 4))):
        check(op, {"x": x, "scale": np.float32(0.1), "zero_point": np.uint8(7)}, MICROSOFT)


def test_what_is_not_read() -> None:
    x = {"x": random_bytes(1, 2, 4, 4), **parameters("x"), **parameters("y")}
    proto, _ = model("QLinearGlobalAveragePool", x, "", MICROSOFT, channels_last=1)
    with pytest.raises(UnsupportedModel, match="channels_last"):
        read(proto.SerializeToString())
    proto, _ = model("FusedConv", {"x": normal(1, 2, 4, 4)}, "", MICROSOFT)
    with pytest.raises(UnsupportedModel, match="FusedConv"):
        read(proto.SerializeToString())
    proto, _ = model("QLinearAdd", x, "", MICROSOFT)
    with pytest.raises(InvalidModel, match="5 inputs; 7 to 8"):
        read(proto.SerializeToString())
    proto, _ = model("QLinearSigmoid", x, "", MICROSOFT, slope=1)
    with pytest.raises(InvalidModel, match="slope"):
        read(proto.SerializeToString())


def test_types_of_the_newest_forms() -> None:
    node = helper.make_node(
        "QuantizeLinear", ["x", "s"], ["y"], name="node", output_dtype=onnx.TensorProto.INT8
    )
    x = normal(3, 4)
    proto = model_of([node], {"x": x}, ["y"], {"s": np.float32(0.1)}, 21)
    assert infer(read(proto.SerializeToString())).facts["y"].dtype == np.int8
    check_model(proto, {"x": x})


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_weights_of_4_bits(signed: bool, raw: bool) -> None:
    numbers = np.arange(15).reshape(3, 5) - (8 if signed else 0)
    kind = onnx.TensorProto.INT4 if signed else onnx.TensorProto.UINT4
    low, high = np.append(numbers.ravel(), 0)[0::2] & 15, np.append(numbers.ravel(), 0)[1::2] & 15
    data = (low | high << 4).astype(np.uint8)
    weights = onnx.TensorProto(name="w", data_type=kind, dims=[3, 5])
    if raw:
        weights.raw_data = data.tobytes()
    else:
        weights.int32_data.extend(int(v) for v in data)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["d"], name="node")
    proto = model_of(
        [node, helper.make_node("MatMul", ["x", "d"], ["y"])],
        {"x": normal(2, 3)},
        ["y"],
        {"s": np.float32(0.1)},
    )
    proto.graph.initializer.append(weights)
    x = normal(2, 3)
    got = evaluate(infer(read(proto.SerializeToString())), {"x": x})["y"]
    np.testing.assert_allclose(got, x @ (numbers * np.float32(0.1)), rtol=1e-5)


def test_results_of_4_bits_are_refused() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="node")
    proto = model_of([node], {"x": normal(2, 3)}, ["y"], {"s": np.float32(0.1)})
    proto.graph.initializer.append(onnx.TensorProto(name="z", data_type=onnx.TensorProto.INT4, raw_data=b"0"))
    with pytest.raises(UnsupportedModel, match="4 bits"):
        read(proto.SerializeToString())
