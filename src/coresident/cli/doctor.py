"""`coresident doctor`: what this machine has and what of it is used."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coresident
from coresident import cache
from coresident.cli import report
from coresident.cli.analyze import machine_record
from coresident.cli.command import FAILED, OK, Command, add_json
from coresident.errors import TargetError
from coresident.runtime import cpu, team

if TYPE_CHECKING:
    from coresident.codegen.target import Target

_PACKAGES = ("numpy", "onnx", "llvmlite", "platformdirs", "pillow", "scipy", "rich")
_OPTIONAL = ("matplotlib", "torch", "onnxruntime", "openvino")
_SHARED = 0.75
"""Of a core's multiply-adds, below which it is not a thread's own."""
_FAR_NANOSECONDS = 2.5
"""A line that another core wrote takes half a nanosecond longer where the last cache is shared (Zen 4)."""
_VECTOR_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avxvnni"),
    *("avx512bf16", "neon", "fullfp16", "dotprod", "i8mm", "bf16", "sve"),
)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure", action="store_true", help="also measure multiply-adds and memory, in a second"
    )
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    record, target = _facts()
    if arguments.measure and target is not None:
        from coresident.codegen import peak

        with report.steps(None, arguments.quiet) as progress:
            progress.now("measuring the machine")
            threads = record["cores"]["usable"]
            record["measured"] = machine_record(peak.measure(target, threads))
            if threads > 1:
                found = peak.measure_team(target, threads)
                record["measured"]["together"] = {
                    "threads": threads,
                    "gmacs_per_core": found.macs / 1e9,
                    "nanoseconds_per_remote_line": found.line * 1e9,
                }
    if arguments.json:
        report.print_json(record)
    else:
        _tell(record)
    return FAILED if target is None else OK


def _facts() -> tuple[dict[str, Any], Target | None]:
    """Everything as JSON values, and the target of this machine if it can run compiled code."""
    from coresident import compiler
    from coresident.codegen import llvm

    cores, sizes, kept = cpu.usable_cores(), cpu.caches(), cache.open_cache().state()
    problem, target = "", None
    try:
        target = compiler.host_target()
    except TargetError as error:
        problem = str(error)
    record: dict[str, Any] = {
        "coresident": coresident.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {
            "name": cpu.model_name(),
            "architecture": cpu.machine(),
            "caches": {"l1d": sizes.l1d, "l2": sizes.l2, "l3": sizes.l3},
        },
        "target": None
        if target is None
        else {
            "cpu": target.cpu,
            "vector_bits": target.vector_bits,
            "registers": target.registers,
            "features": [name for name in _VECTOR_FEATURES if target.has(name)],
        },
        "cores": {
            "usable": cores.count,
            "physical": cores.physical,
            "logical": cores.logical,
            "affinity": cores.affinity,
            "quota": cores.quota,
            "limits": list(cores.reasons),
        },
        "threads": {
            "default": cores.count,
            "spin_seconds": team.SPIN_SECONDS,
            "yield_after_seconds": team.PATIENCE_SECONDS,
        },
        "huge_pages": _huge_pages(),
        "cache": {
            "folder": None if kept.path is None else str(kept.path),
            "entries": kept.entries,
            "bytes": kept.bytes,
            "limit_bytes": cache.LIMIT_BYTES,
            "writable": kept.writable,
            "problem": kept.problem or None,
        },
        "llvm": llvm.LLVM_VERSION,
        "packages": {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)},
        "problem": problem or None,
    }
    return record, target


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _huge_pages() -> str:
    """The system's setting for huge pages; large buffers ask for them."""
    if not sys.platform.startswith("linux"):
        return "as the system decides"
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not supported by the kernel"
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _tell(record: dict[str, Any]) -> None:
    target, cores, kept = record["target"], record["cores"], record["cache"]
    report.say(f"coresident {record['coresident']}, Python {record['python']}, {record['system']}")
    sizes = ", ".join(
        f"{name} {report.bytes_text(size)}" for name, size in record["cpu"]["caches"].items() if size
    )
    facts = [
        ("CPU", f"{record['cpu']['name']} ({record['cpu']['architecture']})"),
        ("caches", sizes or "unknown"),
    ]
    if target is not None:
        facts += [
            (
                "compiled for",
                f"{target['cpu']}: {target['vector_bits']}-bit vectors, {target['registers']} registers",
            ),
            ("features used", " ".join(target["features"])),
        ]
    facts += [
        ("cores", f"{cores['usable']} usable of {cores['physical']} physical, {cores['logical']} logical"),
        *(("", reason) for reason in cores["limits"]),
        (
            "threads",
            f"{record['threads']['default']} by default; idle ones give their core away after "
            f"{record['threads']['yield_after_seconds'] * 1e6:.0f} us and sleep after "
            f"{record['threads']['spin_seconds'] * 1e3:.0f} ms",
        ),
        ("huge pages", record["huge_pages"]),
        ("cache", _cache_text(kept)),
        ("LLVM", record["llvm"]),
    ]
    facts += [(name, version or "not installed") for name, version in record["packages"].items()]
    if measured := record.get("measured"):
        facts.append(("multiply-adds", f"{measured['gmacs_per_core']:.1f} GMAC/s a core, fp32"))
        if together := measured.get("together"):
            facts += _together(together, measured["gmacs_per_core"])
        facts += [
            (f"loads from {level['name']}", f"{level['gigabytes_per_second']:.0f} GB/s, all threads together")
            for level in measured["levels"]
        ]
    report.print_facts("", facts)
    if record["problem"]:
        report.remark(f"coresident: error: {record['problem']}")


def _together(together: dict[str, Any], alone: float) -> list[tuple[str, str]]:
    """What several threads do to each other."""
    rate, line = together["gmacs_per_core"], together["nanoseconds_per_remote_line"]
    found = f"{rate:.1f} GMAC/s each with {together['threads']} threads"
    if rate < _SHARED * alone:
        found += ": threads share a core, or something else runs on it"
    lines = f"a line that another one wrote takes {line:.1f} ns longer than an own one"
    if line > _FAR_NANOSECONDS:
        lines += ": they are far apart, so threads wait for each other's results"
    return [("", found), ("cores", lines)]


def _cache_text(kept: dict[str, Any]) -> str:
    if kept["folder"] is None:
        return f"none: {kept['problem']}"
    text = f"{kept['folder']}: {kept['entries']} programs, {report.bytes_text(kept['bytes'])}"
    text += f" of at most {report.bytes_text(kept['limit_bytes'])}"
    return f"{text}; {kept['problem']}" if kept["problem"] else text


COMMAND = Command(
    "doctor",
    "show what this machine has and what is used of it",
    "Shows the CPU, the cores and caches that may be used, the versions of what is installed, and the state "
    "of the cache of compiled programs.",
    _configure,
    _run,
)
