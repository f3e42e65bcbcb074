"""`coresident sparsify`: what its words mean, what it prints and how it ends."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coresident.cli import report as console
from coresident.cli.main import main
from coresident.errors import InputError
from coresident.sparsification.report import Accuracy, Latency, LayerReport, Machine, Report, Sizes, Target
from coresident.vision.tensors import Preprocessing

REPORT = Report(
    model="small",
    task="segmenter",
    target=Target("target_speedup", 3.0, 3.2),
    layers=(LayerReport("first_one", "Conv", (8, 3, 3, 3), 0.5, "4block", "int8", 2e-3, 1e-3, 0.01),),
    latency=Latency(3.2e-3, 1e-3),
    sizes=Sizes(1000, 500, 700),
    agreement={"pixels": 0.98},
    machine=Machine("a CPU", 2, {}),
    seed=0,
    seconds=3.0,
    accuracy=Accuracy("Dice", 0.9, 0.89),
)


class Pipeline:
    """Stands for the work."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.report = REPORT
        self.fault: BaseException | None = None

    def sparsify(self, model: object, data: object, **options: Any) -> Any:
        self.asked = {"model": model, "data": data, **options}
        options["progress"].stage("statistics [x]", 2)
        options["progress"].advance(1, "conv [y]")
        options["progress"].advance()
        options["progress"].stage("unknown", 0)
        options["progress"].advance(3)
        if self.fault:
            raise self.fault
        return SimpleNamespace(report=self.report, save=lambda folder: self.report.write(folder))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    work = Pipeline()
    monkeypatch.setitem(sys.modules, "coresident.sparsification.pipeline", work)  # type: ignore[arg-type]
    return work


def _command(tmp_path: Path, *more: str) -> list[str]:
    return ["sparsify", "model.onnx", "--data", "images", "-o", str(tmp_path / "out"), *more]


def test_what_is_asked_by_default(pipeline: Pipeline, tmp_path: Path) -> None:
    assert main(_command(tmp_path)) == 0
    asked = dict(pipeline.asked)
    assert asked.pop("progress") is not None
    assert asked == {
        "model": "model.onnx",
        "data": "images",
        "target_speedup": None,
        "latency_ms": None,
        "sparsity": None,
        "max_drop": None,
        "pattern": "auto",
        "quantize": "auto",
        "effort": "default",
        "budget": None,
        "skip": (),
        "threads": None,
        "seed": 0,
        "preprocessing": Preprocessing(),
        "labels": None,
        "task": None,
        "shapes": {},
        "limit": None,
        "output": tmp_path / "out",
        "resume": True,
    }


def test_every_option(pipeline: Pipeline, tmp_path: Path) -> None:
    words = ["--target-speedup", "3x", "--pattern", "4block", "--quantize", "int8", "--effort", "fast"]
    words += ["--budget", "30m", "--skip", "a, b", "--skip", "re:head{1,2}", "--threads", "2", "--seed", "7"]
    words += ["--labels", "folders", "--task", "detector", "--shape", "x=1x3x8x8", "--limit", "64"]
    words += ["--no-resume", "--mean", "1,2,3", "--size", "8x9", "--fit", "letterbox", "--pad", "0"]
    words += ["--crop-share", "0.5", "--channels", "bgr", "--layout", "nhwc", "--scale", "1"]
    assert main(_command(tmp_path, *words)) == 0
    asked = pipeline.asked
    assert (asked["target_speedup"], asked["budget"], asked["seed"], asked["limit"]) == (3.0, 1800.0, 7, 64)
    assert asked["skip"] == ("a", "b", "re:head{1,2}")
    assert asked["shapes"] == {"x": (1, 3, 8, 8)}
    assert asked["resume"] is False
    assert asked["preprocessing"] == Preprocessing(
        (1, 2, 3), (1.0,), (8, 9), "bgr", 1.0, "nhwc", "letterbox", 0.0, 0.5
    )


