"""Masks: which layers, which blocks, and that zeros survive whatever optimisers do."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'coresident[train]'")

from torch import nn  # noqa: E402

from coresident.errors import InputError  # noqa: E402
from coresident.sparsification.training.masks import (  # noqa: E402
    Layer,
    blocks,
    by_magnitude,
    choose,
    find_layers,
    sparsity_of,
)
from coresident.sparsification.training.recipe import Alternate, Constant, Prune, Recipe  # noqa: E402
from coresident.sparsification.training.sparsifier import Sparsifier  # noqa: E402


class Shared(nn.Module):
    """A residual network that calls one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.conv = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.again = self.conv
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.rise = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.last = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = x + self.again(self.conv(x)).relu()
        return self.last(self.rise(self.depthwise(x)).mean((2, 3)))


def test_layers_that_stay_dense() -> None:
    layers = {layer.name: layer for layer in find_layers(Shared())}
    assert list(layers) == ["first.weight", "conv.weight", "depthwise.weight", "rise.weight", "last.weight"]
    assert [layer.dense for layer in layers.values()] == ["first layer", "", "depthwise", "", "last layer"]
    assert layers["rise.weight"].transposed


def test_choosing_by_name() -> None:
    layers = find_layers(Shared())

    def names(*patterns: str, skip: tuple[str, ...] = ()) -> list[str]:
        return [layer.name.removesuffix(".weight") for layer in choose(layers, patterns, skip)]

    assert names("__ALL_PRUNABLE__") == ["conv", "rise"]
    assert names("__ALL__", skip=("first", "re:.*wise")) == ["conv", "rise", "last"]
    assert names("last.weight", "re:co") == ["conv", "last"]
    for pattern in ("missing", "re:missing", "re:("):
        with pytest.raises(InputError, match=r"missing|expression"):
            names(pattern)
    with pytest.raises(InputError, match="skipped"):
        names("__ALL__", skip=("missing",))


