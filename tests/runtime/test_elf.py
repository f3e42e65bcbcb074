"""The loader: what it links, what it refuses, and how it leaves memory."""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_programs

from coresident.codegen import driver, llvm
from coresident.codegen.builder import Function, kernel, word
from coresident.codegen.target import NAMED
from coresident.codegen.types import F32, I64
from coresident.errors import ArtifactError
from coresident.runtime import cpu, elf
from coresident.runtime.executor import Executor
from coresident.runtime.program import Port, Step

MACHINE = cpu.machine()


def compiled(text: str, target: str | None = None) -> bytes:
    return llvm.compile_object(text, NAMED[target] if target else tiny_programs.TARGET)


def call(code: elf.LoadedCode, name: str, argument: int = 0) -> int:
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address(name))
    return int(function(argument))


def with_constants(name: str, values: range) -> str:
    """A function that indexes a table of numbers, which is private to the module."""
    numbers = ", ".join(f"i64 {value}" for value in values)
    return f"""
@table = private unnamed_addr constant [{len(values)} x i64] [{numbers}]
define i64 @{name}(i64 %index) nounwind {{
  %place = getelementptr i64, ptr @table, i64 %index
  %value = load i64, ptr %place
  ret i64 %value
}}
"""


def test_objects_with_private_constants_of_the_same_name() -> None:
    objects = [compiled(with_constants(f"look_up_{i}", range(100 * i, 100 * i + 20))) for i in range(3)]
    code = elf.load(objects, MACHINE)
    for i in range(3):
        assert [call(code, f"look_up_{i}", k) for k in range(20)] == list(range(100 * i, 100 * i + 20))


def test_objects_call_each_other_and_keep_their_local_functions_apart() -> None:
    caller = """
declare i64 @callee(i64)
define internal i64 @local(i64 %x) noinline nounwind {
  %y = mul i64 %x, 3
  ret i64 %y
}
define i64 @caller(i64 %x) nounwind {
  %a = call i64 @local(i64 %x)
  %b = call i64 @callee(i64 %a)
  %c = add i64 %b, 1
  ret i64 %c
}
"""
    callee = """
define internal i64 @local(i64 %x) noinline nounwind {
  %y = mul i64 %x, %x
  ret i64 %y
}
define i64 @callee(i64 %x) nounwind {
  %y = call i64 @local(i64 %x)
  ret i64 %y
}
"""
    assert call(elf.load([compiled(caller), compiled(callee)], MACHINE), "caller", 5) == 15 * 15 + 1
    with pytest.raises(ArtifactError, match="callee"):
        elf.load([compiled(caller)], MACHINE)
    with pytest.raises(ArtifactError, match="two objects define"):
        elf.load([compiled(callee), compiled(callee)], MACHINE)
    with pytest.raises(ArtifactError, match="no symbol"):
        elf.load([compiled(callee)], MACHINE).address("local")


def test_tables_of_addresses() -> None:
    text = """
@one = private unnamed_addr constant i64 11
@two = private unnamed_addr constant i64 22
@addresses = private unnamed_addr constant [2 x ptr] [ptr @one, ptr @two]
define i64 @through(i64 %index) nounwind {
  %place = getelementptr ptr, ptr @addresses, i64 %index
  %address = load ptr, ptr %place
  %value = load i64, ptr %address
  ret i64 %value
}
"""
    code = elf.load([compiled(text)], MACHINE)
    assert [call(code, "through", i) for i in (0, 1)] == [11, 22]


def test_a_jump_table() -> None:
    f = kernel(tiny_programs.TARGET, "last_steps")
    out, count = word(f, 0), f["task"]
    for step in f.switch_down(count, 9):
        # Different enough that it stays a table of jumps.
        f.store(f.load(I64, out, count) * (step + 3) + 7 * step, out, count)
    steps = [Step("last_steps", (("output", 0),), 10)]
    fill = kernel(tiny_programs.TARGET, "fill")
    fill.store(fill.value(1, I64), word(fill, 0), fill["task"])
    steps.insert(0, Step("fill", (("output", 0),), 10))
    program = tiny_programs.program([fill, f], steps, [], [Port("y", "int64", (10,))])
    expected = []
    for count_ in range(10):
        value = 1
        for step in range(9 - count_, 9):
            value = value * (step + 3) + 7 * step
        expected.append(value)
    assert Executor(program, 1).run([])[0].tolist() == expected


def test_state_is_refused() -> None:
    for state in ("global i64 5", "global i64 0"):
        store = "define i64 @f(i64 %x) nounwind {\n  store i64 %x, ptr @state\n  ret i64 0\n}"
        text = f"@state = {state}\n{store}"
        with pytest.raises(ArtifactError, match="state"):
            elf.load([compiled(text)], MACHINE)


def test_code_for_another_machine() -> None:
    other = "aarch64-neon" if MACHINE == "x86_64" else "x86-64-avx2"
    with pytest.raises(ArtifactError, match="machine"):
        elf.load([driver.object_code(NAMED[other])], MACHINE)


