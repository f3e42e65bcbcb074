"""Steps judged against ceilings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coresident.codegen.peak import Level, Peak
from coresident.measure.layers import layers
from coresident.runtime.program import Step

PEAK = Peak(2, 50e9, (Level("L1", 64 << 10, 400e9), Level("L2", 1 << 20, 200e9), Level("memory", None, 20e9)))


def _step(**info: Any) -> Step:
    return Step("kernel", (), 1, True, info)


def test_levels_hold_what_fits() -> None:
    assert PEAK.total_macs == 100e9
    assert [PEAK.level(size).name for size in (1, 64 << 10, (64 << 10) + 1, 1 << 30)] == [
        "L1",
        "L1",
        "L2",
        "memory",
    ]


@pytest.mark.parametrize(
    ("info", "bound", "seconds"),
    [
        ({"macs": 10**9, "nonzero_macs": 10**8, "bytes": 1000}, "multiply-add peak", 1e-3),
        ({"macs": 10**6, "bytes": 20 * 10**6}, "memory bandwidth", 1e-3),
        ({"bytes": 10**5}, "L2 bandwidth", 5e-7),
        ({"macs": 10**9, "nonzero_macs": 10**8, "bytes": 1000, "shared": 1}, "loads from L1", 1e-3),
        ({"macs": 10**9, "nonzero_macs": 10**8, "bytes": 1000, "shared": 4}, "multiply-add peak", 1e-3),
    ],
)
def test_bounds(info: dict[str, Any], bound: str, seconds: float) -> None:
    (layer,) = layers([(_step(**info), 3e-3)], PEAK)
    assert layer.bound_seconds == pytest.approx(seconds)
    if info.get("shared") != 1:  # there loads and multiply-adds bind alike
        assert layer.bound == bound


def test_rates_and_shares() -> None:
    info = {
        "op": "Conv",
        "nodes": ["c"],
        "shape": [1, 8],
        "macs": 10**9,
        "nonzero_macs": 10**8,
        "sparsity": 0.9,
    }
    found = layers([(_step(**info, pattern="unstructured"), 3e-3), (_step(op="Copy"), 1e-3)], PEAK)
    first, second = found
    assert first.share == pytest.approx(0.75)
    assert first.real_gmacs == pytest.approx(100 / 3)
    assert first.effective_gmacs == pytest.approx(1000 / 3)
    assert first.peak_share == pytest.approx(1 / 3)
    assert any(reason.startswith("slow: takes 3.0 times") for reason in first.why)
    assert second.sparsity is None
    assert second.why == ()
    json.dumps([layer.record() for layer in found], allow_nan=False)


def test_no_time_at_all() -> None:
    assert layers([], PEAK) == []
    (layer,) = layers([(_step(macs=1), 0.0)], PEAK)
    assert layer.share == 0
