"""Reads ONNX models into the portable graph.

A model is input like any other: its sizes, names, counts and paths are checked before anything is allocated
or opened by them, and what is wrong with it is told as an `errors.ModelError`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

import coresident.graph.operators  # noqa: F401  (enters the operators in the table)
from coresident.errors import Error, InvalidModel, ResourceError, UnsupportedModel
from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Dimension, Fact, Graph, Node, sorted_nodes
from coresident.graph.operator import OPERATORS
from coresident.graph.operators.elementwise import attributes_of
from coresident.graph.operators.generation import constant_value
from coresident.limits import DEFAULT, Limits
from coresident.onnx import bounds, control_flow, functions, quantized, text
from coresident.onnx.proto import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SchemaError,
    TensorShapeProto,
    ValueInfoProto,
    get_schema,
)
from coresident.onnx.tensors import HALF_BYTES, array_of, dtype_of
from coresident.onnx.upgrade import NEWEST_OPSET, OLDEST_OPSET, UPGRADES, Rewriter

Array = np.ndarray[Any, Any]

STANDARD = ("", "ai.onnx")
"""Names of the standard operator domain."""


def read(source: str | Path | bytes, limits: Limits = DEFAULT) -> Graph:
    """The graph of a model, its operators in their newest forms.

    Args:
        source: a path, or the content of a file. External data is read from the folder of the path.
        limits: that it is to stay within.

    Returns:
        Inputs that have an initializer are not among the graph's inputs. Free dimensions keep their names.
        Facts are known for the inputs, and for outputs that are declared; `graph.operator.infer` completes
        them once all shapes are bound.

    Raises:
        InvalidModel: not a model, truncated, or contradicting itself.
        UnsupportedModel: operators, element types or opsets that are not supported; all operators at once.
        ExternalDataError: external data is missing, outside the model's folder, or too short.
        ResourceError: the file can't be read.
    """
    if isinstance(source, bytes):
        return _graph(_model(source, limits), None, limits)
    path = Path(source)
    try:
        return _graph(_model(content_of(path, limits), limits), path.parent, limits)
    except Error as error:
        raise error.at(file=path) from error.__cause__


def content_of(path: Path, limits: Limits) -> bytes:
    """The bytes of a model's file.

    Raises:
        InvalidModel: no such file.
        ResourceError: it can't be read.
    """
    if not path.is_file():
        raise InvalidModel("no such file" if not path.exists() else "not a file")
    try:
        with open(path, "rb") as stream:
            _check_length(os.fstat(stream.fileno()).st_size, limits)
            return stream.read(limits.model_bytes + 1)
    except OSError as error:
        raise ResourceError(f"the file can't be read: {error.strerror}") from error


def parsed(content: bytes, limits: Limits) -> ModelProto:
    """The message in a file's bytes, its names text and its size within bounds.

    Raises:
        InvalidModel: not a model, truncated, or out of bounds.
    """
    _check_length(len(content), limits)
    try:
        model = ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidModel("not an ONNX model, or a truncated one") from error
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise InvalidModel("not an ONNX model: it has no graph")
    text.check(model)
    functions.check_size(model, limits)
    bounds.check(model, limits)
    return model


def _check_length(length: int, limits: Limits) -> None:
    if length > limits.model_bytes:
        raise InvalidModel(f"a model of {length} bytes; {limits.model_bytes} are allowed")


def _model(content: bytes, limits: Limits) -> ModelProto:
    model = parsed(content, limits)
    return functions.inlined(model) if model.functions else model


def _opset(model: ModelProto) -> int:
    versions = [int(o.version) for o in model.opset_import if o.domain in STANDARD]
    if not versions:
        raise InvalidModel("the model does not say which opset of the standard domain it needs")
    if not OLDEST_OPSET <= max(versions) <= NEWEST_OPSET:
        raise UnsupportedModel(f"opset {max(versions)}; supported are {OLDEST_OPSET} to {NEWEST_OPSET}")
    return max(versions)


def _graph(model: ModelProto, directory: Path | None, limits: Limits) -> Graph:
    opset, graph = _opset(model), model.graph
    control_flow.resolve(graph, opset, limits)
    _check_supported(graph.node)
    _check_names(graph)
    initializers = {t.name: array_of(t, directory, f"initializer {t.name!r}") for t in graph.initializer}
    facts = {i.name: _input_fact(i) for i in graph.input if i.name not in initializers}
    small = {t.name for t in graph.initializer if t.data_type in HALF_BYTES}
    nodes: list[Node] = []
    for i, proto in enumerate(graph.node):
        if proto.op_type == "QuantizeLinear" and small.intersection(proto.input):
            raise UnsupportedModel(
                "quantised to 4 bits; only constants have so few", node=proto.name, op=proto.op_type
            )
        node = _node(proto, i, opset, directory)
        if node.op == "Constant":
            initializers[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    ordered = sorted_nodes(nodes, [*facts, *initializers])
    outputs = tuple(o.name for o in graph.output)
    rewriter = Rewriter(
        opset,
        initializers,
        {name: fact.dtype for name, fact in facts.items()}
        | {name: a.dtype for name, a in initializers.items()},
        _ranks(graph) | {name: a.ndim for name, a in initializers.items()},
        {*facts, *initializers, *(name for node in ordered for name in node.outputs)},
        frozenset((*outputs, *(name for node in ordered for name in node.inputs))),
    )
    newest = [
        _plain(newer)
        for node in ordered
        for each in _expanded(node, rewriter)
        for newer in rewriter.rewrite(each)
    ]
    known = {*facts, *initializers, *(name for node in newest for name in node.outputs)}
    for name in outputs:
        if name not in known:
            raise InvalidModel(f"output {name!r} is made by nothing")
    declared = _declared_facts(graph.output)
    metadata = {text.lenient(entry.key): text.lenient(entry.value) for entry in model.metadata_props}
    return Graph(tuple(facts), outputs, tuple(newest), initializers, declared | facts, graph.name, metadata)


def _check_supported(nodes: Iterable[NodeProto]) -> None:
    """All operators that are not supported, told at once."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for i, node in enumerate(nodes):
        if _is_known(node):
            continue
        op = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
        counts[op] += 1
        first.setdefault(op, node.name or (node.output[0] if node.output else f"number {i}"))
    if counts:
        listed = ", ".join(f"{op} ({n}, first {first[op]!r})" for op, n in sorted(counts.items()))
        some = next(iter(counts)) if len(counts) == 1 else None
        why = "".join(f"; {text}" for op, text in control_flow.EXPLANATIONS.items() if op in counts)
        raise UnsupportedModel(f"operators that are not supported: {listed}{why}", op=some)


