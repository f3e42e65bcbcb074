"""Engines in processes of their own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from coresident.measure.turns import Result, Turn, take_turns


def _result(*outputs: np.ndarray, times: tuple[float, ...] = (1.0,)) -> Result:
    return Result("one", tuple(np.full(5, seconds) for seconds in times), 0.0, 0, outputs, times)


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("file", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["file"], ["y"])], "tiny", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_turns(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE", "0")
    said: list[str] = []
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    engines = {"coresident": "", "onnxruntime": "", "openvino": "/nowhere/python", "nothing": ""}
    results, failures = take_turns(
        {name: Turn(name, model, python) for name, python in engines.items()},
        {"file": x},
        1,
        rounds=2,
        seconds=0.01,
        progress=said.append,
    )
    assert list(results) == ["coresident", "onnxruntime"]
    assert set(failures) == {"openvino", "nothing"}
    assert "/nowhere/python" in failures["openvino"]
    assert "round 2 of 2: onnxruntime" in said
    for result in results.values():
        assert np.array_equal(result.outputs[0], -x)
        assert len(result.rounds) == 2
        assert result.median > 0
        assert result.error(results["onnxruntime"]) == 0


def test_several_calls_at_once(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE", "0")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    turns = {name: Turn(name, model) for name in ("coresident", "onnxruntime", "openvino")}
    results, _ = take_turns(turns, {"file": x}, 2, streams=2, rounds=1, seconds=0.05)
    assert {"coresident", "onnxruntime"} <= set(results)
    for result in results.values():
        assert np.array_equal(result.outputs[0], -x)
        assert len(result.times) >= 6
        assert result.walls[0] >= 0.05
        assert result.rates[0] == len(result.times) / result.walls[0]


def test_ratios_are_of_rounds() -> None:
    ours, theirs = _result(times=(1.0, 10.0, 1.0)), _result(times=(2.0, 20.0, 2.0))
    assert ours.faster_than(theirs) == 2
    assert theirs.faster_than(ours) == 0.5
    assert ours.serves_more_than(theirs) == 2


def test_errors_are_shares_of_the_range() -> None:
    a = np.array([0.0, 1.0, 10.0])
    assert _result(a + 0.1).error(_result(a)) == pytest.approx(0.01)
    assert _result(a).error(_result(a, a)) == math.inf
    assert _result(a[:2]).error(_result(a)) == math.inf
    assert _result(a * np.nan).error(_result(a)) == math.inf
    assert _result(a * np.nan).error(_result(a * np.nan)) == 0
    assert _result(a[:0]).error(_result(a[:0])) == 0
    constant = np.full(3, 5.0)
    assert _result(constant + 0.5).error(_result(constant)) == pytest.approx(0.1)