def pages(address: int) -> str:
    """The permissions of the mapping that holds an address, "" if none does."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions = line.split()[:2]
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end:
            return permissions
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_is_never_writable_and_goes_with_its_owner() -> None:
    # The system may have pages that are both of its own (libffi's), so only ours are looked at.
    code = elf.load([compiled(with_constants("look_up", range(10)))], MACHINE)
    address = code.address("look_up")
    assert pages(address) == "r-xp"
    assert pages((address & ~0xFFF) + 0x1000) == "r--p"
    del code
    assert pages(address) != "r-xp"


def everything() -> bytes:
    """An object with calls, constants and a jump table."""
    functions: list[Function] = []
    for i in range(3):
        f = kernel(tiny_programs.TARGET, f"f{i}")
        for step in f.switch_down(f["task"], 7):
            f.store(f.load(F32, word(f, 0), f["task"]) * (1.5 + step) + 0.25, word(f, 0), f["task"])
        functions.append(f)
    return compiled(llvm.module_text(functions) + with_constants("look_up", range(30)))


def test_truncated_objects() -> None:
    data = everything()
    elf.load([data], MACHINE)
    for length in [*range(200), *range(200, len(data), 13)]:
        with pytest.raises(ArtifactError):
            elf.load([data[:length]], MACHINE)


def test_corrupt_objects_are_refused_or_loaded_but_never_crash() -> None:
    data = everything()
    random_ = random.Random(1)
    refused = 0
    for trial in range(1500):
        broken = bytearray(data)
        for _ in range(random_.choice((1, 1, 2, 8))):
            at = random_.randrange(len(data)) if trial % 3 else random_.randrange(64)
            broken[at] = random_.choice((0, 0xFF, 0x7F, 0x80, broken[at] ^ 1 << random_.randrange(8)))
        try:
            elf.load([bytes(broken)], MACHINE)
        except ArtifactError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("field", [40, 60, 62])
@pytest.mark.parametrize("value", [0xFEFF, 0xFFFF])
def test_headers_out_of_bounds(field: int, value: int) -> None:
    data = bytearray(everything())
    struct.pack_into("<H", data, field, value)
    with pytest.raises(ArtifactError):
        elf.load([bytes(data)], MACHINE)


def adrp_target(place: int, first: int, second: int) -> int:
    """Where `adrp x, page; add x, x, low` or `ldr x, [x, low]` at a place leads."""
    pages = (first >> 29 & 3 | (first >> 5 & 0x7FFFF) << 2) << 12
    pages -= (pages >> 32 & 1) << 33
    low = second >> 10 & 0xFFF
    is_load = second >> 24 & 0x3F == 0x39 or second >> 24 & 0x3F == 0x3D
    scale = (second >> 30) + (4 if second >> 23 & 1 and second >> 26 & 1 else 0) if is_load else 0
    return (place >> 12 << 12) + pages + (low << scale)


def test_aarch64_relocations_lead_to_the_constants() -> None:
    """Without such a machine: the code is linked here and its addresses are decoded."""
    text = (
        with_constants("look_up", range(40, 60))
        + """
declare i64 @elsewhere(i64)
define <4 x float> @vector() nounwind {
  ret <4 x float> <float 1.5, float 2.5, float 3.5, float 4.5>
}
define i64 @calls(i64 %x) nounwind {
  %y = call i64 @elsewhere(i64 %x)
  %z = add i64 %y, 1
  ret i64 %z
}
"""
    )
    elsewhere = "define i64 @elsewhere(i64 %x) nounwind {\n  ret i64 %x\n}"
    code = elf.load([compiled(text, "aarch64-neon"), compiled(elsewhere, "aarch64-neon")], "aarch64")

    def instructions(name: str) -> list[tuple[int, int]]:
        address = code.address(name)
        words = struct.unpack("<16I", ctypes.string_at(address, 64))
        return [(address + 4 * i, word_) for i, word_ in enumerate(words)]

    def page_loads(name: str) -> list[int]:
        found = instructions(name)
        firsts = [(i, place, w) for i, (place, w) in enumerate(found) if w >> 24 & 0x9F == 0x90]
        return [
            adrp_target(place, w, next(v for _, v in found[i + 1 :] if v >> 5 & 31 == w & 31))
            for i, place, w in firsts[:1]
        ]

    (table,) = page_loads("look_up")
    assert np.frombuffer(ctypes.string_at(table, 160), np.int64).tolist() == list(range(40, 60))
    (constant,) = page_loads("vector")
    assert np.frombuffer(ctypes.string_at(constant, 16), np.float32).tolist() == [1.5, 2.5, 3.5, 4.5]
    place, branch = next((p, w) for p, w in instructions("calls") if w >> 26 == 0b100101)
    distance = (branch & 0x3FFFFFF) - (branch >> 25 & 1) * (1 << 26)
    assert place + 4 * distance == code.address("elsewhere")