@pytest.mark.parametrize("shape", [(5, 8, 3, 3), (3, 7, 1, 1), (4, 9), (2, 3, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_are_consecutive_input_channels(shape: tuple[int, ...], transposed: bool) -> None:
    numbers = blocks(Layer("w", nn.Parameter(torch.zeros(shape)), transposed))
    axis = 0 if transposed else 1
    moved = numbers.movedim(axis, -1).reshape(-1, shape[axis])
    seen: set[int] = set()
    for row in moved.tolist():
        parts = [row[start : start + 4] for start in range(0, len(row), 4)]
        assert all(len(set(part)) == 1 for part in parts)
        new = {part[0] for part in parts}
        assert len(new) == len(parts)
        assert not new & seen
        seen |= new
    assert seen == set(range(len(seen)))


def test_the_least_are_dropped() -> None:
    """Against trying all choices of blocks."""
    torch.manual_seed(1)
    layer = Layer("w", nn.Parameter(torch.randn(2, 8, 1, 2), requires_grad=False))
    numbers = blocks(layer)
    mask = by_magnitude([layer], {"w": 0.5}, "4block")["w"]
    kept = float((layer.weight * mask).square().sum())
    best = max(
        float((layer.weight * torch.isin(numbers, torch.tensor(alive))).square().sum())
        for alive in itertools.combinations(range(8), 4)
    )
    assert kept == pytest.approx(best)
    plain = by_magnitude([layer], {"w": 0.5}, "unstructured")["w"]
    assert layer.weight[plain].abs().min() >= layer.weight[~plain].abs().max()


def test_ranked_together() -> None:
    small = Layer("a", nn.Parameter(torch.full((4, 4), 0.1)))
    large = Layer("b", nn.Parameter(torch.full((4, 4), 1.0)))
    masks = by_magnitude([small, large], {"a": 0.5, "b": 0.5}, "unstructured", together=True)
    assert not masks["a"].any()
    assert masks["b"].all()
    assert by_magnitude([], {}, "4block", together=True) == {}


def _loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = model(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["unstructured", "4block"])
def test_zeros_stay(name: str, pattern: str) -> None:
    torch.manual_seed(2)
    model = Shared()
    groups = [{"params": [model.conv.weight]}, {"params": [p for p in model.parameters() if p.ndim != 4]}]
    groups.append({"params": [p for p in model.parameters() if p.ndim == 4 and p is not model.conv.weight]})
    optimizer = OPTIMIZERS[name](groups)
    recipe = Recipe(4, (Prune(0.75, 0, 2, every=0.25, pattern=pattern),))
    with Sparsifier.attach(model, optimizer, 4, recipe) as sparsifier:
        _loop(model, optimizer, 8)
        zeros = model.conv.weight == 0
        assert sparsifier.sparsity()["conv.weight"] >= 0.75
        assert sparsifier.sparsity()["first.weight"] == 0
        _loop(model, optimizer, 4)
        assert torch.equal(zeros, model.conv.weight == 0)
        for value in optimizer.state[model.conv.weight].values():
            if value.shape == zeros.shape:
                assert not value[zeros].any()
        number = blocks(next(layer for layer in sparsifier.layers if layer.name == "conv.weight"))
        if pattern == "4block":
            assert not set(number[zeros].tolist()) & set(number[~zeros].tolist())
    _loop(model, optimizer, 1)
    assert sparsity_of(model.conv.weight) < 0.75, "hooks are off after the context"


def test_resumed_as_if_never_stopped() -> None:
    recipe = Recipe(4, (Prune(0.75, 0, 2, every=0.25),))

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
        torch.manual_seed(3)
        model = Shared()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, Sparsifier.attach(model, optimizer, 4, recipe)

    one, optimizer, sparsifier = start()
    _loop(one, optimizer, 6)
    states = [model.state_dict() for model in (one, optimizer, sparsifier)]
    states = torch.load(_saved(states), weights_only=True)
    generator = torch.get_rng_state()
    _loop(one, optimizer, 4)
    two, other, resumed = start()
    for target, state in zip((two, other, resumed), states):
        target.load_state_dict(state)
    torch.set_rng_state(generator)
    _loop(two, other, 4)
    assert resumed.epoch == sparsifier.epoch == 2.5
    for mine, theirs in zip(one.parameters(), two.parameters()):
        assert torch.equal(mine, theirs)
    with pytest.raises(InputError, match="version"):
        resumed.load_state_dict({"version": 99})


def _saved(value: object) -> object:
    import io

    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def test_given_zeros_stay() -> None:
    torch.manual_seed(4)
    model = Shared()
    with torch.no_grad():
        model.conv.weight[:, ::2] = 0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with Sparsifier.attach(model, optimizer, 1, Recipe(2, (Constant(),))):
        _loop(model, optimizer, 2)
    assert not model.conv.weight[:, ::2].any()
    assert model.conv.weight[:, 1::2].all()


def test_alternating_phases_revive() -> None:
    torch.manual_seed(5)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = Recipe(6, (Alternate(0.75, 1, 5, 1),))
    shares = []
    with Sparsifier.attach(model, optimizer, 2, recipe) as sparsifier:
        for _ in range(6):
            _loop(model, optimizer, 1)
            shares.append(sparsifier.sparsity()["conv.weight"] >= 0.75)
            _loop(model, optimizer, 1)
    assert shares == [False, True, False, True, False, True]


def test_schedule_by_hand_and_mixed_precision() -> None:
    torch.manual_seed(6)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier.attach(model, None, 2, Recipe(2, (Prune(0.5, 0, 1, 0.0),)))
    assert sparsifier.sparsity()["conv.weight"] == 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 8, 8)).square().mean()
    loss.backward()
    optimizer.step()
    sparsifier.set_epoch(1)
    assert sparsifier.sparsity()["conv.weight"] == 0.5
    sparsifier.step()
    assert sparsifier.epoch == 1.5
    sparsifier.finalize()
