"""Programs for AArch64, run on any machine under qemu-user.

No toolchain of that machine is needed: the loader's own linker makes an image of the objects, and the image
becomes a static executable that runs the steps, writes its memory to the standard output and ends.

The emulator is `qemu-aarch64` or `qemu-aarch64-static` on PATH, or what `CORESIDENT_QEMU_AARCH64` names.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coresident.codegen import llvm
from coresident.codegen.target import NAMED, Target
from coresident.runtime import abi, elf
from coresident.runtime.memory import round_up
from coresident.runtime.program import Program

Array = np.ndarray[Any, Any]

CPUS = {"aarch64-neon": "cortex-a72", "aarch64-dotprod": "cortex-a76"}
"""The targets that are emulated, and a CPU that has just what each needs."""
VARIABLE = "CORESIDENT_QEMU_AARCH64"

_CODE, _SYSTEM, _CONSTANTS = 0x10000000, 0x30000000, 0x40000000
MEMORY = 0x80000000
"""Where the memory begins that code may write."""
_PAGE = 4096
_SLACK = 4096
"""Bytes behind arena and scratch that vectors may run over, as the executor has them."""
_GUARD = b"\xa5" * 256
_SYSTEM_CALL = struct.pack("<6I", 0xAA0003E8, 0xAA0103E0, 0xAA0203E1, 0xAA0303E2, 0xD4000001, 0xD65F03C0)
"""mov x8, x0; mov x0, x1; mov x1, x2; mov x2, x3; svc 0; ret"""
_WRITE, _EXIT_GROUP = 64, 94


@functools.cache
def emulator() -> str | None:
    """The path of the emulator, if there is one."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


class Region:
    """Memory from an address on, filled piece by piece; guards lie between the pieces."""

    def __init__(self, address: int) -> None:
        self.address, self.content = address, bytearray(_GUARD)
        self.pieces: list[tuple[int, int]] = []

    def place(self, data: bytes | memoryview) -> int:
        """The address of a copy of the data, at a cache line."""
        self.content += bytes(_GUARD[:1]) * (-len(self.content) % 64)
        offset = len(self.content)
        self.content += data
        self.content += _GUARD
        self.pieces.append((offset, len(data)))
        return self.address + offset

    def overrun(self, after: bytes) -> bool:
        """Whether what lies between the pieces is not what it was."""
        masked = np.ones(len(after), bool)
        for offset, size in self.pieces:
            masked[offset : offset + size] = False
        return bool((np.frombuffer(after, np.uint8)[masked] != _GUARD[0]).any())


