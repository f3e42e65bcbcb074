"""The rooms, and which may import which: data flows one way, from the model's file to the machine code."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import coresident
from coresident.kernels import families, lowering

PACKAGE = Path(coresident.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "graph": {"errors"},
    "onnx": {"errors", "limits", "graph"},
    "passes": {"errors", "graph"},
    "codegen": {"errors", "graph", "runtime"},
    "kernels": {"errors", "graph", "codegen"},
    "schedule": {"errors", "graph", "codegen", "kernels", "runtime"},
    "runtime": {"errors"},
    "cache": {"errors", "runtime"},
    "compiler": {"errors", "limits", "graph", "onnx", "passes", "codegen", "schedule", "runtime"},
    "source": {"errors", "onnx", "runtime"},
    "programs": {"errors", "runtime"},
    "sizes": {"errors", "graph", "programs", "runtime"},
    "ports": {"errors", "runtime"},
    "cached_compiler": {"errors", "limits", "graph", "compiler", "ports", "cache", "runtime", "source"},
    "session": {"errors", "limits", "cached_compiler", "ports", "cache", "sizes", "runtime", "source"},
    "vision": {"errors", "runtime"},
    "measure": {"errors", "codegen", "runtime", "vision"},
    "sparsification": {
        "errors",
        "limits",
        "graph",
        "onnx",
        "passes",
        "codegen",
        "compiler",
        "source",
        "runtime",
        "cache",
        "session",
        "vision",
        "measure",
    },
    "cli": {
        "errors",
        "graph",
        "codegen",
        "runtime",
        "cache",
        "compiler",
        "ports",
        "session",
        "vision",
        "measure",
        "sparsification",
    },
}
"""Room -> the rooms it may import beside itself. `codegen` and `schedule` know of `runtime` only its ABI,
the program as data, and how to run what measures the machine."""

PLACES = {"llvmlite": {"codegen/llvm.py"}, "onnx": {"onnx/"}}
"""Package -> the only places that import it."""


@functools.cache
def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = _room(path)
    if room in ("__init__", "__main__"):
        return
    rooms = {name.split(".")[1] for name in _imports(path) if name.startswith("coresident.")}
    assert rooms - {room} <= ALLOWED[room] | {"__version__"}


@pytest.mark.parametrize("package", PLACES)
def test_heavy_packages_are_imported_in_one_place(package: str) -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in _files()
        if any(name.split(".")[0] == package for name in _imports(path))
    }
    assert importers
    assert all(any(name.startswith(place) for place in PLACES[package]) for name in importers), importers


def test_public_names_are_exported() -> None:
    assert all(hasattr(coresident, name) for name in coresident.__all__)
    assert {"Session", "Error"} <= set(coresident.__all__)


def test_families_name_what_their_files_lower() -> None:
    for file, ops in families.FILES.items():
        importlib.import_module(f"coresident.kernels.{file}")
        lowered = {
            op
            for op, family in lowering.FAMILIES.items()
            if family.lower.__module__ == f"coresident.kernels.{file}"
        }
        assert lowered == set(ops), file


@pytest.mark.parametrize("first", ["import onnx", "import coresident.compiler", ""])
def test_messages_are_those_of_the_package_onnx(first: str) -> None:
    """However the two are imported; compiling a model needs no more of the package."""
    code = f"""
import sys
{first}
before = "onnx" in sys.modules
from coresident.onnx import proto
assert ("onnx" in sys.modules) == before
import onnx, onnx.checker, onnx.inliner
assert proto.ModelProto is onnx.ModelProto and proto.SchemaError is onnx.defs.SchemaError
head = '<ir_version: 8, opset_import: ["" : 17]>'
model = onnx.parser.parse_model(head + 'm (float[1] x) => (float[1] y) {{ y = Relu(x) }}')
onnx.checker.check_model(model)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
