"""The rules of docs/security.md that no other file tests, and that its table leads to tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import seeds
from onnx import helper

import coresident
from coresident.codegen.target import NAMED
from coresident.compiler import Options, compile, load
from coresident.graph.operator import infer
from coresident.passes import fold_constants, patch
from coresident.runtime import artifact

ROOT = Path(__file__).parents[2]
PACKAGE = Path(coresident.__file__).parent
NAMES = (
    *('a"b', "a\\b", "a\nb", "%s%n", "@llvm.trap", "!}{", "../../x", "a\0b"[:1] + "/b", "é☃", "n" * 3000),
    *("kernel", "main", "define void @x() {", "; drop", "$(touch x)"),
)


def test_the_table_leads_to_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", text))
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE), (
            file,
            test,
        )
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (PACKAGE / path).is_file() or (ROOT / path).is_file(), path
    rules = re.findall(r"^\| (\d)\. ", text, re.MULTILINE)
    assert sorted(set(rules)) == [str(i) for i in range(1, 9)]
    assert len(set(re.findall(r"^\| (20\d\d-\d+) ", text, re.MULTILINE))) == 9


def test_indices_from_the_data_stay_inside() -> None:
    """In a process of its own: an index that is believed would end it."""
    script = f"""if True:
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), str(ROOT / "tests")]!r}
        import numpy as np, coresident, seeds
        values = (-1, -2**31, 2**31, -2**63, 2**63 - 1, 2**40, -2**40, 1e38, float("nan"), float("inf"))
        for content in seeds.models()[5:15]:
            session = coresident.Session(content, threads=1, cache=False)
            for value in values:
                feeds = {{}}
                for one in session.get_inputs():
                    dtype = np.dtype(one.dtype)
                    fits = dtype.kind == "f" or isinstance(value, int)
                    feeds[one.name] = np.full(one.shape, value if fits else 7, dtype)
                print(content[-40:], value, flush=True)
                session.run(None, feeds)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]


def test_nothing_from_a_file_is_evaluated_or_unpickled() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not forbidden & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.keyword) and node.arg == "shell":
                pytest.fail(f"{path}:{node.value.lineno} asks a shell")


@pytest.mark.parametrize("target", ["x86-64-avx2", "aarch64-neon"])
def test_names_never_become_symbols_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    made = onnx.load_from_string(seeds.models()[0])
    renamed = dict(zip(["x", "w", "b", "c", "r", "p", "y"], NAMES))
    extra = NAMES[len(renamed) :]
    for node in made.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
        node.name, node.doc_string = extra[0], extra[1]
    for value in (*made.graph.input, *made.graph.output, *made.graph.initializer):
        value.name = renamed[value.name]
    made.graph.name, made.producer_name = extra[2], extra[3]
    made.metadata_props.append(onnx.StringStringEntryProto(key=extra[4], value=extra[5]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    monkeypatch.chdir(tmp_path)
    program = compile(load(Path("m.onnx")), {}, Options(NAMED[target]))
    assert all(re.fullmatch(r"[a-z]\w{1,60}", step.kernel, re.ASCII) for step in program.steps)
    for name in NAMES[:7]:
        assert not any(name.encode() in one for one in program.objects if len(name) > 4), name
    found = artifact.parse(b"".join(map(bytes, artifact.serialised(artifact.Artifact((program,))))))
    assert [port.name for port in found.programs[0].inputs] == [renamed["x"]]
    coresident.Session("m.onnx", threads=1, cache=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["m.onnx"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what pages are")
@pytest.mark.parametrize("file", ["m.onnx", "m.cres"])
def test_no_page_is_writable_and_executable(tmp_path: Path, file: str) -> None:
    """But one of llvmlite's, which it makes as it is imported and no artifact needs."""
    (tmp_path / "m.onnx").write_bytes(seeds.models()[0])
    (tmp_path / "m.cres").write_bytes(seeds.artifacts()[0])
    before = "import llvmlite.binding" if file == "m.onnx" else ""
    script = f"""if True:
        import numpy as np, coresident
        def pages():
            lines = open("/proc/self/maps").read().splitlines()
            return [line for line in lines if "wx" in line.split()[1]]
        {before}
        known = pages()
        assert {bool(before)} or not known
        session = coresident.Session({str(tmp_path / file)!r}, threads=2, cache=False)
        session.run(None, {{"x": np.zeros((1, 4, 7, 9), np.float32)}})
        assert pages() == known, pages()
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_sizes_that_overflow_are_told() -> None:
    wide = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1 << 31, 1 << 31, 4])
    made = onnx.load_from_string(seeds.models()[0])
    made.graph.input[0].CopyFrom(wide)
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("Relu", ["x"], [made.graph.output[0].name]))
    with pytest.raises(coresident.ResourceError, match="memory"):
        coresident.Session(made.SerializeToString(), threads=1, cache=False)


def test_constants_that_a_few_bytes_ask_for_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small enough to be computed ahead of time; all of them are not."""
    monkeypatch.setattr(patch, "ALLOWANCE", 4 * 5000 * 3)
    nodes = [helper.make_node("ConstantOfShape", ["n"], [f"c{i}"]) for i in range(20)]
    nodes.append(helper.make_node("Sum", ["x", *(f"c{i}" for i in range(20))], ["y"]))
    x = np.ones(5000, np.float32)
    content = seeds.model(nodes, {"x": x}, n=np.array([5000]))
    graph = fold_constants.PASS.run(infer(load(content).graph))
    assert sorted(graph.initializers) == ["c0", "c1", "c2", "n"]
    with coresident.Session(content, threads=1, cache=False) as session:
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_nothing_opens_a_connection() -> None:
    forbidden = {"socket", "ssl", "http", "urllib", "requests", "ftplib", "huggingface_hub"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not forbidden & {name.split(".")[0] for name in names}, path
    with pytest.raises(coresident.InvalidModel, match="no such file"):
        coresident.Session("https://example.org/model.onnx")


def test_a_kernel_of_millions_of_positions_is_refused() -> None:
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["w"])]
    nodes.append(helper.make_node("Conv", ["x", "w"], ["y"], name="c", pads=[1500] * 4))
    content = seeds.model(nodes, {"x": np.ones((1, 1, 9, 9), np.float32)}, n=np.array([1, 1, 3000, 3000]))
    with pytest.raises(coresident.UnsupportedModel, match="9000000 positions; 65536") as caught:
        coresident.Session(content, threads=1, cache=False)
    assert caught.value.node == "c"
