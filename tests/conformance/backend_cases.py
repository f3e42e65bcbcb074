"""The cases of ONNX's own backend tests that a vision engine is measured by.

A node test belongs to a tier by its operator: `core` networks are full of, `ext` they meet at their ends, in
attention or in old exports. Counted are tests whose inputs and outputs are of the types that vision networks
compute with, and not those that repeat another with the operator expanded to its function's body.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

Array = np.ndarray[Any, Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CORE = _names(
    """
    Abs Add ArgMax AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvInteger ConvTranspose DeformConv DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Elu
    Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax
    LpPool MatMul MatMulInteger Max MaxPool Mean Min Mish Mul Neg PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape
    Resize Round Selu Shape Sigmoid Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
    Swish Tanh ThresholdedRelu Tile Transpose Unsqueeze Upsample Where
    """
)
EXT = _names(
    """
    AffineGrid And ArgMin Attention CastLike CenterCropPad Col2Im Compress Cos CumSum Einsum Equal
    GatherElements GatherND Greater GreaterOrEqual GridSample Hardmax ImageDecoder Less LessOrEqual
    LpNormalization MaxUnpool MeanVarianceNormalization Mod NonMaxSuppression NonZero Not OneHot Or
    RMSNormalization Range ReduceL1 ReduceLogSum ReduceLogSumExp ReduceProd RoiAlign ScatterElements ScatterND
    Sign Sin Size TopK Trilu Unique Xor
    """
)
TYPES = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    )
)
GROUPS = ("core", "ext", "pytorch-converted", "pytorch-operator")
"""Tiers of node tests, and ONNX's folders of models that PyTorch exported."""


@dataclass(frozen=True)
class Case:
    """A model, and what it makes of what.

    Args:
        name: as ONNX calls the test.
        op: of its (last) node.
        model: bytes of the ONNX model.
        sets: inputs and outputs, in the model's order.
        rtol, atol: how far outputs may be off.
    """

    name: str
    op: str
    model: bytes
    sets: tuple[tuple[tuple[Array, ...], tuple[Array, ...]], ...]
    rtol: float
    atol: float


def cases(group: str) -> list[Case]:
    """The cases of one of `GROUPS`, by name."""
    if group in ("core", "ext"):
        wanted = CORE if group == "core" else EXT
        found: Iterator[Case] = (_node_case(test) for test in _node_tests() if _counted(test, wanted))
    else:
        found = (_model_case(test) for test in load_model_tests(kind=group))
    return sorted(found, key=lambda case: case.name)


def _node_tests() -> Sequence[TestCase]:
    with warnings.catch_warnings():
        # Infinities and NaNs among the inputs, which numpy warns of while the expected outputs are made.
        warnings.simplefilter("ignore", RuntimeWarning)
        return load_model_tests(kind="node")


def _counted(test: TestCase, ops: frozenset[str]) -> bool:
    graph = test.model.graph
    return (
        "_expanded" not in test.name
        and graph.node[0].op_type in ops
        and all(o.domain in ("", "ai.onnx") for o in test.model.opset_import)
        and all(
            value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type in TYPES
            for value in (*graph.input, *graph.output)
        )
    )


def _array(value: object) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _node_case(test: TestCase) -> Case:
    sets = tuple((tuple(map(_array, given)), tuple(map(_array, made))) for given, made in test.data_sets)
    model = test.model.SerializeToString()
    return Case(test.name, test.model.graph.node[-1].op_type, model, sets, test.rtol, test.atol)


def _model_case(test: TestCase) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = tuple(
        (_stored(each, "input"), _stored(each, "output")) for each in sorted(folder.glob("test_data_set*"))
    )
    op = model.graph.node[-1].op_type
    return Case(test.name, op, model.SerializeToString(), sets, test.rtol, test.atol)


def _stored(folder: Path, what: str) -> tuple[Array, ...]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return tuple(numpy_helper.to_array(onnx.load_tensor(folder / f"{what}_{i}.pb")) for i in range(count))
