"""The compiler behind the cache: a model's programs are taken from there, and made where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import coresident
from coresident import cache as caches
from coresident.errors import ArtifactError, TargetError
from coresident.limits import Limits
from coresident.ports import NodeArg, check_shapes
from coresident.runtime import abi, artifact, cpu
from coresident.runtime.kernels import Kernels
from coresident.runtime.program import Program
from coresident.source import Source

if TYPE_CHECKING:
    from coresident.compiler import Model, Options
    from coresident.graph.batch import Batch

Array = np.ndarray[Any, Any]


class CachedCompiler:
    """Makes the programs of one model, or takes them from the cache; imports the real compiler when it must.

    Args:
        source: of the model.
        cache: to look in first.
        threads, sparse: options that change the code.
        given: shapes that the model's inputs are to have instead of their own.
        limits: that the model is to stay within.
        kernels: that are compiled already, and where those that are compiled now go.
    """

    def __init__(
        self,
        source: Source,
        cache: caches.Cache,
        threads: int,
        given: Mapping[str, Sequence[int | str | None]],
        *,
        sparse: bool,
        limits: Limits,
        kernels: Kernels | None = None,
    ) -> None:
        self._source: Source | None = source
        self._name = source.path.name if source.path else ""
        self._cache, self._threads, self._sparse, self._limits = cache, threads, sparse, limits
        self._kernels = kernels
        self._given = {name: list(shape) for name, shape in given.items()}
        self._digest = source.digest()
        self._model: Model | None = None
        self._as_digested = True

    def fixed(self) -> Program | None:
        """The program of a model whose input sizes are all fixed; None for other models."""
        key = self._key(None, {})
        program = self._cache.get(key)
        if program is not None:
            return program
        graph = self._loaded().graph
        if self.inputs_to_bind() or not all(
            isinstance(size, int) for name in graph.inputs for size in graph.facts[name].shape
        ):
            return None
        return self._compile(key, {}, {})

    def metadata(self) -> dict[str, str]:
        """Of the model."""
        return dict(self._loaded().graph.metadata)

    def inputs_to_bind(self) -> tuple[str, ...]:
        """The inputs whose values a program is compiled for."""
        return self._loaded().bound

    def program(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]) -> Program:
        """The program for these shapes of the inputs, and these values of those that shapes depend on."""
        check_shapes(self.signature()[0], tuple(shapes.values()))
        key = self._key({name: list(shape) for name, shape in shapes.items()}, values)
        program = self._cache.get(key)
        return program if program is not None else self._compile(key, shapes, values)

    def signature(self) -> tuple[list[NodeArg], list[NodeArg]]:
        """Inputs and outputs as the model declares them."""
        graph = self._loaded().graph

        def described(name: str) -> NodeArg:
            fact = graph.facts.get(name)
            if fact is None:
                return NodeArg(name, (), "undefined")
            return NodeArg(name, tuple(size if size != "" else None for size in fact.shape), fact.dtype.name)

        return [described(name) for name in graph.inputs], [described(name) for name in graph.outputs]

    def _compile(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]
    ) -> Program:
        from coresident import compiler

        program = compiler.compile(self._loaded(), shapes, self._options(), values)
        if self._as_digested:
            self._cache.put(key, program)
        return program

    def _loaded(self) -> Model:
        if self._model is None:
            from coresident import compiler

            source = self._source
            assert source is not None
            self._model = compiler.load(
                source.path if source.path is not None else bytes(source.content), self._limits
            )
            # A file that was replaced meanwhile must not become the program of what it was before.
            self._as_digested = source.unchanged
            self._source = None
            self._model = compiler.reshaped(self._model, self._given)
        return self._model

    def batch(
        self,
        size: int,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Array],
        pictures: Sequence[str],
    ) -> Batch:
        """Whether programs for a batch of this size can run a batch of these shapes in pieces."""
        from coresident import compiler

        count = shapes[pictures[0]][0]
        return compiler.examined_batch(self._loaded(), (count, size), shapes, values, pictures)

    def _options(self) -> Options:
        from coresident import compiler

        return compiler.Options(
            compiler.host_target(), self._threads, self._sparse, self._limits, self._kernels
        )

    def _key(self, shapes: Mapping[str, list[int]] | None, values: Mapping[str, Array]) -> str:
        return caches.key(
            {
                "model": self._digest,
                "name": self._name,
                "shapes": shapes,
                "given": self._given if shapes is None else None,
                "values": {name: array.tobytes().hex() for name, array in values.items()},
                "threads": self._threads,
                "sparse": self._sparse,
                "host": _host(),
                "abi": abi.VERSION,
                "format": artifact.VERSION,
                "coresident": coresident.__version__,
                "code": caches.fingerprint("coresident", "**/*.py"),
                "llvm": caches.fingerprint("llvmlite", "_version.py", "binding/*llvmlite.*"),
            }
        )


def program_of_artifact(source: Source) -> Program:
    """The program of an artifact that suits this CPU best."""
    try:
        return artifact.parse(source.content).program_for(cpu.machine(), host_features())
    except (ArtifactError, TargetError) as error:
        raise error.at(file=source.path) from None


def _host() -> str:
    key = cpu.host_key()
    if key is not None:
        return key
    from coresident import compiler

    return compiler.host_target().key


def host_features() -> frozenset[str]:
    """Of this CPU, by LLVM's names."""
    found = cpu.features()
    if found is not None:
        return found
    from coresident import compiler

    return compiler.host_target().features
