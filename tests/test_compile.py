"""Models compiled ahead of time, and the artifacts that come of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import HOST

import coresident
from coresident.errors import InputError, ModelError, ResourceError, TargetError

RUN = """
import sys
import numpy as np
import coresident

session = coresident.Session(sys.argv[1])
x = np.array([[-1, 2, -3]], np.float32)
np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.maximum(x, 0))
assert not {"onnx", "llvmlite", "coresident.compiler"} & set(sys.modules)
"""


def relu(*shape: int | str) -> bytes:
    """y = Relu(x)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    made: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    return made.SerializeToString()


def test_an_artifact_runs_without_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "relu.cres"
    coresident.compile(relu(1, 3), path, threads=1)
    subprocess.run([sys.executable, "-c", RUN, str(path)], check=True)


def test_open_sizes_are_given(tmp_path: Path) -> None:
    path = tmp_path / "relu.cres"
    coresident.compile(relu("n", 3), path, shapes={"x": (2, 3)})
    with coresident.Session(path, threads=2) as session:
        assert session.get_inputs()[0].shape == (2, 3)
        x = np.full((2, 3), -1, np.float32)
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.zeros((2, 3)))
        with pytest.raises(InputError):
            session.run(None, {"x": x[:1]})


def test_nothing_is_written_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "relu.cres"
    with pytest.raises(InputError, match="'n' must be given"):
        coresident.compile(relu("n", 3), path)
    with pytest.raises(InputError, match=r"no input 'z'; the inputs are x"):
        coresident.compile(relu("n", 3), path, shapes={"z": (2, 3)})
    with pytest.raises(InputError, match="threads"):
        coresident.compile(relu(1, 3), path, threads=0)
    with pytest.raises(TargetError, match="x86-64-avx2"):
        coresident.compile(relu(1, 3), path, target="z80")
    with pytest.raises(ModelError):
        coresident.compile(b"nonsense", path)
    with pytest.raises(ResourceError):
        coresident.compile(relu(1, 3), tmp_path / "absent" / "relu.cres")
    assert not list(tmp_path.iterdir())


def test_an_artifact_for_another_machine_is_refused(tmp_path: Path) -> None:
    target = "aarch64-neon" if HOST.arch == "x86_64" else "x86-64-avx2"
    coresident.compile(relu(1, 3), tmp_path / "relu.cres", target=target)
    with pytest.raises(TargetError, match="compiled for"):
        coresident.Session(tmp_path / "relu.cres")
