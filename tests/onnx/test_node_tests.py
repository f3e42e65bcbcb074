"""The node tests that ONNX ships for quantised operators, through the session.

What the operators quantise by is made constant, as it is in networks; without that, those run that need no
constant weights.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from coresident import Session

MODULES = (
    *("convinteger", "dequantizelinear", "dynamicquantizelinear", "matmulinteger"),
    *("qlinearconv", "qlinearmatmul", "quantizelinear"),
)
"""Of onnx.backend.test.case.node; each makes its cases, and their outputs, when it is imported."""
OPERATORS = ("qlinear", "convinteger", "matmulinteger", "quantizelinear")
TYPES = ("float32", "float16", "uint8", "int8", "uint16", "int16", "int32")


@functools.cache
def cases() -> dict[str, Any]:
    # Not collect_testcases: it makes the cases of all operators, which takes many seconds.
    package = "onnx.backend.test.case.node"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES:
            importlib.import_module(f"{package}.{module}")
    made = importlib.import_module(package)._NodeTestCases
    return {case.name: case for case in made if any(op in case.name for op in OPERATORS)}


def has_types(case: Any) -> bool:
    """Whether all inputs and outputs are of types that are read, and no matrix product is of halves."""
    inputs, outputs = case.data_sets[0]
    arrays = [getattr(a, "dtype", None) for a in (*inputs, *outputs)]
    halves = "qlinearmatmul" in case.name and "float16" in case.name
    return not halves and all(str(dtype) in TYPES for dtype in arrays)


NAMES = sorted(name for name, case in cases().items() if has_types(case))


def test_none_is_missing() -> None:
    assert len(NAMES) >= 24


@pytest.mark.parametrize("constant", [True, False], ids=["constants", "computed"])
@pytest.mark.parametrize("name", NAMES)
def test_node(name: str, constant: bool) -> None:
    case = cases()[name]
    inputs, outputs = case.data_sets[0]
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    feeds = {value.name: np.asarray(array) for value, array in zip(model.graph.input, inputs)}
    if constant:
        for value in list(model.graph.input)[1:]:
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(value.name), value.name))
            model.graph.input.remove(value)
    got = Session(model.SerializeToString(), threads=1, cache=False).run(None, feeds)
    for mine, wanted in zip(got, outputs):
        assert (mine.dtype, mine.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(mine.astype(float), np.asarray(wanted).astype(float), rtol=1e-6)
