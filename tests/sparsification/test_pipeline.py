"""The whole way from a dense network to a sparse one: what is asked is reached, said, and the same again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import coresident
from coresident.errors import CoresidentWarning, InputError, UnsupportedModel
from coresident.graph.graph import Graph
from coresident.onnx.reader import read
from coresident.sparsification import pipeline, search, speed
from coresident.sparsification.agreement import Task
from coresident.sparsification.data import inputs_of
from coresident.sparsification.data import read as read_samples
from coresident.sparsification.execution import Engine
from coresident.sparsification.forms import FLOAT_DENSE, DType, Form, Timings
from coresident.sparsification.network import Layer
from coresident.sparsification.pipeline import Result, sparsify
from coresident.sparsification.report import Latency, Report
from coresident.sparsification.settings import Settings

Array = np.ndarray[Any, Any]
CHANNELS, SIZE, CLASSES = 24, 12, 5


def network() -> bytes:
    """Four convolutions, one of them around a residual, and a classifier; a free batch."""
    rng = np.random.default_rng(3)
    constants: dict[str, Array] = {}
    nodes = []

    def conv(x: str, y: str, inputs: int, outputs: int, kernel: int) -> None:
        shape = (outputs, inputs, kernel, kernel)
        scale = np.sqrt(2 / (inputs * kernel**2))
        constants[f"{y}.w"] = (rng.standard_normal(shape) * scale).astype(np.float32)
        constants[f"{y}.b"] = (rng.standard_normal(outputs) * 0.1).astype(np.float32)
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [x, f"{y}.w", f"{y}.b"], [y], name=y, pads=pads))

    conv("x", "first", 3, CHANNELS, 3)
    nodes.append(helper.make_node("Relu", ["first"], ["a"]))
    conv("a", "second", CHANNELS, CHANNELS, 3)
    nodes.append(helper.make_node("Relu", ["second"], ["b"]))
    conv("b", "third", CHANNELS, CHANNELS, 3)
    nodes.append(helper.make_node("Add", ["third", "a"], ["sum"]))
    nodes.append(helper.make_node("Relu", ["sum"], ["c"]))
    conv("c", "fourth", CHANNELS, 2 * CHANNELS, 1)
    nodes.append(helper.make_node("GlobalAveragePool", ["fourth"], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    constants["fc"] = rng.standard_normal((2 * CHANNELS, CLASSES)).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["flat", "fc"], ["y"], name="last"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def samples(count: int = 40) -> Array:
    rng = np.random.default_rng(4)
    smooth = rng.standard_normal((count, 3, SIZE // 4, SIZE // 4)).repeat(4, 2).repeat(4, 3)
    return (smooth + 0.3 * rng.standard_normal((count, 3, SIZE, SIZE))).astype(np.float32)


def made(**asked: Any) -> Result:
    return sparsify(network(), samples(), **{"effort": "fast", "threads": 1, **asked})


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Timings of its own, kept where the test is, short ones, and but for one test in this process."""
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("coresident.sparsification.verification._SECONDS", 0.02)
    monkeypatch.setattr("coresident.sparsification.verification._ROUNDS", 2)
    monkeypatch.setattr("coresident.sparsification.speed.ROUNDS", 2)
    monkeypatch.setattr("coresident.sparsification.speed.SECONDS", 0.01)
    if "elsewhere" not in request.node.name:
        monkeypatch.setattr("coresident.sparsification.verification.latency", in_this_process)
        monkeypatch.setattr("coresident.sparsification.timing.measure", by_weights)


def by_weights(
    graph: Graph, layers: Sequence[Layer], forms: Sequence[Form], feeds: object, **_: object
) -> Timings:
    """Times as they would be if they went by the weights that are left, bytes twice as fast."""
    every = {*forms, *(form.dense for form in forms), FLOAT_DENSE}

    def seconds(layer: Layer, form: Form) -> float:
        return layer.size * (1 - form.sparsity) * (1.0 if form.dtype == "float32" else 0.5) * 1e-8

    times = {layer.name: {form: seconds(layer, form) for form in every} for layer in layers if layer.prunable}
    rest: dict[DType, float] = {"float32": 1e-5, "int8": 1e-5}
    return Timings(times, rest, {f: 1e-5 + sum(each[f] for each in times.values()) for f in every})


def in_this_process(
    original: bytes, result: bytes, dense_bytes: bytes | None, feeds: dict[str, Array], threads: int
) -> tuple[Latency, tuple[str, ...]]:
    times = speed.latencies({"dense": read(original), "result": read(result)}, feeds, Engine(threads))
    return Latency(times["dense"], times["result"]), ()


