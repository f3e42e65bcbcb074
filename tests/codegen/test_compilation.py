"""Kernels compiled by several threads."""

from __future__ import annotations

import threading

import pytest
from llvmlite.binding import ffi

from coresident import compiler
from coresident.codegen import compilation, llvm
from coresident.codegen.builder import Function, kernel, word
from coresident.codegen.compilation import Compilation
from coresident.codegen.types import F32
from coresident.errors import TargetError

TARGET = compiler.host_target()


def doubling(index: int, stores: int) -> Function:
    f = kernel(TARGET, f"doubling_{index}")
    for i in range(stores):
        f.store(f.load(F32, word(f, 0), i) * 2.0, word(f, 1), i + index)
    return f


def broken() -> Function:
    f = kernel(TARGET, "broken")
    f.emit("no such instruction", F32)
    return f


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "coresident-compile"]


def compiled(functions: list[Function], threads: int) -> tuple[bytes, ...]:
    with Compilation(TARGET, threads) as code:
        for function in functions:
            code.add(function)
        return code.objects()


@pytest.fixture
def small_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lines are a module of their own, so that a little code makes several."""
    monkeypatch.setattr(compilation, "_MODULE_LINES", 128)


@pytest.mark.usefixtures("small_modules")
def test_objects_do_not_depend_on_the_number_of_threads() -> None:
    functions = [doubling(index, 10 if index % 3 else 40) for index in range(16)]
    alone = compiled(functions, 1)
    assert len(alone) > 3, "the modules are to be several"
    assert compiled(functions, 2) == compiled(functions, 5) == alone
    assert not helpers()


def test_no_functions_make_no_objects() -> None:
    assert compiled([], 3) == ()


@pytest.mark.usefixtures("small_modules")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_function_that_is_not_valid_is_told(threads: int, place: int) -> None:
    functions = [doubling(index, 40) for index in range(7)]
    functions.insert(place, broken())
    with pytest.raises(TargetError, match="not valid"):
        compiled(functions, threads)
    assert not helpers()


def test_leaving_early_ends_the_threads() -> None:
    with Compilation(TARGET, 2) as code:
        for index in range(8):
            code.add(doubling(index, 300))
        assert helpers()
    assert not helpers()


@pytest.mark.parametrize("name", ["LLVMPY_RunNewFunctionPassManager", "LLVMPY_TargetMachineEmitToMemory"])
def test_this_version_of_llvmlite_lets_threads_compile_at_once(name: str) -> None:
    assert llvm.unlocked(name) is not getattr(ffi.lib, name)
