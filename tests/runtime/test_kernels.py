"""Kernels that sessions share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coresident.codegen import llvm
from coresident.graph.graph import Fact, Graph, Node
from coresident.onnx.writer import serialize
from coresident.runtime.kernels import Kernels
from coresident.session import Session


def _network(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    fact = Fact(np.dtype(np.float32), (1, 3, 9, 9))
    nodes = (Node("Conv", ("x", "w"), ("c",), name="conv"), Node("Relu", ("c",), ("y",), name="relu"))
    out = Fact(np.dtype(np.float32), (1, 8, 7, 7))
    return serialize(Graph(("x",), ("y",), nodes, {"w": weights}, {"x": fact, "y": out}))


def test_other_weights_need_no_compilation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[str] = []
    whole = llvm.Backend.object

    def counted(backend: Any, text: str) -> bytes:
        compiled.append(text)
        return whole(backend, text)

    monkeypatch.setattr(llvm.Backend, "object", counted)
    kernels = Kernels()
    x = np.random.default_rng(3).normal(size=(1, 3, 9, 9)).astype(np.float32)
    for seed in (0, 1):
        with Session(_network(seed), 1, cache=False) as alone:
            (wanted,) = alone.run(None, {"x": x})
        before = len(compiled)
        with Session(_network(seed), 1, cache=False, kernels=kernels) as sharing:
            (found,) = sharing.run(None, {"x": x})
        np.testing.assert_array_equal(found, wanted)
        assert (len(compiled) > before) == (seed == 0)


def test_the_oldest_go_when_there_are_too_many() -> None:
    kernels = Kernels(most=10)
    kernels.put("cpu", "a", b"1234")
    kernels.put("cpu", "a", b"12345")
    kernels.put("other", "a", b"1234")
    assert kernels.get("cpu", "a") == b"12345"
    kernels.put("cpu", "b", b"12")
    assert kernels.get("cpu", "a") is None
    assert (kernels.get("other", "a"), kernels.get("cpu", "b")) == (b"1234", b"12")
