"""Compiled programs as files: what is written is read, and nothing else is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_programs

from coresident.errors import ArtifactError, ResourceError
from coresident.runtime import artifact
from coresident.runtime.artifact import Artifact
from coresident.runtime.digest import digest, digest_file
from coresident.runtime.executor import Executor
from coresident.runtime.program import Program, Step


def example() -> Program:
    constants = np.arange(3000, dtype=np.float32).tobytes()
    program = tiny_programs.chain(5, steps=3, length=2)
    writer = Step(program.steps[0].kernel, (("constant", 0), ("code", 64), ("integer", 2)), 1)
    info = {"model": "example", "numbers": [1, 2.5, None, True]}
    return replace(program, constants=constants, info=info, code_bytes=128, writers=(writer,))


def contents(program: Program) -> bytes:
    return b"".join(bytes(part) for part in artifact.serialised(Artifact((program,))))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    program = example()
    artifact.write(Artifact((program,)), tmp_path / "a.cres")
    (found,) = artifact.read(tmp_path / "a.cres").programs
    assert replace(found, constants=bytes(found.constants)) == program
    x = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(Executor(found, 2).run([x])[0], x + 3)
    assert os.listdir(tmp_path) == ["a.cres"]


def test_constants_are_used_where_they_lie(tmp_path: Path) -> None:
    artifact.write(Artifact((example(),)), tmp_path / "a.cres")
    (found,) = artifact.read(tmp_path / "a.cres").programs
    constants = np.frombuffer(found.constants, np.uint8)
    assert constants.ctypes.data % 4096 == 0
    assert isinstance(found.constants, memoryview)
    assert found.constants.readonly


def test_equal_programs_give_equal_bytes() -> None:
    program = example()
    again = replace(program, info=dict(reversed(program.info.items())))
    assert contents(program) == contents(again)
    assert contents(artifact.parse(contents(program)).programs[0]) == contents(program)


def test_a_program_without_constants(tmp_path: Path) -> None:
    program = tiny_programs.chain(2, steps=1)
    artifact.write(Artifact((program,)), tmp_path / "a.cres")
    assert bytes(artifact.read(tmp_path / "a.cres").programs[0].constants) == b""


def test_every_flipped_bit_is_found() -> None:
    data = contents(example())
    header_end = 48 + struct.unpack_from("<I", data, 12)[0]
    tables = json.loads(data[48:header_end])
    first = -(-header_end // 4096) * 4096
    parts = [(0, header_end), (header_end, first - header_end)]
    parts += [(first + s["offset"], s["length"]) for s in tables["sections"] if s["length"]]
    random_ = random.Random(2)
    for start, length in [*parts, (0, len(data))]:
        places = {start, start + length - 1, *(start + random_.randrange(length) for _ in range(60))}
        for at in places:
            broken = bytearray(data)
            broken[at] ^= 1 << random_.randrange(8)
            with pytest.raises(ArtifactError):
                artifact.parse(bytes(broken))
    for more in (b"\0" * 4096, b"x"):
        with pytest.raises(ArtifactError, match="between its parts"):
            artifact.parse(data + more)


def test_every_cut_is_found(tmp_path: Path) -> None:
    data = contents(example())
    for length in [*range(64), *range(64, len(data), 97), len(data) - 1]:
        with pytest.raises(ArtifactError):
            artifact.parse(data[:length])
    (tmp_path / "empty.cres").touch()
    with pytest.raises(ArtifactError, match=r"empty\.cres"):
        artifact.read(tmp_path / "empty.cres")


def with_tables(change: dict[str, object]) -> bytes:
    """An artifact whose header was changed by someone who knows how to sign it."""
    data = contents(example())
    length = struct.unpack_from("<I", data, 12)[0]
    tables = json.loads(data[48 : 48 + length])
    (tables if change.keys() <= tables.keys() else tables["programs"][0]).update(change)
    header = json.dumps(tables).encode()
    fixed = struct.pack("<8sII32s", data[:8], artifact.VERSION, len(header), hashlib.sha256(header).digest())
    body = data[-(-(48 + length) // 4096) * 4096 :]
    return fixed + header + bytes(-(48 + len(header)) % 4096) + body


@pytest.mark.parametrize(
    "change",
    [
        {"abi": 999},
        {"sections": []},
        {"sections": [{"offset": 1 << 40, "length": 1, "digest": ""}]},
        {"sections": [{"offset": 1 << 13, "length": 1, "digest": ""}]},
        {"sections": [{"offset": -5, "length": 1, "digest": ""}]},
        {"sections": [{"offset": 0, "length": 1e3, "digest": ""}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]},
        {"inputs": [{"name": 3, "dtype": "float32", "shape": []}]},
        {"inputs": [{"name": "x", "dtype": "O", "shape": [], "counts": [], "hidden": False}]},
        {"inputs": [{"name": "x", "dtype": "int8", "shape": [1 << 40] * 2, "counts": [], "hidden": False}]},
        {"outputs": [{"name": "y", "dtype": "int8", "shape": [3], "counts": [[0, 0]], "hidden": False}]},
        {"outputs": [{"name": "y", "dtype": "int8", "shape": [3], "counts": [[0, 9]], "hidden": False}]},
        {"inputs": 7},
        {"programs": {}},
        {"programs": []},
        {"model": 1000},
        {"model": -1},
        {"objects": [99]},
        {"constants": -1},
        {"steps": [{"kernel": "k", "words": [["pointer", 3]], "tasks": 1, "barrier": True, "info": {}}]},
        {
            "steps": [
                {"kernel": "k", "words": [["integer", 1 << 70]], "tasks": 1, "barrier": True, "info": {}}
            ]
        },
        {"steps": [{"kernel": "k", "words": [[]], "tasks": 1, "barrier": True, "info": {}}]},
        {"steps": [{"kernel": "k", "words": [], "tasks": True, "barrier": True, "info": {}}]},
        {"steps": [{"kernel": "k", "words": [], "tasks": 1, "barrier": 1, "info": {}}]},
        {"steps": [{"kernel": "k"}]},
        {"arena_bytes": "many"},
        {"target": None},
        {"features": [1]},
        {"info": 3},
    ],
)
def test_tables_that_contradict_themselves(change: dict[str, object]) -> None:
    artifact.parse(with_tables({}))
    with pytest.raises(ArtifactError):
        artifact.parse(with_tables(change))


def test_other_versions_and_other_files(tmp_path: Path) -> None:
    data = bytearray(contents(example()))
    struct.pack_into("<I", data, 8, artifact.VERSION + 1)
    with pytest.raises(ArtifactError, match=f"format {artifact.VERSION + 1}"):
        artifact.parse(bytes(data))
    with pytest.raises(ArtifactError, match="not a compiled program"):
        artifact.parse(b"\x08\x09onnx" * 100)
    with pytest.raises(ResourceError, match="absent"):
        artifact.read(tmp_path / "absent.cres")


@pytest.mark.parametrize("call", ["os.open", "os.fsync", "os.replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failed_write_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "a.cres"
    path.write_bytes(b"before")

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, fail)
    with pytest.raises(ResourceError, match=os.strerror(code)):
        artifact.write(Artifact((example(),)), path)
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.cres"]


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 13 << 20])
def test_digest(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).bytes(size)
    pieces = [data[start : start + (4 << 20)] for start in range(0, size, 4 << 20)]
    expected = hashlib.sha256(data)
    if len(pieces) > 1:
        expected = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces))
    assert digest(data) == digest(memoryview(data)) == expected.hexdigest()
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == expected.hexdigest()
