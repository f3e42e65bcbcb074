"""TensorProto to numpy."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from coresident.errors import ExternalDataError, InvalidModel, UnsupportedModel
from coresident.onnx import external_data
from coresident.onnx.proto import TensorProto

Array = np.ndarray[Any, Any]

DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.UINT64: np.dtype(np.uint64),
}
"""Element types of the format -> numpy's."""

HALF_BYTES: dict[int, np.dtype[Any]] = {
    TensorProto.UINT4: np.dtype(np.uint8),
    TensorProto.INT4: np.dtype(np.int8),
}
"""Element types of constants that lie two in a byte -> the type that they are read as."""

MAX_RANK = 32
"""Dimensions of a tensor: numpy 1 has no more."""

_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
"""Where elements lie that are not in raw_data; other types use int32_data."""


def dtype_of(code: int, what: str) -> np.dtype[Any]:
    """The numpy type of an element type of the format.

    Args:
        code: of TensorProto.DataType.
        what: whose type it is, for messages.

    Raises:
        InvalidModel: there is no such type.
        UnsupportedModel: there is, and it is not supported.
    """
    if code in DTYPES:
        return DTYPES[code]
    if code not in TensorProto.DataType.values() or code == TensorProto.UNDEFINED:
        raise InvalidModel(f"{what} has element type {code}, which does not exist")
    raise UnsupportedModel(
        f"{what} has elements of {TensorProto.DataType.Name(code).lower()}; supported are "
        f"{', '.join(str(d) for d in DTYPES.values())}"
    )


def array_of(tensor: TensorProto, directory: Path | None, what: str) -> Array:
    """The array of a tensor, a read-only view of its bytes where they are numpy's; bfloat16 becomes float32,
    and 4 bits become 8.

    Args:
        tensor: as read.
        directory: where its external data lies; None if there can't be any.
        what: it is, for messages.

    Raises:
        InvalidModel: type, shape and data contradict.
        UnsupportedModel: elements of a type that is not supported.
        ExternalDataError: its external data can't be used.
    """
    dtype, shape = _form(tensor, what)
    halves = HALF_BYTES.get(tensor.data_type)
    count = _stored(tensor, shape)
    if tensor.data_location == TensorProto.EXTERNAL:
        flat = _raw(external_bytes(tensor, directory, what), dtype, count, what)
    elif tensor.HasField("raw_data"):
        flat = _raw(tensor.raw_data, dtype, count, what)
    else:
        flat = _typed(tensor, dtype, count, what)
    if tensor.data_type == TensorProto.BFLOAT16:
        flat = (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if halves is not None:
        # The first of two lies in the low bits; shifting down as a signed number brings the sign along.
        pairs = np.stack([flat << 4, flat & 0xF0], axis=-1).view(halves) >> 4
        flat = pairs.ravel()[: prod(shape)]
    result = flat.reshape(shape)
    result.flags.writeable = False
    return result


def external_bytes(tensor: TensorProto, directory: Path | None, what: str) -> bytearray:
    """The bytes of a tensor with external data.

    Args and Raises: as `array_of`.
    """
    dtype, shape = _form(tensor, what)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) < len(tensor.external_data):
        raise ExternalDataError(f"the external data of tensor {tensor.name!r} says something twice")
    return external_data.read(entries, _stored(tensor, shape) * dtype.itemsize, directory, tensor.name)


def _stored(tensor: TensorProto, shape: tuple[int, ...]) -> int:
    """How many elements of its stored type a tensor has: two of four bits share a byte."""
    return -(-prod(shape) // 2) if tensor.data_type in HALF_BYTES else prod(shape)


def _form(tensor: TensorProto, what: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Element type as stored (bfloat16 as its bits, four bits in pairs) and shape, within bounds."""
    bfloat = tensor.data_type == TensorProto.BFLOAT16
    halves = HALF_BYTES.get(tensor.data_type)
    dtype: np.dtype[Any]
    if bfloat or halves is not None:
        dtype = np.dtype(np.uint16 if bfloat else np.uint8)
    else:
        dtype = dtype_of(tensor.data_type, what)
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise InvalidModel(f"{what} has a negative size", shape=shape)
    if tensor.HasField("segment"):
        raise UnsupportedModel(f"{what} is stored in segments")
    if len(shape) > MAX_RANK:
        raise InvalidModel(f"{what} has {len(shape)} dimensions; at most {MAX_RANK} are allowed")
    if prod(max(size, 1) for size in shape) * dtype.itemsize > sys.maxsize:
        raise InvalidModel(f"{what} is larger than any memory", shape=shape)
    return dtype, shape


def _raw(data: bytes | bytearray, dtype: np.dtype[Any], count: int, what: str) -> Array:
    if len(data) != count * dtype.itemsize:
        raise InvalidModel(
            f"{what} has {len(data)} bytes of data; {count} elements of {dtype} need {count * dtype.itemsize}"
        )
    if dtype.kind == "b":
        return np.frombuffer(data, np.uint8).astype(np.bool_)
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)


def _typed(tensor: TensorProto, dtype: np.dtype[Any], count: int, what: str) -> Array:
    held = getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data"))
    if len(held) != count:
        raise InvalidModel(
            f"{what} has {len(held)} elements of data; its shape needs {count}", shape=tuple(tensor.dims)
        )
    if dtype.kind == "f" and dtype.itemsize >= 4:
        return np.array(held, dtype)
    numbers = np.array(
        held, np.uint64 if tensor.data_type in (TensorProto.UINT32, TensorProto.UINT64) else np.int64
    )
    if dtype.kind == "b":
        return numbers.astype(np.bool_)
    # float16 lies there as its bits.
    bits = np.dtype(np.uint16) if dtype.kind == "f" else dtype
    limits = np.iinfo(bits)
    if count and not limits.min <= int(numbers.min()) <= int(numbers.max()) <= limits.max:
        raise InvalidModel(f"{what} has data outside the range of {bits}")
    return numbers.astype(bits).view(dtype)
