"""When things go wrong: what a user of sessions is told, and that nothing is left half done."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model_of
from support import HOST

import coresident
from coresident import (
    CoresidentWarning,
    ExternalDataError,
    InvalidModel,
    ResourceError,
    Session,
    TargetError,
    UnsupportedModel,
)
from coresident.codegen import llvm
from coresident.codegen.builder import kernel
from coresident.codegen.target import NAMED, Target
from coresident.codegen.types import F32
from coresident.runtime import cpu, files, team

Array = np.ndarray[Any, Any]

SEED = 7
X = np.random.default_rng(SEED).standard_normal((1, 4, 8, 9)).astype(np.float32)
WEIGHTS = np.random.default_rng(SEED + 1).standard_normal((6, 4, 3, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(folder))
    return folder


def node(op: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node that is named after its output."""
    return helper.make_node(op, inputs, [output], name=f"the {output}", **attributes)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def model(*nodes: onnx.NodeProto, inputs: dict[str, Array] | None = None, **constants: Array) -> bytes:
    """A network from "x", [1, 4, 8, 9] if not told otherwise, to "y"."""
    return model_of(nodes, {"x": X} if inputs is None else inputs, ["y"], constants, 17).SerializeToString()


CONVOLUTION = model(node("Conv", "x", "w", output="z", pads=[1] * 4), node("Relu", "z"), w=WEIGHTS)


