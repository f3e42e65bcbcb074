"""Compiled programs as files: what `coresident.compile` writes and the cache keeps.

    magic (8 bytes) | version u32 | length of header u32 | SHA-256 of header | header (JSON) | sections

All numbers are little-endian. The header holds the program's tables and, for each section (objects, then
constants), its offset, length and digest (`runtime/digest.py`). Constants start at a page, so that a mapped
file serves them in place and processes share them. There is no pickle; equal programs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from coresident.errors import ArtifactError, ResourceError
from coresident.runtime import abi
from coresident.runtime.digest import digest
from coresident.runtime.files import read_in_place, write_atomically
from coresident.runtime.program import Port, Program, Step, Word

MAGIC = b"\x89CRES\r\n\x1a"
VERSION = 2
"""Of the file's form; rises with every change of it or of `Program`."""

_FIXED = struct.Struct("<8sII32s")
_OBJECT_ALIGNMENT = 64
_CONSTANTS_ALIGNMENT = 4096
_WORD_KINDS = frozenset(get_args(get_args(Word)[0]))
_MOST = 1 << 48


def is_artifact(head: bytes | memoryview) -> bool:
    """Whether a file that starts so is meant to be an artifact, of any version."""
    return bytes(head[: len(MAGIC)]) == MAGIC


def _round_up(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def serialised(program: Program) -> Iterator[bytes | memoryview]:
    """The bytes of the file, part by part."""
    contents = [*program.objects, program.constants]
    alignments = [_OBJECT_ALIGNMENT] * len(program.objects) + [_CONSTANTS_ALIGNMENT]
    # Offsets count from the first page after the header, so that the header's length does not depend on them.
    sections: list[dict[str, Any]] = []
    position = 0
    for content, alignment in zip(contents, alignments):
        position = _round_up(position, alignment)
        sections.append({"offset": position, "length": len(content), "digest": digest(content)})
        position += len(content)
    tables = {
        "abi": abi.VERSION,
        "sections": sections,
        "inputs": [asdict(port) for port in program.inputs],
        "outputs": [asdict(port) for port in program.outputs],
        "steps": [asdict(step) for step in program.steps],
        "arena_bytes": program.arena_bytes,
        "scratch_bytes": program.scratch_bytes,
        "target": program.target,
        "features": program.features,
        "info": program.info,
    }
    header = json.dumps(tables, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    yield _FIXED.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest())
    yield header
    yield bytes(-(_FIXED.size + len(header)) % _CONSTANTS_ALIGNMENT)
    position = 0
    for content, section in zip(contents, sections):
        yield bytes(section["offset"] - position)
        yield content
        position = section["offset"] + section["length"]


def write(program: Program, path: Path, *, mode: int = 0o666, sync: bool = True) -> None:
    """Write a program to a file, whole or not at all.

    Args:
        program: what to write.
        path: the file.
        mode: its permissions, less the umask.
        sync: whether it must be on the disk before it has its name.

    Raises:
        ResourceError: it can't be written.
    """
    write_atomically(path, serialised(program), mode=mode, sync=sync)


def read(path: Path) -> Program:
    """Read a program; its constants stay in the file, which must not be changed in place.

    Raises:
        ArtifactError: not an artifact, corrupt, or of another version.
        ResourceError: it can't be read.
    """
    try:
        data = read_in_place(path)
    except OSError as error:
        raise ResourceError(f"can't read: {error.strerror or error}", file=path) from error
    try:
        return parse(data)
    except ArtifactError as error:
        raise error.at(file=path) from None


def parse(data: bytes | memoryview) -> Program:
    """The program in a file's bytes.

    Raises:
        ArtifactError: not an artifact, corrupt, or of another version.
    """
    data = memoryview(data)
    if not is_artifact(data):
        raise ArtifactError("not a compiled program")
    if len(data) < _FIXED.size:
        raise ArtifactError("a compiled program that is cut off")
    _, version, length, checksum = _FIXED.unpack_from(data)
    if version != VERSION:
        raise ArtifactError(
            f"a compiled program of format {version}; this version of coresident reads {VERSION}"
        )
    header = bytes(data[_FIXED.size : _FIXED.size + length])
    if len(header) != length or hashlib.sha256(header).digest() != checksum:
        raise ArtifactError("a compiled program whose header is corrupt")
    try:
        tables = json.loads(header)
        if tables["abi"] != abi.VERSION:
            raise ArtifactError(
                f"compiled code of interface {tables['abi']}; this coresident runs {abi.VERSION}"
            )
        first = _round_up(_FIXED.size + length, _CONSTANTS_ALIGNMENT)
        *objects, constants = [_section(data, first, section) for section in tables["sections"]]
        return Program(
            inputs=tuple(_port(port) for port in tables["inputs"]),
            outputs=tuple(_port(port) for port in tables["outputs"]),
            steps=tuple(_step(step) for step in tables["steps"]),
            objects=tuple(bytes(one) for one in objects),
            constants=constants,
            arena_bytes=_size(tables["arena_bytes"]),
            scratch_bytes=_size(tables["scratch_bytes"]),
            target=_string(tables["target"]),
            features=tuple(_string(name) for name in tables["features"]),
            info=dict(tables["info"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"a compiled program whose tables contradict themselves: {error!r}") from error


def _section(data: memoryview, first: int, section: dict[str, Any]) -> memoryview:
    start, length = first + _size(section["offset"]), _size(section["length"])
    if start + length > len(data):
        raise ArtifactError("a compiled program that is cut off")
    content = data[start : start + length]
    if digest(content) != section["digest"]:
        raise ArtifactError("a compiled program whose content does not match its checksum")
    return content


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{value!r} is not a size")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _port(port: dict[str, Any]) -> Port:
    counts = tuple((_size(axis), _size(output)) for axis, output in port["counts"])
    shape = tuple(_size(size) for size in port["shape"])
    if not isinstance(port["hidden"], bool):
        raise TypeError("an output is hidden or not")
    return Port(_string(port["name"]), _string(port["dtype"]), shape, counts, port["hidden"])


def _word(word: list[Any]) -> Word:
    kind, value = word
    if kind not in _WORD_KINDS or type(value) is not int or abs(value) >= 1 << 64:
        raise ValueError(f"{word!r} is not an argument")
    return cast(Word, (kind, value))


def _step(step: dict[str, Any]) -> Step:
    if not isinstance(step["barrier"], bool):
        raise TypeError("a barrier is true or false")
    words = tuple(_word(word) for word in step["words"])
    return Step(_string(step["kernel"]), words, _size(step["tasks"]), step["barrier"], dict(step["info"]))
