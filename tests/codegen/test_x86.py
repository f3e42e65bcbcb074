"""Encodings against LLVM's assembler."""

from __future__ import annotations

import platform

import llvmlite.binding
import pytest

from coresident.codegen import llvm, x86
from coresident.codegen.target import NAMED
from coresident.runtime import elf

VNNI = NAMED["x86-64-vnni"]
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="LLVM reads assembly of this machine alone"
)

REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))


def assembled(lines: list[str]) -> bytes:
    """What LLVM makes of them."""
    backend = llvm.Backend(VNNI)
    llvmlite.binding.initialize_native_asmparser()
    escaped = "".join(f'module asm "{line}"\n' for line in (".text", ".globl code", "code:", *lines))
    image, symbols = elf.Unplaced([backend.object(escaped)], "x86_64").at(0)
    return bytes(image[symbols["code"] :])


def _bytes(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")


@pytest.mark.parametrize("base", [1, 6, 8, 11])
def test_operands_in_memory(base: int) -> None:
    lines, wanted = [], b""
    address = REGISTERS[base]
    for register in range(x86.REGISTERS):
        second = (register * 7 + 3) % x86.REGISTERS
        here = f"%zmm{register}"
        lines += [
            f"vmovups 192(%{address}), {here}",
            f"vmovups {here}, -128(%{address})",
            f"vbroadcastss 20(%{address}), {here}",
            f"vfmadd231ps -4(%{address}){{1to16}}, %zmm{second}, {here}",
            f"vpdpbusd 508(%{address}){{1to16}}, %zmm{second}, {here}",
            f"{{evex}} vmovups 70001(%{address}), {here}",
            f"vaddps 1000001(%{address}), {here}, {here}",
        ]
        for operation, displacement, other in (
            (x86.LOAD, 3, 0),
            (x86.STORE, -2, 0),
            (x86.SPREAD, 5, 0),
            (x86.MULTIPLY_ADD, -1, second),
            (x86.DOT, 127, second),
        ):
            code = operation.with_memory(register, base, other) | (displacement & 255) << 48
            wanted += _bytes(code, 7)
        wanted += _bytes(x86.LOAD.with_memory(register, base, wide=True) | 70001 << 48, 10)
        wanted += _bytes(x86.ADD.with_memory(register, base, register, wide=True) | 1000001 << 48, 10)
    assert assembled(lines).startswith(wanted)


def test_operands_in_registers() -> None:
    lines, wanted = [], b""
    for register in range(x86.REGISTERS):
        for third in (0, 7, 9, 18, 31):
            lines += [
                f"vmaxps %zmm{third}, %zmm31, %zmm{register}",
                f"vminps %zmm{third}, %zmm5, %zmm{register}",
            ]
            wanted += _bytes(x86.MAXIMUM.with_register(register, 31, third), 6)
            wanted += _bytes(x86.MINIMUM.with_register(register, 5, third), 6)
    assert assembled(lines).startswith(wanted)


def test_other_instructions() -> None:
    lines = ["addq $1024, %rsi", "movq 8(%rsp), %r10", "movq 16(%rsp), %r11", "movq 24(%rsp), %rax", "retq"]
    wanted = _bytes(x86.advance(6, 1024), 7)
    wanted += b"".join(_bytes(x86.argument(register, i), 5) for i, register in enumerate(x86.FREE))
    wanted += _bytes(x86.RETURN, 1)
    assert assembled(lines).startswith(wanted)
    for base in (1, 9, 10, 11):
        here = f"100000(%{REGISTERS[base]})"
        for line, code in (
            (f"prefetcht0 {here}", x86.ask(base, 1)),
            (f"prefetcht1 {here}", x86.ask(base, 2)),
            (f"prefetchw {here}", x86.ask(base, 1, to_write=True)),
        ):
            found, wanted = assembled([line]), _bytes(code | 100000 << 32, 8)
            # A prefix that says nothing makes all of one length.
            assert found.startswith(wanted if base > 7 else wanted[1:])
