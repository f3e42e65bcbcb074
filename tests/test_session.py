"""Sessions: onnxruntime's manners, feeds of all kinds, free dimensions, the cache, and what is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import coresident
from coresident import CoresidentWarning, InputError, InvalidModel, ResourceError, Session, compiler
from coresident.onnx.references import external_locations
from coresident.runtime import artifact
from coresident.runtime.artifact import Artifact
from coresident.source import Source

Dimensions = list[int | str | None]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one for every compilation."""
    made: list[Any] = []
    compile_ = compiler.compile
    monkeypatch.setattr(compiler, "compile", lambda *a: (made.append(a[1]), compile_(*a))[1])
    return made


def model(a: Dimensions, b: Dimensions, scale: float = 2.0) -> bytes:
    """sum = a + b, scaled = scale * sum."""
    scale_ = helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["sum", "scale"], ["scaled"])],
        "example",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("a", a), ("b", b))
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, s)
            for name, s in (("sum", a), ("scaled", None))
        ],
        [scale_],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


FIXED = model([2, 3], [2, 3])
FREE = model(["n", 3], ["n", 3])


def feeds(rows: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal((rows, 3)).astype(np.float32) for name in "ab"}


def check(session: Session, fed: dict[str, np.ndarray], scale: float = 2.0) -> None:
    total, scaled = session.run(None, fed)
    np.testing.assert_array_equal(total, fed["a"] + fed["b"])
    np.testing.assert_array_equal(scaled, np.float32(scale) * (fed["a"] + fed["b"]))


def test_a_model_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FIXED)
    for source in (FIXED, path, str(path)):
        check(Session(source, threads=1), feeds())


def test_inputs_and_outputs_are_described() -> None:
    session = Session(FIXED)
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("a", (2, 3), "tensor(float)"),
        ("b", (2, 3), "tensor(float)"),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("sum", (2, 3)), ("scaled", (2, 3))]
    free = Session(FREE)
    assert [(i.shape, i.type) for i in free.get_inputs()] == [(("n", 3), "tensor(float)")] * 2
    declared, undeclared = free.get_outputs()
    assert (declared.shape, declared.type) == (("n", 3), "tensor(float)")
    assert (undeclared.shape, undeclared.type) == ((), "tensor(undefined)")


def test_outputs_by_name() -> None:
    session, fed = Session(FIXED), feeds()
    both = session.run(None, fed)
    scaled, again, total = session.run(["scaled", "scaled", "sum"], fed)
    np.testing.assert_array_equal(scaled, both[1])
    np.testing.assert_array_equal(again, both[1])
    np.testing.assert_array_equal(total, both[0])
    with pytest.raises(InputError, match=r"no output 'other'; the outputs are 'sum', 'scaled'"):
        session.run(["sum", "other"], fed)


def test_arrays_that_are_accepted() -> None:
    session, fed = Session(FIXED), feeds()
    a, b = fed["a"], fed["b"]
    frozen = a.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:]
    for form in (
        np.asfortranarray(a),
        np.repeat(a, 2, axis=1)[:, ::2],
        a[::-1][::-1],
        frozen,
        a.astype(">f4"),
        unaligned.view(np.float32).reshape(2, 3),
        np.ma.masked_array(a),
    ):
        check(session, {"a": form, "b": b})  # type: ignore[dict-item]