def execute(
    objects: Sequence[bytes], body: str, constants: Region, memory: Region, cpu: str, target: Target
) -> bytes:
    """Run some code.

    Args:
        objects: for AArch64.
        body: LLVM text that defines `void @body()`, which is called once.
        constants: that nothing may write.
        memory: that the code reads and writes.

    Returns:
        The memory afterwards.

    Raises:
        RuntimeError: it ends in another way than by itself.
    """
    end = MEMORY + len(memory.content)
    system = f"call i64 inttoptr (i64 {_SYSTEM} to ptr)"
    text = f"""{body}
define void @_start() noreturn nounwind {{
entry:
  call void @body()
  br label %write
write:
  %at = phi i64 [ {MEMORY}, %entry ], [ %next, %write ]
  %left = sub i64 {end}, %at
  %written = {system}(i64 {_WRITE}, i64 1, i64 %at, i64 %left)
  %next = add i64 %at, %written
  %more = icmp ult i64 %next, {end}
  %well = icmp sgt i64 %written, 0
  %again = and i1 %more, %well
  br i1 %again, label %write, label %exit
exit:
  %gone = {system}(i64 {_EXIT_GROUP}, i64 0, i64 0, i64 0)
  unreachable
}}
"""
    code = elf.Unplaced([*objects, llvm.compile_object(text, target)], "aarch64")
    image, symbols = code.at(_CODE)
    split = round_up(code.code_size, _PAGE)
    segments = [
        (_CODE, image[: code.code_size], 5),
        (_CODE + split, image[split:], 4),
        (_SYSTEM, _SYSTEM_CALL, 5),
        (_CONSTANTS, constants.content, 4),
        (MEMORY, memory.content, 6),
    ]
    found = emulator()
    assert found is not None, f"no qemu-aarch64 on PATH, nor in {VARIABLE}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        path.write_bytes(_executable(symbols["_start"], segments))
        path.chmod(0o700)
        done = subprocess.run([found, "-cpu", cpu, str(path)], capture_output=True, check=False, timeout=300)
    if done.returncode or len(done.stdout) != len(memory.content):
        code_of = -done.returncode if done.returncode < 0 else done.returncode - 128
        how = signal.Signals(code_of).name if 0 < code_of < 32 else f"exit {done.returncode}"
        raise RuntimeError(f"{how}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


def _executable(entry: int, segments: Sequence[tuple[int, bytes | bytearray, int]]) -> bytes:
    """A static ELF file of segments (address, content, flags), each on pages of its own."""
    segments = [segment for segment in segments if segment[1]]
    headers, content = b"", bytearray()
    offset = _PAGE
    for address, data, flags in segments:
        headers += struct.pack("<IIQQQQQQ", 1, flags, offset, address, address, len(data), len(data), _PAGE)
        content += bytes(data) + bytes(-len(data) % _PAGE)
        offset = _PAGE + len(content)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    head += headers
    return head + bytes(_PAGE - len(head)) + bytes(content)


def run(program: Program, arrays: Sequence[Array], cpu: str = "") -> list[Array]:
    """The outputs of a program, cut to size; memory holds NaN before.

    Args:
        program: for a target of `CPUS`.
        arrays: its inputs.
        cpu: by qemu's names; the target's own where none is given.

    Raises:
        RuntimeError: as `execute` does, or the code writes where nothing of its own lies.
    """
    (target,) = (NAMED[name] for name in CPUS if NAMED[name].key == program.target)
    constants, memory = Region(_CONSTANTS), Region(MEMORY)
    weights = constants.place(program.constants)
    inputs = [constants.place(np.ascontiguousarray(array).tobytes()) for array in arrays]
    arena = memory.place(b"\xff" * (program.arena_bytes + _SLACK))
    scratch = memory.place(b"\xff" * (program.scratch_bytes + _SLACK))
    sizes = [int(np.prod(port.shape)) * np.dtype(port.dtype).itemsize for port in program.outputs]
    outputs = [memory.place(b"\xff" * size) for size in sizes]
    bases = {"constant": [weights], "arena": [arena], "input": inputs, "output": outputs}
    code = elf.Unplaced(program.objects, "aarch64").at(_CODE)[1]
    table = bytearray()
    steps = (*program.preparation, *program.steps)
    for step in steps:
        words = [_word(kind, value, bases) for kind, value in step.words]
        at = constants.place(struct.pack(f"<{len(words)}Q", *words))
        record = [code[step.kernel], at, step.tasks, 1, step.tasks, 0, 0, 0]
        table += struct.pack("<8Q", *record)
    job = [0] * (abi.JOB_BYTES // 8)
    job[abi.JOB_STEPS // 8] = constants.place(bytes(table))
    job[abi.JOB_STEP_COUNT // 8], job[abi.JOB_WORKERS // 8] = len(steps), 1
    job[abi.JOB_SCRATCH // 8] = scratch
    at = memory.place(struct.pack(f"<{len(job)}Q", *job))
    body = f"""
declare void @coresident_run(ptr)
define void @body() nounwind {{
  call void @coresident_run(ptr inttoptr (i64 {at} to ptr))
  ret void
}}
"""
    after = execute(program.objects, body, constants, memory, cpu or CPUS[_name(target)], target)
    if memory.overrun(after):
        raise RuntimeError("the code writes outside its buffers")
    results = []
    for address, port in zip(outputs, program.outputs):
        count = int(np.prod(port.shape))
        results.append(np.frombuffer(after, port.dtype, count, address - MEMORY).reshape(port.shape))
    shown = []
    for array, port in zip(results, program.outputs):
        for axis, counting in port.counts:
            array = array[(*[slice(None)] * axis, slice(int(results[counting].item())))]
        if not port.hidden:
            shown.append(array)
    return shown


def _name(target: Target) -> str:
    return next(name for name in CPUS if NAMED[name] == target)


def _word(kind: str, value: int, bases: Mapping[str, Sequence[int]]) -> int:
    if kind == "integer":
        return value & (1 << 64) - 1
    return bases[kind][0] + value if kind in ("constant", "arena") else bases[kind][value]


def call(
    data: bytes,
    name: str,
    words: Sequence[int],
    tasks: Sequence[int],
    memory: Region,
    scratch: int,
    target: Target,
) -> bytes:
    """The memory after a kernel has run its tasks, in this order.

    Args:
        data: the object that holds it.
        words: addresses of the memory, or integers.
    """
    constants = Region(_CONSTANTS)
    order = constants.place(struct.pack(f"<{len(tasks)}q", *tasks))
    given = constants.place(struct.pack(f"<{len(words)}Q", *words))
    body = f"""
declare void @{name}(ptr, i64, ptr)
define void @body() nounwind {{
entry:
  %none = icmp eq i64 {len(tasks)}, 0
  br i1 %none, label %done, label %task
task:
  %i = phi i64 [ 0, %entry ], [ %i.next, %task ]
  %at = getelementptr i64, ptr inttoptr (i64 {order} to ptr), i64 %i
  %number = load i64, ptr %at
  call void @{name}(ptr inttoptr (i64 {given} to ptr), i64 %number, ptr inttoptr (i64 {scratch} to ptr))
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, {len(tasks)}
  br i1 %more, label %task, label %done
done:
  ret void
}}
"""
    return execute([data], body, constants, memory, CPUS[_name(target)], target)
