"""What is timed, what is kept of it, and zeros in random places. No test looks at how fast anything is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparse_networks import CASES, prepared

from coresident import Session, cache
from coresident.errors import CoresidentWarning
from coresident.graph.graph import Fact, Graph, Node
from coresident.onnx.writer import serialize
from coresident.sparsification import execution, timing
from coresident.sparsification.execution import Engine
from coresident.sparsification.forms import FLOAT_DENSE, INT8_DENSE, Form, Timings
from coresident.sparsification.network import blocks, layers, matrices, prepare
from coresident.sparsification.quantization import quantize
from coresident.sparsification.random_zeros import with_random_zeros
from coresident.sparsification.ranges import ranges
from coresident.sparsification.timing_store import Measured, Record, Store

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)
HALF, MOST = Form("float32", "unstructured", 0.5), Form("float32", "unstructured", 0.9)
BLOCKS = Form("int8", "4block", 0.75)


def network(seed: int = 0) -> Graph:
    """Three convolutions, of which the first and last are not prunable, with a residual sum."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    constants = {"w0": weights(16, 3, 3, 3), "w1": weights(16, 16, 3, 3), "w2": weights(32, 16, 1, 1)}
    constants |= {"w3": weights(8, 32, 1, 1)}
    constants |= {f"b{i}": weights(constants[f"w{i}"].shape[0]) for i in range(4)}
    pads = {"pads": (1, 1, 1, 1)}
    nodes = (
        Node("Conv", ("x", "w0", "b0"), ("a",), pads, "first"),
        Node("Relu", ("a",), ("r",), {}, "relu"),
        Node("Conv", ("r", "w1", "b1"), ("c",), pads, "middle"),
        Node("Add", ("c", "r"), ("s",), {}, "sum"),
        Node("Relu", ("s",), ("t",), {}, "relu2"),
        Node("Conv", ("t", "w2", "b2"), ("u",), {}, "wide"),
        Node("MaxPool", ("u",), ("v",), {"kernel_shape": (2, 2), "strides": (2, 2)}, "pool"),
        Node("Conv", ("v", "w3", "b3"), ("y",), {}, "last"),
    )
    facts = {"x": Fact(FLOAT, ("N", 3, 12, 12)), "y": Fact(FLOAT, ("N", 8, 6, 6))}
    return prepare(Graph(("x",), ("y",), nodes, constants, facts), {"x": (1, 3, 12, 12)})


def quantised(graph: Graph) -> Graph:
    """Each convolution between bytes, written as QDQ."""
    nodes: list[Node] = []
    constants = dict(graph.initializers) | {
        "step": np.float32(0.05),
        "middle": np.uint8(128),
        "fine": np.float32(0.02),
        "zero": np.int8(0),
    }
    for node in graph.nodes:
        if node.op == "Conv":
            w = node.inputs[1]
            constants[w + "_q"] = np.clip(np.rint(graph.initializers[w] / 0.02), -127, 127).astype(np.int8)
            source, out = node.inputs[0], node.outputs[0]
            q, name = f"{node.name}_in", node.name
            nodes += [
                Node("QuantizeLinear", (source, "step", "middle"), (q + "_q",), {}, q + "_Q"),
                Node("DequantizeLinear", (q + "_q", "step", "middle"), (q,), {}, q + "_DQ"),
                Node("DequantizeLinear", (w + "_q", "fine", "zero"), (w + "_d",), {}, w + "_DQ"),
                node.with_(inputs=(q, w + "_d", node.inputs[2]), outputs=(name + "_out",)),
                Node("QuantizeLinear", (name + "_out", "step", "middle"), (name + "_oq",), {}, name + "_Q"),
                Node("DequantizeLinear", (name + "_oq", "step", "middle"), (out,), {}, name + "_DQ"),
            ]
            continue
        nodes.append(node)
    used = {name for node in nodes for name in node.inputs}
    return graph.with_(nodes=tuple(nodes), initializers={n: a for n, a in constants.items() if n in used})


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN", 1e-4)


