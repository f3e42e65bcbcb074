"""The table of kernel families: operator to lowering, each file imported when an operator of it is asked for.

A network needs a few of the files, and importing them all takes longer than compiling a small one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from coresident.graph.expression import ELEMENTWISE
from coresident.kernels import lowering
from coresident.kernels.lowering import Family

FILES: dict[str, tuple[str, ...]] = {
    "boxes": ("SelectBoxes",),
    "columns": ("Columns", "Fold"),
    "convolution": ("Conv",),
    "elementwise": ("Elementwise", "Mean", "Sum", *sorted(ELEMENTWISE.keys() - {"Identity"})),
    "extremes": ("ArgMax", "ArgMin"),
    "gather": ("Gather", "GatherElements", "OneHot"),
    "integer": ("ConvInteger",),
    "integer_matmul": ("MatMulInteger",),
    "integer_transposed": ("ConvTransposeInteger",),
    "matmul": ("Gemm", "MatMul"),
    "movement": (
        *("Concat", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "Flatten", "Identity", "Pad"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    ),
    "normalization": (
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization"),
        *("LpNormalization", "RMSNormalization"),
    ),
    "pooling": ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"),
    "reduction": (
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
    ),
    "resize": ("Resize",),
    "running": ("CumSum",),
    "sampling": ("DeformedColumns", "GridSample", "RoiAlign"),
    "scatter": ("ScatterRows",),
    "selection": ("Nonzeros", "TopK", "UniqueRows"),
    "softmax": ("LogSoftmax", "Softmax"),
    "transposed": ("ConvTranspose",),
}
"""Files of this room, and the operators that they lower."""

_HOMES = {op: file for file, ops in FILES.items() for op in ops}


class _Families(Mapping[str, Family]):
    """Those in the table, and those that will be there once their file is imported."""

    def __getitem__(self, op: str) -> Family:
        if op not in lowering.FAMILIES:
            importlib.import_module(f"coresident.kernels.{_HOMES[op]}")
        return lowering.FAMILIES[op]

    def __contains__(self, op: object) -> bool:
        return op in lowering.FAMILIES or op in _HOMES

    def __iter__(self) -> Iterator[str]:
        return iter(lowering.FAMILIES.keys() | _HOMES.keys())

    def __len__(self) -> int:
        return len(lowering.FAMILIES.keys() | _HOMES.keys())


FAMILIES = _Families()
