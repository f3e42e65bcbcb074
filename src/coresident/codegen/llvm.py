"""LLVM: text in, object code out. The only file that imports llvmlite."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import llvmlite.binding as llvm

from coresident.codegen.builder import Function
from coresident.codegen.target import Target
from coresident.errors import TargetError

LLVM_VERSION = ".".join(map(str, llvm.llvm_version_info))


@functools.cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@functools.cache
def _machine(target: Target) -> llvm.TargetMachine:
    _initialize()
    machine = llvm.Target.from_triple(target.triple)
    # The default code model is large: 64-bit absolute relocations. Small and position independent is what
    # is stored.
    return machine.create_target_machine(
        cpu=target.cpu, features=target.feature_string, opt=3, reloc="pic", codemodel="small"
    )


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


def _optimised(text: str, target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    machine = _machine(target)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise TargetError(f"the generated code is not valid: {error}") from error
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    # Kernels are vector code already: the vectorisers would only cost time, and the unroller undoes chosen
    # tiles.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module, machine


def compile_object(text: str, target: Target) -> bytes:
    """Optimise a module and return it as an ELF object.

    Raises:
        TargetError: the text is not valid.
    """
    module, machine = _optimised(text, target)
    return bytes(machine.emit_object(module))


def assembly(text: str, target: Target) -> str:
    """What `compile_object` makes, as assembly text."""
    module, machine = _optimised(text, target)
    return str(machine.emit_assembly(module))
