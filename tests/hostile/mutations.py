"""Changes to files as accidents and strangers make them. Every one follows from a random generator."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from coresident.graph.operator import OPERATORS
from coresident.onnx import messages
from coresident.runtime import artifact
from coresident.runtime.digest import digest

INTEGERS = (
    *(0, 1, -1, 2, 3, 4, 7, 16, 17, 255, 1000),
    *(1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1),
    *(-2, -(1 << 31), -(1 << 63)),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))
STRINGS = (
    *("", "x", "y", "w", "../w.bin", "/etc/passwd", "w.bin", "a\0b", "%s%n", "\n", '"', "\\", "!}{", "é☃"),
    *("n" * 5000, "linear", "nearest", "add", "SAME_UPPER", "ai.onnx", "com.microsoft", "ij,jk->ii", "-1"),
)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, set, removed, repeated or cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not content:
            break
        at = rng.randrange(len(content))
        length = rng.choice((1, 2, 4, 8, 30))
        match rng.randrange(6):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * rng.choice((1, 1, 50))
            case 4:
                word = rng.choice(INTEGERS) & (1 << 64) - 1
                size = rng.choice((2, 4, 8))
                content[at : at + size] = word.to_bytes(8, rng.choice(("little", "big")))[:size]
            case 5 if rng.random() < 0.3:
                del content[at:]
    return bytes(content)


def model_changed(data: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Bytes, or numbers, names, types and nodes of a model."""
    if rng.random() < 0.25:
        return bytes_changed(data, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change_message(model, others, rng)
    return bytes(model.SerializeToString())


def _change_message(model: onnx.ModelProto, others: tuple[bytes, ...], rng: random.Random) -> None:
    nodes = model.graph.node
    match rng.randrange(12):
        case 0 if nodes:
            rng.choice(nodes).op_type = rng.choice((*sorted(OPERATORS), *STRINGS[:4]))
        case 1 if nodes:
            model.graph.node.add().CopyFrom(rng.choice(nodes))
        case 2 if nodes:
            node = rng.choice(nodes)
            names = rng.choice((node.input, node.output))
            names.append(rng.choice((*(n for each in nodes for n in (*each.input, *each.output)), "new")))
            if len(names) > 1 and rng.random() < 0.5:
                names.pop(rng.randrange(len(names)))
        case 3 if nodes:
            made = rng.choice(others)
            found = onnx.ModelProto.FromString(made).graph
            model.graph.node.extend(found.node)
            model.graph.initializer.extend(found.initializer)
        case _:
            _change_field(model, rng)


def _change_field(model: Message, rng: random.Random) -> None:
    message = rng.choice(list(messages.within(model)))
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    values = _values_of(field)
    if values is None:
        return
    held = getattr(message, field.name)
    if isinstance(held, str | bytes | int | float):
        setattr(message, field.name, rng.choice(values))
    elif held and rng.random() < 0.8:
        held[rng.randrange(len(held))] = rng.choice(values)
    else:
        held.extend([rng.choice(values)] * rng.choice((1, 1, 40)))


def _values_of(field: Any) -> tuple[Any, ...] | None:
    kind = FieldDescriptor
    if field.type in (kind.TYPE_INT64, kind.TYPE_UINT64):
        return INTEGERS if field.type == kind.TYPE_INT64 else tuple(abs(v) for v in INTEGERS)
    if field.type == kind.TYPE_INT32:
        return (*range(24), (1 << 31) - 1, -1)
    if field.type == kind.TYPE_ENUM:
        return tuple(field.enum_type.values_by_number)
    if field.type in (kind.TYPE_FLOAT, kind.TYPE_DOUBLE):
        return FLOATS
    if field.type == kind.TYPE_STRING:
        return STRINGS
    if field.type == kind.TYPE_BYTES:
        return (b"", b"\0" * 4, b"\xff" * 64, b"abc", b"\x00\x00\x80\x7f" * 9)
    return None


def artifact_changed(data: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """An artifact with changed bytes, or with tables or code changed by someone who can compute checksums.

    Returns:
        The content, and whether its checksums hold.
    """
    if rng.random() < 0.4:
        return bytes_changed(data, rng), False
    fixed = struct.Struct("<8sII32s")
    magic, version, length, _ = fixed.unpack_from(data)
    tables = json.loads(data[fixed.size : fixed.size + length])
    body = bytearray(data[-(-(fixed.size + length) // 4096) * 4096 :])
    if rng.random() < 0.4:
        section = rng.choice(tables["sections"])
        start, end = section["offset"], section["offset"] + section["length"]
        # Mostly where the headers and tables of an object are.
        window = rng.choice((64, 64, 400, end - start))
        first = rng.choice((start, max(start, end - window)))
        for _ in range(rng.choice((1, 1, 3, 10))):
            at = rng.randrange(first, max(min(end, first + window), first + 1))
            body[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))])
        section["digest"] = digest(bytes(body[start:end]))
    else:
        for _ in range(rng.choice((1, 1, 3))):
            _change_value(tables, rng)
    header = json.dumps(tables).encode()
    signed = fixed.pack(magic, version, len(header), hashlib.sha256(header).digest()) + header
    return signed + bytes(-len(signed) % 4096) + bytes(body), True


def _change_value(value: Any, rng: random.Random) -> None:
    while True:
        if not value:
            return
        key: Any = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if isinstance(value[key], dict | list) and rng.random() < 0.9:
            value = value[key]
            continue
        change: list[Callable[[], Any]] = [
            lambda: rng.choice(INTEGERS),
            lambda: rng.choice(STRINGS),
            lambda: rng.choice((None, True, [], {}, 1.5, [[]], 10**400)),
        ]
        if isinstance(value, dict) and rng.random() < 0.1:
            del value[key]
        else:
            value[key] = rng.choice(change)()
        return


assert artifact.VERSION == 5, "the form that artifact_changed takes apart"