def test_nan_and_infinity_pass() -> None:
    fed = feeds()
    fed["a"][0] = [np.nan, np.inf, -np.inf]
    check(Session(FIXED), fed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"c": np.zeros(3)}, r"unknown 'c'; the inputs are 'a', 'b'"),
        ({"b": None}, r"missing 'b'"),
        ({"b": None, "c": np.zeros(3)}, r"missing 'b', unknown 'c'"),
        ({"a": np.zeros((2, 3))}, r"'a' is float64; float32 is needed"),
        ({"a": np.zeros((2, 3), np.int64)}, "int64"),
        ({"a": [["x"]]}, "float32 is needed"),
        ({"b": np.zeros((3, 3), np.float32)}, r"\[3, 3\].*\[2, 3\]"),
        ({"b": np.zeros(6, np.float32)}, r"\[6\].*\[2, 3\]"),
    ],
)
@pytest.mark.parametrize("free", [False, True])
def test_feeds_that_do_not_fit(change: dict[str, Any], says: str, free: bool) -> None:
    session = Session(model(["n", 3], [2, 3]) if free else FIXED)
    fed = {name: array for name, array in ({**feeds(), **change}).items() if array is not None}
    with pytest.raises(InputError, match=says):
        session.run(None, fed)
    check(session, feeds())


def test_free_dimensions_take_their_sizes_at_the_call(compilations: list[Any]) -> None:
    session = Session(FREE, programs=2, background=False)
    assert session.get_inputs()[0].shape == ("n", 3)
    assert not compilations
    for rows, expected in ((2, 1), (5, 2), (2, 2), (7, 3), (2, 3), (0, 4)):
        check(session, feeds(rows))
        assert len(compilations) == expected, rows
    assert len(session._free.programs.bindings()) == 2
    with pytest.raises(InputError, match="n"):
        session.run(None, {"a": feeds(2)["a"], "b": feeds(3)["b"]})


def test_two_threads_do_not_compile_the_same_twice(compilations: list[Any]) -> None:
    session = Session(FREE, cache=False, background=False)
    wrong: list[Exception] = []

    def call(seed: int) -> None:
        try:
            for rows in (3, 4):
                check(session, feeds(rows, seed))
        except Exception as error:
            wrong.append(error)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
    assert len(compilations) == 2


def test_the_cache_is_used(compilations: list[Any], cache_folder: Path) -> None:
    check(Session(FIXED), feeds())
    check(Session(FIXED), feeds())
    assert len(compilations) == 1
    check(Session(model([2, 3], [2, 3], scale=3.0)), feeds(), scale=3.0)
    check(Session(FIXED, threads=1 if compiler.Options().threads != 1 else 2), feeds())
    check(Session(FIXED, treat_zeros_as_dense=True), feeds())
    before = len(compilations)
    check(Session(FIXED, cache=False), feeds())
    assert len(compilations) == before + 1
    check(Session(FREE), feeds(4))
    check(Session(FREE), feeds(4))
    assert len(compilations) == before + 2
    assert len(list(cache_folder.glob("*.cres"))) >= 4


def test_a_corrupt_entry_is_compiled_again(compilations: list[Any], cache_folder: Path) -> None:
    Session(FIXED)
    (entry,) = cache_folder.glob("*.cres")
    entry.write_bytes(entry.read_bytes()[:-1])
    with pytest.warns(CoresidentWarning, match="made again"):
        check(Session(FIXED), feeds())
    assert len(compilations) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Session(FIXED), feeds())
    assert len(compilations) == 2


def test_a_model_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FIXED)
    load = compiler.load

    def replaced(source: Any, *rest: Any) -> compiler.Model:
        path.write_bytes(model([2, 3], [2, 3], scale=9.0))
        os.utime(path, (1, 1))
        return load(source, *rest)

    monkeypatch.setattr(compiler, "load", replaced)
    check(Session(path), feeds(), scale=9.0)
    monkeypatch.setattr(compiler, "load", load)
    check(Session(FIXED), feeds())
    path.write_bytes(FIXED)
    check(Session(path), feeds())
    assert len(compilations) == 3


