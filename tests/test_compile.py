"""Models compiled ahead of time, and the artifacts that come of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import HOST

import coresident
from coresident.cli.main import main
from coresident.codegen.target import NAMED
from coresident.errors import ArtifactError, InputError, ModelError, ResourceError, TargetError
from coresident.runtime import artifact

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
        coresident.compile(relu(1, 3), path, targets="z80")
    with pytest.raises(ModelError):
        coresident.compile(b"nonsense", path)
    with pytest.raises(ResourceError):
        coresident.compile(relu(1, 3), tmp_path / "absent" / "relu.cres")
    assert not list(tmp_path.iterdir())


OTHER = "aarch64-neon" if HOST.arch == "x86_64" else "x86-64-avx2"
OURS = "x86-64-avx2" if HOST.arch == "x86_64" else "aarch64-neon"
X = np.random.default_rng(5).standard_normal((1, 3, 9, 11)).astype(np.float32)
WEIGHTS = np.random.default_rng(6).standard_normal((8, 3, 3, 3)).astype(np.float32)


def convolution(folder: Path, *, external: bool = False) -> Path:
    """A network with weights, a free batch and metadata."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None, None]) for name in "xy")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 11])
    graph = helper.make_graph(nodes, "c", [x], [y], [onnx.numpy_helper.from_array(WEIGHTS, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(made, {"names": "{0: 'cell'}", "stride": "32"})
    path = folder / "c.onnx"
    onnx.save(made, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    return path


def outputs(path: Path) -> np.ndarray:
    with coresident.Session(path, threads=1, cache=False) as session:
        assert session.get_modelmeta().custom_metadata_map == {"names": "{0: 'cell'}", "stride": "32"}
        return session.run(None, {"x": X})[0]


def test_an_artifact_for_another_machine_is_refused(tmp_path: Path) -> None:
    path, here = tmp_path / "relu.cres", tmp_path / "here.cres"
    coresident.compile(relu(1, 3), path, targets=OTHER)
    with pytest.raises(TargetError, match=r"compiled for .*`coresident compile`") as caught:
        coresident.Session(path)
    assert caught.value.file == path
    coresident.compile(path, here)
    subprocess.run([sys.executable, "-c", RUN, str(here)], check=True)
    coresident.compile(relu(1, 3), path, targets=OTHER, keep_model=False)
    with pytest.raises(TargetError, match="compile the model for this CPU"):
        coresident.Session(path)
    with pytest.raises(ArtifactError, match="does not hold its model"):
        coresident.compile(path, here)


@pytest.mark.parametrize("external", [False, True])
def test_one_file_for_several_targets(tmp_path: Path, external: bool) -> None:
    model, path = convolution(tmp_path, external=external), tmp_path / "c.cres"
    wanted = outputs(model)
    coresident.compile(model, path, shapes={"x": X.shape}, targets=[OTHER, OURS, "host"], threads=1)
    found = artifact.read(path)
    assert len(found.programs) == 3
    assert found.program_for(HOST.arch, HOST.features).target == HOST.key
    assert found.program_for(HOST.arch, NAMED[OURS].features).target == NAMED[OURS].key
    for file in tmp_path.glob("*.bin"):
        file.unlink()
    np.testing.assert_array_equal(outputs(path), wanted)
    again = tmp_path / "again.cres"
    coresident.compile(path, again, threads=1)
    (program,) = artifact.read(again).programs
    assert program.inputs[0].shape == X.shape
    np.testing.assert_array_equal(outputs(again), wanted)
    coresident.compile(path.read_bytes(), again, threads=1, keep_model=False)
    assert len(artifact.read(again).model) == 0


def test_weights_for_alike_targets_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "c.cres"
    sizes = []
    for targets in (["x86-64-avx512"], ["x86-64-avx512", "x86-64-znver4"]):
        coresident.compile(convolution(tmp_path), path, shapes={"x": X.shape}, targets=targets, threads=1)
        sizes.append(len({bytes(program.constants) for program in artifact.read(path).programs}))
    assert sizes == [1, 1]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    model = convolution(tmp_path)
    script = (
        "import sys, coresident; coresident.compile(*sys.argv[1:3], shapes={'x': (1, 3, 9, 11)}, threads=2)"
    )
    for seed, name in enumerate("ab"):
        subprocess.run(
            [sys.executable, "-c", script, str(model), str(tmp_path / name)],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "CORESIDENT_CACHE": "0"},
            check=True,
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_altered_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.cres"
    coresident.compile(convolution(tmp_path), path, shapes={"x": X.shape}, targets=["host", OTHER])
    whole = path.read_bytes()
    random_ = random.Random(11)
    for at in (random_.randrange(len(whole)) for _ in range(100)):
        broken = whole[:at] + bytes([whole[at] ^ 1 << random_.randrange(8)]) + whole[at + 1 :]
        with pytest.raises((ArtifactError, ModelError)):
            coresident.Session(broken)
        with pytest.raises(ArtifactError):
            coresident.Session(whole[: at or 8])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = convolution(tmp_path), tmp_path / "c.cres"
    words = ["compile", str(model), str(path), "--shape", "x=1x3x9x11", "--target", "host", "--target", OTHER]
    assert main(words) == 0
    assert "wrote" in capsys.readouterr().err
    assert outputs(path).shape == (1, 8, 7, 9)
    assert main(["compile", str(path), str(tmp_path / "d.cres"), "--without-model", "--quiet"]) == 0
    assert main(["compile", str(tmp_path / "d.cres"), str(tmp_path / "e.cres")]) == 1
    assert "does not hold its model" in capsys.readouterr().err