def test_saved_preprocessing_gives_way_to_options(pipeline: Pipeline, tmp_path: Path) -> None:
    saved = Preprocessing(mean=(0.5,), std=(0.25,), layout="nhwc", fit="crop")
    saved.save(tmp_path / "p.json")
    words = ["--preprocessing", str(tmp_path / "p.json"), "--mean", "0.1", "--layout", "auto"]
    assert main(_command(tmp_path, *words)) == 0
    assert pipeline.asked["preprocessing"] == Preprocessing(mean=(0.1,), std=(0.25,), fit="crop")
    (tmp_path / "p.json").write_text("{}}")
    assert main(_command(tmp_path, *words)) == 1


@pytest.mark.parametrize(
    ("word", "value", "meant"),
    [
        ("--budget", "90s", 90),
        ("--budget", "1.5h", 5400),
        ("--budget", "20", 20),
        ("--latency-ms", "8.5", 8.5),
        ("--sparsity", "60%", 0.6),
        ("--sparsity", "0.6", 0.6),
        ("--max-drop", "1%", 0.01),
    ],
)
def test_amounts(pipeline: Pipeline, tmp_path: Path, word: str, value: str, meant: float) -> None:
    assert main(_command(tmp_path, word, value)) == 0
    assert pipeline.asked[word.removeprefix("--").replace("-", "_")] == pytest.approx(meant)


@pytest.mark.parametrize(
    "words",
    [
        ["--target-speedup", "0"],
        ["--target-speedup", "fast"],
        ["--target-speedup", "nan"],
        ["--sparsity", "1.5"],
        ["--sparsity", "-1%"],
        ["--max-drop", "x%"],
        ["--budget", "soon"],
        ["--budget", "0m"],
        ["--seed", "-1"],
        ["--limit", "0"],
        ["--pattern", "2:4"],
        ["--fit", "round"],
        ["--sparsity", "0.5", "--latency-ms", "3"],
    ],
)
def test_wrong_words(pipeline: Pipeline, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(_command(tmp_path, *words))
    assert ended.value.code == 2
    assert not pipeline.asked


def test_data_and_output_are_needed() -> None:
    for words in (["--data", "images"], ["-o", "out"]):
        with pytest.raises(SystemExit) as ended:
            main(["sparsify", "model.onnx", *words])
        assert ended.value.code == 2


def test_it_prints_what_came_of_it(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(tmp_path)) == 0
    captured = capsys.readouterr()
    assert "3.20 times as fast" in captured.out
    assert "first_one" in captured.out
    assert "pixels 0.98" in captured.out
    assert "Dice 0.9 became 0.89" in captured.out
    assert captured.err.splitlines()[0].endswith("s  statistics [x]")
    assert Report.read(tmp_path / "out") == REPORT
    assert main(_command(tmp_path, "--quiet", "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    record = json.loads(captured.out)
    assert record["speedup"] == pytest.approx(3.2)
    assert record["target"]["feasible"] is True


def test_a_target_out_of_reach(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.report = replace(REPORT, target=Target("target_speedup", 9.0, 3.2, False, (("first_one", 0.8),)))
    assert main(_command(tmp_path)) == 3
    out = capsys.readouterr().out
    assert "out of reach" in out
    assert "first_one (80%)" in out


def test_interrupted(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.fault = KeyboardInterrupt()
    assert main(_command(tmp_path)) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].endswith("the same command goes on from there")
    assert lines[-1] == "coresident: interrupted"
    assert main(_command(tmp_path, "--no-resume")) == 130
    assert "the same command without --no-resume" in capsys.readouterr().err


def test_failures(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.fault = InputError("no pictures", file="images")
    assert main(_command(tmp_path, "--quiet")) == 1
    assert capsys.readouterr().err == "coresident: error: no pictures [file images]\n"
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file")
    assert main(_command(tmp_path)) == 1
    assert "can't be made" in capsys.readouterr().err


def test_bars_on_a_terminal(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with console.stages(quiet=False) as progress:
        pipeline.sparsify("m", "d", progress=progress)
        progress.stage("last", 1)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    for text in ("statistics [x]", "unknown", "last"):
        assert f"s  {text}" in shown


def test_a_model_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.onnx"
    assert main(["sparsify", str(missing), "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.endswith(f"coresident: error: no such file [file {missing}]\n")
