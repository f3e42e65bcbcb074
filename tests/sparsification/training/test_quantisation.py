"""Quantisation-aware training: the model as trained, its ONNX in ONNX Runtime and in integer kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'coresident[train]'")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import coresident  # noqa: E402
from coresident.errors import InputError, UnsupportedModel  # noqa: E402
from coresident.sparsification.training.calls import record  # noqa: E402
from coresident.sparsification.training.distillation import divergence  # noqa: E402
from coresident.sparsification.training.placement import plan  # noqa: E402
from coresident.sparsification.training.recipe import Distil, LearningRate, Prune, Quantise, Recipe  # noqa: E402
from coresident.sparsification.training.rounding import Range, round_activation, round_weight  # noqa: E402
from coresident.sparsification.training.sparsifier import ScheduledModifierManager, Sparsifier  # noqa: E402


class Residual(nn.Module):
    """Functional activations, a sum in place, a pool, a concatenation, and a tail that stays in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.rise = nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.relu(self.norm(self.stem(x)))
        y = functional.max_pool2d(skip, 2)
        z = self.norm2(self.conv(y))
        z += y
        y = torch.cat([self.norm3(self.rise(z.relu_())), skip], 1)
        y = functional.adaptive_avg_pool2d(functional.relu6(self.mix(y)), 1)
        return self.head(y.flatten(1)) * 2 + 1