def _is_known(node: NodeProto) -> bool:
    if node.domain in STANDARD:
        return any(node.op_type in table for table in (OPERATORS, UPGRADES, quantized.EXPANSIONS))
    return bool(node.domain == quantized.DOMAIN and node.op_type in quantized.SIGNATURES)


def _check_names(graph: GraphProto) -> None:
    if graph.sparse_initializer:
        raise UnsupportedModel(
            f"a sparse initializer {graph.sparse_initializer[0].values.name!r}; only dense ones are supported"
        )
    if not graph.output:
        raise InvalidModel("the graph has no output")
    for what, names in (
        ("input", [i.name for i in graph.input]),
        ("initializer", [t.name for t in graph.initializer]),
        ("output", [o.name for o in graph.output]),
    ):
        if "" in names:
            raise InvalidModel(f"an {what} without a name")
        if len(set(names)) != len(names):
            raise InvalidModel(f"two {what}s are named {Counter(names).most_common(1)[0][0]!r}")
    made = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name in made:
                raise InvalidModel(
                    f"value {name!r} is made twice", node=node.name or f"number {i}", op=node.op_type
                )
            if name:
                made.add(name)


def _input_fact(value: ValueInfoProto) -> Fact:
    what = f"input {value.name!r}"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UnsupportedModel(
            f"{what} is a {(kind or 'value of no type').removesuffix('_type')}, not a tensor"
        )
    dtype = dtype_of(value.type.tensor_type.elem_type, what)
    if not value.type.tensor_type.HasField("shape"):
        raise UnsupportedModel(f"{what} has an unknown number of dimensions; declare its shape in the model")
    return Fact(dtype, tuple(_dimension(d, what) for d in value.type.tensor_type.shape.dim))


def _declared_facts(values: Iterable[ValueInfoProto]) -> dict[str, Fact]:
    """Of values whose type and rank are declared, as they are before shapes are bound."""
    facts: dict[str, Fact] = {}
    for value in values:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.elem_type and tensor.HasField("shape"):
            what = f"output {value.name!r}"
            shape = tuple(_dimension(d, what) for d in tensor.shape.dim)
            facts[value.name] = Fact(dtype_of(tensor.elem_type, what), shape)
    return facts


def _dimension(dimension: TensorShapeProto.Dimension, what: str) -> Dimension:
    if dimension.WhichOneof("value") != "dim_value":
        return str(dimension.dim_param)
    size = int(dimension.dim_value)
    if size < -1:
        raise InvalidModel(f"{what} has a dimension of {size}")
    # Some exporters write -1 for a dimension without a name.
    return "" if size == -1 else size


