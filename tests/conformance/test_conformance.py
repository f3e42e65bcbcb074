"""ONNX's own backend tests: some always, all with `-m slow`; `report.py` prints the counts."""

from __future__ import annotations

import pytest
from backend_cases import GROUPS, cases
from report import failure

NOT_VISION = {"ImageDecoder"}
"""Decoding files belongs before the network (`coresident.vision`)."""


def test_operators_as_pytorch_exports_them() -> None:
    found = {case.name: why for case in cases("pytorch-operator") if (why := failure(case))}
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_all(group: str) -> None:
    chosen = cases(group)
    refused = {case.name for case in chosen if case.op in NOT_VISION}
    found = {case.name: why for case in chosen if (why := failure(case))}
    assert found.keys() == refused & {case.name for case in chosen}, found
