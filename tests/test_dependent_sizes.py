"""Sizes that the data decides, and inputs that shapes depend on: sessions against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model_of, onnxruntime_outputs

from coresident import Session
from coresident.errors import InputError, UnsupportedModel
from coresident.runtime import artifact
from coresident.runtime.artifact import Artifact

Array = np.ndarray[Any, Any]
SEED = 5


def normal(*shape: int) -> Array:
    return np.random.default_rng([SEED, *shape]).standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def check(
    nodes: Sequence[onnx.NodeProto],
    calls: Sequence[dict[str, Array]],
    outputs: Sequence[str],
    constants: dict[str, Array] | None = None,
) -> None:
    """One session on several feeds; on two threads, without the cache."""
    model = model_of(nodes, calls[0], outputs, constants, opset=18)
    with Session(model.SerializeToString(), threads=2, cache=False) as session:
        for feeds in calls:
            for got, want in zip(session.run(None, feeds), onnxruntime_outputs(model, feeds)):
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                assert got.flags.c_contiguous
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_nonzero_and_compress() -> None:
    calls = [{"x": x} for x in (normal(3, 7, 5), np.zeros((3, 7, 5), np.float32), -np.abs(normal(3, 7, 5)))]
    nodes = [node("Relu", "x", "r"), node("NonZero", "r", "found")]
    check(nodes, calls, ["found"])
    compress = [
        node("Greater", "c zero", "k"),
        node("Compress", "x k", "y", axis=1),
        node("Compress", "x k", "z"),
    ]
    calls = [{"x": normal(3, 7, 5), "c": normal(7)}, {"x": normal(3, 7, 5), "c": np.zeros(7, np.float32)}]
    check(compress, calls, ["y", "z"], {"zero": np.float32(0)})


@pytest.mark.parametrize("attributes", [{}, {"sorted": 0}, {"axis": 1}, {"axis": -1, "sorted": 0}])
def test_unique(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(SEED)
    calls = [{"x": rng.integers(0, high, (2, 5, 3)).astype(np.float32)} for high in (1, 2, 9)]
    check([node("Unique", "x", "y first which many", **attributes)], calls, ["y", "first", "which", "many"])


def head(
    batch: int, classes: int, boxes: int, keep: int = 5
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """The end of a detection network: boxes kept, their coordinates, scores and classes gathered."""
    nodes = [
        node("NonMaxSuppression", "boxes scores most overlap least", "kept"),
        node("Gather", "kept column2", "index", axis=1),
        node("Gather", "kept column0", "picture", axis=1),
        node("Gather", "kept column1", "class", axis=1),
        node("Concat", "picture index", "at", axis=1),
        node("GatherND", "boxes at", "corners"),
        node("GatherND", "scores kept", "score"),
        node("Unsqueeze", "score last", "column"),
        node("Cast", "class", "named", to=onnx.TensorProto.FLOAT),
        node("Concat", "corners column named", "detections", axis=1),
        node("ReduceMax", "detections last", "peak"),
    ]
    constants = {
        "most": np.array([keep]), "overlap": np.float32([0.4]), "least": np.float32([0.3]),
        "column0": np.array([0]), "column1": np.array([1]), "column2": np.array([2]), "last": np.array([1]),
    }  # fmt: skip
    return nodes, constants


def test_detection_head() -> None:
    rng = np.random.default_rng(SEED)
    calls = []
    for scale in (1, 0.5, 0.1):
        corners = np.sort(rng.random((2, 17, 2, 2)), axis=2).reshape(2, 17, 4)
        calls.append(
            {
                "boxes": corners.astype(np.float32),
                "scores": rng.random((2, 3, 17), np.float32) * np.float32(scale),
            }
        )
    nodes, constants = head(2, 3, 17)
    check(nodes, calls, ["kept", "detections", "peak"], constants)


def test_boxes_chosen_before_suppression() -> None:
    """A mask that indexes several arrays, as exporters write it; what is left is suppressed, and indexed."""
    rng = np.random.default_rng(SEED)
    corners = np.sort(rng.random((17, 2, 2)), axis=1).reshape(17, 4).astype(np.float32)
    calls = [
        {"boxes": corners, "scores": rng.random(17, np.float32) * np.float32(scale)}
        for scale in (1, 0.7, 0.1)
    ]
    nodes = [
        node("Greater", "scores least", "sure"),
        node("NonZero", "sure", "found"),
        node("Transpose", "found", "rows"),
        node("GatherND", "boxes rows", "b"),
        node("NonZero", "sure", "again"),
        node("Squeeze", "again first", "index"),
        node("Max", "index", "alone"),
        node("Shape", "alone", "shape"),
        node("Expand", "index shape", "whole"),
        node("Gather", "scores whole", "s"),
        node("Unsqueeze", "s last", "column"),
        node("Mul", "b column", "moved"),
        node("Unsqueeze", "b first", "b3"),
        node("Unsqueeze", "s both", "s3"),
        node("NonMaxSuppression", "b3 s3 most overlap", "kept"),
        node("Gather", "kept two", "chosen", axis=1),
        node("Gather", "b chosen", "y"),
        node("Unsqueeze", "chosen last", "k"),
        node("GatherND", "s k", "z"),
    ]
    constants = {
        "least": np.float32(0.5), "first": np.array([0]), "last": np.array([1]), "both": np.array([0, 1]),
        "most": np.array([50]), "overlap": np.float32([0.3]), "two": np.array(2),
    }  # fmt: skip
    check(nodes, calls, ["moved", "y", "z"], constants)


def test_the_last_of_what_is_found() -> None:
    calls = [{"x": x} for x in (normal(3, 7), np.abs(normal(3, 7)))]
    nodes = [
        node("Relu", "x", "r"),
        node("NonZero", "r", "found"),
        node("Gather", "found minus", "last", axis=1),
        node("Transpose", "found", "rows"),
        node("GatherND", "rows end", "again"),
    ]
    check(nodes, calls, ["last", "again"], {"minus": np.array(-1), "end": np.array([[-1], [0]])})


def test_what_would_take_absent_elements_for_data_is_refused() -> None:
    for last in (
        node("ReduceSum", "found", "y", keepdims=0),
        node("Softmax", "values", "y", axis=1),
        node("Concat", "found found", "y", axis=1),
        node("Add", "found wide", "y"),
    ):
        nodes = [node("NonZero", "x", "found"), node("Cast", "found", "values", to=1), last]
        model = model_of(nodes, {"x": normal(3, 4)}, ["y"], {"wide": np.ones((2, 12), np.int64)}, opset=18)
        with pytest.raises(UnsupportedModel, match="size depends on the data"):
            Session(model.SerializeToString(), cache=False)


def test_a_program_of_such_sizes_is_stored(tmp_path: Path) -> None:
    model = model_of([node("NonZero", "x", "y")], {"x": normal(3, 4)}, ["y"], opset=18)
    session = Session(model.SerializeToString(), threads=1, cache=False)
    assert session.get_outputs()[0].shape == (2, None)
    artifact.write(Artifact((session.program({"x": normal(3, 4)}),)), tmp_path / "m.cres")
    stored = Session(tmp_path / "m.cres", threads=1)
    x = np.where(normal(3, 4) > 0, np.float32(1), np.float32(0))
    np.testing.assert_array_equal(stored.run(None, {"x": x})[0], np.array(np.nonzero(x)))
    assert len(stored.get_outputs()) == 1


def test_inputs_that_shapes_depend_on() -> None:
    nodes = [
        node("Concat", "head tail", "shape", axis=0),
        node("Reshape", "x shape", "y"),
        node("Neg", "head", "z"),
    ]
    calls = [
        {"x": normal(4, 6), "head": np.array([2]), "tail": np.array([-1])},
        {"x": normal(4, 6), "head": np.array([3]), "tail": np.array([8])},
        {"x": -normal(4, 6), "head": np.array([2]), "tail": np.array([-1])},
    ]
    check(nodes, calls, ["y", "z"])
    model = model_of(nodes, calls[0], ["y"], opset=18)
    with Session(model.SerializeToString(), cache=False, programs=1) as session:
        first = session.program(calls[0])
        assert session.program(calls[2]) is first
        assert session.program(calls[1]) is not first
        with pytest.raises(InputError, match="int64 is needed"):
            session.run(None, {**calls[0], "head": np.array([2.0])})


def test_weights_that_the_network_computes() -> None:
    for op, w, extra in (
        ("Conv", normal(6, 2, 3, 3), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ("Conv", normal(5, 4, 2, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
        ("ConvTranspose", normal(4, 3, 3, 2), {"group": 2, "strides": [2, 3], "output_padding": [1, 2]}),
        ("ConvTranspose", normal(4, 3, 3, 3), {"pads": [1, 1, 0, 1], "dilations": [1, 2]}),
    ):
        outputs = w.shape[0] if op == "Conv" else w.shape[1] * extra.get("group", 1)
        nodes = [node("Tanh", "w", "v"), node(op, "x v b", "c", **extra), node("Relu", "c", "y")]
        feeds = {"x": normal(2, 4, 7, 8), "w": w, "b": normal(outputs)}
        check(nodes, [feeds], ["y"])
        constant = {"w": feeds.pop("w")}
        check(nodes, [feeds], ["y"], constant)