def convolved(x: Array = X) -> Array:
    """What CONVOLUTION makes of x, plainly."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.maximum(np.einsum("nchwij,ocij->nohw", windows, WEIGHTS), 0)


def check(session: Session, x: Array = X) -> None:
    np.testing.assert_allclose(session.run(None, {"x": x})[0], convolved(x), rtol=0, atol=1e-4)


def refused(path: Path, content: bytes, kind: type[coresident.Error], match: str) -> coresident.Error:
    """The error that a model in a file is refused with: it names the file, and nothing else is left."""
    path.write_bytes(content)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        Session(path, threads=2)
    assert caught.value.file == path
    assert str(path) in str(caught.value)
    left = [found for found in path.parent.rglob("*") if found not in before]
    assert [found.name for found in left] in ([], ["cache"]), left
    return caught.value


# The model


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 64, b"plain text\n", b"\x89PNG\r\n\x1a\n" + bytes(40), bytes(range(256)) * 8],
    ids=["empty", "zeros", "text", "picture", "noise"],
)
def test_what_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "m.onnx", content, InvalidModel, "not an ONNX model")


def test_a_truncated_model(tmp_path: Path) -> None:
    for length in range(1, len(CONVOLUTION), 7):
        refused(tmp_path / "m.onnx", CONVOLUTION[:length], InvalidModel, ".")


@pytest.mark.parametrize(
    ("nodes", "constants", "op", "match"),
    [
        ([node("Conv", "x", "w")], {"w": ones(6, 5, 3, 3)}, "Conv", "5 channels.*4"),
        ([node("Conv", "x", "w")], {"w": ones(6, 4, 3)}, "Conv", "."),
        ([node("Conv", "x", "w")], {"w": ones(6, 4, 9, 9)}, "Conv", "larger than the input"),
        ([node("Conv", "x", "w", kernel_shape=[5, 5])], {"w": WEIGHTS}, "Conv", "."),
        ([node("ConvTranspose", "x", "w")], {"w": ones(5, 4, 2, 2)}, "ConvTranspose", "."),
        ([node("Add", "x", "w")], {"w": ones(8, 8)}, "Add", "broadcast"),
        ([node("MatMul", "x", "w")], {"w": ones(8, 9)}, "MatMul", "9 columns.*8 rows"),
        ([node("Concat", "x", "w", axis=1)], {"w": ones(1, 4, 8, 8)}, "Concat", "equal"),
        ([node("Reshape", "x", "w")], {"w": np.array([7, -1])}, "Reshape", "288 elements"),
        ([node("Transpose", "x", perm=[0, 1, 2])], {}, "Transpose", "."),
        ([node("BatchNormalization", "x", "w", "w", "w", "w")], {"w": ones(5)}, "BatchNormalization", "."),
        ([node("MaxPool", "x", kernel_shape=[10, 2])], {}, "MaxPool", "larger"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shapes_that_contradict(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Array], op: str, match: str
) -> None:
    error = refused(tmp_path / "m.onnx", model(*nodes, **constants), InvalidModel, match)
    assert (error.node, error.op) == ("the y", op)
    assert error.shape is not None
    assert all(part in str(error) for part in ("node 'the y'", f"operator {op}", f"shape {error.shape}"))


def test_an_output_of_another_type_than_declared(tmp_path: Path) -> None:
    made = onnx.load_from_string(model(node("Relu", "x")))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, X.shape))
    error = refused(
        tmp_path / "m.onnx", made.SerializeToString(), InvalidModel, "float32, but declared to be int64"
    )
    assert (error.node, error.op) == ("the y", "Relu")


def test_shapes_that_contradict_once_they_are_known(tmp_path: Path) -> None:
    free = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    made = onnx.load_from_string(model(node("Add", "x", "w"), inputs={}, w=ones(4, 3)))
    made.graph.input.append(free)
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    session = Session(path, threads=1)
    with pytest.raises(InvalidModel, match="broadcast") as caught:
        session.run(None, {"x": ones(2, 3)})
    assert (caught.value.file, caught.value.node) == (path, "the y")
    assert session.run(None, {"x": ones(4, 3)})[0].tolist() == [[2] * 3] * 4


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        (
            [
                node("Det", "x", output="a"),
                node("Foo", "a", output="b", domain="my"),
                node("Det", "b"),
            ],
            r"Det \(2, first 'the a'\), my\.Foo \(1, first 'the b'\)",
        ),
        (
            [
                node("ConstantOfShape", "w", output="a"),
                node("EyeLike", "a", output="b"),
                node("EyeLike", "a", output="c", k=1),
                node("Add", "b", "c"),
            ],
            r"EyeLike \(2, first 'the b'\)",
        ),
    ],
    ids=["no such operator", "no kernel"],
)
def test_unsupported_operators_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[onnx.NodeProto], match: str
) -> None:
    monkeypatch.setattr(llvm, "Backend", lambda *_, **__: pytest.fail("code was made before"))
    content = model(*nodes, w=np.array([5000, 5000])) if "EyeLike" in match else model(*nodes)
    refused(tmp_path / "m.onnx", content, UnsupportedModel, match)


def test_types_that_are_not_supported(tmp_path: Path) -> None:
    content = model(node("Conv", "x", "w"), inputs={"x": X.astype(np.float64)}, w=WEIGHTS.astype(np.float64))
    error = refused(tmp_path / "m.onnx", content, UnsupportedModel, "float64; float32 is supported")
    assert (error.node, error.op) == ("the y", "Conv")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda data: data.unlink(), "no such file|missing"),
        (lambda data: data.write_bytes(data.read_bytes()[:-1]), "short|bytes"),
        (lambda data: (data.unlink(), data.symlink_to("/etc/passwd")), "outside"),
    ],
    ids=["missing", "too short", "outside"],
)
def test_external_data(tmp_path: Path, spoil: Callable[[Path], object], match: str) -> None:
    path = tmp_path / "m.onnx"
    made = onnx.load_from_string(CONVOLUTION)
    onnx.save(made, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    check(Session(path))
    spoil(tmp_path / "w.bin")
    with pytest.raises(ExternalDataError, match=match) as caught:
        Session(path)
    assert caught.value.file in (tmp_path / "w.bin", Path("/etc/passwd"))
    assert "tensor 'w'" in str(caught.value)


def test_sizes_beyond_all_memory() -> None:
    huge = model(node("Expand", "x", "n"), inputs={"x": ones(1)}, n=np.array([1 << 45]))
    with pytest.raises(ResourceError, match="'y'"):
        Session(huge, threads=1).run(None, {"x": ones(1)})
    made = onnx.load_from_string(CONVOLUTION)
    made.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1 << 44
    with pytest.raises(ResourceError, match="memory"):
        Session(made.SerializeToString(), threads=1)


@pytest.mark.parametrize("sizes", [[1 << 62], [1 << 32, 1 << 32], [0, 1 << 62]], ids=str)
def test_sizes_beyond_all_addresses(sizes: list[int]) -> None:
    content = model(node("Expand", "x", "n"), inputs={"x": ones(1)}, n=np.array(sizes))
    with pytest.raises(ResourceError, match="'y' needs more bytes of memory than addresses"):
        Session(content, threads=1)


def test_memory_within_limits() -> None:
    for content in (
        CONVOLUTION,
        model(node("Expand", "x", "n"), inputs={"x": ones(1)}, n=np.array([1 << 20])),
    ):
        Session(content, threads=1, limits=coresident.Limits(memory_bytes=8 << 20), cache=False)
        with pytest.raises(ResourceError, match="1000 are allowed"):
            Session(content, threads=1, limits=coresident.Limits(memory_bytes=1000), cache=False)


# What is fed


def test_arrays_that_are_not_contiguous() -> None:
    session = Session(CONVOLUTION, threads=2)
    (wanted,) = session.run(None, {"x": X})
    read_only = X.copy()
    read_only.flags.writeable = False
    wide = np.zeros((1, 4, 16, 20), np.float32)
    wide[:, :, ::2, 1:19:2] = X
    last = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    for form in (
        read_only,
        wide[:, :, ::2, 1:19:2],
        np.asfortranarray(X),
        last.transpose(0, 3, 1, 2),
        np.ascontiguousarray(X[..., ::-1])[..., ::-1],
        X.astype(">f4"),
        np.broadcast_to(X, (2, *X.shape))[1],
    ):
        assert np.array_equal(session.run(None, {"x": form})[0], wanted)


def _spots(x: Array) -> Array:
    """A copy with NaN in three places."""
    spotted = x.copy()
    spotted.reshape(-1)[np.random.default_rng(SEED).choice(x.size, 3, replace=False)] = np.nan
    return spotted


WIDE = np.random.default_rng(SEED).standard_normal((1, 16, 13, 17)).astype(np.float32)
KERNEL = np.random.default_rng(SEED).uniform(0.5, 1, (16, 16, 3, 3)).astype(np.float32)
TRACE = {
    "Relu": ([node("Relu", "x")], {}),
    "Clip": ([node("Clip", "x", "lo", "hi")], {"lo": np.float32(0), "hi": np.float32(6)}),
    "Sigmoid": ([node("Sigmoid", "x")], {}),
    "Softmax": ([node("Softmax", "x", axis=1)], {}),
    "MaxPool": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], {}),
    "AveragePool": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4)], {}),
    "GlobalAveragePool": ([node("GlobalAveragePool", "x")], {}),
    "ReduceMax": ([node("ReduceMax", "x", axes=[3])], {}),
    "Resize": ([node("Resize", "x", "", "by", mode="linear")], {"by": np.float32([1, 1, 2, 2])}),
    "MatMul": ([node("MatMul", "x", "w")], {"w": ones(17, 9)}),
    "Conv": ([node("Conv", "x", "w", pads=[1] * 4)], {"w": KERNEL}),
    "Conv, stride 2": ([node("Conv", "x", "w", pads=[1] * 4, strides=[2, 2])], {"w": KERNEL}),
    "Conv, depthwise": ([node("Conv", "x", "w", pads=[1] * 4, group=16)], {"w": KERNEL[:, :1]}),
    "Conv and Relu": ([node("Conv", "x", "w", output="z", pads=[1] * 4), node("Relu", "z")], {"w": KERNEL}),
    "ConvTranspose": ([node("ConvTranspose", "x", "w", strides=[2, 2])], {"w": KERNEL[..., :2, :2]}),
}


@pytest.mark.parametrize("name", TRACE)
def test_nan_passes(name: str) -> None:
    nodes, constants = TRACE[name]
    content = model(*nodes, inputs={"x": WIDE}, **constants)
    session, spotted = Session(content, threads=2, cache=False), _spots(WIDE)
    (before,), (found,), (after,) = (session.run(None, {"x": x}) for x in (WIDE, spotted, WIDE))
    # What a NaN reaches is what a change of that input changes.
    (moved,) = session.run(None, {"x": np.where(np.isnan(spotted), np.float32(1e6), WIDE)})
    reached = np.isnan(found)
    assert reached.any()
    assert not reached.all()
    assert not np.isnan(moved).any()
    if name not in ("Clip", "Softmax"):  # these hardly change beyond their bounds
        assert np.array_equal(reached, moved != before)
    assert np.array_equal(found[~reached], before[~reached])
    assert np.array_equal(before, after), "a NaN of the run before is left in memory"


def test_nan_passes_through_the_weights_that_pruning_left() -> None:
    kept = np.random.default_rng(SEED).random(KERNEL.shape) < 0.1
    content = model(node("Conv", "x", "w", pads=[1] * 4), inputs={"x": WIDE}, w=KERNEL * kept)
    session, spotted = Session(content, threads=2, cache=False), _spots(WIDE)
    (before,), (found,), (after,) = (session.run(None, {"x": x}) for x in (WIDE, spotted, WIDE))
    (moved,) = session.run(None, {"x": np.where(np.isnan(spotted), np.float32(1e6), WIDE)})
    assert np.array_equal(np.isnan(found), moved != before)
    assert np.array_equal(before, after)


def test_infinity_passes() -> None:
    content = model(node("Softmax", "x", axis=1), inputs={"x": ones(3, 9)})
    x = ones(3, 9)
    x[0, 2], x[1, 4] = -np.inf, np.inf
    (y,) = Session(content, threads=1).run(None, {"x": x})
    np.testing.assert_allclose(y[0], np.where(np.arange(9) == 2, 0, 1 / 8), rtol=1e-6)
    assert np.isnan(y[1]).all()
    np.testing.assert_allclose(y[2], 1 / 9, rtol=1e-6)


# The cache and the disk


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_a_corrupt_entry_is_never_loaded(cache_folder: Path, share: float) -> None:
    check(Session(CONVOLUTION))
    (entry,) = cache_folder.glob("*.cres")
    whole = entry.read_bytes()
    at = int(share * len(whole))
    # Padding between the sections is nobody's.
    at = next(place for place in range(at, len(whole)) if whole[place])
    for content in (whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :], whole[:at], b""):
        entry.unlink()  # what is mapped must not change
        entry.write_bytes(content)
        entry.chmod(0o600)
        with pytest.warns(CoresidentWarning, match=rf"made again.*{entry.name}"):
            check(Session(CONVOLUTION))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(Session(CONVOLUTION))


def test_the_entry_of_another_model_is_never_loaded(cache_folder: Path) -> None:
    check(Session(CONVOLUTION))
    (entry,) = cache_folder.glob("*.cres")
    other = model(node("Conv", "x", "w", pads=[1] * 4), w=-WEIGHTS)
    Session(other)
    (foreign,) = set(cache_folder.glob("*.cres")) - {entry}
    shutil.copy(foreign, entry.with_suffix(".new"))
    os.replace(entry.with_suffix(".new"), entry)
    with pytest.warns(CoresidentWarning, match="made for something else"):
        check(Session(CONVOLUTION))
    check(Session(CONVOLUTION))


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "replace", "fdopen"])
def test_a_disk_that_takes_nothing(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fail(*arguments: Any, **_: Any) -> None:
        if call == "fdopen":
            os.close(arguments[0])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, fail)
        with pytest.warns(CoresidentWarning, match=os.strerror(code)):
            session = Session(CONVOLUTION)
    check(session)
    assert not list(cache_folder.iterdir())


def test_a_full_disk_while_an_artifact_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.cres"
    coresident.compile(CONVOLUTION, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResourceError, match=os.strerror(errno.ENOSPC)) as caught:
        coresident.compile(model(node("Relu", "x")), path)
    assert caught.value.file == path
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["m.cres"]


# The process and the machine


def test_use_after_fork(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    path = tmp_path / "m.onnx"
    path.write_bytes(CONVOLUTION)
    script = f"""
        import os
        import numpy as np
        import coresident
        sessions = [coresident.Session({str(path)!r}, threads=threads) for threads in (1, 2)]
        x = np.random.default_rng(0).standard_normal((1, 4, 8, 9)).astype(np.float32)
        wanted = [session.run(None, {{"x": x}})[0] for session in sessions]
        def check():
            for _ in range(30):
                for session, y in zip(sessions, wanted):
                    assert np.array_equal(session.run(None, {{"x": x}})[0], y)
        def child():
            check()
            sessions.append(coresident.Session({str(path)!r}, threads=2))
            wanted.append(wanted[1])
            check()
        children = []
        for _ in range(3):
            number = os.fork()
            if not number:
                try:
                    child()
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(number)
        check()
        assert all(os.waitpid(number, 0)[1] == 0 for number in children)
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_number_of_threads_that_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (0, -1):
        with pytest.raises(coresident.InputError, match=f"{threads} threads; at least 1"):
            Session(CONVOLUTION, threads=threads)
    start, count = threading.Thread.start, 5
    before = threading.active_count()

    def few(thread: threading.Thread) -> None:
        if threading.active_count() >= before + count:
            raise RuntimeError("can't start new thread")
        start(thread)

    assert 37 not in team._TEAMS.teams
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", few)
        with pytest.raises(ResourceError, match="36 threads"):
            Session(CONVOLUTION, threads=37)
    assert threading.active_count() <= before, "threads are left"


