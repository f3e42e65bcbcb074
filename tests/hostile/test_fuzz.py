"""Mutated files end in typed errors or success: few here, 100,000 with `python -m pytest -m fuzz`."""

from __future__ import annotations

import pytest
from fuzz import fuzz

FEW = {"model": 120, "artifact": 180, "image": 200}
MANY = {"model": 40_000, "artifact": 30_000, "image": 30_000}


@pytest.mark.parametrize("kind", FEW)
def test_a_few_mutated_files(kind: str) -> None:
    findings = fuzz(kind, 0, FEW[kind])
    assert not findings.problems, str(findings)
    assert sum(findings.outcomes.values()) == FEW[kind]
    assert f"{kind}: well" in findings.outcomes, "every case is refused: the mutations are too rough"


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", MANY)
def test_many_mutated_files(kind: str) -> None:
    findings = fuzz(kind, 1_000_000, MANY[kind])
    assert not findings.problems, str(findings)