@pytest.mark.parametrize(
    ("quantize", "pattern"),
    [("int8", "4block"), pytest.param("none", "unstructured", marks=pytest.mark.slow)],
)
def test_what_comes_out_runs_elsewhere_and_survives(tmp_path: Path, quantize: str, pattern: str) -> None:
    result = made(sparsity=0.5, quantize=quantize, pattern=pattern, output=tmp_path)
    # With little effort there are few shares of zeros to put together.
    assert 0.48 < result.report.target.reached < 0.7
    names = {path.name for path in result.save(tmp_path / "out")}
    assert names >= {"model.onnx", "model.cres", "report.json", "report.md", "preprocessing.json"}
    assert Report.read(tmp_path / "out").record() == json.loads(json.dumps(result.report.record()))
    x = samples()[:3]
    theirs = onnxruntime.InferenceSession(result.model, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    with coresident.Session(tmp_path / "out" / "model.onnx", threads=1, background=False) as session:
        (ours,) = session.run(None, {"x": x})
        (single,) = session.run(None, {"x": x[:1]})
    with coresident.Session(tmp_path / "out" / "model.cres", threads=1) as session:
        (loaded,) = session.run(None, {"x": x[:1]})
    unit = 1e-5 if quantize == "none" else 2 / 255
    np.testing.assert_allclose(ours, theirs[0], rtol=0, atol=unit * np.ptp(theirs[0]))
    np.testing.assert_array_equal(loaded, single)
    # Zeros and four-blocks of the file are those of the report.
    graph = read(result.model)
    for layer in result.report.layers:
        node = next(node for node in graph.nodes if node.name == layer.name)
        weights = graph.constant(node.inputs[1])
        if weights is None:
            weights = graph.initializers[graph.producers()[node.inputs[1]].inputs[0]]
        assert float((weights == 0).mean()) == layer.sparsity, layer.name
        if layer.pattern == "4block":
            blocks = weights.reshape(len(weights), -1, 4, *weights.shape[2:])
            assert (blocks == 0).all(2).mean() > 0.8 * layer.sparsity, layer.name
    assert not (tmp_path / ".sparsify").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_network() -> None:
    assert made(target_speedup=1.3).model == made(target_speedup=1.3).model


def test_a_target_out_of_reach_says_what_holds_it() -> None:
    report = made(target_speedup=500).report
    assert not report.target.feasible
    assert report.target.holding
    assert "everything else" in {name for name, _ in report.target.holding}
    assert report.target.reached < 500


@pytest.mark.slow
def test_a_bound_on_what_is_lost() -> None:
    found = made(max_drop=0.25, quantize="none")
    assert found.report.target.reached <= 0.25
    assert found.report.agreement["share"] >= 0.75


def test_as_many_samples_are_held_back_as_tell_the_drop_asked() -> None:
    some = read_samples(samples(200), inputs_of(read(network()), None))

    def held(task: Task, **asked: Any) -> int:
        calibration, judged = pipeline.parts(some, task, Settings(**asked))
        assert len(calibration) + len(judged) == 200
        return len(judged)

    assert held("classifier", sparsity=0.5) == 40
    assert held("classifier", max_drop=0.05) == 80
    assert held("segmenter", max_drop=0.05) == 40  # a pixel is a decision
    assert held("classifier", max_drop=0.2) == 40
    with pytest.warns(CoresidentWarning, match="100 samples .* a drop of 1.00% 400 are needed"):
        assert held("classifier", max_drop=0.01) == 100


class _Stop(Exception):
    pass


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"sparsity": 0.5, "quantize": "none", "effort": "fast", "threads": 1, "output": tmp_path}

    def stop(*_: Any, **__: Any) -> None:
        raise _Stop

    with monkeypatch.context() as patched:
        patched.setattr(search, "losses", stop)
        with pytest.raises(_Stop):
            sparsify(network(), samples(), **asked)
    left = sorted((tmp_path / ".sparsify").iterdir())
    assert left
    with monkeypatch.context() as patched:
        # Layers are not worked out again.
        patched.setattr("coresident.sparsification.database._reconstruct", stop)
        resumed = sparsify(network(), samples(), **asked)
        with pytest.raises(_Stop):
            sparsify(network(), samples(), **{**asked, "seed": 1})
    fresh = sparsify(network(), samples(), **{**asked, "output": tmp_path / "other"})
    assert resumed.model == fresh.model


def test_what_is_skipped_stays(tmp_path: Path) -> None:
    result = made(sparsity=0.5, quantize="int8", skip=["second", "re:four"])
    kept = {layer.name: layer for layer in result.report.layers if layer.kept.startswith("skipped")}
    assert set(kept) == {"second", "fourth"}
    assert all(layer.dtype == "float32" and not layer.sparsity for layer in kept.values())
    before = {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(network()).graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(result.model).graph.initializer}
    np.testing.assert_array_equal(before["second.w"], after["second.w"])
    with pytest.raises(UnsupportedModel, match="quantised already"):
        sparsify(result.model, samples(), effort="fast", threads=1)


def test_labels_give_accuracy() -> None:
    x = samples()
    with coresident.Session(network(), threads=1) as session:
        labels = session.run(None, {"x": x})[0].argmax(1)
    found = made(sparsity=0.5, quantize="none", labels=labels).report.accuracy
    assert found is not None
    assert found.before == 1.0
    assert found.metric == "top-1"


def test_most_effort_trains_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="imitating needs PyTorch: pip install 'coresident[train]'")
    monkeypatch.setattr("coresident.sparsification.training.imitation.STEPS", 4)
    monkeypatch.setattr(search, "_TRIES", dict.fromkeys(search._TRIES, 0))
    result = made(sparsity=0.5, quantize="none", effort="max")
    assert any("for samples kept aside" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("model", "asked", "error", "said"),
    [
        (b"nothing", {}, coresident.ModelError, r"\w"),
        (3, {}, InputError, "is no model"),
        (None, {"skip": ["nobody"]}, InputError, "no layer matches 'nobody'"),
        (None, {"task": "poet"}, InputError, "tasks are"),
        (None, {"target_speedup": 2, "sparsity": 0.5}, InputError, "only one target"),
        (None, {"skip": ["re:.*"], "quantize": "none"}, InputError, "no layer of the model can lose weights"),
    ],
)
def test_what_is_refused(model: object, asked: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sparsify(network() if model is None else model, samples(), effort="fast", threads=1, **asked)
