"""LLVM: text in, object code out. The only file that imports llvmlite."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from coresident.codegen.builder import Function
from coresident.codegen.target import Target
from coresident.errors import TargetError

LLVM_VERSION = ".".join(map(str, llvm.llvm_version_info))


@functools.cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def host() -> tuple[str, str, frozenset[str]]:
    """(triple, CPU name, features) of the machine this runs on; the triple is for ELF objects on any
    system."""
    arch = llvm.get_default_triple().split("-", 1)[0]
    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)
    features = frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)
    return f"{arch}-unknown-linux-gnu", llvm.get_host_cpu_name(), features


def module_text(functions: Iterable[Function]) -> str:
    """The functions as one module, each intrinsic declared once."""
    functions = list(functions)
    declarations = {name: text for f in functions for name, text in f.declarations.items()}
    return "\n".join([*declarations.values(), *(f.text() for f in functions)])


def unlocked(name: str) -> Callable[..., Any]:
    """A function of llvmlite's library without the lock that llvmlite takes for every call.

    Threads need that lock where they share a context; a `Backend` has a context of its own. A version of
    llvmlite that keeps its functions elsewhere gives the locked one, and threads wait for each other.
    """
    function = getattr(ffi.lib, name)
    return getattr(function, "_cfn", function)  # type: ignore[no-any-return]


class Backend:
    """What one thread at a time compiles with; backends share nothing.

    Args:
        target: to compile for.
        optimised: False for code that is ready 20 times sooner and several times slower.
    """

    def __init__(self, target: Target, *, optimised: bool = True) -> None:
        _initialize()
        self._target, self._optimised = target, optimised
        self._context = llvm.create_context()
        # The default code model is large: 64-bit absolute relocations. Small and position independent is what
        # is stored.
        self._machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu,
            features=target.feature_string,
            opt=3 if optimised else 0,
            reloc="pic",
            codemodel="small",
        )
        # Kernels are vector code already and have no calls: what the simplifications of level 1 leave undone
        # (vectorisers, inliner, global value numbering) takes as long as they do and gains nothing, and the
        # unroller undoes chosen tiles.
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        options.loop_vectorization = options.slp_vectorization = False
        options.loop_unrolling = options.loop_interleaving = False
        self._builder = llvm.create_pass_builder(self._machine, options)
        self._passes = self._builder.getFunctionPassManager()

    def _module(self, text: str) -> llvm.ModuleRef:
        layout = (
            f'target datalayout = "{self._machine.target_data}"\ntarget triple = "{self._target.triple}"\n'
        )
        try:
            module = llvm.parse_assembly(layout + text, self._context)
            module.verify()
        except RuntimeError as error:
            raise TargetError(f"the generated code is not valid: {error}") from error
        if self._optimised:
            run = unlocked("LLVMPY_RunNewFunctionPassManager")
            for function in module.functions:
                if not function.is_declaration:
                    run(self._passes, function, self._builder)
        else:
            inliner = llvm.create_new_module_pass_manager()
            inliner.add_always_inliner_pass()
            inliner.run(module, self._builder)
        return module

    def object(self, text: str) -> bytes:
        """A module as an ELF object.

        Raises:
            TargetError: the text is not valid.
        """
        module = self._module(text)
        with ffi.OutputString() as problem:
            buffer = unlocked("LLVMPY_TargetMachineEmitToMemory")(self._machine, module, 1, problem)
            if not buffer:
                raise TargetError(f"LLVM makes no object of the generated code: {problem}")
        try:
            size = ffi.lib.LLVMPY_GetBufferSize(buffer)
            return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), size)
        finally:
            ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)

    def assembly(self, text: str) -> str:
        """What `object` makes, as assembly text; raises as it does."""
        return str(self._machine.emit_assembly(self._module(text)))


def compile_object(text: str, target: Target, *, optimised: bool = True) -> bytes:
    """A module as an ELF object.

    Raises:
        TargetError: the text is not valid.
    """
    return Backend(target, optimised=optimised).object(text)


def assembly(text: str, target: Target) -> str:
    """What `compile_object` makes, as assembly text."""
    return Backend(target).assembly(text)
