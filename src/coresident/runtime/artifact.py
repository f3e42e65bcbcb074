"""Compiled programs as files: what `coresident.compile` writes and the cache keeps.

    magic (8 bytes) | version u32 | length of header u32 | SHA-256 of header | header (JSON) | sections

All numbers are little-endian. The header holds the tables of one program for each target, and for each
section (objects, constants, the model) its offset, length and digest (`runtime/digest.py`); equal sections
are there once. Constants start at a page, so that a mapped file serves them in place and processes
share them. Between sections there are zeros and nothing follows them, so every byte of the file is
checked. There is no pickle; equal programs give equal bytes.

The checksums find damage. They do not make a stranger's artifact safe to run: it is machine code.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, cast, get_args

from coresident.errors import ArtifactError, ResourceError, TargetError
from coresident.runtime import abi, cpu
from coresident.runtime.digest import digest
from coresident.runtime.files import read_in_place, write_atomically
from coresident.runtime.program import Port, Program, Step, Word

MAGIC = b"\x89CRES\r\n\x1a"
VERSION = 5
"""Of the file's form; rises with every change of it or of `Program`."""

DTYPES = frozenset(
    ("bool", "float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
)
"""Element types of inputs and outputs, by numpy's names."""

_FIXED = struct.Struct("<8sII32s")
_OBJECT_ALIGNMENT = 64
_CONSTANTS_ALIGNMENT = 4096
_WORD_KINDS = frozenset(get_args(get_args(Word)[0]))
_MOST = 1 << 48
_MOST_HEADER = 256 << 20
_MOST_MODEL = (1 << 31) - 1
"""Bytes of a model: no protobuf message is longer."""
_QUICK = 1
"""The level of zlib: zeros of sparse weights shrink by any, other weights by none."""


@dataclass(frozen=True)
class Artifact:
    """What a file holds.

    Args:
        programs: the same network, for one target each.
        model: the ONNX model that they were made from, as `packed` makes it; empty where it is left out.
    """

    programs: tuple[Program, ...]
    model: bytes | memoryview = b""

    def program_for(self, machine: str, features: Collection[str] | None) -> Program:
        """The program that uses most of what a CPU has.

        Args:
            machine: "x86_64" or "aarch64".
            features: of the CPU, by LLVM's names; None where they are not known.

        Raises:
            TargetError: there is none that it can run; says what they were compiled for.
        """
        fitting = [
            program
            for program in self.programs
            if program.target.split("-", 1)[0] == machine
            and (features is None or not cpu.lacking(program.features, features))
        ]
        if fitting:
            return max(fitting, key=lambda program: len(program.features))
        raise TargetError(f"{self._why_not(machine, features or ())}; {self._way_out()}")

    def _why_not(self, machine: str, features: Collection[str]) -> str:
        alike = [program for program in self.programs if program.target.split("-", 1)[0] == machine]
        if not alike:
            machines = sorted({program.target.split("-", 1)[0] for program in self.programs})
            return f"compiled for {', '.join(machines)}, and this CPU is {machine}"
        least = min((cpu.lacking(program.features, features) for program in alike), key=len)
        return f"compiled for a CPU with {', '.join(least)}, which this CPU lacks"

    def _way_out(self) -> str:
        if not self.model:
            return "compile the model for this CPU"
        return "it holds its model: `coresident compile` makes one for this CPU of it"

    def model_content(self) -> bytes:
        """The ONNX model.

        Raises:
            ArtifactError: it was left out, or is damaged.
        """
        if not self.model:
            raise ArtifactError("the compiled program does not hold its model")
        try:
            stream = zlib.decompressobj()
            content = stream.decompress(self.model, _MOST_MODEL)
        except zlib.error as error:
            raise ArtifactError(f"the model in the compiled program is damaged: {error}") from error
        if not stream.eof or stream.unused_data:
            raise ArtifactError("the model in the compiled program is cut off, or larger than a model can be")
        return content


def packed(model: bytes | memoryview) -> bytes:
    """The content of an ONNX file as an artifact keeps it."""
    return zlib.compress(model, _QUICK)


def is_artifact(head: bytes | memoryview) -> bool:
    """Whether a file that starts so is meant to be an artifact, of any version."""
    return bytes(head[: len(MAGIC)]) == MAGIC


def _round_up(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Sections:
    """Gives contents their places, equal ones the same. Offsets count from the first page after the header,
    whose length does not depend on them then."""

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []
        self.contents: list[bytes | memoryview] = []
        self._known: dict[tuple[str, int, int], int] = {}
        self._end = 0

    def index(self, content: bytes | memoryview, alignment: int) -> int:
        key = (digest(content), len(content), alignment)
        if key not in self._known:
            offset = _round_up(self._end, alignment)
            self._known[key] = len(self.tables)
            self.tables.append({"offset": offset, "length": len(content), "digest": key[0]})
            self.contents.append(content)
            self._end = offset + len(content)
        return self._known[key]


def serialised(artifact: Artifact) -> Iterator[bytes | memoryview]:
    """The bytes of the file, part by part."""
    sections = _Sections()
    programs = [
        {
            "objects": [sections.index(one, _OBJECT_ALIGNMENT) for one in program.objects],
            "constants": sections.index(program.constants, _CONSTANTS_ALIGNMENT),
            "inputs": [asdict(port) for port in program.inputs],
            "outputs": [asdict(port) for port in program.outputs],
            "code_bytes": program.code_bytes,
            "writers": [asdict(step) for step in program.writers],
            "preparation": [asdict(step) for step in program.preparation],
            "steps": [asdict(step) for step in program.steps],
            "arena_bytes": program.arena_bytes,
            "scratch_bytes": program.scratch_bytes,
            "target": program.target,
            "features": program.features,
            "info": program.info,
        }
        for program in artifact.programs
    ]
    tables = {
        "abi": abi.VERSION,
        "programs": programs,
        "model": sections.index(artifact.model, _OBJECT_ALIGNMENT),
        "sections": sections.tables,
    }
    header = json.dumps(tables, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    yield _FIXED.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest())
    yield header
    yield bytes(-(_FIXED.size + len(header)) % _CONSTANTS_ALIGNMENT)
    position = 0
    for content, section in zip(sections.contents, sections.tables):
        yield bytes(section["offset"] - position)
        yield content
        position = section["offset"] + section["length"]


def write(artifact: Artifact, path: Path, *, mode: int = 0o666, sync: bool = True) -> None:
    """Write an artifact to a file, whole or not at all.

    Args:
        artifact: what to write.
        path: the file.
        mode: its permissions, less the umask.
        sync: whether it must be on the disk before it has its name.

    Raises:
        ResourceError: it can't be written.
    """
    write_atomically(path, serialised(artifact), mode=mode, sync=sync)


def read(path: Path) -> Artifact:
    """Read an artifact; constants and model stay in the file, which must not be changed in place.

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


def parse(data: bytes | memoryview) -> Artifact:
    """The artifact in a file's bytes.

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
        way_out = "update coresident" if version > VERSION else "compile the model again"
        raise ArtifactError(
            f"a compiled program of format {version}; this version of coresident reads {VERSION}: {way_out}"
        )
    if length > _MOST_HEADER or _FIXED.size + length > len(data):
        raise ArtifactError("a compiled program that is cut off, or whose header is corrupt")
    header = bytes(data[_FIXED.size : _FIXED.size + length])
    if hashlib.sha256(header).digest() != checksum:
        raise ArtifactError("a compiled program whose header is corrupt")
    try:
        tables = json.loads(header)
        if tables["abi"] != abi.VERSION:
            raise ArtifactError(
                f"compiled code of interface {tables['abi']}; this coresident runs {abi.VERSION}"
            )
        contents = _contents(data, _FIXED.size + length, tables["sections"])
        programs = tuple(_program(program, contents) for program in tables["programs"])
        if not programs:
            raise ArtifactError("a compiled program for no target")
        return Artifact(programs, contents[_size(tables["model"])])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"a compiled program whose tables contradict themselves: {error!r}") from error


def _contents(data: memoryview, end: int, sections: list[dict[str, Any]]) -> list[memoryview]:
    """The sections, each with the digest that it should have, and nothing beside them."""
    first = _round_up(end, _CONSTANTS_ALIGNMENT)
    contents = []
    for section in sections:
        start, length = first + _size(section["offset"]), _size(section["length"])
        if start + length > len(data):
            raise ArtifactError("a compiled program that is cut off")
        _check_padding(data, end, start)
        end = start + length
        contents.append(data[start:end])
        if digest(contents[-1]) != section["digest"]:
            raise ArtifactError("a compiled program whose content does not match its checksum")
    # A program without constants ends where they would begin.
    _check_padding(data, end, len(data))
    return contents


def _check_padding(data: memoryview, start: int, end: int) -> None:
    if not 0 <= end - start < _CONSTANTS_ALIGNMENT or any(data[start:end]):
        raise ArtifactError("a compiled program with something between its parts")


def _program(tables: dict[str, Any], contents: list[memoryview]) -> Program:
    outputs = tuple(_port(port) for port in tables["outputs"])
    for port in outputs:
        for axis, counting in port.counts:
            counter = outputs[counting]
            if axis >= len(port.shape) or (counter.dtype, prod(counter.shape)) != ("int64", 1):
                raise ValueError(f"output {counting} does not count axis {axis}")
    return Program(
        inputs=tuple(_port(port) for port in tables["inputs"]),
        outputs=outputs,
        code_bytes=_size(tables["code_bytes"]),
        writers=tuple(_step(step) for step in tables["writers"]),
        preparation=tuple(_step(step) for step in tables["preparation"]),
        steps=tuple(_step(step) for step in tables["steps"]),
        objects=tuple(bytes(contents[_size(index)]) for index in tables["objects"]),
        constants=contents[_size(tables["constants"])],
        arena_bytes=_size(tables["arena_bytes"]),
        scratch_bytes=_size(tables["scratch_bytes"]),
        target=_string(tables["target"]),
        features=tuple(_string(name) for name in tables["features"]),
        info=dict(tables["info"]),
    )


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
    if prod(max(size, 1) for size in shape) >= _MOST or len(shape) > 32:
        raise ValueError(f"no array has the shape {shape}")
    if not isinstance(port["hidden"], bool):
        raise TypeError("an output is hidden or not")
    if port["dtype"] not in DTYPES:
        raise ValueError(f"no element type {port['dtype']!r}")
    return Port(_string(port["name"]), port["dtype"], shape, counts, port["hidden"])


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
