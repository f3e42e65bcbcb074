"""`coresident finetune`: folders of pictures in, an ONNX model that is sparse and in bytes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'coresident[train]'")

from coresident import Session  # noqa: E402
from coresident.cli import main as cli  # noqa: E402
from coresident.errors import InputError, ModelError, UnsupportedModel  # noqa: E402
from coresident.sparsification.training.sources import load_model  # noqa: E402

NETWORKS = """
import torch
from torch import nn

def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def segmenter():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 1, 1))

def number():
    return 3

def fails():
    raise ValueError("no such thing")
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    file = tmp_path / "networks.py"
    file.write_text(NETWORKS)
    return file


def _classes(folder: Path) -> Path:
    """Red pictures and blue ones."""
    rng = np.random.default_rng(0)
    for kind, channel in (("blue", 2), ("red", 0)):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            picture = rng.integers(0, 80, (12, 12, 3), dtype=np.uint8)
            picture[..., channel] += 150
            Image.fromarray(picture).save(folder / kind / f"{number}.png")
    return folder


def _finetune(networks: Path, function: str, data: Path, out: Path, *more: str) -> int:
    return cli.main(
        [
            *("--quiet", "finetune", f"{networks}:{function}", "--data", str(data), "-o", str(out)),
            *("--threads", "1", "--epochs", "4", "--batch", "8", "--learning-rate", "0.05", *more),
        ]
    )


def test_classes_of_folders(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = _classes(tmp_path / "data"), tmp_path / "out"
    assert _finetune(networks, "classifier", data, out, "--sparsity", "50%") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == "classification"
    assert report["result"]["accuracy"] >= 0.9
    assert report["sparsity"]["3.weight"] >= 0.5
    assert report["sparsity"]["0.weight"] == 0
    assert len(report["epochs"]) == 4
    assert (out / "preprocessing.json").exists()
    assert "accuracy" in capsys.readouterr().out
    picture = np.zeros((3, 3, 12, 12), np.float32)
    picture[:, 0] = 0.9
    with Session(out / "model.onnx") as session:
        assert session.run(None, {"image": picture})[0].argmax(1).tolist() == [1, 1, 1]
    # The same command finds all done, and writes the same again.
    content = (out / "model.onnx").read_bytes()
    assert _finetune(networks, "classifier", data, out, "--sparsity", "50%") == 0
    assert (out / "model.onnx").read_bytes() == content


def test_interrupted_and_resumed(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from coresident.sparsification.training import finetuning

    data = _classes(tmp_path / "data")
    assert _finetune(networks, "classifier", data, tmp_path / "whole") == 0
    judge, calls = finetuning.judge, []

    def interrupted(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judge(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "judge", interrupted)
        assert _finetune(networks, "classifier", data, tmp_path / "parts") == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "model.onnx").exists()
    assert _finetune(networks, "classifier", data, tmp_path / "parts") == 0
    files = [(tmp_path / folder / "model.onnx").read_bytes() for folder in ("whole", "parts")]
    assert files[0] == files[1]


def test_masks_of_pictures(networks: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data, masks = tmp_path / "images", tmp_path / "masks"
    data.mkdir()
    masks.mkdir()
    for number in range(20):
        mask = np.zeros((16, 24), np.uint8)
        mask[4:12, 5 : 15 + number // 4] = 1
        picture = (mask * 150 + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(picture).save(data / f"{number}.png")
        Image.fromarray(mask).save(masks / f"{number}.png")
    out = tmp_path / "out"
    options = ("--labels", str(masks), "--sparsity", "0.5", "--weight-bits", "7", "--held-out", "0.3")
    longer = ("--epochs", "30", "--batch", "2", "--json")
    assert _finetune(networks, "segmenter", data, out, *options, *longer) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == "segmentation"
    assert report["result"]["dice"] >= 0.9
    with Session(out / "model.onnx") as session:
        assert session.run(None, {"image": np.zeros((1, 1, 8, 40), np.float32)})[0].shape == (1, 1, 8, 40)


def test_recipe_and_arrays(networks: Path, tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="recipes need PyYAML")
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 40)
    images = rng.random((40, 3, 8, 8), np.float32) * 0.3
    images[np.arange(40), np.where(labels, 0, 2)] += 0.6
    np.savez(tmp_path / "data.npz", image=images, labels=labels)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 2\nmodifiers:\n  - prune: {sparsity: 0.6, pattern: unstructured}\n")
    out = tmp_path / "out"
    assert _finetune(networks, "classifier", tmp_path / "data.npz", out, "--recipe", str(recipe)) == 0
    report = json.loads((out / "report.json").read_text())
    assert not report["quantised"]
    assert report["sparsity"]["3.weight"] == pytest.approx(0.6, abs=0.01)


def test_unlabelled(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((40, 3, 8, 8), np.float32))
    assert _finetune(networks, "classifier", tmp_path / "x.npy", tmp_path / "out") == 1
    assert "training needs labels" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own code
def test_exported_program(tmp_path: Path, networks: Path) -> None:
    model = load_model(f"{networks}:classifier").eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.zeros(2, 3, 12, 12),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    out = tmp_path / "out"
    arguments = [
        "--quiet",
        "finetune",
        str(tmp_path / "model.pt2"),
        "--data",
        str(_classes(tmp_path / "data")),
    ]
    assert cli.main([*arguments, "-o", str(out), "--epochs", "2", "--batch", "8", "--threads", "1"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert sorted(share >= 0.85 for share in report["sparsity"].values()) == [False, False, True]


def test_models_that_are_refused(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "model.pt2").write_bytes(b"no")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for source, kind, says in (
        (f"{networks}:missing", InputError, "no function 'missing'"),
        (f"{networks}:number", InputError, "returned int"),
        (f"{networks}:fails", ModelError, "no such thing"),
        (f"{tmp_path / 'no.py'}:f", InputError, "no such file"),
        (str(tmp_path / "model.onnx"), UnsupportedModel, "FILE.py:FUNCTION"),
        (str(tmp_path / "model.pt"), UnsupportedModel, "TorchScript"),
        (str(tmp_path / "model.pt2"), ModelError, "torch.export"),
        (str(tmp_path / "none.pt2"), InputError, "no such file"),
    ):
        with pytest.raises(kind, match=says):
            load_model(source)
    with pytest.raises(InputError, match="another model"):
        load_model(f"{networks}:classifier", tmp_path / "other.pth")