class Segmenter(nn.Module):
    """Of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU())
        self.c = nn.Conv2d(24, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.a(x)
        two = functional.interpolate(self.b(one), scale_factor=2.0)
        return self.c(torch.cat((one, two), 1))


def _trained(
    model: nn.Module,
    shape: tuple[int, ...],
    bits: int = 8,
    skip: tuple[str, ...] = (),
    ranges: str = "minmax",
) -> Sparsifier:
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    recipe = Recipe(
        3,
        (
            Prune(0.5, 0, 1, every=0.25),
            Quantise(1, 2, 2, weight_bits=bits, skip=skip, ranges=ranges),
            Distil(0.5),
            LearningRate(0.01, 0.001, curve="linear"),
        ),
    )
    sparsifier = Sparsifier.attach(model, optimizer, 4, recipe)
    while sparsifier.epoch < 3:
        x = torch.randn(shape)
        outputs = model(x)
        loss = sparsifier.loss(outputs.square().mean(), outputs, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sparsifier


def _agree(sparsifier: Sparsifier, path: Path, shape: tuple[int, ...], axes: dict[int, str]) -> None:
    x = torch.randn(shape)
    model = sparsifier.model.eval()
    with torch.no_grad():
        expected = model(x).numpy()
    dynamic = {"x": axes, "y": axes}
    content = sparsifier.export(
        path, torch.randn(shape)[:1], input_names=["x"], output_names=["y"], dynamic_axes=dynamic
    )
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    peer = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    theirs = peer.run(None, {"x": x.numpy()})[0]
    with coresident.Session(path) as session:
        ours = session.run(None, {"x": x.numpy()})[0]
        steps = session.profile({"x": x.numpy()}, 1)
    spread = float(np.abs(expected).max())
    # A tie that is rounded the other way moves what follows by a unit.
    assert np.abs(ours - theirs).max() <= 0.02 * spread
    assert np.abs(theirs - expected).max() <= 0.05 * spread
    products = [step.info["op"] for step, _ in steps if "macs" in step.info]
    assert products
    if not sparsifier.recipe.of(Quantise)[0].skip:
        assert all("Integer" in op for op in products), products


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_residual_network_is_written_whole(tmp_path: Path, bits: int, ranges: str) -> None:
    sparsifier = _trained(Residual(), (4, 3, 16, 16), bits, ranges=ranges)
    _agree(sparsifier, tmp_path / "model.onnx", (3, 3, 16, 16), {0: "n"})
    weights = [layer.weight for layer in sparsifier.layers if not layer.dense]
    assert all(sum((weight == 0).flatten().tolist()) >= weight.numel() / 2 for weight in weights)


def test_segmenter_of_free_size(tmp_path: Path) -> None:
    sparsifier = _trained(Segmenter(), (2, 1, 16, 16))
    sparsifier.export(tmp_path / "float.onnx", torch.randn(1, 1, 16, 16))
    _agree(sparsifier, tmp_path / "model.onnx", (1, 1, 24, 8), {0: "n", 2: "h", 3: "w"})


def test_layers_left_in_floats(tmp_path: Path) -> None:
    sparsifier = _trained(Residual(), (4, 3, 16, 16), skip=("mix", "re:head"))
    _agree(sparsifier, tmp_path / "model.onnx", (2, 3, 16, 16), {0: "n"})


def test_placement() -> None:
    model = Residual()
    trace = record(model, (torch.randn(2, 3, 16, 16),))
    found = plan(trace)
    kinds = [call.kind for call in trace.calls]
    at = {kind: found.ranges[kinds.index(kind)] for kind in ("pool", "add", "concat", "linear", "norm")}
    assert at["norm"] == (-1,)
    assert at["concat"][0] == at["concat"][1] == at["pool"][0] == at["add"][1], (
        "what only moves shares a range"
    )
    assert at["add"][1] != at["add"][0]
    assert len(found.folded) == 3
    assert not any(plan(trace, quantise=False).quantised)
    assert plan(trace, quantise=False).count == 0


def test_export_of_floats(tmp_path: Path) -> None:
    torch.manual_seed(8)
    model = Residual()
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    with Sparsifier.attach(model, None, 1, Recipe(1, (Prune(0.75, 0, 0),))) as sparsifier:
        sparsifier.export(tmp_path / "m.onnx", x, tail=torch.sigmoid, input_names=["x"])
        expected = model.eval()(x).sigmoid().detach().numpy()
    with coresident.Session(tmp_path / "m.onnx") as session:
        assert np.abs(session.run(None, {"x": x.numpy()})[0] - expected).max() < 1e-5
        shares = {
            s.info["op"]: s.info["sparsity"]
            for s, _ in session.profile({"x": x.numpy()}, 1)
            if "macs" in s.info
        }
    assert max(shares.values()) >= 0.7


def test_exported_before_any_batch(tmp_path: Path) -> None:
    sparsifier = Sparsifier.attach(Residual(), None, 1, Recipe(1, (Quantise(0),)))
    with pytest.raises(InputError, match="train at least one batch"):
        sparsifier.export(tmp_path / "m.onnx", torch.randn(1, 3, 16, 16))
    assert not (tmp_path / "m.onnx").exists()


def test_control_flow_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y) if self.training else y

    model = Odd()
    Sparsifier.attach(model, None, 1, Recipe(1, (Quantise(0),)))
    with pytest.raises(UnsupportedModel, match="always makes the same calls"):
        model(torch.randn(2, 3, 8, 8))


def test_norms_and_ranges_freeze() -> None:
    model = Residual()
    sparsifier = _trained(model, (4, 3, 16, 16))
    kept = [(one.low, one.high) for one in sparsifier._ranges]
    mean = model.norm.running_mean.clone()
    model.train()
    model(torch.randn(4, 3, 16, 16) * 9)
    assert kept == [(one.low, one.high) for one in sparsifier._ranges]
    assert torch.equal(mean, model.norm.running_mean)
    other = Residual()
    resumed = Sparsifier.attach(other, None, 4, sparsifier.recipe)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(sparsifier.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


def test_rounding() -> None:
    torch.manual_seed(9)
    found = Range()
    found.observe(torch.tensor([[0.0, 5.1]]), "minmax")
    found.settle()
    assert found.scale() == (pytest.approx(0.02), 0)
    x = torch.tensor([[-1.0, 0.011, 0.03, 9.0]], requires_grad=True)
    y = round_activation(x, found)
    assert y.tolist()[0] == pytest.approx([0.0, 0.02, 0.04, 5.1], abs=2e-7) or y[0, 2] == pytest.approx(0.02)
    y.sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 0]]
    with pytest.raises(InputError, match="not finite"):
        found.observe(torch.tensor([[float("nan")]]), "minmax")
    weight = torch.randn(5, 8, 3, 3)
    weight[2] = 0
    weight[:, 4:] = 0
    for bits in (7, 8):
        rounded = round_weight(weight, 0, bits)
        assert torch.equal(rounded == 0, (rounded == 0) | (weight == 0))
        assert not rounded[2].any()
        limit = 2 ** (bits - 1) - 1
        assert float((rounded - weight).abs().max()) <= float(weight.abs().max()) / limit / 2 * 1.001


def test_least_error_clips_what_is_rare() -> None:
    torch.manual_seed(10)
    x = torch.randn(1, 100000)
    x[0, 5] = 30.0
    ranges = []
    for method in ("minmax", "mse"):
        found = Range()
        found.observe(x, method)
        found.settle()
        ranges.append(found.high - found.low)
    assert ranges[1] < ranges[0]


@pytest.mark.parametrize("answer", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 6, 7)])
def test_divergence(answer: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(11)
    student, teacher = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    assert float(divergence(teacher, teacher, 2.0, answer)) == pytest.approx(0, abs=1e-6)
    found = float(divergence(student, teacher, 2.0, answer))
    if answer == "softmax":
        p, q = (t.div(2).softmax(1) for t in (teacher, student))
        expected = (p * (p / q).log()).sum(1).mean() * 4
    else:
        p, q = (t.div(2).sigmoid() for t in (teacher, student))
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 4
    assert found == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(InputError, match="differs"):
        divergence(student[:1], teacher, 2.0)


def test_names_of_sparseml() -> None:
    pytest.importorskip("yaml", reason="recipes need PyYAML")
    recipe = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2.5}\n"
    recipe += "  - !SetLearningRateModifier {learning_rate: 0.25, start_epoch: 0}\n"
    manager = ScheduledModifierManager.from_yaml(recipe)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert manager.modify(model, optimizer, 3) is optimizer
    assert manager.max_epochs == 3
    assert optimizer.param_groups[0]["lr"] == 0.25
    manager.finalize(model)
