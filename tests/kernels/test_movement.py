"""Operators that move elements: as views, as copies, and at the borders of planes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from guarded import Array, Bench, check_emission, check_lowering, random_array, random_layout
from support import EMIT_TARGETS, RUN_TARGETS, graph_of, run_graph

from coresident.errors import UnsupportedModel
from coresident.graph.graph import Node
from coresident.graph.operator import evaluate
from coresident.kernels import loopnest, movement, views
from coresident.kernels.halo import folded, runs
from coresident.kernels.layout import Layout

TARGETS = pytest.mark.parametrize("target", RUN_TARGETS.values(), ids=RUN_TARGETS.keys())
DTYPES = ("float32", "uint8", "int64", "float16", "bool")


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts even small tensors into tasks."""
    monkeypatch.setattr(loopnest, "_TASK_CYCLES", 30)


def one(
    op: str, feeds: dict[str, Any], known: dict[str, Any] | None = None, outputs: int = 1, **attributes: Any
) -> Any:
    """A graph of one node over these inputs, constants after them; None is an input left out."""
    names = (*feeds, *(name if value is not None else "" for name, value in (known or {}).items()))
    constants = {name: np.asarray(value) for name, value in (known or {}).items() if value is not None}
    results = tuple(f"y{i}" for i in range(outputs))
    return graph_of([Node(op, names, results, attributes, op)], feeds, results, constants)


def check(graph: Any, feeds: dict[str, Any], target: Any, seed: int = 0, threads: int = 2) -> None:
    """As views, and as copies between random layouts."""
    check_lowering(graph, feeds, target, threads=threads)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        names = [n for n in (*feeds, *graph.outputs) if graph.facts[n].sizes]
        layouts = {name: random_layout(rng, graph.facts[name].sizes) for name in names}
        check_lowering(
            graph, feeds, target, layouts=layouts, threads=threads, views=False, hint=f"seed {seed}"
        )
        only_inputs = {name: layouts[name] for name in names if name in feeds}
        check_lowering(graph, feeds, target, layouts=only_inputs, threads=threads, hint=f"seed {seed}")


@TARGETS
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((6, 4), (4, 6)),
        ((2, 3, 4), (2, 12)),
        ((2, 12), (2, 3, 4)),
        ((2, 3, 1, 5), (6, 5, 1)),
        ((1, 1), ()),
        ((), (1, 1, 1)),
        ((4, 0, 3), (0, 5)),
        ((2, 6, 5, 7), (2, 2, 3, 5, 7)),
        ((3, 8, 4), (6, 16)),
    ],
)
def test_reshape(target: Any, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    x = np.arange(np.prod(before), dtype=np.float32).reshape(before)
    graph = one("Reshape", {"x": x}, {"shape": np.array(after, np.int64)}, allowzero=1)
    check(graph, {"x": x}, target)


@pytest.mark.parametrize("seed", range(40))
def test_reshaped_views_are_right_or_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 4, 6], int(rng.integers(1, 5))))
    factors = [
        int(n)
        for n in rng.permutation([p for size in shape for p in {4: [2, 2], 6: [2, 3]}.get(size, [size])])
    ]
    wanted: list[int] = []
    while factors:
        taken = int(rng.integers(1, 3))
        wanted.append(int(np.prod(factors[:taken])))
        factors = factors[taken:]
    layout = random_layout(rng, shape)
    memory = np.arange(layout.extent + 1)
    array = np.lib.stride_tricks.as_strided(memory[layout.origin :], shape, [s * 8 for s in layout.strides])
    view = views.reshaped(layout, wanted)
    try:
        array.view().shape = tuple(wanted)
        possible = True
    except AttributeError:
        possible = False
    assert (view is not None) == possible, f"seed {seed}"
    if view is not None:
        got = np.lib.stride_tricks.as_strided(memory[view.origin :], wanted, [s * 8 for s in view.strides])
        np.testing.assert_array_equal(got, array.reshape(wanted), err_msg=f"seed {seed}")


@TARGETS
@pytest.mark.parametrize("op", ["Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"])
def test_shapes(target: Any, op: str) -> None:
    x = random_array(np.random.default_rng(0), (2, 1, 5, 7), "float32")
    known = {"axes": np.array([1])} if op in ("Squeeze", "Unsqueeze") else {}
    check(one(op, {"x": x}, known), {"x": x}, target)


@TARGETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_transpose(target: Any, dtype: str, seed: int, many_tasks: None) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(2, 5))
    shape = [int(rng.choice([1, 3, 8, 9, 16, 17, 33])) for _ in range(rank)]
    x = random_array(rng, shape, dtype)
    order = tuple(int(d) for d in rng.permutation(rank))
    check(one("Transpose", {"x": x}, perm=order), {"x": x}, target, seed, threads=3)


@TARGETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 5, 7), (2, 17, 8, 8), (1, 3, 19, 11), (1, 40, 1, 33)])
def test_channels_last_and_back(target: Any, dtype: str, shape: tuple[int, ...], many_tasks: None) -> None:
    x = random_array(np.random.default_rng(0), shape, dtype)
    for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
        graph = one("Transpose", {"x": x}, perm=order)
        check_lowering(graph, {"x": x}, target, threads=3, views=False)


@TARGETS
@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1, 2], [9, 5], [0, 2], None),
        ([-1], [-100], [1], [-1]),
        ([0, 8], [100, 0], [2, 0], [2, -3]),
        ([3], [3], [0], None),
        ([0, 1, 0, 5], [2**63 - 1, 7, 3, -1], [0, 1, 2, 3], [3, 2, 1, 2]),
    ],
)
def test_slice(target: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    x = random_array(np.random.default_rng(0), (9, 7, 5, 18), "float32")
    known = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    check(one("Slice", {"x": x}, known), {"x": x}, target)


@TARGETS
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split_and_concat(target: Any, axis: int) -> None:
    rng = np.random.default_rng(0)
    x = random_array(rng, (6, 9, 17), "float32")
    sizes = np.array([2, x.shape[axis] - 3, 1])
    check(one("Split", {"x": x}, {"split": sizes}, outputs=3, axis=axis), {"x": x}, target)
    parts = dict(zip("abc", np.split(x, np.cumsum(sizes)[:-1], axis=axis)))
    check(one("Concat", parts, axis=axis), parts, target)


def test_concat_of_parts_already_in_place_is_free() -> None:
    rng = np.random.default_rng(0)
    feeds = {"a": random_array(rng, (1, 3, 5, 5), "float32"), "b": random_array(rng, (1, 2, 5, 5), "float32")}
    graph = one("Concat", feeds, axis=1)
    bench = Bench(graph)
    y = bench.place("y0", Layout.planar((1, 5, 5, 5), (1, 1), ((1, 1), (1, 1)), 8), "float32")
    bench.tensors["a"] = replace(y, layout=y.layout.narrow(1, 0, 3))
    bench.tensors["b"] = replace(y, layout=y.layout.narrow(1, 3, 2))
    bench.lower()
    assert bench.tasks == []
    bench.tensors["b"] = bench.place("elsewhere", Layout.contiguous((1, 2, 5, 5)), "float32", feeds["b"])
    bench.lower()
    assert len(bench.tasks) == 1
    np.testing.assert_array_equal(bench.array(y)[:, 3:], feeds["b"])


@TARGETS
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(1, 0, 1, 4, 0, 0, 3, 0), (0, 1, -1, 2, 0, 1, -2, -3)])
def test_pad(target: Any, mode: str, pads: tuple[int, ...]) -> None:
    x = random_array(np.random.default_rng(0), (2, 3, 8, 17), "float32")
    value = np.array(1.5, np.float32) if pads[0] == 0 else None
    check(
        one("Pad", {"x": x}, {"pads": pads, "value": value}, mode=mode), {"x": x}, target, seed=pads[-1] + 9
    )


@TARGETS
def test_pad_with_a_computed_value_and_of_nothing(target: Any) -> None:
    x, value, pads = np.ones((3, 4), np.float32), np.array([7], np.float32), np.array([1, 2, 0, 1])
    node = Node("Pad", ("x", "pads", "value"), ("y",), {}, "pad")
    check_lowering(
        graph_of([node], {"x": x, "value": value}, ["y"], {"pads": pads}), {"x": x, "value": value}, target
    )
    empty = np.ones((0, 4), np.float32)
    check_lowering(one("Pad", {"x": empty}, {"pads": pads}), {"x": empty}, target)


@TARGETS
@pytest.mark.parametrize("dtype", DTYPES)
def test_expand_and_tile(target: Any, dtype: str) -> None:
    x = random_array(np.random.default_rng(0), (3, 1, 9), dtype)
    check(one("Expand", {"x": x}, {"shape": np.array([2, 1, 5, 1])}), {"x": x}, target)
    check(one("Tile", {"x": x}, {"repeats": np.array([2, 3, 4])}), {"x": x}, target)
    check(one("Tile", {"x": x}, {"repeats": np.array([2, 0, 4])}), {"x": x}, target)


@TARGETS
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_and_space(target: Any, mode: str, block: int, many_tasks: None) -> None:
    x = random_array(np.random.default_rng(0), (2, 2 * block * block, 5, 19), "float32")
    check(one("DepthToSpace", {"x": x}, blocksize=block, mode=mode), {"x": x}, target)
    y = random_array(np.random.default_rng(0), (2, 3, 4 * block, 17 * block), "float32")
    check(one("SpaceToDepth", {"y": y}, blocksize=block, mode=mode), {"y": y}, target)


