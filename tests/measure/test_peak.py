"""The kernels that measure a machine."""

from __future__ import annotations

import re

import pytest

from coresident.codegen import llvm, peak
from coresident.codegen.target import NAMED
from coresident.compiler import host_target


@pytest.mark.parametrize("name", NAMED)
def test_kernels_are_what_they_measure(name: str) -> None:
    target = NAMED[name]
    adds = llvm.assembly(llvm.module_text([peak.multiply_adds(target)]), target)
    assert len(re.findall(r"\b(?:vfn?madd\w+|fmla)\b", adds)) == 12
    loads = llvm.assembly(llvm.module_text([peak.loads(target)]), target)
    assert len(re.findall(r"\b(?:vaddps|fadd)\b.*", loads)) >= 8


def test_threads_of_this_machine() -> None:
    found = peak.measure_team(host_target(), 2)
    assert 1e8 < found.macs < 1e12
    assert 0 <= found.line < 1e-5


def test_this_machine() -> None:
    found = peak.measure(host_target(), 1)
    assert 1e9 < found.macs < 1e12
    assert [level.name for level in found.levels][:2] == ["L1", "L2"]
    assert found.levels[-1].capacity is None
    assert all(1e8 < level.bandwidth < 1e13 for level in found.levels)