def timed(folder: Path | None, *forms: Form, size: int = 1, threads: int = 1) -> Timings:
    graph = network()
    feeds = {"x": np.ones((size, 3, 12, 12), np.float32)}
    found = layers(graph, {"x": (size, 3, 12, 12)})
    assert [layer.name for layer in found if layer.prunable] == ["middle", "wide"]
    return timing.measure(
        graph, found, forms, feeds, engine=Engine(threads), quantise=quantised, rounds=2, store=folder
    )


def test_all_layers_are_timed_in_all_forms() -> None:
    timings = timed(None, HALF, MOST, BLOCKS)
    assert set(timings.layers) == {"middle", "wide"}
    assert set(timings.measured) == {FLOAT_DENSE, HALF, MOST, INT8_DENSE, BLOCKS}
    for name, times in timings.layers.items():
        assert set(times) == set(timings.measured)
        assert all(seconds > 0 for seconds in times.values()), name
        assert times[FLOAT_DENSE] >= times[HALF] >= times[MOST]
        assert times[INT8_DENSE] >= times[BLOCKS]
    assert set(timings.rest) == {"float32", "int8"}
    assert timings.rest["float32"] > 0
    dense = dict.fromkeys(timings.layers, FLOAT_DENSE)
    assert timings.total(dense) <= timings.measured[FLOAT_DENSE] * 1.5
    mixed = {"middle": BLOCKS, "wide": MOST}
    assert timings.total(mixed) == pytest.approx(
        timings.rest["int8"] + timings.layers["middle"][BLOCKS] + timings.layers["wide"][MOST]
    )


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each network compiled."""
    made: list[int] = []

    def session(*arguments: Any, **options: Any) -> Session:
        made.append(1)
        return Session(*arguments, **options)

    monkeypatch.setattr(execution, "Session", session)
    return made


def test_timings_are_kept(tmp_path: Path, compiled: list[int]) -> None:
    folder = tmp_path / "new"
    first = timed(folder, MOST)
    assert len(compiled) == 2
    assert timed(folder, MOST) == first
    assert len(compiled) == 2
    files = list(folder.iterdir())
    assert len(files) == 1
    if os.name == "posix":
        assert files[0].stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
    more = timed(folder, MOST, HALF)
    assert len(compiled) == 4, "the dense network, to take turns with, and what was missing"
    assert set(more.measured) == {FLOAT_DENSE, HALF, MOST}
    timed(folder, BLOCKS)
    assert len(compiled) == 7
    timed(folder, size=2)
    timed(folder, threads=2)
    assert len(list(folder.iterdir())) == 4, "other bytes, sizes and threads have their own times"


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edited(content: bytes) -> bytes:
        whole = json.loads(content)
        change(whole["content"])
        return json.dumps(whole).encode()

    return edited


def _signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """An edit whose digest is right: what a broken writer would leave."""

    def edited(content: bytes) -> bytes:
        whole = json.loads(content)
        change(whole["content"])
        return json.dumps({"digest": cache.key(whole["content"]), "content": whole["content"]}).encode()

    return edited


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "not text": lambda content: b"\xff\xfe" + content,
    "another value": lambda content: b"[]",
    "a time changed": _edit(lambda c: c["dense"].append(1.0)),
    "negative": _signed(lambda c: c["forms"][0].update(ratio=-1.0)),
    "text for a number": _signed(lambda c: c["forms"][0].update(ratio="1")),
    "no such form": _signed(lambda c: c["forms"][0].update(sparsity=3.0)),
    "no such pattern": _signed(lambda c: c["forms"][1].update(pattern="2:4")),
    "another layer": _signed(lambda c: c["forms"][0]["shares"].update(other=0.1)),
    "a layer missing": _signed(lambda c: c["forms"][0]["shares"].pop("wide")),
    "another key": _signed(lambda c: c.update(key="0")),
    "nested": lambda content: b"[" * 100_000,
}


RECORD = Record(
    (1e-3, 2e-3),
    {
        FLOAT_DENSE: Measured(1.0, {"middle": 0.5, "wide": 0.25}),
        HALF: Measured(0.75, {"middle": 0.4, "wide": 0.5}),
    },
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_timings_are_found_out(damage: str, tmp_path: Path) -> None:
    store = Store(tmp_path, "key")
    store.write(RECORD)
    assert store.read(["wide", "middle"]) == RECORD
    (file,) = tmp_path.iterdir()
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.warns(CoresidentWarning, match="measured again"):
        assert store.read(["wide", "middle"]) == Record()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_timings_that_others_can_write_are_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path, "key")
    store.write(RECORD)
    (tmp_path / "key.json").chmod(0o666)
    with pytest.warns(CoresidentWarning, match="measured again"):
        assert store.read(["wide", "middle"]) == Record()


def test_a_folder_that_can_not_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(CoresidentWarning, match="can't be kept"):
        assert timed(tmp_path / "file" / "folder", HALF).layers


def test_bytes_need_a_quantiser() -> None:
    graph = network()
    feeds = {"x": np.ones((1, 3, 12, 12), np.float32)}
    with pytest.raises(ValueError, match="quantises"):
        timing.measure(graph, layers(graph, {"x": (1, 3, 12, 12)}), [INT8_DENSE], feeds, engine=Engine(1))


def test_times_fall_with_zeros() -> None:
    forms = [Form("float32", "unstructured", s) for s in (0.5, 0.6, 0.7, 0.8)]
    times = dict(zip([FLOAT_DENSE, *forms], [1.0, 1.2, 0.8, 0.9, 0.3]))
    found = timing._falling(times)
    assert list(found.values()) == pytest.approx([1.0, 1.0, 0.85, 0.85, 0.3])
    falling = dict(zip([FLOAT_DENSE, *forms], [1.0, 0.9, 0.8, 0.7, 0.6]))
    assert timing._falling(falling) == falling


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("depthwise", "matmul vector")])
@pytest.mark.parametrize("pattern", ["unstructured", "4block"])
def test_zeros_are_as_many_and_where_they_are_asked_for(name: str, pattern: Any) -> None:
    graph, layer = prepared(CASES[name], np.random.default_rng(1))
    form = Form("int8", pattern, 0.6)
    zeroed = with_random_zeros(graph, [layer], {layer.name: form}, 3)
    parts = matrices(layer, zeroed.initializers[layer.weight])
    before = matrices(layer, graph.initializers[layer.weight])
    for part, old, block in zip(parts, before, blocks(layer)):
        kept = part != 0
        np.testing.assert_allclose(part[kept], old[kept] / np.sqrt(0.4), rtol=1e-6)
        units = kept
        if pattern == "4block":
            first = np.unique(block, return_index=True)[1]
            units = kept[:, first]
            np.testing.assert_array_equal(kept, units[:, block])
        assert abs((~units).sum() - 0.6 * units.size) <= 0.5
    again = with_random_zeros(graph, [layer], {layer.name: form}, 3)
    np.testing.assert_array_equal(again.initializers[layer.weight], zeroed.initializers[layer.weight])
    assert with_random_zeros(graph, [layer], {layer.name: FLOAT_DENSE}, 3).initializers.keys() == (
        graph.initializers.keys()
    )


@pytest.mark.parametrize("layer", ["middle", "wide"])
def test_zeros_are_put_into_quantised_networks(layer: str) -> None:
    graph = network()
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)}
    found = layers(graph, {"x": (1, 3, 12, 12)})
    dense = quantize(graph, ranges(graph, [feeds], engine=Engine(1)))
    sparse = with_random_zeros(dense, found, {layer: BLOCKS}, 0)
    changed = [name for name, array in sparse.initializers.items() if array is not dense.initializers[name]]
    assert len(changed) == 1
    before, after = dense.initializers[changed[0]], sparse.initializers[changed[0]]
    assert after.dtype == np.int8
    assert np.all((after == before) | (after == 0))
    assert np.mean(after == 0) == pytest.approx(0.75, abs=0.02)
    with Session(serialize(sparse), threads=1, cache=False) as session:
        nodes = {name for step, _ in session.profile(feeds, 1) for name in step.info["nodes"]}
    assert {"middle", "wide"} <= nodes, "the steps of bytes say which layer they are of"