def _ranks(graph: GraphProto) -> dict[str, int]:
    """Numbers of dimensions as the model declares them."""
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
    }


def _node(proto: NodeProto, index: int, opset: int, directory: Path | None) -> Node:
    name = proto.name or next((o for o in proto.output if o), f"number {index}")
    try:
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.name in attributes:
                raise InvalidModel(f"the attribute {attribute.name!r} is there twice")
            attributes[attribute.name] = _attribute(attribute, directory)
        if proto.domain in STANDARD:
            _check_schema(proto, opset)
        else:
            quantized.check_signature(
                Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes)
            )
    except Error as error:
        raise error.at(node=name, op=proto.op_type) from error.__cause__
    inputs = list(proto.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return Node(proto.op_type, tuple(inputs), tuple(proto.output), attributes, name)


def _expanded(node: Node, rewriter: Rewriter) -> list[Node]:
    expand = quantized.EXPANSIONS.get(node.op)
    return [node] if expand is None else expand(node, rewriter)


def _check_schema(proto: NodeProto, opset: int) -> None:
    """Numbers of inputs and outputs, names and types of attributes, against the opset's schema."""
    try:
        schema = get_schema(proto.op_type, opset, "")
    except SchemaError:
        raise InvalidModel(f"opset {opset} has no such operator") from None
    if not schema.min_input <= len(proto.input) <= schema.max_input:
        raise InvalidModel(
            f"{len(proto.input)} inputs; {_between(schema.min_input, schema.max_input)} are needed"
        )
    if not schema.min_output <= len(proto.output) <= schema.max_output or not proto.output[0]:
        raise InvalidModel(
            f"{len(proto.output)} outputs; {_between(schema.min_output, schema.max_output)} are needed"
        )
    for attribute in proto.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise InvalidModel(
                f"an attribute {attribute.name!r}; opset {opset} has {', '.join(schema.attributes) or 'none'}"
            )
        if attribute.type != known.type.value:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise InvalidModel(f"the attribute {attribute.name!r} is of {kind}, not of {known.type.name}")
    missing = [
        n for n, a in schema.attributes.items() if a.required and n not in {a.name for a in proto.attribute}
    ]
    if missing:
        raise InvalidModel(f"the attribute {', '.join(missing)} is missing")


def _between(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} or more" if most > 1 << 20 else f"{least} to {most}"


def _attribute(attribute: AttributeProto, directory: Path | None) -> Any:
    """An int, a float, a str, a tuple of these, an array; element types as the names of numpy types ("" where
    the operator's own rule holds)."""
    kind = AttributeProto.AttributeType
    what = f"the attribute {attribute.name!r}"
    if attribute.ref_attr_name:
        raise InvalidModel(f"{what} refers to a function's, outside of any")
    if attribute.type == kind.Value("INT"):
        value = int(attribute.i)
        if attribute.name in ("output_dtype", "precision"):
            return str(dtype_of(value, what)) if value else ""
        return str(dtype_of(value, what)) if attribute.name in ("to", "dtype") else value
    if attribute.type == kind.Value("FLOAT"):
        return float(attribute.f)
    if attribute.type == kind.Value("STRING"):
        return _text(attribute.s, what)
    if attribute.type == kind.Value("INTS"):
        return tuple(int(v) for v in attribute.ints)
    if attribute.type == kind.Value("FLOATS"):
        return tuple(float(v) for v in attribute.floats)
    if attribute.type == kind.Value("STRINGS"):
        return tuple(_text(s, what) for s in attribute.strings)
    if attribute.type == kind.Value("TENSOR"):
        return array_of(attribute.t, directory, what)
    if attribute.type not in kind.values() or attribute.type == kind.Value("UNDEFINED"):
        raise InvalidModel(f"{what} has type {attribute.type}, which does not exist")
    raise UnsupportedModel(f"{what} is of type {kind.Name(attribute.type)}")


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidModel(f"{what} is not UTF-8 text") from None


def _constant(node: Node) -> Array:
    if any(name.startswith("value_string") for name in node.attributes):
        raise UnsupportedModel("a constant of strings", node=node.name, op=node.op)
    try:
        return constant_value(node)
    except Error as error:
        raise error.at(node=node.name, op=node.op) from None


def _plain(node: Node) -> Node:
    """An element-wise node with no attributes but those that its arithmetic reads."""
    if node.op not in ELEMENTWISE or node.op in ("QuantizeLinear", "DequantizeLinear"):
        return node
    return node.with_(attributes=attributes_of(node))
