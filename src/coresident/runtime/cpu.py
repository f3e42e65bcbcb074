"""What the CPU is and how much of it this process may use, read from the system."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")

FEATURES = {
    "x86_64": {
        **{
            name: name
            for name in ("avx", "avx2", "fma", "f16c", "movbe", "popcnt", "sse", "sse2", "ssse3", "sse4a")
        },
        **{name: name for name in ("mmx", "fxsr", "aes", "vaes", "adx", "xsave", "xsaveopt", "gfni")},
        **{name: name for name in ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")},
        "pni": "sse3",
        "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
        "bmi1": "bmi",
        "bmi2": "bmi2",
        "abm": "lzcnt",
        "cx8": "cx8",
        "cx16": "cx16",
        "cmov": "cmov",
        "lahf_lm": "sahf",
        "pclmulqdq": "pclmul",
        "vpclmulqdq": "vpclmulqdq",
        "sha_ni": "sha",
        "avx_vnni": "avxvnni",
        "avx512ifma": "avx512ifma",
        "avx512vbmi": "avx512vbmi",
        "avx512_vbmi2": "avx512vbmi2",
        "avx512_vnni": "avx512vnni",
        "avx512_bitalg": "avx512bitalg",
        "avx512_vpopcntdq": "avx512vpopcntdq",
        "avx512_bf16": "avx512bf16",
        "avx512_fp16": "avx512fp16",
        "amx_tile": "amx-tile",
        "amx_int8": "amx-int8",
        "amx_bf16": "amx-bf16",
    },
    "aarch64": {
        "asimd": "neon",
        "fp": "fp-armv8",
        "asimdhp": "fullfp16",
        "asimddp": "dotprod",
        "asimdrdm": "rdm",
        "atomics": "lse",
        "crc32": "crc",
        "aes": "aes",
        "sha2": "sha2",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
    },
}
"""Linux's name of a CPU feature -> LLVM's, by architecture: the features that `features` can find."""

_APPLE_FEATURES = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.floatingpoint": "fp-armv8",
    "hw.optional.arm.FEAT_FP16": "fullfp16",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_RDM": "rdm",
    "hw.optional.arm.FEAT_LSE": "lse",
    "hw.optional.armv8_crc32": "crc",
    "hw.optional.arm.FEAT_AES": "aes",
    "hw.optional.arm.FEAT_SHA256": "sha2",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


@dataclass(frozen=True)
class Cores:
    """How many threads are worth starting, and why.

    Args:
        count: the cores to use, at least 1.
        physical: cores of the machine that the affinity mask touches, hyperthreads counted once.
        logical: CPUs of the machine as the system counts them.
        affinity: CPUs that this process may run on.
        quota: CPUs' worth of time that its control group grants; None where it is not limited.
        reasons: for people, one line a limit.
    """

    count: int
    physical: int
    logical: int
    affinity: int
    quota: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Caches:
    """Data caches as the first usable core sees them, in bytes; 0 where unknown."""

    l1d: int
    l2: int
    l3: int


def machine() -> str:
    """ "x86_64" or "aarch64" (or what the system says, where it is neither)."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _read(path: Path) -> str:
    """A small file's text, "" where it can't be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _mask() -> list[int]:
    """The CPUs that this process may run on; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _physical(cpus: list[int], root: Path) -> int:
    """Cores behind some CPUs; 0 where unknown."""
    cores: set[tuple[str, ...]] = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        place = tuple(_read(topology / name) for name in ("physical_package_id", "die_id", "core_id"))
        if not place[2]:
            return 0
        cores.add(place)
    return len(cores)


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """CPUs' worth of time that the process's control groups (v1 and v2) grant; None where not limited."""
    found: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            base = next(
                (
                    root / "sys/fs/cgroup" / n
                    for n in (controllers, "cpu")
                    if (root / "sys/fs/cgroup" / n).exists()
                ),
                root,
            )
        else:
            continue
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            if base not in (place, *place.parents):
                break
            if controllers == "":
                quota, period = (*_read(place / "cpu.max").split(), "", "")[:2]
            else:
                quota, period = _read(place / "cpu.cfs_quota_us"), _read(place / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit() and int(period) > 0:
                found.append(int(quota) / int(period))
    return min(found, default=None)


def usable_cores(root: Path = _ROOT) -> Cores:
    """The cores that this process may use: physical, in its affinity mask, within its cgroup quota."""
    logical = os.cpu_count() or 1
    cpus = _mask()
    affinity = len(cpus) or logical
    physical = _physical(cpus, root) if cpus else 0
    if not physical and sys.platform == "darwin":
        physical = int(_sysctl("hw.physicalcpu") or 0)
    quota = cgroup_quota(root) if sys.platform.startswith("linux") else None
    reasons = []
    if affinity < logical:
        reasons.append(f"the affinity mask allows {affinity} of {logical} CPUs")
    if physical and physical < affinity:
        reasons.append(f"{affinity} CPUs are hyperthreads of {physical} cores")
    count = min(physical or affinity, affinity)
    if quota is not None and quota < count:
        reasons.append(f"the control group grants {quota:g} CPUs of time")
        count = max(int(quota), 1)
    return Cores(count, physical or affinity, logical, affinity, quota, tuple(reasons))


def _size(text: str) -> int:
    """ "512K" in bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def caches(root: Path = _ROOT) -> Caches:
    """Sizes of the data caches that one core sees."""
    if sys.platform == "darwin":
        levels = [int(_sysctl(f"hw.{name}") or 0) for name in ("l1dcachesize", "l2cachesize", "l3cachesize")]
        return Caches(*levels)
    sizes = {1: 0, 2: 0, 3: 0}
    folder = root / f"sys/devices/system/cpu/cpu{(_mask() or [0])[0]}/cache"
    for index in range(8):
        place = folder / f"index{index}"
        level, kind = _read(place / "level"), _read(place / "type")
        if level in ("1", "2", "3") and kind in ("Data", "Unified"):
            sizes[int(level)] = _size(_read(place / "size"))
    return Caches(sizes[1], sizes[2], sizes[3])


def _sysctl(name: str) -> str:
    """A value of macOS's sysctl as text, "" where there is none."""
    library = ctypes.CDLL(None)
    size = ctypes.c_size_t(0)
    if library.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    buffer = ctypes.create_string_buffer(size.value)
    if library.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    if size.value in (4, 8) and not name.startswith("machdep"):
        return str(int.from_bytes(buffer.raw[: size.value], "little"))
    return buffer.value.decode("utf-8", "replace")


def _cpuinfo(root: Path = _ROOT) -> dict[str, str]:
    """The first CPU of /proc/cpuinfo."""
    first = _read(root / "proc/cpuinfo").split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def model_name(root: Path = _ROOT) -> str:
    """The CPU's name for people."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    info = _cpuinfo(root)
    name = info.get("model name") or info.get("Model")
    if not name and "CPU part" in info:
        name = f"implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
    return name or platform.processor() or machine()


def features(root: Path = _ROOT) -> frozenset[str] | None:
    """The CPU's features of those in `FEATURES`, by LLVM's names; None where the system does not tell."""
    if sys.platform == "darwin" and machine() == "aarch64":
        return frozenset(ours for name, ours in _APPLE_FEATURES.items() if _sysctl(name) == "1")
    info = _cpuinfo(root)
    listed = info.get("flags") or info.get("Features")
    if listed is None:
        return None
    known = FEATURES.get(machine(), {})
    return frozenset(known[name] for name in listed.split() if name in known)


def lacking(needed: Iterable[str], found: Collection[str]) -> list[str]:
    """Those of some LLVM feature names that a CPU with the features `found` does not have.

    Features that are not in `FEATURES` change no instruction that kernels are made of.
    """
    known = {name for table in FEATURES.values() for name in table.values()}
    return sorted(known.intersection(needed).difference(found))


@functools.cache
def host_key() -> str | None:
    """All that compiled code may depend on of this CPU, as one line; None where the system does not tell."""
    found = features()
    if found is None:
        return None
    info = _cpuinfo()
    kind = [
        info.get(k, "")
        for k in ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    ]
    raw = info.get("flags") or info.get("Features") or ""
    every = hashlib.sha256(" ".join(sorted(raw.split())).encode()).hexdigest()[:16]
    sizes = caches()
    name = model_name()
    return "|".join(
        [machine(), name, *kind, every, ",".join(sorted(found)), f"{sizes.l1d},{sizes.l2},{sizes.l3}"]
    )
