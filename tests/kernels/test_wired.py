"""Sparse convolutions whose nonzeros are instructions."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import HOST, RUN_TARGETS, TARGETS, WIDTHS, check_node, few, graph_of, planned

from coresident.codegen import llvm, x86
from coresident.codegen.target import NAMED
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Node
from coresident.graph.operator import evaluate
from coresident.kernels import integer_cost, integer_panel, sparse, wired, wired_writer
from coresident.kernels.tiling import Cut
from coresident.runtime import elf

Array = np.ndarray[Any, Any]
ON = {"host": HOST} | RUN_TARGETS | WIDTHS
POSSIBLE = [name for name in (*TARGETS, *WIDTHS) if wired.is_possible(ON[name])]

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="no such code here")


def _force(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Have all convolutions take code that can, in chunks of few rows and few positions."""
    monkeypatch.setattr(sparse, "FLAT_OVER_CODE", 1e9)
    monkeypatch.setattr(sparse, "SEGMENTS_OVER_CODE", 1e9)
    monkeypatch.setattr(sparse, "OTHER_SEGMENTS_OVER_CODE", 1e9)
    monkeypatch.setattr(sparse, "CODE_MARGIN", 1e-9)
    monkeypatch.setattr(sparse, "FEWEST_PRODUCTS", 0.0)
    monkeypatch.setattr(wired, "MOST_ROWS", (31, 3, 8, 1)[seed % 4])
    monkeypatch.setattr(wired, "CHUNK_BYTES", (28 << 10, 300)[seed // 4 % 2])
    cycles = integer_cost.streamed
    monkeypatch.setattr(integer_cost, "streamed", lambda *a, most: 1e9 * cycles(*a))
    monkeypatch.setattr(integer_panel, "choose", lambda *_: None)


def _kernels(node: Node, feeds: dict[str, Array], constants: dict[str, Array], target: str) -> str:
    graph = graph_of([node], feeds, ["y"], constants)
    return " ".join(str(step.info.get("kernel")) for step in planned(graph, ON[target], 2).steps)


def _window(rng: np.random.Generator) -> dict[str, Any]:
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    return {
        "kernel_shape": tuple(int(k) for k in rng.choice([1, 1, 2, 3] if rank < 3 else [1, 3], rank)),
        "strides": tuple(int(s) for s in rng.choice([1, 1, 1, 2], rank)),
        "pads": tuple(int(p) for p in rng.integers(0, 2, 2 * rank)),
        "group": int(rng.choice([1, 1, 1, 2])),
    }


def _sparse(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Weights of any density, fully dense and without any nonzero among them; some rows are all zero."""
    keep = rng.random(shape) < rng.choice([0.0, 0.05, 0.2, 0.5, 1.0], p=[0.05, 0.3, 0.3, 0.2, 0.15])
    keep[rng.random(len(keep)) < 0.1] = False
    return keep


@pytest.mark.parametrize("target", POSSIBLE)
@pytest.mark.parametrize("seed", few(range(100), 16))
def test_random_convolutions(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what chunks do themselves before they store, and with what they leave to the kernel."""
    _force(monkeypatch, seed)
    rng = np.random.default_rng(seed)
    window = _window(rng)
    rank, group = len(window["kernel_shape"]), window["group"]
    spatial = tuple(
        int(s) for s in rng.choice([3, 7, 14, 16, 17, 28, 33, 70] if rank < 3 else [4, 7, 9], rank)
    )
    inputs, outputs = group * int(rng.integers(1, 70)), group * int(rng.integers(1, 70))
    shape = (outputs, inputs // group, *window["kernel_shape"])
    constants = {
        "w": (rng.standard_normal(shape) * _sparse(rng, shape)).astype(np.float32),
        "b": rng.standard_normal(outputs).astype(np.float32),
    }
    feeds = {"x": rng.standard_normal((int(rng.integers(1, 3)), inputs, *spatial), dtype=np.float32)}
    node = Node("Conv", ("x", "w", "b"), ("y",), window, "conv")
    y = evaluate(graph_of([node], feeds, ["y"], constants), feeds)["y"]
    kind = ("none", "relu", "residual", "residual, relu", "clip", "sigmoid")[seed % 6]
    names: tuple[str, ...] = ()
    steps: tuple[Apply, ...] = ()
    if "residual" in kind:
        feeds["r"], names = rng.standard_normal(y.shape, dtype=np.float32), ("r",)
        steps = (Apply("Add", (0, 1)), *((Apply("Relu", (2,)),) if "relu" in kind else ()))
    elif kind == "clip":
        constants |= {"low": np.float32([-5]), "high": np.float32([7])}
        names, steps = ("low", "high"), (Apply("Clip", (0, 1, 2)),)
    elif kind != "none":
        steps = (Apply(kind.capitalize(), (0,)),)
    if steps:
        tail = Expression(1 + len(names), steps)
        node = replace(node, inputs=(*node.inputs, *names), attributes={**window, "epilogue": tail})
    check_node(node, feeds, constants, target=target, threads=1 + seed % 3)


@pytest.mark.parametrize("target", POSSIBLE)
@pytest.mark.parametrize("seed", few(range(200, 300), 12))
def test_random_integer_convolutions(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, seed)
    rng = np.random.default_rng(seed)
    window = _window(rng)
    rank, group = len(window["kernel_shape"]), window["group"]
    spatial = tuple(int(s) for s in rng.choice([3, 7, 14, 16, 17, 28, 33] if rank < 3 else [4, 7, 9], rank))
    inputs, outputs = group * int(rng.integers(1, 70)), group * int(rng.integers(1, 70))
    shape = (outputs, inputs // group, *window["kernel_shape"])
    constants = {
        "w": (rng.integers(-128, 128, shape) * _sparse(rng, shape)).astype(np.int8),
        "xz": rng.integers(0, 256, ()).astype(np.uint8),
        "b": rng.integers(-10000, 10000, outputs).astype(np.int32),
    }
    feeds = {"x": rng.integers(0, 256, (int(rng.integers(1, 3)), inputs, *spatial)).astype(np.uint8)}
    node = Node("ConvInteger", ("x", "w", "xz", "", "b"), ("y",), window, "conv")
    check_node(node, feeds, constants, target=target, threads=1 + seed % 3, tolerance=0)


@pytest.mark.parametrize("target", POSSIBLE)
@pytest.mark.parametrize("spatial", [(14, 14), (28, 28), (13, 100)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_code_is_taken(
    kernel: int, spatial: tuple[int, int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _force(monkeypatch, 0)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((40, 50, kernel, kernel)) * (rng.random((40, 50, kernel, kernel)) < 0.1)
    window = {"kernel_shape": (kernel, kernel), "pads": (kernel // 2,) * 4}
    x = rng.standard_normal((1, 50, *spatial), dtype=np.float32)
    node = Node("Conv", ("x", "w"), ("y",), window, "conv")
    assert "in code" in _kernels(node, {"x": x}, {"w": w.astype(np.float32)}, target)
    node = Node("ConvInteger", ("x", "w"), ("y",), window, "conv")
    bytes_ = {"w": (w * 30).astype(np.int8)}
    taken = "in code" in _kernels(node, {"x": x.astype(np.uint8)}, bytes_, target)
    assert taken == ON[target].has("avx512vnni")


@pytest.mark.parametrize("cpu", ["znver5", "emeraldrapids"])
@pytest.mark.parametrize("density", [0.1, 0.2])
def test_code_is_taken_where_shuffles_take_turns_with_products(density: float, cpu: str) -> None:
    """Intel's cores have a pipe more that spreads weights of code, and fewer that shuffle pixels into
    segments, which streams meet elsewhere."""
    target = replace(NAMED["x86-64-vnni"], cpu=cpu, l1_bytes=48 << 10, l2_bytes=2 << 20)
    assert target.shuffles_apart == (cpu == "znver5")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((128, 128, 3, 3)) * (rng.random((128, 128, 3, 3)) < density)
    node = Node("Conv", ("x", "w"), ("y",), {"kernel_shape": (3, 3), "pads": (1,) * 4}, "conv")
    feeds = {"x": np.zeros((1, 128, 28, 28), np.float32)}
    steps = planned(graph_of([node], feeds, ["y"], {"w": w.astype(np.float32)}), target).steps
    kernel, tile = next((s.info["kernel"], s.info["tile"]) for s in steps if s.info["op"] == "Conv")
    assert ("in code" in kernel, "segments" in tile) == (cpu != "znver5", cpu == "znver5")


@pytest.mark.parametrize("seed", few(range(40), 8))
def test_code_is_as_long_as_was_said(seed: int) -> None:
    """Chunks end where the next one may begin, and nothing is written between."""
    rng = np.random.default_rng(seed)
    rows, positions = int(rng.integers(1, 80)), int(rng.integers(1, 600))
    weights = rng.standard_normal((2, rows, positions)).astype(np.float32)
    weights *= rng.random(weights.shape) < rng.choice([0.0, 0.1, 0.6])
    ends = (None, (), (wired.End("Add"), wired.End("Max")), (wired.End("Max", -1.0), wired.End("Min", 2.0)))[
        seed % 4
    ]
    block = int(rng.integers(1, positions + 1))
    asks = np.zeros((block, int(rng.integers(0, 3))), np.int32)
    offsets = np.arange(positions, dtype=np.int32)
    of_chunk = int(rng.integers(1, 32))
    middle = int(rng.integers(0, -(-rows // of_chunk))) * of_chunk
    wiring = wired.Wiring(
        of_chunk,
        block,
        int(rng.integers(1, 9)),
        offsets,
        x86.MULTIPLY_ADD,
        ends,
        (64, 64),
        asks,
        2,
        ((0, middle), (middle, rows)),
    )
    made = wired.Wired.of(weights, np.zeros((2, rows), np.float32), wiring)
    written = np.full(made.size + 64, 0xA5, np.uint8)
    function = wired_writer.writer(HOST, ends)
    code = elf.load([llvm.Backend(HOST).object(llvm.module_text([function]))], "x86_64")
    tables = (
        made.chunks,
        made.masks,
        made.weights,
        wiring.offsets,
        made.asks,
        wired_writer.templates(wiring.product),
    )
    words = [written.ctypes.data, len(made.chunks), 64, 64, *(t.ctypes.data for t in tables)]
    array = (ctypes.c_uint64 * len(words))(*words)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    kernel(code.address(function.name))(ctypes.addressof(array), 0, None)
    in_memory = made.starts[np.argsort(made.starts[:, 0])]
    for (start, size, *_, at, count, _, _, _), (begin, numbers, end) in zip(made.chunks, in_memory):
        assert (begin, numbers) == (start, start + size)
        tail = written[start + size - 80 if size > 80 else start : start + size].tobytes()
        # The last instruction returns; seven zeros were written behind it.
        assert tail.rstrip(b"\xa5").endswith(b"\xc3" + bytes(7))
        held = written[numbers : numbers + 4 * count].view(np.float32)
        np.testing.assert_array_equal(held, made.weights[at : at + count])
        assert end - numbers - 64 < 4 * count <= end - numbers
    assert (written[made.size :] == 0xA5).all()


@pytest.mark.parametrize("seed", few(range(40), 8))
def test_chunks_lie_in_the_order_in_which_they_run(seed: int) -> None:
    """Each asks for the one that lies behind it."""
    rng = np.random.default_rng(seed)
    groups, rows, positions = (int(rng.integers(1, most)) for most in (3, 90, 60))
    of_chunk, block = int(rng.integers(1, 32)), int(rng.integers(1, positions + 1))
    work = Cut(5, 1, rows, int(rng.integers(1, -(-rows // of_chunk) + 1)), of_chunk, 1)
    weights = rng.integers(0, 2, (groups, rows, positions)).astype(np.int32)
    no_asks, offsets = np.zeros((block, 0), np.int32), np.arange(positions, dtype=np.int32)
    wiring = wired.Wiring(of_chunk, block, 1, offsets, x86.DOT, None, (0, 0), no_asks, 1, work.row_spans)
    made = wired.Wired.of(weights, np.zeros((groups, rows), np.int32), wiring)
    blocks = -(-positions // block)
    starts, at = made.starts.reshape(groups, -1, blocks, 3), 0
    masks = {start: first for start, _, first, *_ in made.chunks.tolist()}
    for group in range(groups):
        for first, end in map(work.row_range, range(work.row_parts)):
            for number in range(blocks):
                for row in range(first, end, of_chunk):
                    begin, _, following = starts[group, row // of_chunk, number].tolist()
                    assert begin == at
                    at = following
                    held = weights[group, row : row + of_chunk, number * block]
                    assert made.masks[masks[begin]] == sum(1 << i for i in np.flatnonzero(held))
    assert at == made.size


def test_rows_of_uneven_work_are_one_span() -> None:
    even = Cut(5, 5, 60, 2, 30, 1)
    assert even.row_spans == ((0, 30), (30, 60))
    assert replace(even, pieces=((0, 1, 0, 2),)).row_spans == ((0, 60),)
