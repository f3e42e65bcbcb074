"""`coresident run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coresident import Session
from coresident.cli.main import main
from coresident.vision import images


def _expected(model: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with Session(model, threads=1) as session:
        return session.run(None, {"x": x})[0]


def _fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a call that must end with 1 and one line on standard error, and print nothing else."""
    assert main(["run", "--threads", "1", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("coresident: error: ")
    return captured.err


def test_array_in_arrays_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    expected = _expected(model, x)
    for source in ("x.npy", "x.npz"):
        for out in ("y.npy", "y.npz"):
            assert (
                main(["run", "--threads=1", str(model), str(tmp_path / source), "-o", str(tmp_path / out)])
                == 0
            )
        assert np.array_equal(np.load(tmp_path / "y.npy"), expected)
        with np.load(tmp_path / "y.npz") as archive:
            assert np.array_equal(archive["y"], expected)
    captured = capsys.readouterr()
    assert "1x1x16x16" in captured.out
    assert captured.err == ""


def test_picture_in_picture_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    out = tmp_path / "b.png"
    arguments = ["--mean", "0.5,0.4,0.3", "--std", "0.2", "-o", str(out)]
    assert main(["run", "--threads", "1", str(model), str(tmp_path / "a.png"), *arguments]) == 0
    assert "0..1 scaled to 0..255" in capsys.readouterr().out
    levels = (picture.astype(np.float32) / 255 - np.array([0.5, 0.4, 0.3], np.float32)) / np.float32(0.2)
    expected = _expected(model, np.ascontiguousarray(levels.transpose(2, 0, 1)[None]))[0, 0] * 255
    assert np.abs(images.read_picture(out).astype(float) - expected).max() <= 0.51


def test_free_sizes_take_pictures_as_they_are(free_model: Path, tmp_path: Path) -> None:
    Image.new("L", (13, 9), 100).save(tmp_path / "a.bmp")
    assert main(["run", str(free_model), str(tmp_path / "a.bmp"), "-o", str(tmp_path / "y.npy")]) == 0
    assert np.load(tmp_path / "y.npy").shape == (1, 1, 9, 13)
    resized = ["--size", "8x12", "-o", str(tmp_path / "y.npy")]
    assert main(["run", str(free_model), str(tmp_path / "a.bmp"), *resized]) == 0
    assert np.load(tmp_path / "y.npy").shape == (1, 1, 8, 12)


def test_json_stands_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 3, 16, 16), np.nan, np.float32))
    assert main(["run", "--json", str(model), str(tmp_path / "x.npy")]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert captured.err == ""
    assert record["done"][0]["outputs"][0]["shape"] == [1, 1, 16, 16]
    assert record["failed"] == []


def test_folder_with_a_broken_picture(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("not an input")
    np.save(folder / "wrong.npy", np.zeros((3, 3), np.float32))
    out = tmp_path / "out"
    assert main(["run", str(model), str(folder), "-o", str(out), "--format", "png"]) == 3
    captured = capsys.readouterr()
    assert "2 of 4 inputs" in captured.out
    skipped = captured.err.splitlines()
    assert [line.startswith("skipped ") for line in skipped] == [True, True]
    assert "b.png" in skipped[0]
    assert "wrong.npy" in skipped[1]
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png"]
    assert main(["run", "--json", "--quiet", str(model), str(folder)]) == 3
    record = json.loads(capsys.readouterr().out)
    assert len(record["done"]) == len(record["failed"]) == 2
    assert main(["run", str(model), str(folder / "b.png"), str(folder / "wrong.npy")]) == 1


def test_results_of_inputs_with_one_stem_do_not_meet(model: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    out = tmp_path / "out"
    assert main(["run", str(model), str(tmp_path / "a.png"), str(tmp_path / "a.bmp"), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.bmp.npz", "a.png.npz"]


def test_several_inputs_and_outputs(
    two_inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "ab.npz", a=a, b=a)
    np.savez(tmp_path / "a.npz", a=a)
    np.save(tmp_path / "a.npy", a)
    run = ["run", str(two_inputs), str(tmp_path / "ab.npz"), "-o", str(tmp_path / "y.npy")]
    assert main([*run, "--output-name", "d"]) == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), np.maximum(2 * a, 0))
    capsys.readouterr()
    assert ".npz" in _fails(capsys, two_inputs, tmp_path / "ab.npz", "-o", tmp_path / "z.npy")
    assert "--output-name" in _fails(capsys, two_inputs, tmp_path / "ab.npz", "-o", tmp_path / "z.png")
    assert "'b'" in _fails(capsys, two_inputs, tmp_path / "a.npz")
    assert "2 inputs" in _fails(capsys, two_inputs, tmp_path / "a.npy")
    assert "'e'" in _fails(capsys, two_inputs, tmp_path / "ab.npz", "--output-name", "e")
    assert not (tmp_path / "z.npy").exists()
    assert not (tmp_path / "z.png").exists()


def test_wrong_inputs_are_told_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    np.save(tmp_path / "small.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((1, 3, 16, 16)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("not a model\nat all")
    x = tmp_path / "x.npy"
    assert "missing.onnx" in _fails(capsys, tmp_path / "missing.onnx", x)
    assert "text.onnx" in _fails(capsys, tmp_path / "text.onnx", x)
    assert "missing.npy" in _fails(capsys, model, tmp_path / "missing.npy")
    assert "small.npy" in _fails(capsys, model, tmp_path / "small.npy")
    assert "double.npy" in _fails(capsys, model, tmp_path / "double.npy")
    assert "empty" in _fails(capsys, model, tmp_path / "empty")
    assert ".npz" in _fails(capsys, model, x, "-o", tmp_path / "y.txt")
    assert "does not exist" in _fails(capsys, model, x, "-o", tmp_path / "nowhere" / "y.npy")
    assert "folder" in _fails(capsys, model, x, x, "-o", tmp_path / "y.npy")
    assert "--out" in _fails(capsys, model, x, "--format", "npz")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "m", "i", "--threads", "0"],
        ["run", "m", "i", "--size", "0x4"],
        ["run", "m", "i", "--mean", "a"],
        ["benchmark", "m", "--against", "abacus"],
        ["benchmark", "m", "--shape", "x"],
        ["benchmark", "m", "--seconds", "nan"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    captured = capsys.readouterr().out
    assert "coresident 0." in captured
    assert "exit codes:" in captured


def test_interrupt(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "__init__", interrupt)
    assert main(["run", str(model), "x.npy"]) == 130
    assert capsys.readouterr().err == "coresident: interrupted\n"
