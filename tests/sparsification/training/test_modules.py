"""`sparsify` on PyTorch's modules: the network that comes out is the module's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="modules need PyTorch: pip install 'coresident[train]'")
from torch import nn  # noqa: E402

from coresident import Session, sparsify  # noqa: E402
from coresident.errors import InputError, ModelError  # noqa: E402
from coresident.sparsification import allocation  # noqa: E402


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("coresident.sparsification.verification._SECONDS", 0.02)
    monkeypatch.setattr("coresident.sparsification.verification._ROUNDS", 2)


def _module() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).train()


def _pictures() -> Any:
    return np.random.default_rng(0).standard_normal((40, 3, 12, 12)).astype(np.float32)


def _run(model: bytes, pictures: Any) -> Any:
    with Session(model, threads=1, cache=False) as session:
        (name,) = (port.name for port in session.get_inputs())
        return np.concatenate([session.run(None, {name: one[None]})[0] for one in pictures])


def test_a_module_becomes_the_network_that_it_is() -> None:
    module, pictures = _module(), _pictures()
    samples = [{"picture": one[None]} for one in pictures]
    shapes = {"picture": (1, 3, 12, 12)}
    asked = {"sparsity": 0.0, "quantize": "none", "effort": "fast", "threads": 1}
    result = sparsify(module, samples, shapes=shapes, **asked)
    assert module.training, "it is left as it was"
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(_run(result.model, pictures), wanted, rtol=1e-4, atol=1e-5)


def test_a_module_loses_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which forms are faster than dense ones is the machine's to say, and not what is tested here.
    monkeypatch.setattr(allocation, "_pays", lambda *_: True)
    pictures = _pictures()
    result = sparsify(_module(), pictures, sparsity=0.5, pattern="4block", quantize="none", threads=1)
    assert result.report.target.reached == pytest.approx(0.5, abs=0.05)
    assert np.isfinite(_run(result.model, pictures)).all()


def test_what_a_module_takes_has_to_be_known() -> None:
    samples = [{"input": one[None]} for one in _pictures()]
    with pytest.raises(InputError, match="does not say what it takes"):
        sparsify(_module(), samples, sparsity=0.5)
    with pytest.raises((InputError, ModelError), match=r"(?i)export|run"):
        sparsify(_module(), _pictures()[:, :2], sparsity=0.5)
