"""Operators in PyTorch make what their references make, and gradients are numbers wherever inputs are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gradients need PyTorch: pip install 'coresident[train]'")

from assets import path  # noqa: E402

from coresident.errors import UnsupportedModel  # noqa: E402
from coresident.graph.expression import COMPARISONS, ELEMENTWISE  # noqa: E402
from coresident.graph.graph import Fact, Graph, Node  # noqa: E402
from coresident.graph.operator import evaluate  # noqa: E402
from coresident.onnx.reader import read  # noqa: E402
from coresident.sparsification.execution import Engine  # noqa: E402
from coresident.sparsification.preparation import prepare  # noqa: E402
from coresident.sparsification.training.differentiable import Differentiable  # noqa: E402
from coresident.sparsification.training.functions import FUNCTIONS  # noqa: E402

Array = np.ndarray[Any, Any]
Constants = dict[str, Any]


def one(op: str, shape: tuple[int, ...], constants: Constants, outputs: int = 1, **attributes: Any) -> Graph:
    """A network of one node that reads x and the constants, "" for one left out."""
    names = ["x", *("" if value is None else name for name, value in constants.items())]
    node = Node(op, tuple(names), tuple(f"y{i}" for i in range(outputs)), attributes, "node")
    arrays = {name: np.asarray(value) for name, value in constants.items() if value is not None}
    return Graph(("x",), node.outputs, (node,), arrays, {"x": Fact(np.dtype(np.float32), shape)})


RNG = np.random.default_rng(7)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CASES = [
    one("Conv", (2, 6, 9), {"w": floats(4, 3, 3), "b": floats(4)}, group=2, pads=(2, 0), strides=(2,)),
    one("Conv", (2, 5, 9, 7), {"w": floats(4, 5, 3, 2)}, pads=(1, 0, 2, 1), dilations=(2, 1)),
    one(
        "Conv", (2, 4, 8, 9), {"w": floats(5, 4, 3, 3), "b": floats(5)}, auto_pad="SAME_LOWER", strides=(2, 2)
    ),
    one("Conv", (1, 3, 5, 6, 4), {"w": floats(4, 3, 3, 2, 3)}, pads=(1, 0, 1, 1, 1, 1)),
    one("ConvTranspose", (2, 6, 5), {"w": floats(6, 5, 3), "b": floats(5)}, strides=(2,), pads=(0, 2)),
    one(
        "ConvTranspose",
        (2, 6, 4, 5),
        {"w": floats(6, 2, 3, 4), "b": floats(4)},
        strides=(2, 3),
        pads=(1, 1, 0, 2),
        output_padding=(1, 2),
        group=2,
    ),
    one("ConvTranspose", (1, 4, 3, 2, 3), {"w": floats(4, 3, 2, 3, 2)}, strides=(2, 1, 2)),
    one("MaxPool", (2, 3, 7, 8), {}, kernel_shape=(3, 2), strides=(2, 2), pads=(1, 0, 1, 1), ceil_mode=1),
    one("MaxPool", (2, 3, 11), {}, kernel_shape=(3,), dilations=(2,)),
    one("AveragePool", (2, 3, 7, 8), {}, kernel_shape=(3, 2), strides=(2, 3), pads=(1, 0, 1, 1), ceil_mode=1),
    one("AveragePool", (2, 3, 7, 8), {}, kernel_shape=(2, 2), pads=(1, 1, 0, 0), count_include_pad=1),
    one("GlobalAveragePool", (2, 3, 5, 4), {}),
    one("GlobalMaxPool", (2, 3, 5, 4), {}),
    one("Gemm", (5, 9), {"w": floats(7, 9), "b": floats(7)}, transB=1, alpha=0.5, beta=2.0),
    one("MatMul", (2, 5, 9), {"w": floats(9, 7)}),
    one("Concat", (2, 3, 4), {"c": floats(2, 2, 4)}, axis=1),
    one("Split", (2, 7, 3), {"sizes": ints(2, 5)}, 2, axis=1),
    one("Transpose", (2, 3, 4), {}, perm=(2, 0, 1)),
    one("Reshape", (2, 6), {"shape": ints(3, -1)}),
    one("Flatten", (2, 3, 4), {}, axis=1),
    one("Squeeze", (2, 1, 4), {"axes": ints(1)}),
    one("Unsqueeze", (2, 4), {"axes": ints(0, 3)}),
    one("Slice", (5, 6), {"a": ints(4, 1), "b": ints(0, 6), "axes": ints(0, 1), "steps": ints(-2, 2)}),
    one("Pad", (3, 4), {"pads": ints(1, 0, 2, 1), "value": np.float32(1.5)}),
    one("Pad", (3, 4), {"pads": ints(1, 2, 2, 1)}, mode="reflect"),
    one("Expand", (3, 1), {"shape": ints(2, 3, 4)}),
    one("Tile", (2, 3), {"repeats": ints(2, 2)}),
    one("DepthToSpace", (1, 8, 2, 3), {}, blocksize=2, mode="CRD"),
    one("SpaceToDepth", (1, 2, 4, 6), {}, blocksize=2),
    one("Gather", (4, 5), {"indices": ints(3, 0, 3)}, axis=1),
    one("GatherElements", (2, 3), {"indices": np.array([[2, 0], [1, 1]])}, axis=1),
    one("Resize", (1, 2, 4, 5), {"roi": None, "scales": np.float32([1, 1, 2, 2])}, mode="nearest"),
    one("Resize", (1, 2, 4, 5), {"roi": None, "scales": None, "sizes": ints(1, 2, 7, 3)}, mode="linear"),
    one("Resize", (1, 2, 4, 5), {"roi": None, "scales": np.float32([1, 1, 2, 2])}, mode="cubic"),
    *(one(op, (2, 3, 4), {"axes": ints(0, 2)}, keepdims=0) for op in sorted(FUNCTIONS) if op[:6] == "Reduce"),
    one("ReduceMean", (2, 3, 4), {"axes": ints()}, noop_with_empty_axes=1),
    one("BatchNormalization", (2, 3, 4), {n: abs(floats(3)) for n in "sbmv"}, epsilon=0.01),
    one("InstanceNormalization", (2, 3, 5, 4), {"s": floats(3), "b": floats(3)}),
    one("GroupNormalization", (2, 6, 5), {"s": floats(6), "b": floats(6)}, num_groups=2),
    one("LayerNormalization", (2, 3, 5), {"s": floats(3, 5), "b": floats(3, 5)}, axis=1),
    one("RMSNormalization", (2, 3, 5), {"s": floats(5)}),
    one("Softmax", (2, 3, 4), {}, axis=1),
    one("LogSoftmax", (2, 3, 4), {}),
    one("Clip", (9,), {"low": None, "high": np.float32(0.5)}),
    one("Clip", (9,), {}),
    one("Relu", (9,), {}),
    one("Elu", (9,), {}, alpha=0.7),
    one("Celu", (9,), {}, alpha=0.7),
    one("Selu", (9,), {}, alpha=1.5),
    one("Sum", (2, 3), {"a": floats(3), "b": floats(2, 1)}),
    one("Mean", (2, 3), {"a": floats(3), "b": floats(2, 1)}),
    one("Max", (2, 3), {"a": floats(3), "b": floats(2, 1)}),
    one("HardSwish", (9,), {}),
    one("PRelu", (2, 3), {"slope": floats(3)}),
    # A composite: its body has all that it needs.
    one("MeanVarianceNormalization", (2, 3, 4, 4), {}),
]


@pytest.mark.parametrize("graph", CASES, ids=lambda graph: graph.nodes[0].op)
def test_results_are_the_references(graph: Graph) -> None:
    x = np.random.default_rng(1).standard_normal(graph.facts["x"].sizes).astype(np.float32)
    want = evaluate(graph, {"x": x})
    given = torch.from_numpy(x).requires_grad_()
    found = Differentiable(graph, {"x": x.shape})({"x": given})
    for name in graph.outputs:
        assert found[name].shape == want[name].shape
        np.testing.assert_allclose(found[name].detach().numpy(), want[name], rtol=1e-4, atol=1e-5)
    sum(each.sum() for each in found.values()).backward()
    assert torch.isfinite(given.grad).all()


def test_every_function_has_a_case() -> None:
    assert FUNCTIONS.keys() <= {graph.nodes[0].op for graph in CASES}


SMOOTH = sorted(
    ELEMENTWISE.keys()
    - COMPARISONS
    - FUNCTIONS.keys()
    - {"QuantizeLinear", "DequantizeLinear", "Where", "Cast"}
)
POSITIVE = {"Log", "Sqrt", "Pow"}


@pytest.mark.parametrize("op", SMOOTH)
def test_gradients_are_numbers(op: str) -> None:
    x = np.float32([0.01, 0.7, 1, 3, 90, 300] if op in POSITIVE else [-300, -90, -1, -0.2, 0.3, 2, 90, 300])
    x = x[np.abs(x) < 80] if op == "Exp" else x
    operand = (
        {"b": np.float32(2.0)}
        if op in ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "PRelu")
        else {}
    )
    graph = one(op, x.shape, operand)
    given = torch.from_numpy(x).requires_grad_()
    (found,) = Differentiable(graph, {"x": x.shape})({"x": given}).values()
    np.testing.assert_allclose(found.detach().numpy(), evaluate(graph, {"x": x})["y0"], rtol=1e-4, atol=1e-5)
    if found.requires_grad:
        found.sum().backward()
        assert torch.isfinite(given.grad).all()


def test_operators_without_a_gradient_are_named() -> None:
    nodes = (
        Node("TopK", ("x", "k"), ("a", "i"), {}, "top"),
        Node("LRN", ("a",), ("y",), {"size": 3}, "lrn"),
    )
    graph = Graph(("x",), ("y",), nodes, {"k": ints(2)}, {"x": Fact(np.dtype(np.float32), (1, 4, 3, 3))})
    with pytest.raises(UnsupportedModel, match="LRN, TopK"):
        Differentiable(graph, {"x": (1, 4, 3, 3)})


def test_weights_are_taken_as_they_are_given() -> None:
    graph = one("MatMul", (2, 3), {"w": floats(3, 4)})
    x, w = floats(2, 3), floats(3, 4)
    found = Differentiable(graph, {"x": x.shape})({"x": torch.from_numpy(x), "w": torch.from_numpy(w)})
    np.testing.assert_allclose(found["y0"].numpy(), x @ w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "fastestdet",
        "face_ultralight",
        "ffn_fib25",
        "cifar10_resnet",
        pytest.param("squeezenet", marks=pytest.mark.slow),
        pytest.param("nuclei_unet2d", marks=pytest.mark.slow),
    ],
)
def test_real_networks_are_as_the_engine_runs_them(name: str) -> None:
    file = min(path("models", name).rglob("*.onnx"))
    original = read(file.read_bytes())
    shapes = {
        n: tuple(d if isinstance(d, int) else 1 for d in original.facts[n].shape) for n in original.inputs
    }
    graph = prepare(original, shapes)
    rng = np.random.default_rng(2)
    feeds = {n: rng.random(shape).astype(np.float32) for n, shape in shapes.items()}
    with torch.no_grad():
        found = Differentiable(graph, shapes)({n: torch.from_numpy(a) for n, a in feeds.items()})
    with Engine(1).session(graph) as session:
        wanted = dict(zip(graph.outputs, session.run(None, feeds)))
    for output, want in wanted.items():
        np.testing.assert_allclose(found[output].numpy(), want, rtol=0, atol=2e-5 * abs(want).max())
