"""`coresident benchmark`, `analyze`, `doctor` and `demo`."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, numpy_helper

from coresident.cli import demo, doctor, roofline
from coresident.cli.main import main
from coresident.vision import images

QUICK = ["--seconds", "0.02", "--rounds", "2", "--threads", "1"]


def _json(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert main([str(one) for one in arguments]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    record: dict[str, Any] = json.loads(captured.out)
    return record


def test_benchmark_against_a_peer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "benchmark", model, *QUICK, "--against", "onnxruntime,coresident-dense", "--json")
    assert record["reference"] == "onnxruntime"
    assert list(record["engines"]) == ["coresident", "onnxruntime", "coresident-dense"]
    for figures in record["engines"].values():
        assert 0 < figures["min_ms"] <= figures["median_ms"] <= figures["p99_ms"]
        assert figures["p95_ms"] <= figures["p99_ms"]
        assert figures["runs"] >= 6
    assert record["engines"]["coresident"]["max_error"] < 1e-5
    assert record["engines"]["onnxruntime"]["times_slower"] > 0


def test_benchmark_of_free_sizes(free_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--shape", "x=2x3x8x8"]
    record = _json(capsys, "benchmark", free_model, *QUICK, *shape, "--json")
    assert record["shapes"] == {"x": [2, 3, 8, 8]}
    assert record["batch"] == 2
    assert main(["benchmark", str(free_model), *QUICK]) == 1
    assert "--shape x=" in capsys.readouterr().err
    assert main(["benchmark", str(free_model), *QUICK, "--shape", "z=1"]) == 1
    assert "no input 'z'" in capsys.readouterr().err


def test_analyze_says_what_free_dimensions_cost(
    free_model: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--shape", "x=1x3x8x8", "--threads", "1"]
    record = _json(capsys, "analyze", free_model, *shape, "--json")
    batch, height, width = record["free"]
    assert [one["name"] for one in record["free"]] == ["batch", "height", "width"]
    assert batch["in_pieces"]
    assert not batch["why"]
    assert not height["in_pieces"]
    assert width["why"]
    assert batch["compile_seconds"] > 0
    assert batch["resident_bytes"] > 4 * 8 * 64
    assert main(["analyze", str(free_model), *shape]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "x dimension 0 (batch) is free: programs for other sizes" in printed
    assert "x dimension 2 (height) is free: a new size waits for the compiler" in printed
    assert _json(capsys, "analyze", model, "--threads", "1", "--json")["free"] == []


def test_benchmark_of_streams(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = ["--streams", "2", "--threads", "2"]
    record = _json(capsys, "benchmark", model, *QUICK, *several, "--against", "onnxruntime", "--json")
    assert (record["threads"], record["streams"]) == (2, 2)
    assert record["engines"]["coresident"]["per_second"] > 0
    assert record["engines"]["onnxruntime"]["times_slower"] > 0
    assert main(["benchmark", str(model), *QUICK, "--streams", "2"]) == 1
    assert "streams" in capsys.readouterr().err


def test_benchmark_prints_a_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(model), *QUICK]) == 0
    captured = capsys.readouterr()
    assert "median ms" in captured.out
    assert captured.err == ""


@pytest.mark.skipif(importlib.util.find_spec("deepsparse") is not None, reason="deepsparse is installed")
def test_benchmark_goes_on_without_a_peer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(model), *QUICK, "--against", "deepsparse"]) == 3
    captured = capsys.readouterr()
    assert "coresident" in captured.out
    assert captured.err.startswith("deepsparse did not run: ")


def test_analyze(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "analyze", model, "--threads", "1", "--json")
    layers = record["layers"]
    multiplying = [layer for layer in layers if layer["macs"]]
    assert [layer["nodes"] for layer in multiplying] == [["first", "last"]]
    first = multiplying[0]
    assert first["macs"] == (8 * 3 * 9 + 8) * 256
    assert 0 < first["nonzero_macs"] < first["macs"] / 2
    assert first["sparsity"] == pytest.approx(1 - first["nonzero_macs"] / first["macs"])
    assert first["shape"] == [1, 8, 16, 16]
    assert first["bytes"] >= 4 * (3 + 1) * 256
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    assert record["machine"]["gmacs_per_core"] > 1
    assert [level["name"] for level in record["machine"]["levels"]][:2] == ["L1", "L2"]


def test_analyze_prints_and_plots(
    free_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "roofline.png"
    arguments = ["--threads", "1", "--shape", "x=1x3x16x16", "--plot", str(plot)]
    assert main(["analyze", str(free_model), *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "GMAC/s" in captured.out
    assert "this machine" in captured.out
    assert images.read_picture(plot).shape[1] > 500


def test_plot_without_matplotlib(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline.importlib.util, "find_spec", lambda name: None)
    assert main(["analyze", str(model), "--plot", str(tmp_path / "a.png")]) == 1
    assert "coresident[plot]" in capsys.readouterr().err
    assert main(["analyze", str(model), "--plot", str(tmp_path / "a.pdf")]) == 1
    assert ".png" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "doctor", "--json")
    assert record["cores"]["usable"] >= 1
    assert record["target"]["features"]
    assert record["packages"]["numpy"]
    assert record["cache"]["writable"]
    assert record["problem"] is None
    assert main(["doctor"]) == 0
    assert record["cpu"]["name"] in capsys.readouterr().out


def test_doctor_measures(capsys: pytest.CaptureFixture[str]) -> None:
    record = _json(capsys, "doctor", "--measure", "--json")
    assert record["measured"]["gmacs_per_core"] > 1
    assert ("together" in record["measured"]) == (record["cores"]["usable"] > 1)


def test_doctor_tells_what_threads_do_to_each_other() -> None:
    def told(rate: float, line: float) -> list[str]:
        record = {"threads": 2, "gmacs_per_core": rate, "nanoseconds_per_remote_line": line}
        return [text for _, text in doctor._together(record, 60.0)]

    assert told(59.0, 1.2) == [
        "59.0 GMAC/s each with 2 threads",
        "a line that another one wrote takes 1.2 ns longer than an own one",
    ]
    assert "share a core" in told(30.0, 0.1)[0]
    assert "far apart" in told(59.0, 8.0)[1]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_demo(
    every: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = demo._truth(importlib.resources.files("coresident") / "demo_data")
    if not every:
        # Each size of picture is compiled for.
        samples = {name: samples[name] for name in ("37ed50eea5a1.png", "c043d5ac9dd4.png")}
    monkeypatch.setattr(demo, "_truth", lambda data: samples)
    monkeypatch.setattr(demo, "_ROUNDS", 1)
    monkeypatch.setattr(demo, "_SECONDS", 0.01)
    sheet = tmp_path / "sheet.png"
    record = _json(capsys, "demo", "--threads", "1", "--output", sheet, "--json")
    assert [picture["name"] for picture in record["pictures"]] == sorted(samples)
    assert abs(record["found"] - record["truth"]) <= 0.15 * record["truth"]
    # A tie rounded the other way moves a byte by one, and what follows by as much.
    assert record["max_error"] < 0.1
    assert set(record["median_ms"]) == {"coresident", "dense", "onnxruntime", "onnxruntime_dense"}
    assert abs(record["found_dense"] - record["truth"]) <= 0.15 * record["truth"]
    assert images.read_picture(sheet).ndim == 3


def test_the_demos_network_is_sparse_and_of_bytes() -> None:
    with importlib.resources.as_file(importlib.resources.files("coresident") / "demo_data") as data:
        weights = [
            numpy_helper.to_array(tensor)
            for node in onnx.load(data / "nuclei.onnx").graph.node
            if node.op_type == "Constant"
            for tensor in [node.attribute[0].t]
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
        ]
    assert len(weights) == 18
    zeros = sum(int((weight == 0).sum()) for weight in weights[1:-1])
    assert zeros >= 0.85 * sum(weight.size for weight in weights[1:-1])


def test_demo_checks_its_output_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in (tmp_path / "sheet.gif", tmp_path / "nowhere" / "sheet.png"):
        assert main(["demo", "--output", str(output)]) == 1
        assert capsys.readouterr().err.startswith("coresident: error: --output")
