"""What the system says of the CPU, from files made here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coresident.codegen import llvm
from coresident.runtime import cpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(cores: list[tuple[int, int]]) -> dict[str, str]:
    """CPU i is a thread of (package, core) number i."""
    place = "sys/devices/system/cpu/cpu{}/topology/{}"
    files = {}
    for i, (package, core) in enumerate(cores):
        files |= {place.format(i, "physical_package_id"): str(package), place.format(i, "core_id"): str(core)}
    return files


@pytest.mark.parametrize(
    ("cores", "mask", "count"),
    [
        ([(0, 0), (0, 1), (0, 2), (0, 3)], [0, 1, 2, 3], 4),
        ([(0, 0), (0, 1), (0, 0), (0, 1)], [0, 1, 2, 3], 2),
        ([(0, 0), (0, 1), (0, 0), (0, 1)], [0, 2], 1),
        ([(0, 0), (1, 0), (0, 0), (1, 0)], [0, 1, 3], 2),
        ([(0, 0)], [0, 1], 2),  # a CPU without topology: all count
    ],
)
def test_hyperthreads_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: list[tuple[int, int]], mask: list[int], count: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(mask))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    found = cpu.usable_cores(write(tmp_path, topology(cores)))
    assert (found.count, found.affinity, found.logical, found.quota) == (count, len(mask), 4, None)
    assert any("affinity" in reason for reason in found.reasons) == (len(mask) < 4)
    assert any("hyperthreads" in reason for reason in found.reasons) == (count < len(mask))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "x y z"}, None),
        ({}, None),
    ],
)
def test_the_control_groups_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu.cgroup_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "count"), [("50000", 1), ("100000", 1), ("250000", 2), ("900000", 4)])
def test_a_quota_is_rounded_down_to_at_least_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, count: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    files = topology([(0, i) for i in range(4)])
    files |= {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{quota} 100000"}
    found = cpu.usable_cores(write(tmp_path, files))
    assert found.count == count
    assert any("control group" in reason for reason in found.reasons) == (count < 4)


def test_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    levels = [
        ("1", "Data", "48K"),
        ("1", "Instruction", "32K"),
        ("2", "Unified", "2048K"),
        ("3", "Unified", "1G"),
    ]
    files = {
        f"sys/devices/system/cpu/cpu3/cache/index{i}/{name}": value
        for i, level in enumerate(levels)
        for name, value in zip(("level", "type", "size"), level)
    }
    assert cpu.caches(write(tmp_path, files)) == cpu.Caches(48 << 10, 2 << 20, 1 << 30)
    assert cpu.caches(tmp_path / "nowhere") == cpu.Caches(0, 0, 0)


def test_this_machine_is_seen_as_llvm_sees_it() -> None:
    found = cpu.features()
    assert found is not None
    _, _, theirs = llvm.host()
    known = set(cpu.FEATURES[cpu.machine()].values())
    assert found == theirs & known
    assert cpu.lacking([*found, "a feature that nobody knows"], found) == []
    assert cpu.lacking(known, found) == sorted(known - found)
    assert cpu.host_key() == cpu.host_key()
    assert cpu.usable_cores().count >= 1


def test_systems_that_tell_nothing(tmp_path: Path) -> None:
    assert cpu.features(tmp_path) is None
    assert cpu.model_name(tmp_path)
