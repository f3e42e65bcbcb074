"""Quantised networks: where, over which ranges, into which integers, and what engines make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sparse_networks import ENGINE

from coresident import Session
from coresident.errors import InputError
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate
from coresident.onnx.reader import read
from coresident.onnx.writer import serialize
from coresident.sparsification.network import prepare
from coresident.sparsification.placement import float_tail, place
from coresident.sparsification.quantization import GREATEST, WeightBits, quantize, weight_scales
from coresident.sparsification.ranges import BINS, Histogram, Range, ranges, search

Array = np.ndarray[Any, Any]

SEED = 7


@dataclass
class Network:
    """Grows a float network, operator by operator; methods return the name of the result."""

    rng: np.random.Generator
    shape: tuple[int, ...] = (2, 3, 16, 18)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        label = name or f"{op.lower()}{len(self.nodes)}"
        results = tuple(f"{label}.{i}" if i else label for i in range(outputs))
        self.nodes.append(Node(op, inputs, results, attributes, label))
        return label

    def conv(
        self, x: str, inputs: int, outputs: int, size: int = 3, name: str = "", **attributes: Any
    ) -> str:
        group = int(attributes.get("group", 1))
        weights = self.rng.standard_normal((outputs, inputs // group, size, size)) / (inputs // group * size)
        pads = (size // 2,) * 4
        operands = (x, self.constant(weights.astype(np.float32)), self._bias(outputs))
        return self.add("Conv", *operands, name=name, **{"pads": pads, **attributes})

    def up(self, x: str, inputs: int, outputs: int) -> str:
        weights = self.rng.standard_normal((inputs, outputs, 2, 2)).astype(np.float32) / inputs
        return self.add("ConvTranspose", x, self.constant(weights), self._bias(outputs), strides=(2, 2))

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        weights = self.rng.standard_normal((outputs, inputs)).astype(np.float32) / inputs
        return self.add("Gemm", x, self.constant(weights), self._bias(outputs), transB=1)

    def _bias(self, count: int) -> str:
        return self.constant(self.rng.standard_normal(count).astype(np.float32) / 4)

    def graph(self, *outputs: str) -> Graph:
        fact = Fact(np.dtype(np.float32), self.shape)
        return prepare(Graph(("x",), outputs, tuple(self.nodes), self.constants, {"x": fact}))


def residual(net: Network) -> str:
    a = net.add("Relu", net.conv("x", 3, 8, name="first"), name="a")
    b = net.add("Relu", net.conv(a, 8, 8, name="second"), name="b")
    total = net.add("Add", net.conv(b, 8, 8, name="third"), a, name="sum")
    c = net.add("Relu", total, name="c")
    d = net.add("Relu", net.conv(c, 8, 12, name="fourth", strides=(2, 2)), name="d")
    flat = net.add("Flatten", net.add("GlobalAveragePool", d, name="pooled"), name="flat")
    return net.gemm(flat, 12, 10)


def unet(net: Network) -> str:
    a = net.add("Relu", net.conv("x", 3, 8), name="a")
    b = net.add("Relu", net.conv(net.add("MaxPool", a, kernel_shape=(2, 2), strides=(2, 2)), 8, 16), name="b")
    nearest = net.add("Resize", b, "", net.constant(np.float32([1, 1, 2, 2])), name="bigger")
    joined = net.add("Concat", net.conv(nearest, 16, 8, 1), a, net.up(b, 16, 8), axis=1, name="joined")
    e = net.add("Relu", net.conv(joined, 24, 8), name="e")
    return net.add("Sigmoid", net.conv(e, 8, 2, 1, name="head"), name="probability")


def mobile(net: Network) -> str:
    """Depthwise, Clip, SiLU, squeeze and excite."""
    zero, six = net.constant(np.float32(0)), net.constant(np.float32(6))
    a = net.add("Clip", net.conv("x", 3, 8), zero, six, name="a")
    deep = net.conv(a, 8, 8, group=8, name="deep")
    b = net.add("Mul", deep, net.add("Sigmoid", deep, name="inner"), name="b")
    squeezed = net.conv(net.add("GlobalAveragePool", b, name="pooled"), 8, 4, 1)
    gate = net.add("HardSigmoid", net.conv(net.add("Relu", squeezed), 4, 8, 1), name="gate")
    return net.conv(net.add("Mul", b, gate, name="gated"), 8, 6, 1, name="last")


def shuffled(net: Network) -> str:
    """A channel shuffle, of which one half goes on as it is, as in ShuffleNet V2."""
    x = net.add("Relu", net.conv("x", 3, 8), name="a")
    for stage in range(2):
        count = net.constant(np.int64([0, 2, 4, 16, 18]))
        split = net.add("Reshape", x, count, name=f"split{stage}")
        turned = net.add("Transpose", split, perm=(0, 2, 1, 3, 4), name=f"turned{stage}")
        whole = net.add("Reshape", turned, net.constant(np.int64([0, 8, 16, 18])), name=f"whole{stage}")
        halves = net.add(
            "Split", whole, net.constant(np.int64([4, 4])), axis=1, outputs=2, name=f"half{stage}"
        )
        branch = net.add("Relu", net.conv(f"{halves}.1", 4, 4), name=f"branch{stage}")
        x = net.add("Concat", halves, branch, axis=1, name=f"joined{stage}")
    return net.conv(x, 8, 5, 1, name="last")


def averaged(net: Network) -> str:
    """Interpolating resize, average pool, padding, slices, a product of matrices with its bias."""
    a = net.add("LeakyRelu", net.conv("x", 3, 8), alpha=0.1, name="a")
    scales = net.constant(np.float32([1, 1, 2, 2]))
    b = net.add("Resize", a, "", scales, mode="linear", name="bigger")
    pads = net.constant(np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    c = net.add("Pad", net.add("AveragePool", b, kernel_shape=(2, 2), strides=(2, 2), name="mean"), pads)
    bounds = [net.constant(np.int64(v)) for v in ([1, 1], [-1, -1], [2, 3])]
    d = net.add("Relu", net.conv(net.add("Slice", c, *bounds), 8, 8), name="d")
    flat = net.add("Flatten", net.add("AveragePool", d, kernel_shape=(8, 9), strides=(8, 9)))
    weights = net.constant(net.rng.standard_normal((32, 7)).astype(np.float32) / 8)
    product = net.add("MatMul", flat, weights, name="product")
    return net.add("Add", product, net.constant(np.float32(range(7))), name="added")


NETWORKS: dict[str, Callable[[Network], str]] = {
    each.__name__: each for each in (residual, unet, mobile, shuffled, averaged)
}


def built(name: str) -> tuple[Graph, list[dict[str, Array]]]:
    rng = np.random.default_rng(SEED)
    net = Network(rng)
    graph = net.graph(NETWORKS[name](net))
    return graph, [{"x": rng.standard_normal(net.shape).astype(np.float32)} for _ in range(4)]


def onnxruntime_outputs(content: bytes, feeds: Mapping[str, Array], *, exact: bool) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, dict(feeds))]


def relative(have: Array, want: Array) -> float:
    return float(np.linalg.norm((have - want).ravel()) / np.linalg.norm(want.ravel()))


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_engines_agree_and_products_are_of_bytes(name: str, bits: WeightBits) -> None:
    graph, batches = built(name)
    found = ranges(graph, batches, engine=ENGINE)
    content = serialize(quantize(graph, found, weight_bits=bits))
    with Session(content, threads=1, cache=False) as session:
        steps = [step.info.get("op") for step, _ in session.profile(batches[0], 1)]
        (ours,) = session.run(None, batches[0])
    floats = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Add", "Relu"}
    assert not floats.intersection(steps), f"seed {SEED}: {steps}"
    (theirs,) = onnxruntime_outputs(content, batches[0], exact=bits == 8)
    assert relative(ours, theirs) < 0.02, f"seed {SEED}"
    exact = evaluate(graph, batches[0])[graph.outputs[0]]
    assert relative(ours, exact) < (0.05 if bits == 8 else 0.08), f"seed {SEED}"


def test_values_that_are_quantised() -> None:
    placement = place(built("residual")[0])
    assert placement.values == ("x", "a", "b", "third", "c", "d", "pooled", "flat")
    assert len(placement.layers) == 5
    assert placement.sources["flat"] == "pooled"
    assert placement.sources["d"] == "d"


def test_functions_of_one_value_are_not_cut() -> None:
    values = place(built("mobile")[0]).values
    assert "inner" not in values
    assert {"a", "deep", "b", "gate", "gated"} <= set(values)
    assert "last" not in values, "outputs stay in floats"


def test_parts_of_a_concat_share_its_parameters() -> None:
    placement = place(built("unet")[0])
    conv, a, up = built("unet")[0].producers()["joined"].inputs
    assert placement.sources[conv] == placement.sources[up] == "joined"
    assert placement.sources[a] == a
    assert placement.joined == ((a, "joined"),)


def test_what_moves_has_one_scale() -> None:
    graph, batches = built("shuffled")
    quantised = quantize(graph, ranges(graph, batches, engine=ENGINE))
    scales = {
        n.outputs[0]: quantised.initializers[n.inputs[1]] for n in quantised.nodes if n.op.startswith("Q")
    }
    for stage in range(2):
        names = [f"{what}{stage}" for what in ("split", "turned", "whole", "half")] + [f"half{stage}.1"]
        assert len({float(scales[f"{name}.quantized"]) for name in names}) == 1
    with Session(serialize(quantised), threads=1, cache=False) as session:
        steps = [str(step.info) for step, _ in session.profile(batches[0], 1)]
    assert not any("table" in step for step in steps), "a half is quantised again"


@pytest.mark.parametrize("bits", [8, 7])
def test_zeros_stay_and_integers_are_in_bounds(bits: WeightBits) -> None:
    graph, batches = built("residual")
    rng = np.random.default_rng(SEED)
    pruned = {}
    for node in graph.nodes:
        if node.op == "Conv" and node.name != "first":
            weights = graph.initializers[node.inputs[1]].copy()
            outputs, inputs = weights.shape[:2]
            kept = rng.random((outputs, inputs // 4, 1, *weights.shape[2:])) < 0.3
            weights *= kept.repeat(4, 2).reshape(weights.shape)
            weights[1] = 0
            pruned[node.inputs[1]] = weights
    sparse = graph.with_(initializers={**graph.initializers, **pruned})
    quantised = quantize(sparse, ranges(sparse, batches, engine=ENGINE), weight_bits=bits)
    for name, weights in pruned.items():
        integers = quantised.initializers[f"{name}.quantized"]
        assert integers.dtype == np.int8
        assert not integers[weights == 0].any()
        assert np.abs(integers.astype(int)).max() == GREATEST[bits]
        assert not quantised.initializers[f"{name}.zero_point"].any()
    again = read(serialize(quantised))
    for name in pruned:
        np.testing.assert_array_equal(
            again.initializers[f"{name}.quantized"], quantised.initializers[f"{name}.quantized"]
        )
    (ours,) = _run(serialize(quantised), batches[0])
    assert relative(ours, evaluate(sparse, batches[0])[graph.outputs[0]]) < 0.1


def _run(content: bytes, feeds: Mapping[str, Array]) -> list[Array]:
    with Session(content, threads=1, cache=False) as session:
        return session.run(None, dict(feeds))


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    net = Network(np.random.default_rng(SEED))
    last = net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 4, 1, name="last")
    graph = net.graph(last)
    node = graph.producers()[last]
    constants = {name: array.copy() for name, array in graph.initializers.items()}
    constants[node.inputs[1]][2] = 0
    constants[node.inputs[1]][3] = 1e-12
    constants[node.inputs[2]][:] = [1e-3, 5, 123.456, 50]
    graph = graph.with_(initializers=constants)
    feeds = {"x": net.rng.standard_normal(net.shape).astype(np.float32)}
    content = serialize(quantize(graph, ranges(graph, [feeds], engine=ENGINE)))
    for outputs in (_run(content, feeds), onnxruntime_outputs(content, feeds, exact=True)):
        np.testing.assert_allclose(outputs[0][:, 2], 123.456, rtol=1e-3)
        np.testing.assert_allclose(outputs[0][:, 3], 50, rtol=1e-3)


def test_layers_that_are_skipped() -> None:
    graph, batches = built("residual")
    found = ranges(graph, batches, engine=ENGINE)
    content = serialize(quantize(graph, found, skip=["first", "third"]))
    with Session(content, threads=1, cache=False) as session:
        steps = [step.info.get("op") for step, _ in session.profile(batches[0], 1)]
        (ours,) = session.run(None, batches[0])
    assert steps.count("Conv") == 2
    assert "ConvInteger" in steps
    assert relative(ours, evaluate(graph, batches[0])[graph.outputs[0]]) < 0.05
    everything = quantize(graph, found, skip=[node.name for node in graph.nodes])
    assert [node.op for node in everything.nodes] == [node.op for node in graph.nodes]


def test_the_tail_of_a_detector_stays_in_floats() -> None:
    net = Network(np.random.default_rng(SEED), (1, 3, 16, 16))
    a = net.add("Relu", net.conv("x", 3, 8), name="a")
    boxes = net.add("Reshape", net.conv(a, 8, 64, 1), net.constant(np.int64([1, 4, 16, 256])))
    chances = net.add("Softmax", net.add("Transpose", boxes, perm=(0, 2, 1, 3)), axis=1, name="chances")
    weights = net.constant(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    expected = net.add("Conv", chances, weights, name="expectation")
    score = net.add("Sigmoid", net.conv(a, 8, 5, 1, name="classes"), name="scores")
    graph = net.graph(expected, score)
    tail = float_tail(graph)
    assert {"chances", "expectation", "scores"} <= tail
    assert not {"a", "classes"} & tail
    placement = place(graph)
    assert placement.values == ("x", "a")
    assert len(placement.layers) == 3


def test_normalisations_over_channels_stay_in_floats() -> None:
    net = Network(np.random.default_rng(SEED), (1, 9, 8))
    weights = [net.constant(net.rng.standard_normal((8, 8)).astype(np.float32)) for _ in range(2)]
    a = net.add("MatMul", "x", weights[0], name="a")
    mean = net.add("ReduceMean", a, net.constant(np.int64([-1])), name="average")
    off = net.add("Sub", a, mean, name="off")
    square = net.add("ReduceMean", net.add("Mul", off, off, name="squares"), net.constant(np.int64([-1])))
    normal = net.add("Div", off, net.add("Sqrt", square), name="normal")
    b = net.add("MatMul", net.add("Gelu", normal, name="gelu"), weights[1], name="b")
    graph = net.graph(net.add("Add", b, a, name="y"))
    assert place(graph).values == ("x", "gelu")


def test_ranges_need_samples_that_are_numbers() -> None:
    graph, batches = built("residual")
    with pytest.raises(InputError, match="no samples"):
        ranges(graph, [], engine=ENGINE)
    broken = {"x": np.full_like(batches[0]["x"], np.nan)}
    with pytest.raises(InputError, match="'x' is NaN"):
        ranges(graph, [broken], engine=ENGINE)
    with pytest.raises(InputError, match="no range"):
        quantize(graph, {})


def test_ranges_in_groups_are_as_in_one() -> None:
    graph, batches = built("unet")
    whole = ranges(graph, batches, engine=ENGINE, method="minmax")
    assert ranges(graph, iter(batches), engine=ENGINE, method="minmax", memory=60_000) == whole
    values = evaluate(graph, batches[0])
    assert list(whole) == list(place(graph).values)
    for name, found in whole.items():
        assert found.minimum <= values[name].min() + 1e-5
        assert values[name].max() - 1e-5 <= found.maximum
        assert found.low <= 0 <= found.high


def test_a_histogram_counts_all_and_widens() -> None:
    rng = np.random.default_rng(SEED)
    histogram = Histogram()
    values = np.concatenate([rng.standard_normal(1000) * 10.0**power for power in range(-3, 3)])
    for part in np.array_split(values, 17):
        histogram.add(part, part)
    centres, counts = histogram.centres()
    assert counts.sum() == len(values)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    width = np.abs(values).max() / BINS * 2
    np.testing.assert_allclose((centres * counts).sum(), values.sum(), atol=width * len(values))
    for threshold in (-50, 0, 50):
        assert abs(counts[centres < threshold].sum() - (values < threshold).sum()) < 0.02 * len(values)


def brute_force(values: Array, low: float, high: float) -> float:
    """The error of a range."""
    scale = (high - low) / 255
    point = np.rint(-low / scale)
    rounded = (np.clip(np.rint(values / scale) + point, 0, 255) - point) * scale
    return float((np.abs(rounded - values) ** 2.4).sum())


@pytest.mark.parametrize("kind", ["relu", "normal", "outlier", "skewed"])
def test_the_range_found_is_the_best_of_many(kind: str) -> None:
    rng = np.random.default_rng(SEED)
    values = rng.standard_normal(20_000)
    if kind == "relu":
        values = np.maximum(values, 0)
    if kind == "outlier":
        values[0] = 300
    if kind == "skewed":
        values = np.exp(values) - 0.5
    histogram = Histogram()
    histogram.add(values, values)
    found = search(histogram)
    low, high = min(values.min(), 0), max(values.max(), 0)
    shares = np.linspace(0.2, 1, 33)
    best = min(brute_force(values, a * low, b * high) for a in (shares if low < 0 else [1.0]) for b in shares)
    assert brute_force(values, found.low, found.high) < 1.1 * best, f"seed {SEED}: {found}"
    assert brute_force(values, found.low, found.high) <= brute_force(values, low, high)
    if kind == "relu":
        assert found.low == 0
        assert found.zero_point == 0
    assert search(histogram, "minmax") == Range(low, high, values.min(), values.max())


def test_a_value_that_is_always_zero() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(5), np.zeros(5))
    found = search(histogram)
    assert (found.scale, found.zero_point) == (1, 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_of_weights(axis: int) -> None:
    rng = np.random.default_rng(SEED)
    weights = rng.standard_normal((6, 6, 3, 3)).astype(np.float32)
    scales = weight_scales(weights, axis, 127)
    for channel, scale in enumerate(scales):
        row = weights.take(channel, axis).astype(np.float64)
        full = np.abs(row).max() / 127

        def error(step: float, row: Array = row) -> float:
            rounded = np.rint(row / step).clip(-127, 127) * step
            return float((np.abs(rounded - row) ** 2.4).sum())

        assert scale <= full
        assert error(scale) <= error(full)
    assert weight_scales(np.zeros((3, 4), np.float32), 0, 127).tolist() == [0, 0, 0]
