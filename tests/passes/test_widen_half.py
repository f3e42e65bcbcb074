"""Models of float16 are computed in float32."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from onnx_models import model_of

from coresident import Session
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import infer
from coresident.passes import widen_half

HALF = np.dtype(np.float16)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(HALF)


def test_values_between_are_single() -> None:
    nodes = (
        Node("Mul", ("x", "w"), ("a",)),
        Node("Cast", ("k",), ("b",), {"to": "float16"}),
        Node("Add", ("a", "b"), ("y",)),
    )
    constants = {"w": normal(3), "z": normal(2)}
    facts = {"x": Fact(HALF, (2, 3)), "k": Fact(np.dtype(np.int64), (3,))}
    graph = widen_half.PASS.run(infer(Graph(("x", "k"), ("y", "a", "z", "x"), nodes, constants, facts)))
    assert graph.outputs == ("y", "a", "z", "x")
    made = {name for node in graph.nodes for name in node.outputs}
    kept = {name for name in made if graph.facts[name].dtype == HALF}
    assert kept == {"y", "a", "z"}
    assert all(array.dtype == np.float32 for array in graph.initializers.values())


def test_a_graph_without_is_left_alone() -> None:
    graph = infer(
        Graph(("x",), ("y",), (Node("Relu", ("x",), ("y",)),), {}, {"x": Fact(np.dtype("f4"), (2,))})
    )
    assert widen_half.PASS.run(graph) is graph


def test_sessions_take_and_give_halves() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    feeds = {"x": normal(2, 3, 9, 8)}
    constants = {"w": normal(4, 3, 3, 3), "b": normal(4), "v": normal(4, 5)}
    model = model_of(nodes, feeds, ["y", "z"], constants)
    with Session(model.SerializeToString(), cache=False) as session:
        y, z = session.run(None, feeds)
    single = model_of(
        nodes, {"x": feeds["x"].astype("f4")}, ["y"], {k: a.astype("f4") for k, a in constants.items()}
    )
    with Session(single.SerializeToString(), cache=False) as session:
        (wanted,) = session.run(None, {"x": feeds["x"].astype("f4")})
    assert (y.dtype, z.dtype) == (HALF, np.float32)
    np.testing.assert_allclose(z, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y, z.astype(HALF))
