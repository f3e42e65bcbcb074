"""The reader: what becomes of a model, and what it says of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coresident.errors import Error, InvalidModel, UnsupportedModel
from coresident.graph.operator import evaluate, infer
from coresident.limits import Limits
from coresident.onnx.reader import read

FLOAT = TensorProto.FLOAT


def tensor_input(shape: list[int | str | None] | None, code: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("x", code, shape)


def model(
    nodes: list[onnx.NodeProto] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: tuple[str, ...] = ("y",),
    initializers: list[onnx.TensorProto] | None = None,
    opset: int = 17,
    **more: Any,
) -> onnx.ModelProto:
    """By default y = Relu(x), x float32[N, 3]."""
    x = tensor_input(["N", 3])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])] if nodes is None else nodes,
        "g",
        [x] if inputs is None else inputs,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        initializers or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def refused(proto: onnx.ModelProto | bytes, kind: type[Error], match: str) -> Error:
    with pytest.raises(kind, match=match) as caught:
        read(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return caught.value


def test_a_plain_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    for source in (path, str(path), path.read_bytes()):
        graph = read(source)
        assert (graph.inputs, graph.outputs, graph.name) == (("x",), ("y",), "g")
        assert graph.facts["x"].shape == ("N", 3)
        assert graph.facts["x"].dtype == np.float32
        assert [(n.op, n.inputs, n.outputs, n.name) for n in graph.nodes] == [("Relu", ("x",), ("y",), "y")]


def test_free_dimensions() -> None:
    x = tensor_input(["N", None, -1, 0, 5])
    assert read(model(inputs=[x]).SerializeToString()).facts["x"].shape == ("N", "", "", 0, 5)


def test_initializers_are_not_inputs_and_constants_are_initializers() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant("", np.float32([1, 2, 3]))),
        helper.make_node("Constant", [], ["d"], value_float=2.0),
        helper.make_node("Constant", [], ["e"], value_ints=[1, 2]),
        helper.make_node("Add", ["x", "w"], ["z"]),
        helper.make_node("Mul", ["z", "c"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(n, FLOAT, [3]) for n in "xw"]
    graph = read(
        model(nodes, inputs, initializers=[constant("w", np.ones(3, np.float32))]).SerializeToString()
    )
    assert graph.inputs == ("x",)
    assert [n.op for n in graph.nodes] == ["Add", "Mul"]
    assert {n: (a.dtype.name, a.shape) for n, a in graph.initializers.items()} == {
        "w": ("float32", (3,)),
        "c": ("float32", (3,)),
        "d": ("float32", ()),
        "e": ("int64", (2,)),
    }


def test_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Relu", ["z"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    assert [n.op for n in read(model(nodes).SerializeToString()).nodes] == ["Neg", "Relu"]


def test_attributes_become_plain_values() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["z"], ["y"], perm=[1, 0]),
        helper.make_node("Gemm", ["x", "x"], ["g"], alpha=0.5, transB=1),
    ]
    cast, transpose, gemm = read(model(nodes).SerializeToString()).nodes
    assert cast.attributes == {"to": "float16"}
    assert transpose.attributes == {"perm": (1, 0)}
    assert gemm.attributes == {"alpha": 0.5, "transB": 1}


ARRAYS = [
    np.float32([[1.5, -2], [3, np.inf]]),
    np.float64([1e300, 2]),
    np.float16([1, -2.5]),
    np.array([True, False]),
    np.array([], np.float32),
    np.array(7, np.int64),
    *(
        np.array([np.iinfo(t).min, np.iinfo(t).max], t)
        for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    ),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
@pytest.mark.parametrize("raw", [True, False])
def test_tensors(array: np.ndarray, raw: bool) -> None:
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    data = array.tobytes() if raw else array.ravel().tolist()
    tensor = helper.make_tensor("w", code, array.shape, data, raw=raw)
    found = read(model(initializers=[tensor]).SerializeToString()).initializers["w"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable


def test_bfloat16_weights_become_float32() -> None:
    bits = np.array([0x3F80, 0xC020, 0x7F80], np.uint16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [3], bits.tobytes(), raw=True)
    found = read(model(initializers=[tensor]).SerializeToString()).initializers["w"]
    np.testing.assert_array_equal(found, np.float32([1, -2.5, np.inf]))


def test_bool_bytes_other_than_0_and_1() -> None:
    tensor = helper.make_tensor("w", TensorProto.BOOL, [3], bytes([0, 1, 2]), raw=True)
    found = read(model(initializers=[tensor]).SerializeToString()).initializers["w"]
    assert found.view(np.uint8).tolist() == [0, 1, 1]


def _tensor(**fields: Any) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "kind", "match"),
    [
        (_tensor(dims=[2], raw_data=b"123"), InvalidModel, "3 bytes of data; 2 elements"),
        (_tensor(dims=[2**40, 2**40], raw_data=b"1234"), InvalidModel, "larger than any memory"),
        (_tensor(dims=[2**31, 2**29], raw_data=b""), InvalidModel, "0 bytes"),
        (_tensor(dims=[0, 2**62], raw_data=b""), InvalidModel, "larger than any memory"),
        (_tensor(dims=[-2], raw_data=b""), InvalidModel, "negative"),
        (_tensor(dims=[1] * 40, raw_data=b"1234"), InvalidModel, "40 dimensions"),
        (_tensor(dims=[3], float_data=[1.0]), InvalidModel, "1 elements of data; its shape needs 3"),
        (_tensor(dims=[1], data_type=3, int32_data=[300]), InvalidModel, "outside the range of int8"),
        (_tensor(dims=[1], data_type=99, raw_data=b"1"), InvalidModel, "type 99"),
        (_tensor(dims=[1], data_type=0), InvalidModel, "type 0"),
        (_tensor(dims=[1], data_type=8, string_data=[b"a"]), UnsupportedModel, "string"),
        (_tensor(dims=[1], data_type=17, raw_data=b"1"), UnsupportedModel, "float8"),
    ],
)
def test_bad_tensors(tensor: onnx.TensorProto, kind: type[Error], match: str) -> None:
    assert "'w'" in str(refused(model(initializers=[tensor]), kind, match))


def test_not_a_model(tmp_path: Path) -> None:
    for content in (b"", b"hello, world", b"\x89PNG\r\n\x1a\n", bytes(1000), b"\xff" * 64):
        refused(content, InvalidModel, "not an ONNX model")
    with pytest.raises(InvalidModel, match="no such file") as caught:
        read(tmp_path / "absent.onnx")
    assert caught.value.file == tmp_path / "absent.onnx"
    with pytest.raises(InvalidModel, match="not a file"):
        read(tmp_path)


def test_names_that_are_not_text() -> None:
    content = model([helper.make_node("Relu", ["x"], ["y"], name="abcdef")]).SerializeToString()
    refused(content.replace(b"abcdef", b"abc\xff\xfe\xfd"), InvalidModel, "onnx.NodeProto.name is not UTF-8")
    refused(
        content.replace(b"Relu", b"\xff\xfe\xfd\xfc"), InvalidModel, "onnx.NodeProto.op_type is not UTF-8"
    )


def test_truncated_anywhere() -> None:
    content = model(initializers=[constant("w", np.arange(40, dtype=np.float32))]).SerializeToString()
    for length in range(len(content)):
        with pytest.raises(Error):
            read(content[:length])


def test_damaged_anywhere_is_an_error_or_a_graph() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[1, 1], kernel_shape=[1, 1])]
    x = tensor_input([1, 3, 4, 4])
    weights = constant("w", np.ones((2, 3, 1, 1), np.float32))
    content = model(nodes, [x], initializers=[weights]).SerializeToString()
    rng = np.random.default_rng(5)
    for _ in range(1500):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            graph = read(bytes(damaged))
            if all(isinstance(d, int) for name in graph.inputs for d in graph.facts[name].shape):
                infer(graph)
        except Error:
            pass


def test_all_unsupported_operators_are_told_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["x"], ["b"], name="second"),
        helper.make_node("Gelu", ["x"], ["c"], domain="com.microsoft"),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    error = refused(model(nodes), UnsupportedModel, "Det")
    assert error.message == (
        "operators that are not supported: Det (2, first 'first'), com.microsoft.Gelu (1, first 'c')"
    )


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name="n", **attributes)


def _with(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = model()
    change(proto)
    return proto


def _refer(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.INT, ref_attr_name="b")


SEQUENCE = helper.make_tensor_sequence_value_info("x", FLOAT, [1])


@pytest.mark.parametrize(
    ("proto", "kind", "match"),
    [
        (model([_node("Relu", ["z"], ["y"])]), InvalidModel, "'z' is made by nothing"),
        (model([_node("Relu", ["z"], ["y"]), _node("Relu", ["y"], ["z"])]), InvalidModel, "cycle"),
        (model([_node("Relu", ["y"], ["y"])]), InvalidModel, "cycle"),
        (model([_node("Relu", ["x"], ["y"]), _node("Neg", ["x"], ["y"])]), InvalidModel, "'y' is made twice"),
        (model([_node("Relu", ["x"], ["x"])]), InvalidModel, "'x' is made twice"),
        (model(outputs=("q",)), InvalidModel, "output 'q' is made by nothing"),
        (model(outputs=("y", "y")), InvalidModel, "two outputs are named 'y'"),
        (model(outputs=()), InvalidModel, "no output"),
        (model(initializers=[constant("w", np.ones(1))] * 2), InvalidModel, "two initializers are named 'w'"),
        (model([_node("Relu", ["x", "x"], ["y"])]), InvalidModel, "2 inputs; 1 are needed"),
        (model([_node("Add", ["x"], ["y"])]), InvalidModel, "1 inputs; 2 are needed"),
        (model([_node("Relu", ["x"], ["y", "z"])]), InvalidModel, "2 outputs"),
        (model([_node("Relu", ["x"], [])]), InvalidModel, "0 outputs"),
        (model([_node("Relu", ["x"], ["y"], alpha=1.0)]), InvalidModel, "an attribute 'alpha'"),
        (model([_node("Elu", ["x"], ["y"], alpha=1)]), InvalidModel, "'alpha' is of INT, not of FLOAT"),
        (model([_node("Cast", ["x"], ["y"])]), InvalidModel, "to is missing"),
        (model([_node("Cast", ["x"], ["y"], to=17)]), UnsupportedModel, "float8"),
        (model([_node("Cast", ["x"], ["y"], to=77)]), InvalidModel, "77"),
        (model([_node("Gelu", ["x"], ["y"])]), InvalidModel, "opset 17 has no such operator"),
        (model([_node("Constant", [], ["y"], value_string="a")]), UnsupportedModel, "strings"),
        (model([_node("Constant", [], ["y"])]), InvalidModel, "numbers are needed"),
        (model(opset=99), UnsupportedModel, "opset 99; supported are 1 to"),
        (model(opset=1000), UnsupportedModel, "opset 1000"),
        (_with(lambda m: m.ClearField("opset_import")), InvalidModel, "opset"),
        (_with(lambda m: m.ClearField("graph")), InvalidModel, "no graph"),
        (_with(lambda m: m.graph.sparse_initializer.add()), UnsupportedModel, "sparse"),
        (_with(_refer), InvalidModel, "outside of any"),
        (model(inputs=[onnx.ValueInfoProto(name="x")]), UnsupportedModel, "value of no type"),
        (model(inputs=[tensor_input(None)]), UnsupportedModel, "unknown number"),
        (model(inputs=[tensor_input([-5])]), InvalidModel, "dimension of -5"),
        (model(inputs=[tensor_input([1], TensorProto.STRING)]), UnsupportedModel, "string"),
        (model(inputs=[SEQUENCE]), UnsupportedModel, "sequence"),
        (model(inputs=[tensor_input([1])] * 2), InvalidModel, "two inputs"),
    ],
)  # fmt: skip
def test_bad_models(proto: onnx.ModelProto, kind: type[Error], match: str) -> None:
    refused(proto, kind, match)


def test_an_error_names_file_node_and_operator(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    onnx.save(model([_node("Relu", ["z"], ["y"])]), path)
    with pytest.raises(InvalidModel) as caught:
        read(path)
    assert (caught.value.file, caught.value.node, caught.value.op) == (path, "n", "Relu")


def _function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, imports)


def _call(name: str, a: str, b: str) -> onnx.NodeProto:
    return helper.make_node(name, [a], [b], domain="local")


def _with_functions(nodes: list[onnx.NodeProto], local: list[onnx.FunctionProto]) -> onnx.ModelProto:
    proto = model(nodes, functions=local)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto


def test_functions_are_expanded() -> None:
    inner = _function("inner", [helper.make_node("Neg", ["a"], ["b"])])
    outer = _function("outer", [_call("inner", "a", "c"), helper.make_node("Relu", ["c"], ["b"])])
    graph = read(_with_functions([_call("outer", "x", "y")], [inner, outer]).SerializeToString())
    assert [n.op for n in graph.nodes] == ["Neg", "Relu"]
    x = np.float32([[1, -2, 3]])
    np.testing.assert_array_equal(evaluate(graph, {"x": x})["y"], [[0, 2, 0]])


def test_functions_without_end() -> None:
    itself = _function("f", [_call("f", "a", "b")])
    refused(_with_functions([_call("f", "x", "y")], [itself]), InvalidModel, "calls itself")
    ring = [_function("f", [_call("g", "a", "b")]), _function("g", [_call("f", "a", "b")])]
    refused(_with_functions([_call("f", "x", "y")], ring), InvalidModel, "calls itself")


def test_functions_that_multiply() -> None:
    many = [_function("f0", [helper.make_node("Neg", ["a"], ["b"])])]
    for i in range(1, 12):
        calls = [
            _call(f"f{i - 1}", "a" if j == 0 else f"t{j - 1}", "b" if j == 9 else f"t{j}") for j in range(10)
        ]
        many.append(_function(f"f{i}", calls))
    refused(_with_functions([_call("f11", "x", "y")], many), InvalidModel, "nodes, functions expanded")


def test_functions_deep_inside_each_other() -> None:
    deep = [_function("f0", [helper.make_node("Neg", ["a"], ["b"])])]
    deep += [_function(f"f{i}", [_call(f"f{i - 1}", "a", "b")]) for i in range(1, 40)]
    refused(_with_functions([_call("f39", "x", "y")], deep), InvalidModel, "deep")


def test_subgraphs_deep_inside_each_other() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    for _ in range(Limits().depth + 2):
        body = helper.make_graph([node], "b", [], [onnx.ValueInfoProto(name="y")])
        node = helper.make_node("Loop", ["", "c"], ["y"], body=body)
    refused(model([node]), InvalidModel, "deep")


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (Limits(model_bytes=50), "50 are allowed"),
        (Limits(nodes=2), "more than 2 nodes"),
        (Limits(attribute_elements=3), "'perm' has 4 elements; 3 are allowed"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, match: str) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    content = model(
        [*nodes, helper.make_node("Transpose", ["b"], ["y"], perm=[0, 1, 3, 2])]
    ).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    for source in (content, tmp_path / "m.onnx"):
        read(source)
        with pytest.raises(InvalidModel, match=match):
            read(source, limits)
