"""ONNX's own backend tests: some always, all with `-m slow`; `report.py` prints the counts."""

from __future__ import annotations

import pytest
from backend_cases import GROUPS, cases
from report import failure

RANDOM = {f"test_training_dropout{which}" for which in ("", "_default", "_mask", "_default_mask")}
"""These want the random numbers that numpy draws from a seed."""
NOT_VISION = {"ImageDecoder"}
"""Decoding files belongs before the network (`coresident.vision`)."""
COMPUTED = {"test_convinteger_with_padding", "test_convinteger_without_padding", "test_matmulinteger"}
"""Weights and zero points of bytes that are both computed while the network runs."""


def test_operators_as_pytorch_exports_them() -> None:
    found = {case.name: why for case in cases("pytorch-operator") if (why := failure(case))}
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_all(group: str) -> None:
    chosen = cases(group)
    refused = {case.name for case in chosen if case.op in NOT_VISION} | RANDOM | COMPUTED
    found = {case.name: why for case in chosen if (why := failure(case))}
    assert found.keys() == refused & {case.name for case in chosen}, found