@pytest.mark.parametrize(
    ("triple", "has", "lacks"),
    [
        ("x86_64-unknown-linux-gnu", {"sse4.2", "avx"}, "avx2, fma"),
        ("x86_64-unknown-linux-gnu", {"avx2"}, "fma"),
        ("aarch64-unknown-linux-gnu", set(), "neon"),
        ("riscv64-unknown-linux-gnu", {"v"}, "riscv64"),
    ],
)
def test_a_cpu_that_lacks_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, triple: str, has: set[str], lacks: str
) -> None:
    with pytest.raises(TargetError, match=lacks):
        Target(triple, "old", frozenset(has), 128, 16)
    monkeypatch.setattr(llvm, "host", lambda: (triple, "old", frozenset(has)))
    for cache in (True, False):
        with pytest.raises(TargetError, match=lacks) as caught:
            Session(CONVOLUTION, cache=cache)
    assert "AVX2" in str(caught.value) or "x86_64 and aarch64" in str(caught.value)


def test_an_artifact_on_a_cpu_that_lacks_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.cres"
    coresident.compile(CONVOLUTION, path)
    needed = {"x86_64": "avx2", "aarch64": "neon"}[HOST.arch]
    found = cpu.features()
    if found is None:
        pytest.skip("this system does not tell the features of its CPU")
    monkeypatch.setattr(cpu, "features", lambda: found - {needed})
    with pytest.raises(TargetError, match=rf"compiled for a CPU with.*{needed}.*lacks"):
        Session(path)


def test_intrinsics_that_the_target_lacks_are_refused_before_llvm() -> None:
    narrow, wide = NAMED["x86-64-avx2"], NAMED["x86-64-vnni"]
    vector = replace(F32, kind="i", bits=32, lanes=16)
    name, needs = "llvm.x86.avx512.vpdpbusd.512", ("avx512vnni",)
    for target in (narrow, NAMED["aarch64-neon"]):
        function = kernel(target, "k")
        value = function.constant(0, vector)
        with pytest.raises(TargetError, match=f"{name} needs avx512vnni, which {target.cpu} lacks"):
            function.call(name, vector, value, value, value, needs=needs)
        with pytest.raises(TargetError, match="must name the features"):
            function.call(name, vector, value, value, value)
        assert name not in function.text()
    function = kernel(wide, "k")
    value = function.constant(0, vector)
    function.call(name, vector, value, value, value, needs=needs)
    assert name in function.text()
