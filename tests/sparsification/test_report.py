"""Reports: written, read back, shown."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coresident.errors import InputError, ResourceError
from coresident.sparsification import plots
from coresident.sparsification.report import Accuracy, Latency, LayerReport, Machine, Report, Sizes, Target
from coresident.vision import images

HOSTILE = "a|b\n# `<script>` $x_{$ \\ [l](u) \u0000 \ud800"


def report(**changes: Any) -> Report:
    layers = (
        LayerReport("first", "Conv", (16, 3, 3, 3), 0.0, "dense", "float32", 1e-3, 1e-3, 0.0, "first layer"),
        LayerReport("second", "Conv", (32, 16, 3, 3), 0.75, "4block", "int8", 4e-3, 1e-3, 0.0123),
        LayerReport(HOSTILE, "Gemm", (10, 32), 0.5, "unstructured", "int8", 1e-4, 1e-4, 1e-4),
    )
    whole = Report(
        model="net",
        task="classifier",
        target=Target("target_speedup", 3.0, 2.5, False, (("second", 0.61), ("first", 0.2))),
        layers=layers,
        latency=Latency(5.1e-3, 2.04e-3, dense_int8=3e-3, onnxruntime_original=6e-3),
        sizes=Sizes(4_000_000, 1_500_000, 800_000),
        agreement={"top1": 0.97, "kl": 0.0123, "per class": {"cat": 1}},
        machine=Machine.here(2),
        seed=7,
        seconds=61.5,
        accuracy=Accuracy("top-1", 0.92, 0.915),
        calibration_samples=128,
        held_back_samples=64,
        rejected=tuple((f"{index}.png", "not a picture") for index in range(25)),
        shapes={"x": (1, 3, 32, 32)},
        settings={"pattern": "auto", "budget": None, "preprocessing": {"mean": [0.5]}},
        notes=("a note",),
    )
    return dataclasses.replace(whole, **changes)


def test_a_report_is_read_back(tmp_path: Path) -> None:
    whole = report()
    files = whole.write(tmp_path / "a" / "b")
    assert {"report.json", "report.md"} <= {path.name for path in files}
    assert {path.name for path in files} == {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert Report.read(tmp_path / "a" / "b") == whole
    assert Report.read(tmp_path / "a" / "b" / "report.json") == whole
    small = report(layers=(), accuracy=None, agreement={}, rejected=(), settings={}, notes=(), shapes={})
    small.write(tmp_path / "small")
    assert Report.read(tmp_path / "small") == small


def test_the_record_is_plain_json() -> None:
    layer = dataclasses.replace(report().layers[1], error=math.nan, sparsity=np.float32(0.5))  # type: ignore[arg-type]
    record = report(layers=(layer,), agreement={"kl": np.float64(np.inf), "n": np.int64(3)}).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["layers"][0]["error"] is None
    assert record["agreement"] == {"kl": None, "n": 3}
    assert record["speedup"] == pytest.approx(2.5)
    assert record["overall_sparsity"] == pytest.approx(0.5)
    with pytest.raises(TypeError, match="no form in JSON"):
        report(settings={"a": object()}).record()


def test_weights_count_for_the_sparsity_of_the_whole() -> None:
    zeros, weights = 0.75 * 32 * 16 * 9 + 0.5 * 320, 16 * 27 + 32 * 16 * 9 + 320
    assert report().sparsity == pytest.approx(zeros / weights)
    assert report(layers=()).sparsity == 0


def test_what_it_says() -> None:
    text = report().markdown(("layers.png",))
    lines = text.splitlines()
    assert lines[0] == "# net"
    assert "2.50 times as fast" in text
    assert "5.1 ms became 2.04 ms" in text
    assert "out of reach" in text
    assert "second (61%), first (20%)" in text
    assert "| dense int8 | 3 | 1.70x |" in lines
    assert "ONNX Runtime, original" in text
    assert "ONNX Runtime, result" not in text
    assert "| per class.cat | 1 |" in lines
    assert "| top-1 | 0.92 | 0.915 | -0.005 |" in lines
    assert "| second | Conv | 32x16x3x3 | 75.0% | 4block | int8 | 4 | 1 | 1.23e-02 |  |" in lines
    assert "first layer" in text
    assert "![layers.png](layers.png)" in lines
    assert "and 5 more, in report.json" in text
    assert "128 samples to calibrate with, 64 held back, seed 7" in text
    reached = report(target=Target("latency_ms", 2.0, 1.9), accuracy=None).markdown()
    assert "out of reach" not in reached
    assert "latency in ms of 2; reached: 1.9" in reached
    assert "there were no labels" in reached


def test_names_are_not_markdown() -> None:
    rows = [line for line in report().markdown().splitlines() if line.startswith("| a")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 11
    assert "\\<script\\>" in rows[0]
    assert not any(line.startswith("# `") for line in report().markdown().splitlines())


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report().write(tmp_path)
    for name in ("layers.png", "errors.png"):
        assert images.read_picture(tmp_path / name).ndim == 3
        assert f"({name})" in (tmp_path / "report.md").read_text()
    layer = dataclasses.replace(report().layers[0], error=math.nan)
    many = report(layers=(layer,) * 120)
    assert set(plots.draw(many)) == {"layers.png"}
    assert plots.draw(many) == plots.draw(many)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    files = report().write(tmp_path)
    assert {path.name for path in files} == {"report.json", "report.md"}
    assert "coresident[plot]" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "this version"),
        ({"task": 3}, r"Report\.task"),
        ({"unknown": 3}, "unknown"),
        ({"layers": {}}, r"Report\.layers"),
        ({"layers": [{}]}, r"Report\.layers\[0\] has no 'dtype'"),
        ({"target": {"kind": "wish", "asked": 1, "reached": 1}}, r"target\.kind"),
        ({"latency": {"dense_float": True, "result": 1}}, "dense_float"),
        ({"shapes": {"x": [1.5]}}, r"shapes\.x\[0\]"),
        ({"rejected": [["a"]]}, r"rejected\[0\]"),
        ({"accuracy": []}, "accuracy"),
        ({"seed": None}, "seed"),
    ],
)
def test_what_is_no_report(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report().record() | change))
    with pytest.raises(InputError, match=message):
        Report.read(path)


def test_files_that_are_no_reports(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError):
            Report.read(tmp_path)
    with pytest.raises(ResourceError):
        Report.read(tmp_path / "nowhere.json")
    with pytest.raises(ResourceError):
        report().write(path)
