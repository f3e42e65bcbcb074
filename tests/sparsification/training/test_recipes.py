"""Recipes: both ways of writing them, arithmetic without eval, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from coresident.errors import InputError
from coresident.sparsification.training import (
    Alternate,
    Constant,
    Distil,
    LearningRate,
    Prune,
    Quantise,
    Recipe,
    WeightDecay,
    load,
)
from coresident.sparsification.training.arithmetic import compute
from coresident.sparsification.training.schedule import rate_at, sparse_phase, sparsity_at

pytest.importorskip("yaml", reason="recipes need PyYAML")

OWN = """
epochs: 10
variables: {target: 0.9, begin: eval(epochs - 2.5)}
modifiers:
  - prune: {sparsity: eval(target), start: 0, end: 5, layers: [body.0, 're:.*conv'], skip: body.9}
  - quantise: {start: eval(begin), weight_bits: 7}
  - distil: {share: 0.7, temperature: 2, answer: sigmoid}
  - learning_rate: {first: 0.05, last: 0.0005, curve: cosine}
"""

SPARSEML = """---
num_epochs: 20
start: 1
lr: eval(0.1 / 2)
pruning_modifiers:
  - !GMPruningModifier
    params: ['re:.*conv', 'head.weight']
    init_sparsity: 0.05
    final_sparsity: 0.85
    start_epoch: eval(start)
    end_epoch: eval(num_epochs * 0.5)
    update_frequency: 0.5
    mask_type: [1, 4]
    inter_func: cubic
  - !GMPruningModifier {params: __ALL__, final_sparsity: {0.8: ['a', 'b'], 0.6: 'c'}, start_epoch: 0.0,
                        end_epoch: 2.0}
  - !ConstantPruningModifier {start_epoch: 0.0, params: __ALL_PRUNABLE__}
  - !ACDCPruningModifier {compression_sparsity: 0.9, start_epoch: 2, end_epoch: 15, update_frequency: 3,
                          params: __ALL__, mask_type: block4}
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(num_epochs)}
  - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: eval(lr)}
  - !LearningRateFunctionModifier {start_epoch: 10, end_epoch: 20, lr_func: cosine, init_lr: 0.05,
                                   final_lr: 0}
  - !SetWeightDecayModifier {start_epoch: 15, weight_decay: 0}
  - !QuantizationModifier {start_epoch: 18, disable_quantization_observer_epoch: 19,
                           freeze_bn_stats_epoch: 19.5}
  - !DistillationModifier {hardness: 0.5, temperature: 4.0}
