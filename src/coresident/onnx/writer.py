"""Writes the portable graph as an ONNX model, for other engines and for this one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto

from coresident.errors import ResourceError, UnsupportedModel
from coresident.graph.graph import Dimension, Fact, Graph, Node
from coresident.onnx.tensors import DTYPES
from coresident.onnx.upgrade import NEWEST_OPSET

Array = np.ndarray[Any, Any]

LEAST_OPSET = 21
"""The first opset whose operators all have the forms that the reader makes of older ones."""

LEAST_IR = 10
"""The IR version that belongs to it."""

MOST_BYTES = (1 << 31) - 1
"""Of a protobuf message."""

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""Element types of numpy -> the format's."""

_RENAMED = {("GridSample", "mode"): {"bilinear": "linear", "bicubic": "cubic"}}
"""Values of attributes that the reader keeps as they were before `LEAST_OPSET`."""

_KIND = onnx.AttributeProto.AttributeType


def serialize(graph: Graph) -> bytes:
    """The content of an ONNX file of a graph of plain ONNX operators, as the reader makes it.

    The opset is the first from `LEAST_OPSET` on that has all the operators and their attributes. Names of
    values and nodes, free dimensions and metadata are kept; the same graph gives the same bytes.

    Raises:
        UnsupportedModel: an operator, attribute or input that ONNX doesn't have, such as passes make; or an
            element type.
        ResourceError: more than a protobuf message holds, 2 GiB.
    """
    size = sum(array.nbytes for array in graph.initializers.values())
    if size > MOST_BYTES:
        raise ResourceError(f"weights of {size} bytes; an ONNX file without external data holds {MOST_BYTES}")
    opset = max((_since(node) for node in graph.nodes), default=LEAST_OPSET)
    identifier = onnx.OperatorSetIdProto(domain="", version=opset)
    model = onnx.ModelProto(
        ir_version=max(LEAST_IR, onnx.helper.find_min_ir_version_for([identifier])),
        producer_name="coresident",
        opset_import=[identifier],
        graph=onnx.GraphProto(
            name=graph.name or "graph",
            node=[_node(node, opset) for node in graph.nodes],
            input=[_value(name, graph.facts[name]) for name in graph.inputs],
            output=[_value(name, graph.facts.get(name)) for name in graph.outputs],
            initializer=[_tensor(array, name) for name, array in graph.initializers.items()],
        ),
        metadata_props=[
            onnx.StringStringEntryProto(key=key, value=value) for key, value in graph.metadata.items()
        ],
    )
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise ResourceError(f"the model is larger than an ONNX file can be, {MOST_BYTES} bytes") from error


def _since(node: Node) -> int:
    """The first opset, from `LEAST_OPSET` on, that has the node's operator with its attributes."""
    for opset in range(LEAST_OPSET, NEWEST_OPSET + 1):
        schema = _schema(node.op, opset)
        if schema is not None and _fits(node, schema):
            return opset
    newest = _schema(node.op, NEWEST_OPSET)
    if newest is None:
        raise UnsupportedModel("an operator that ONNX doesn't have", node=node.name, op=node.op)
    unknown = sorted(node.attributes.keys() - newest.attributes.keys())
    what = f"the attribute {unknown[0]!r}" if unknown else f"{len(node.inputs)} inputs"
    raise UnsupportedModel(f"{what}, which ONNX doesn't have", node=node.name, op=node.op)


def _fits(node: Node, schema: onnx.defs.OpSchema) -> bool:
    numbers = len(node.inputs) <= schema.max_input and len(node.outputs) <= schema.max_output
    return bool(numbers) and node.attributes.keys() <= schema.attributes.keys()


def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def _node(node: Node, opset: int) -> onnx.NodeProto:
    schema = _schema(node.op, opset)
    assert schema is not None
    attributes = [
        _attribute(node, name, value, schema.attributes[name].type.name)
        for name, value in node.attributes.items()
        if value is not None and not (isinstance(value, str) and value == "")
    ]
    return onnx.NodeProto(
        op_type=node.op, input=node.inputs, output=node.outputs, name=node.name, attribute=attributes
    )


def _attribute(node: Node, name: str, value: Any, kind: str) -> onnx.AttributeProto:
    attribute = onnx.AttributeProto(name=name, type=_KIND.Value(kind))
    value = _RENAMED.get((node.op, name), {}).get(value, value) if isinstance(value, str) else value
    match kind:
        case "INT":
            attribute.i = _code(np.dtype(value)) if isinstance(value, str) else int(value)
        case "FLOAT":
            attribute.f = value
        case "STRING":
            attribute.s = str(value).encode()
        case "INTS":
            attribute.ints.extend(int(v) for v in value)
        case "FLOATS":
            attribute.floats.extend(float(v) for v in value)
        case "STRINGS":
            attribute.strings.extend(str(v).encode() for v in value)
        case "TENSOR":
            attribute.t.CopyFrom(_tensor(np.asarray(value)))
        case _:
            raise UnsupportedModel(f"the attribute {name!r} is of {kind}", node=node.name, op=node.op)
    return attribute


def _code(dtype: np.dtype[Any]) -> int:
    if dtype not in CODES:
        raise UnsupportedModel(f"elements of {dtype}; ONNX files hold {', '.join(map(str, CODES))}")
    return CODES[dtype]


def _tensor(array: Array, name: str = "") -> TensorProto:
    # Neither copy is made where the array lies so already.
    stored = np.ascontiguousarray(array)
    stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False) if sys.byteorder == "big" else stored
    return TensorProto(name=name, data_type=_code(array.dtype), dims=array.shape, raw_data=stored.tobytes())


def _value(name: str, fact: Fact | None) -> onnx.ValueInfoProto:
    if fact is None:
        return onnx.ValueInfoProto(name=name)
    shape = onnx.TensorShapeProto(dim=_dimensions(fact.shape, dict(fact.counts)))
    tensor = onnx.TypeProto.Tensor(elem_type=_code(fact.dtype), shape=shape)
    return onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=tensor))


def _dimensions(
    sizes: Iterable[Dimension], counts: Mapping[int, str]
) -> list[onnx.TensorShapeProto.Dimension]:
    """Sizes that depend on the data have no number before the network runs."""
    return [
        onnx.TensorShapeProto.Dimension()
        if size == "" or axis in counts
        else onnx.TensorShapeProto.Dimension(dim_param=size)
        if isinstance(size, str)
        else onnx.TensorShapeProto.Dimension(dim_value=size)
        for axis, size in enumerate(sizes)
    ]
