"""Which other files a model refers to, found by walking the protobuf wire format to their names.

This is what lets a compiled program be found in the cache by content before anything heavy is imported.
Sources: the protobuf encoding specification; field numbers of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# Message -> field number -> message of the field: the ways that lead to tensors.
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_DEEPEST = 64


class _Malformed(Exception):
    """Not the wire format; the reader proper will say what is wrong."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of the length-delimited fields of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LENGTH:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise _Malformed
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _Malformed


def _walk(message: str, data: memoryview, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise _Malformed
    if message == "Entry":
        entry = {number: bytes(content) for number, content in _fields(data)}
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8", "surrogateescape")
        return
    paths = _PATHS[message]
    for number, content in _fields(data):
        if number in paths:
            yield from _walk(paths[number], content, depth + 1)


def external_locations(model: bytes | memoryview) -> tuple[str, ...]:
    """The locations of external data that a model names, each once, sorted.

    Args:
        model: the content of an ONNX file.

    Returns:
        The locations as they are written; none if the content is not a protobuf message.
    """
    try:
        return tuple(sorted(set(_walk("Model", memoryview(model)))))
    except _Malformed:
        return ()