---
# Why this recipe
"""


def test_own_names() -> None:
    recipe = load(OWN)
    assert recipe.epochs == 10
    assert recipe.modifiers == (
        Prune(0.9, 0, 5, layers=("body.0", "re:.*conv"), skip=("body.9",)),
        Quantise(7.5, weight_bits=7),
        Distil(0.7, 2, "sigmoid"),
        LearningRate(0.05, 0.0005, curve="cosine"),
    )


def test_names_of_sparseml(tmp_path: Path) -> None:
    file = tmp_path / "recipe.md"
    file.write_text(SPARSEML)
    recipe = load(file)
    assert recipe.epochs == 20
    assert recipe.modifiers == (
        Prune(0.85, 1, 10, 0.05, 0.5, "4block", ("re:.*conv", "head.weight")),
        Prune({"a": 0.8, "b": 0.8, "c": 0.6}, 0, 2, pattern="unstructured", layers=("__ALL__",)),
        Constant(0.0, ("__ALL_PRUNABLE__",)),
        Alternate(0.9, 2, 15, 3, "4block", ("__ALL__",), together=True),
        LearningRate(0.05),
        LearningRate(0.05, 0, 10, 20, "cosine"),
        WeightDecay(0, 15),
        Quantise(18, 19, 19.5),
        Distil(0.5, 4.0),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modifiers:\n  - prune: {sparsity: 0.9}\n", "epochs"),
        ("epochs: 3\nmodifiers:\n  - shrink: {}\n", "no modifier is called 'shrink'; accepted: prune"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: 0.9, colour: 1}\n", "no field 'colour'; accepted"),
        ("epochs: 3\nmodifiers:\n  - prune: {end: 1}\n", "prune needs sparsity"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: 1.5}\n", "sparsity is 1.5"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: 0.5, pattern: 2:4}\n", "pattern"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: 0.5, start: 2, end: 1}\n", "before it starts"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: eval(missing)}\n", "no variable is called 'missing'"),
        ("epochs: 3\nmodifiers:\n  - prune: {sparsity: 0.5, layers: 3}\n", "names are accepted"),
        ("epochs: 3\nmodifiers:\n  - !NoSuchModifier {a: 1}\n", "accepted: GMPruningModifier"),
        ("epochs: 3\nmodifiers:\n  - !GMPruningModifier {a: 1}\n", "no field 'a'; accepted: params"),
        ("epochs: 3\nmodifiers:\n  - !GMPruningModifier {params: __ALL__}\n", "needs final_sparsity"),
        (
            "epochs: 3\nmodifiers:\n  - !GMPruningModifier "
            "{final_sparsity: .5, start_epoch: 0, mask_type: odd}\n",
            "mask_type",
        ),
        ("epochs: 3\nmodifiers: 4\n", "not a list"),
        ("epochs: 3\n", "without `modifiers`"),
        ("a: [\n", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("- 1\n- 2\n", "a recipe is a mapping"),
        ("a: eval(b)\nb: eval(a)\nmodifiers: []\n", "need one another"),
        ("epochs: 3\nmodifiers:\n  - quantise: {}\n  - quantise: {}\n", "more than one"),
        ("epochs: 0\nmodifiers: []\n", "0"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load(text)
    assert says in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe"):
        load(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1 + 2 * 3", 7), ("-x / 4", -0.5), ("max(x, 7) // 2", 3), ("round(2.6) % 2", 1), ("int(x)", 2)],
)
def test_arithmetic(text: str, value: float) -> None:
    assert compute(text, {"x": 2}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('ls')",
        "(1).__class__",
        "[1 for _ in range(9)]",
        "2 ** 2 ** 9",
        "'a' * 9",
        "1 / 0",
        "f(1)",
        "x if 1 else 2",
        "",
        "(" * 300,
        "1 +" * 200,
        "min()",
        "max(1, key=2)",
    ],
)
def test_arithmetic_refuses(text: str) -> None:
    with pytest.raises(InputError):
        compute(text, {"x": 2})


def test_cubic_schedule() -> None:
    prune = Prune(0.9, 2, 6, 0.1)
    assert sparsity_at(prune, 0.9, 2) == pytest.approx(0.1)
    assert sparsity_at(prune, 0.9, 4) == pytest.approx(0.9 - 0.8 / 8)
    assert sparsity_at(prune, 0.9, 6) == sparsity_at(prune, 0.9, 99) == 0.9
    assert sparsity_at(Prune(0.9, 2, 6, 0.1, curve="linear"), 0.9, 4) == pytest.approx(0.5)


def test_alternating_phases() -> None:
    phases = Alternate(0.9, 1, 6, 1)
    assert [sparse_phase(phases, epoch + 0.5) for epoch in range(8)] == [
        *(False, True, False, True, False, True, True, True)
    ]


def test_learning_rates() -> None:
    assert rate_at(LearningRate(0.1), 3, 10) == 0.1
    assert rate_at(LearningRate(0.1, 0.0, curve="cosine"), 5, 10) == pytest.approx(0.05)
    assert rate_at(LearningRate(0.1, 0.3, 2, 4, "linear"), 3, 10) == pytest.approx(0.2)


def test_usual_recipe() -> None:
    recipe = Recipe.gradual(0.9, 8, weight_bits=7, rate=0.1)
    assert [type(modifier) for modifier in recipe.modifiers] == [Prune, Quantise, Distil, LearningRate]
    assert Recipe.gradual(0.0, 8, quantise=False, distil=0.0).modifiers == ()