def test_an_artifact_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.compiled"
    artifact.write(Artifact((Session(FIXED).program(feeds()),)), path)
    check(Session(path), feeds())
    check(Session(path.read_bytes()), feeds())
    with pytest.raises(InputError, match="compiled already"):
        Session(path, treat_zeros_as_dense=True)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(coresident.ArtifactError, match=r"model\.compiled"):
        Session(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no such file.*absent\.onnx"):
        Session(tmp_path / "absent.onnx")
    with pytest.raises(InvalidModel, match="not a file"):
        Session(tmp_path)
    (tmp_path / "empty.onnx").touch()
    for source in (tmp_path / "empty.onnx", b"", b"nonsense", FIXED[:40]):
        with pytest.raises(coresident.ModelError):
            Session(source)
    with pytest.raises(InputError, match="threads"):
        Session(FIXED, threads=0)


def test_profile_names_the_steps() -> None:
    session = Session(FIXED, threads=2)
    rows = session.profile(feeds(), repeats=2)
    assert [step for step, _ in rows] == list(session.program(feeds()).steps)
    assert all(seconds >= 0 for _, seconds in rows)


def test_closing() -> None:
    with Session(FIXED) as session:
        check(session, feeds())
    with pytest.raises(ResourceError, match="closed"):
        session.run(None, feeds())


def external_model(folder: Path, numbers: list[float]) -> Path:
    """A model whose one weight lies in a file beside it."""
    weight = numpy_helper.from_array(np.array(numbers, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(numbers)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(numbers)])],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(exist_ok=True)
    onnx.save(
        made,
        folder / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return folder / "m.onnx"


def test_external_data_is_part_of_the_content(tmp_path: Path, compilations: list[Any]) -> None:
    numbers = [float(i) for i in range(300)]
    path = external_model(tmp_path / "m", numbers)
    assert external_locations(path.read_bytes()) == ("w.bin",)
    x = np.zeros(300, np.float32)
    assert Session(path).run(None, {"x": x})[0].tolist() == numbers
    (tmp_path / "m" / "w.bin").write_bytes(np.arange(7, 307, dtype=np.float32).tobytes())
    assert Session(path).run(None, {"x": x})[0].tolist() == [number + 7 for number in numbers]
    assert len(compilations) == 2
    (tmp_path / "m" / "w.bin").unlink()
    with pytest.raises(coresident.ExternalDataError):
        Session(path)


def test_locations_are_found_wherever_they_are() -> None:
    def tensor(name: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=name, dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="location")
        made.external_data.add(key="location", value=f"{name}.bin")
        return made

    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor("in_branch"))], "g", [], []
    )
    branch = helper.make_node("If", ["x"], ["y"])
    branch.attribute.append(helper.make_attribute("then_branch", inner))
    function = helper.make_function(
        "d", "F", [], ["z"], [helper.make_node("Constant", [], ["z"], value=tensor("in_function"))], []
    )
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    graph = helper.make_graph(
        [branch], "g", [], [], [tensor("weight"), tensor("weight")], sparse_initializer=[sparse]
    )
    content = helper.make_model(graph, functions=[function]).SerializeToString()
    names = ("in_branch", "in_function", "indices", "values", "weight")
    assert external_locations(content) == tuple(f"{name}.bin" for name in names)
    for length in range(0, len(content), 3):
        external_locations(content[:length])
    assert external_locations(b"\xff" * 100) == ()


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = external_model(tmp_path / "m", [1.0] * 300)
    os.mkfifo(tmp_path / "m" / "pipe") if hasattr(os, "mkfifo") else None
    data = path.read_bytes()
    for location in (b"../x.", b"/dev/", b"pipe\0"):
        path.write_bytes(data.replace(b"w.bin", location))
        assert Source.of(path).digest() == Source.of(path).digest()


def test_the_cache_spares_the_heavy_imports(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FIXED)
    script = (
        "import sys, numpy, coresident\n"
        f"session = coresident.Session({str(path)!r})\n"
        "session.run(None, {n: numpy.zeros((2, 3), numpy.float32) for n in 'ab'})\n"
        "heavy = ('llvmlite', 'onnx', 'scipy', 'coresident.compiler')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    printed = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed == ["['llvmlite', 'coresident.compiler']\n", "[]\n"]


def test_importing_the_package_is_light() -> None:
    script = "import sys, coresident; print([m for m in ('numpy', 'onnx', 'llvmlite') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
