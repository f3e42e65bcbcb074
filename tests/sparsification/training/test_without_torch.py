"""Without PyTorch recipes are read all the same, and what needs it says how to get it."""

from __future__ import annotations

import importlib.util
from typing import cast

import pytest

from coresident.cli import main as cli
from coresident.errors import ResourceError
from coresident.graph.graph import Graph
from coresident.sparsification import finishing, training
from coresident.sparsification.project import Project


@pytest.fixture(autouse=True)
def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )


def test_sparsifier_says_what_to_install() -> None:
    with pytest.raises(ResourceError, match=r"pip install 'coresident\[train\]'"):
        _ = training.Sparsifier
    assert training.Recipe.gradual(0.9, 4).epochs == 4


def test_command_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "a.py:f", "--data", "x", "-o", "y"]) == 1
    assert "coresident[train]" in capsys.readouterr().err


def test_most_effort_says_what_to_install() -> None:
    graph = Graph((), (), (), {}, {})
    found, note = finishing.imitating(cast(Project, None), graph, (), 1.0)
    assert found is graph
    assert "pip install 'coresident[train]'" in note
