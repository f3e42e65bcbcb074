"""What a model says of the sizes of its own parts, before anything is allocated by it."""

from __future__ import annotations

from math import prod

from coresident.errors import ExternalDataError, InvalidModel
from coresident.limits import Limits
from coresident.onnx import messages
from coresident.onnx.proto import AttributeProto, ModelProto, TensorProto
from coresident.onnx.tensors import DTYPES


def check(model: ModelProto, limits: Limits) -> None:
    """Count lists in attributes and bytes in other files.

    Raises:
        InvalidModel: an attribute is longer than the limits allow.
        ExternalDataError: external data is, in all.
    """
    outside = 0
    for message in messages.within(model):
        if isinstance(message, AttributeProto):
            elements = max(len(message.ints), len(message.floats), len(message.strings))
            if elements > limits.attribute_elements:
                raise InvalidModel(
                    f"the attribute {message.name!r} has {elements} elements; {limits.attribute_elements} "
                    "are allowed"
                )
        elif isinstance(message, TensorProto) and message.data_location == TensorProto.EXTERNAL:
            dtype = DTYPES.get(message.data_type)
            outside += prod(max(size, 0) for size in message.dims) * (dtype.itemsize if dtype else 2)
            if outside > limits.external_bytes:
                raise ExternalDataError(
                    f"more than {limits.external_bytes} bytes of external data, with tensor {message.name!r}"
                )
