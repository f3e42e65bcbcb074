"""Machine instructions of x86-64 as numbers, for code that is written when a program is loaded.

Vectors have 512 bits. Numbers are little-endian: an instruction's displacement, or another number that
follows, is zero and lies in the bits above its other bytes. Source: Intel 64 and IA-32 Architectures Software
Developer's Manual, volume 2, section 2.7 (EVEX encodings).
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 32
"""Vector registers."""

ARGUMENTS = (7, 6, 2, 1, 8, 9)
"""General registers of a function's arguments: rdi, rsi, rdx, rcx, r8, r9 (System V ABI)."""

FREE = (10, 11, 0)
"""Further general registers that a function may change: r10, r11, rax."""


@dataclass(frozen=True)
class Operation:
    """An instruction of vectors.

    Args:
        opcode: its byte.
        table: of opcodes (1: 0F, 2: 0F38).
        prefix: that is implied (0: none, 1: 66).
        broadcast: whether an operand in memory is one element of 32 bits for all lanes.
    """

    opcode: int
    table: int
    prefix: int = 0
    broadcast: bool = False

    def with_memory(self, register: int, base: int, second: int = 0, wide: bool = False) -> int:
        """With the last operand in memory: 7 bytes, of which the last is a displacement in units of the
        operand's size, or 10 bytes, of which the last four are one in bytes.

        Args:
            register: the destination.
            base: general register that the displacement counts from.
            second: vector register of the second operand; 0 where there is none.
        """
        return self._encoded(register, second, base, 0b10 if wide else 0b01)

    def with_register(self, register: int, second: int, third: int) -> int:
        """With operands in registers: 6 bytes."""
        return self._encoded(register, second, third, 0b11)

    def _encoded(self, register: int, second: int, third: int, mode: int) -> int:
        high = 0 if mode == 0b11 else 1
        first = (
            (not register & 8) << 7
            | (high or not third & 16) << 6
            | (not third & 8) << 5
            | (not register & 16) << 4
            | self.table
        )
        middle = (~second & 15) << 3 | 1 << 2 | self.prefix
        last = 0b10 << 5 | self.broadcast << 4 | (not second & 16) << 3
        operands = mode << 6 | (register & 7) << 3 | third & 7
        return int.from_bytes(bytes([0x62, first, middle, last, self.opcode, operands]), "little")


LOAD, STORE = Operation(0x10, 1), Operation(0x11, 1)
SPREAD = Operation(0x18, 2, 1)
"""One element to all lanes; its displacement counts elements of 32 bits."""
ADD, MINIMUM, MAXIMUM = Operation(0x58, 1), Operation(0x5D, 1), Operation(0x5F, 1)
"""Of float32. Where an operand is NaN, or both are zero, the last one is the minimum and the maximum."""
MULTIPLY_ADD = Operation(0xB8, 2, 1, broadcast=True)
"""destination += second * element, of float32."""
DOT = Operation(0x50, 2, 1, broadcast=True)
"""destination += the four products of an unsigned byte of the second and a signed byte of the element."""

RETURN = 0xC3


def advance(register: int, count: int) -> int:
    """Add a number to one of the first eight general registers: 7 bytes."""
    return int.from_bytes(bytes([0x48, 0x81, 0xC0 | register]), "little") | count << 24


def argument(register: int, index: int) -> int:
    """Load a function's argument that lies on the stack, counted from there, into a general register: 5
    bytes."""
    code = [0x48 | register >> 3 << 2, 0x8B, 0x44 | (register & 7) << 3, 0x24, 8 + 8 * index]
    return int.from_bytes(bytes(code), "little")


def ask(base: int, level: int, to_write: bool = False) -> int:
    """Ask for a cache line, some bytes (the last four of 8) from a general register: L1 or L2, or to write
    it."""
    opcode, hint = (0x0D, 1) if to_write else (0x18, level)
    prefix = 0x40 | base >> 3
    return int.from_bytes(bytes([prefix, 0x0F, opcode, 0x80 | hint << 3 | base & 7]), "little")
