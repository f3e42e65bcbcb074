"""A model as one piece: external data moved into it."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import EncodeError

from coresident.errors import Error, UnsupportedModel
from coresident.limits import DEFAULT, Limits
from coresident.onnx import messages, reader
from coresident.onnx.proto import ModelProto, TensorProto
from coresident.onnx.references import external_locations
from coresident.onnx.tensors import external_bytes


def self_contained(source: Path | bytes, limits: Limits = DEFAULT) -> bytes:
    """The content of an ONNX file that means the same and refers to no other; what refers to none as it is.

    Raises:
        ModelError: the model or its external data can't be read.
        UnsupportedModel: in one piece it is larger than a protobuf message can be.
        ResourceError: the file can't be read.
    """
    if isinstance(source, bytes):
        return _whole(source, None, limits)
    try:
        return _whole(reader.content_of(source, limits), source.parent, limits)
    except Error as error:
        raise error.at(file=source) from error.__cause__


def _whole(content: bytes, directory: Path | None, limits: Limits) -> bytes:
    if not external_locations(content):
        return content
    model = reader.parsed(content, limits)
    for tensor in messages.all_of(model, TensorProto):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = bytes(external_bytes(tensor, directory, f"tensor {tensor.name!r}"))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return _serialised(model)


def _serialised(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise UnsupportedModel(
            "with its external data the model is larger than 2 GiB and can't be kept in the artifact; "
            "compile it without keeping the model"
        ) from error