@TARGETS
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_gather(target: Any, axis: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = random_array(rng, (4, 9, 17), "float32")
    indices = rng.integers(-4, 4, shape)
    check(one("Gather", {"x": x}, {"i": indices}, axis=axis), {"x": x}, target)
    feeds = {"x": x, "i": indices.astype(np.int32)}
    check(one("Gather", feeds, axis=axis), feeds, target)


@TARGETS
def test_gather_of_even_indices_is_a_view(target: Any) -> None:
    x = random_array(np.random.default_rng(0), (4, 9, 17), "float32")
    for indices in ([0, 2, 4], [8, 5, 2], [-1], [3, 4]):
        bench = check_lowering(one("Gather", {"x": x}, {"i": indices}, axis=1), {"x": x}, target)
        assert bench.tasks == []


@TARGETS
@pytest.mark.parametrize("axis", [0, 1])
def test_gather_elements(target: Any, axis: int) -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": random_array(rng, (9, 17), "int8"), "i": rng.integers(-9, 9, (7, 11))}
    check(one("GatherElements", feeds, axis=axis), feeds, target)


@TARGETS
def test_indices_out_of_range_read_the_ends(target: Any) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    indices = np.array([-(2**60), -5, -4, 3, 4, 2**62])
    for op, wide in (("Gather", indices), ("GatherElements", np.stack([indices] * 3, 1))):
        graph = one(op, {"x": x, "i": wide})
        bench = Bench(graph, target)
        for name, array in (("x", x), ("i", wide)):
            bench.place(name, Layout.contiguous(array.shape), array.dtype, array)
        bench.lower()
        np.testing.assert_array_equal(bench.array(bench.tensor("y0")), x[[0, 0, 0, 3, 3, 3]])


@TARGETS
def test_one_hot(target: Any) -> None:
    indices, values = np.array([[0, -1, 7], [9, 3, -20]]), np.array([0.5, 2], np.float32)
    for axis in (-1, 0, 1):
        node = Node("OneHot", ("i", "depth", "values"), ("y",), {"axis": axis}, "hot")
        graph = graph_of([node], {"i": indices, "values": values}, ["y"], {"depth": np.array(9)})
        check_lowering(graph, {"i": indices, "values": values}, target)


def test_how_to_move_must_be_constant() -> None:
    x, starts = np.ones((3, 4), np.float32), np.array([0])
    node = Node("Slice", ("x", "s", "e"), ("y",), {}, "cut")
    graph = graph_of([node], {"x": x}, ["y"], {"s": starts, "e": starts})
    with pytest.raises(UnsupportedModel, match="starts"):
        Bench(graph.with_(initializers={"e": starts}, facts={**graph.facts, "s": graph.fact("s")})).lower()


@TARGETS
@pytest.mark.parametrize(
    ("shape", "gaps", "halo"),
    [
        ((2, 3, 5), (2,), ((1, 2),)),
        ((1, 2, 7, 9), (1, 1), ((1, 1), (1, 1))),
        ((2, 2, 1, 1), (3, 3), ((3, 0), (0, 3))),
        ((1, 3, 6, 33), (4, 4), ((0, 2), (1, 2))),
        ((1, 2, 40, 3), (2, 2), ((2, 2), (2, 2))),
        ((1, 2, 4, 5, 6), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
        ((2, 1, 3, 5, 2), (2, 1, 3), ((0, 2), (1, 0), (3, 1))),
        ((1, 1, 3, 300), (0, 0), ((1, 1), (0, 0))),
    ],
)
def test_zero_halo(target: Any, shape: tuple[int, ...], gaps: Any, halo: Any) -> None:
    layout = Layout.planar(shape, gaps, halo, 8)
    bench = Bench(graph_of([], {"x": np.zeros(1, np.float32)}, ["x"]), target, threads=2)
    x = bench.place("p", layout, "float32", np.ones(shape))
    wanted = bench.array(x).copy()
    wide = Layout(
        tuple(size + b + a for size, (b, a) in zip(shape, layout.halo)),
        layout.strides,
        layout.origin - sum(b * s for (b, _), s in zip(layout.halo, layout.strides)),
        layout.extent,
        ((0, 0),) * len(shape),
    )
    before = bench.snapshot()
    movement.zero_halo(bench, x)
    around = replace(x, layout=wide)
    assert not bench.changed(before, [around])
    np.testing.assert_array_equal(bench.array(x), wanted)
    inside = tuple(slice(b, b + size) for size, (b, _) in zip(shape, layout.halo))
    border = bench.array(around).copy()
    border[inside] = 0
    assert not border.any()
    assert len(folded(runs(layout))) <= 12


def test_runs_of_a_halo_fold_into_few_loops() -> None:
    layout = Layout.planar((1, 1, 64, 64, 64), (1, 1, 1), ((1, 1),) * 3, 8)
    assert len(runs(layout)) > 4000
    assert len(folded(runs(layout))) <= 6


@TARGETS
@pytest.mark.parametrize("width", [7, 8, 33])
def test_copies_between_planes(target: Any, width: int, many_tasks: None) -> None:
    shape = (2, 3, 5, width)
    x = random_array(np.random.default_rng(width), shape, "float32")
    graph = one("Identity", {"x": x})
    layouts = {
        "x": Layout.planar(shape, (1, 1), ((1, 1), (1, 1)), 8),
        "y0": Layout.planar(shape, (3, 3), ((3, 3), (3, 3)), 8),
    }
    check_lowering(graph, {"x": x}, target, layouts=layouts, threads=2)


@TARGETS
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_fill(target: Any, value: float) -> None:
    bench = Bench(graph_of([], {"x": np.zeros(1, np.float32)}, ["x"]), target)
    x = bench.place(
        "p", Layout.planar((2, 3, 5, 13), (1, 1), ((1, 1), (1, 1)), 8), "float32", np.ones((2, 3, 5, 13))
    )
    before = bench.snapshot()
    movement.fill(bench, x, value, {"op": "Fill"})
    assert not bench.changed(before, [x])
    np.testing.assert_array_equal(bench.array(x), np.full(x.shape, value, np.float32))


@pytest.mark.parametrize("target", EMIT_TARGETS.values(), ids=EMIT_TARGETS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_machines(target: Any, dtype: str) -> None:
    x = np.ones((1, 16, 33, 19), dtype)
    graph = graph_of(
        [
            Node("Transpose", ("x",), ("t",), {"perm": (0, 2, 3, 1)}),
            Node("Tile", ("t", "repeats"), ("u",)),
            Node("Concat", ("t", "u"), ("y",), {"axis": 3}),
            Node("Gather", ("x", "i"), ("z",), {"axis": 3}),
        ],
        {"x": x, "i": np.zeros(3, np.int64)},
        ["y", "z"],
        {"repeats": np.array([1, 1, 1, 2])},
    )
    check_emission(graph, {"x": x, "i": np.zeros(3, np.int64)}, target)


VIEWS: dict[str, tuple[list[Node], dict[str, Array]]] = {
    "slice": (
        [Node("Slice", ("x", "starts", "ends", "axes"), ("v",))],
        {"starts": np.array([1]), "ends": np.array([5]), "axes": np.array([1])},
    ),
    "flip": (
        [Node("Slice", ("x", "starts", "ends", "axes", "steps"), ("v",))],
        {
            "starts": np.array([4, -1]),
            "ends": np.array([0, -99]),
            "axes": np.array([1, 3]),
            "steps": np.array([-1, -1]),
        },
    ),
    "part": ([Node("Split", ("x", "split"), ("u", "v"), {"axis": 1})], {"split": np.array([2, 4])}),
    "turn": (
        [
            Node("Split", ("x", "split"), ("u", "w"), {"axis": 1}),
            Node("Transpose", ("w",), ("v",), {"perm": (0, 1, 3, 2)}),
        ],
        {"split": np.array([2, 4])},
    ),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_a_users_array_feed_kernels_of_all_kinds(view: str) -> None:
    rng = np.random.default_rng(0)
    x = random_array(rng, (1, 6, 10, 10), "float32")
    nodes, constants = VIEWS[view]
    readers = [
        Node("Conv", ("v", "w1"), ("a",), {"kernel_shape": (1, 1)}),
        Node("Add", ("a", "v"), ("b",)),
        Node("Conv", ("v", "w3"), ("c",), {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
        Node("MaxPool", ("v",), ("d",), {"kernel_shape": (3, 3)}),
        Node("Softmax", ("v",), ("e",), {"axis": 1}),
        Node("Concat", ("v", "v"), ("f",), {"axis": 1}),
    ]
    weights = {
        "w1": random_array(rng, (4, 4, 1, 1), "float32"),
        "w3": random_array(rng, (5, 4, 3, 3), "float32"),
    }
    graph = graph_of([*nodes, *readers], {"x": x}, [*"abcdef"], {**constants, **weights})
    wanted = evaluate(graph, {"x": x})
    for name, got in zip(graph.outputs, run_graph(graph, {"x": x}, threads=2)):
        np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-4, err_msg=name)
