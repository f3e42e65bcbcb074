"""External data: what is read, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from coresident.errors import ExternalDataError
from coresident.limits import Limits
from coresident.onnx.reader import read

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


def save(folder: Path, entries: dict[str, str]) -> Path:
    """A model whose one weight, float32[2, 3], has these external_data entries."""
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL
    )
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [onnx.ValueInfoProto(name="y")],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, match: str) -> None:
    with pytest.raises(ExternalDataError, match=match):
        read(path)


def test_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"head" + WEIGHTS.tobytes() + b"tail")
    for more in ({}, {"length": "24"}, {"length": "24", "checksum": "0" * 40}):
        graph = read(save(tmp_path, {"location": "data/w.bin", "offset": "4", **more}))
        np.testing.assert_array_equal(graph.initializers["w"], WEIGHTS)
        assert not graph.initializers["w"].flags.writeable


def test_what_onnx_writes(tmp_path: Path) -> None:
    weights = np.random.default_rng(3).standard_normal((100, 70)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100])],
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    np.testing.assert_array_equal(read(tmp_path / "m.onnx").initializers["w"], weights)


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder"])
def test_links(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(WEIGHTS.tobytes())
    if kind == "folder":
        (tmp_path / "sub").symlink_to("real")
        return refused(save(tmp_path, {"location": "sub/w.bin"}), "behind a link")
    if kind == "symbolic":
        (tmp_path / "w.bin").symlink_to("real/w.bin")
        return refused(save(tmp_path, {"location": "w.bin"}), "behind a link")
    (tmp_path / "w.bin").hardlink_to(tmp_path / "real" / "w.bin")
    return refused(save(tmp_path, {"location": "w.bin"}), "another name")


def test_the_model_may_lie_behind_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = save(folder, {"location": "w.bin"})
    (tmp_path / "link").symlink_to(folder)
    np.testing.assert_array_equal(read(tmp_path / "link" / path.name).initializers["w"], WEIGHTS)


def test_entries_twice(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = save(tmp_path, {"location": "w.bin"})
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="v.bin")
    path.write_bytes(model.SerializeToString())
    refused(path, "twice")


def test_more_external_data_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = save(tmp_path, {"location": "w.bin"})
    with pytest.raises(ExternalDataError, match="more than 20 bytes"):
        read(path, Limits(external_bytes=20))


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/passwd",
        "../w.bin",
        "a/../../w.bin",
        "..\\w.bin",
        "C:\\w.bin",
        "C:w.bin",
        "\\\\host\\w.bin",
        "w\0.bin",
    ],
)
def test_locations_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    refused(save(tmp_path / "model", {"location": location}), "relative path without")


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_that_leave_the_folder(tmp_path: Path, link: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "w.bin").write_bytes(WEIGHTS.tobytes())
    path = save(tmp_path / "model", {"location": "w.bin" if link == "file" else "sub/w.bin"})
    if link == "file":
        (path.parent / "w.bin").symlink_to(tmp_path / "outside" / "w.bin")
    else:
        (path.parent / "sub").symlink_to(tmp_path / "outside")
    refused(path, "outside the model's folder")


def test_missing_and_circular(tmp_path: Path) -> None:
    refused(save(tmp_path, {"location": "absent.bin"}), "missing")
    (tmp_path / "ring").symlink_to("ring")
    refused(save(tmp_path, {"location": "ring"}), "behind a link")


def test_not_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(save(tmp_path, {"location": "folder"}), "not a regular file|can't be read")
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        refused(save(tmp_path, {"location": "pipe"}), "not a regular file")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "4"}, "needs bytes 4 to 28; there are 24"),
        ({"offset": "9" * 18}, "there are 24"),
        ({"offset": "-4"}, "offset '-4'"),
        ({"offset": "4.0"}, "offset"),
        ({"offset": "9" * 30}, "offset"),
        ({"length": "20"}, "needs 24 bytes; its external data has 20"),
        ({"length": "x"}, "length 'x'"),
        ({"key": "1"}, r"keys \['key'\]"),
    ],
)
def test_entries(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    refused(save(tmp_path, {"location": "w.bin", **entries}), match)


def test_a_model_given_as_bytes_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    with pytest.raises(ExternalDataError, match="give its path"):
        read(save(tmp_path, {"location": "w.bin"}).read_bytes())
