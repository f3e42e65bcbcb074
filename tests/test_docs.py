"""What the documentation says is so: its scripts run, its lists are complete, its links lead somewhere."""

from __future__ import annotations

import importlib.resources
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_architecture import ALLOWED

import coresident
from coresident.cli import command
from coresident.cli.main import COMMANDS
from coresident.graph import operators
from coresident.graph.composite import EXPANSIONS
from coresident.graph.operator import OPERATORS
from coresident.kernels.families import FAMILIES
from coresident.onnx import quantized

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([README, *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
REWRITTEN = {"DynamicQuantizeLinear"}
"""What passes always write as other operators."""

assert operators, "importing them fills the table"


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def write_network(path: Path, shape: tuple[int, ...]) -> None:
    """y = Relu(x), under this name."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


SCRIPTS = {page.name: "\n".join(blocks(page)) for page in PAGES if page != README and blocks(page)}
SNIPPETS = {
    "takes.shape, np.float32": "assert outputs[0].shape == (1, 3, 24, 32)",
    "def infer": "assert infer(np.zeros((48, 64), np.uint8)).shape == (1, 3, 24, 32)",
    "streams=2": "assert np.shape(found) == (3, 2)",
    "open_memmap": "np.testing.assert_array_equal(result, volume.astype(np.float32) / 255)",
}
"""A part of each block of the README, and what is so after it has run."""


def run_script(text: str, folder: Path) -> None:
    """Run Python in a folder, as strict as the tests are, with what they share."""
    (folder / "script.py").write_text(text, "utf-8")
    paths = [str(ROOT / "tests"), str(ROOT / "tests" / "passes")]
    cache = {"CORESIDENT_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=folder,
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_blocks_of_a_page_are_a_script(name: str, tmp_path: Path) -> None:
    run_script(SCRIPTS[name], tmp_path)


def test_the_blocks_of_the_readme_run(tmp_path: Path) -> None:
    write_network(tmp_path / "model.onnx", (1, 3, 24, 32))
    write_network(tmp_path / "unet3d.onnx", (1, 1, 64, 64, 64))
    np.save(tmp_path / "volume.npy", np.random.default_rng(0).integers(0, 256, (64, 96, 70), np.uint8))
    given = "import numpy as np\ncameras = [[np.ones((1, 3, 24, 32), np.float32)] * 2] * 3\n"
    found = blocks(README)
    assert len(found) == len(SNIPPETS)
    for block, (part, check) in zip(found, SNIPPETS.items()):
        assert part in block
        run_script(f"{given}{block}\n{check}\n", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def rows(page: str) -> list[list[str]]:
    """The cells of the tables of a page of docs/, without their headings."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0].startswith("`") or "`" in row[1]]


def test_all_operators_are_listed() -> None:
    named = {row[0]: re.findall(r"`(\w+)`", row[1]) for row in rows("operators.md")}
    constants = named.pop("constants")
    assert sorted(named.pop("quantised, in one piece")) == sorted(
        [*quantized.EXPANSIONS, *quantized.SIGNATURES.keys() - quantized.EXPANSIONS.keys(), *REWRITTEN]
    )
    listed = [op for ops in named.values() for op in ops]
    # What passes make, and composite operators are written with, is no operator of a model.
    compiled = {op for op in FAMILIES.keys() | EXPANSIONS.keys() if onnx.defs.has(op)}
    assert sorted(listed) == sorted(compiled)
    known = {op for op in OPERATORS if onnx.defs.has(op)}
    assert sorted(constants) == sorted(known - FAMILIES.keys() - EXPANSIONS.keys() - REWRITTEN)


def test_all_rooms_are_listed() -> None:
    found = {
        row[0].strip("`").removesuffix("/").removesuffix(".py"): set(row[2].split(", ")) - {"nothing"}
        for row in rows("layout.md")
    }
    assert found == ALLOWED


def test_exit_codes_and_verbs_are_those_of_the_command_line() -> None:
    text = README.read_text("utf-8")
    codes = {command.OK, command.FAILED, command.USAGE, command.PARTLY, command.INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == codes
    verbs = set(re.findall(r"\bcoresident (\w+)", "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE))))
    assert verbs == {one.name for one in COMMANDS}


def test_the_package_holds_what_the_demo_needs() -> None:
    data = importlib.resources.files(coresident) / "demo_data"
    wanted = {"nuclei.onnx", "nuclei_dense.onnx", "truth.json", "SOURCE.md"}
    assert wanted <= {file.name for file in data.iterdir()}
