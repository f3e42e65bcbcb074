"""Small models in files, and a cache of their own for the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(folder))
    monkeypatch.delenv("CORESIDENT_CACHE", raising=False)


def _write(path: Path, sizes: list[int | str]) -> Path:
    """x [batch, 3, H, W] to y [batch, 1, H, W]: a 3x3 convolution with zeros among its weights, a 1x1 one."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((8, 3, 3, 3)) * (rng.random((8, 3, 3, 3)) < 0.1)).astype(np.float32)
    head = rng.standard_normal((1, 8, 1, 1), dtype=np.float32)
    batch = 1 if isinstance(sizes[0], int) else "batch"
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weights"], ["hidden"], "first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["hidden"], ["active"], "relu"),
            helper.make_node("Conv", ["active", "head"], ["logits"], "last"),
            helper.make_node("Sigmoid", ["logits"], ["y"], "sigmoid"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1, *sizes])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(head, "head")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of fixed sizes, 16x16."""
    return _write(tmp_path / "small.onnx", [16, 16])


@pytest.fixture
def free_model(tmp_path: Path) -> Path:
    """The same with free sizes."""
    return _write(tmp_path / "free.onnx", ["height", "width"])


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """a + b, with a second output."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("a", "b", "c", "d")]
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    graph = helper.make_graph(nodes, "two", values[:2], values[2:])
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
