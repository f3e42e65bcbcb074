"""What may be asked, and the forms that follow from it."""

from __future__ import annotations

from typing import Any

import pytest

from coresident.errors import InputError
from coresident.runtime import cpu
from coresident.sparsification.candidates import families, weight_bits
from coresident.sparsification.settings import Settings


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ({}, ("target_speedup", 2.0)),
        ({"latency_ms": 5}, ("latency_ms", 5.0)),
        ({"sparsity": 0.0}, ("sparsity", 0.0)),
        ({"max_drop": 0.01}, ("max_drop", 0.01)),
    ],
)
def test_target(asked: dict[str, Any], target: tuple[str, float]) -> None:
    assert Settings(**asked).target == target


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"target_speedup": 2, "sparsity": 0.5}, "only one target"),
        ({"target_speedup": 0.5}, "from 1 to"),
        ({"sparsity": 1.0}, "from 0 to 0.99"),
        ({"latency_ms": float("nan")}, "latency_ms is nan"),
        ({"pattern": "2:4"}, "accepted are auto, unstructured, 4block"),
        ({"quantize": "int4"}, "accepted are auto, int8, none"),
        ({"effort": "much"}, "accepted are fast, default, max"),
        ({"threads": 0}, "at least 1"),
        ({"budget": 0.0}, "budget is 0"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("pattern", "quantize", "pairs"),
    [
        ("auto", "auto", [("float32", "unstructured"), ("int8", "4block")]),
        ("auto", "none", [("float32", "unstructured")]),
        ("auto", "int8", [("int8", "4block")]),
        ("4block", "none", [("float32", "4block")]),
        ("unstructured", "int8", [("int8", "unstructured")]),
        ("4block", "auto", [("float32", "4block"), ("int8", "4block")]),
    ],
)
def test_families(pattern: Any, quantize: Any, pairs: list[tuple[str, str]]) -> None:
    found = families(Settings(pattern=pattern, quantize=quantize))
    assert [(family.dtype, family.pattern) for family in found] == pairs
    for family in found:
        assert family.forms[0] == family.dense
        assert list(family.sparsities) == sorted(family.sparsities)
        assert len(families(Settings(effort="fast"))[0].sparsities) < len(family.sparsities)


@pytest.mark.parametrize(
    ("machine", "features", "bits"),
    [
        ("x86_64", {"avx2"}, 7),
        ("x86_64", {"avx2", "avxvnni"}, 8),
        ("x86_64", {"avx512f", "avx512vnni"}, 8),
        ("x86_64", None, 7),
        ("aarch64", {"neon"}, 8),
    ],
)
def test_bits_of_weights(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: set[str] | None, bits: int
) -> None:
    monkeypatch.setattr(cpu, "machine", lambda: machine)
    monkeypatch.setattr(cpu, "features", lambda: features)
    assert weight_bits() == bits
