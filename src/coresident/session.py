"""Sessions: a model, ready to run on arrays."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

import coresident
from coresident import cache as caches
from coresident.errors import ArtifactError, InputError, TargetError
from coresident.limits import DEFAULT, Limits
from coresident.runtime import abi, artifact, cpu
from coresident.runtime.executor import Executor
from coresident.runtime.program import Port, Program, Step
from coresident.runtime.streams import Requests, Streams
from coresident.sizes import FreeSizes, Shapes
from coresident.source import Source

if TYPE_CHECKING:
    from coresident.compiler import Model, Options
    from coresident.graph.batch import Batch

Array = np.ndarray[Any, Any]

_ORT_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as onnxruntime describes one.

    Args:
        name: its name.
        shape: sizes; the name of a dimension that each call may choose, None for one without a name and for
            one whose size depends on the data.
        dtype: numpy's name of its element type; "undefined", with no sizes, for an output of a model with
            free dimensions that does not declare it.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    @property
    def type(self) -> str:
        """As onnxruntime writes it: "tensor(float)"."""
        return f"tensor({_ORT_TYPES.get(self.dtype, self.dtype)})"

    @staticmethod
    def of(port: Port) -> NodeArg:
        counted = dict(port.counts)
        sizes = (None if axis in counted else size for axis, size in enumerate(port.shape))
        return NodeArg(port.name, tuple(sizes), port.dtype)


@dataclass(frozen=True)
class ModelMeta:
    """What a model says of itself, as onnxruntime names it.

    Args:
        custom_metadata_map: the metadata that its makers put into it: names of classes, say.
    """

    custom_metadata_map: dict[str, str]


@dataclass(frozen=True)
class FreeDimension:
    """A size that each call may choose, and what another size costs.

    Args:
        input: name of the input.
        axis: of the input.
        name: of the dimension, None for one without.
        in_pieces: whether programs for other sizes serve a new one while its own is compiled.
        why: why they do not.
    """

    input: str
    axis: int
    name: str | None
    in_pieces: bool
    why: str


class Session:
    """A model compiled for this machine.

    A model whose input sizes are all fixed is compiled at once. Free dimensions take their sizes at the call,
    and one program is kept for each set of sizes that was used lately. Inputs that shapes depend on, such as
    the shape fed to a Reshape, count as sizes. Safe to use from several threads.

    Where the graph shows that the pictures of a batch do not meet, a batch of a new size is not waited for:
    programs for other sizes of the batch run it in pieces, and its own is compiled in the background if there
    is room for it.

    Args:
        model: path or content of an ONNX model, or of a compiled artifact.
        threads: to run on; None for the physical cores that this process may use.
        streams: teams that the threads are split into. Each runs one inference at a time, all with the same
            copy of the weights: more inferences a second, each of which takes longer. Callers wait for a free
            team. (With one thread there is no team, and callers run beside each other.)
        requests: how many of `run_async` may wait; None for four for each stream.
        cache: whether compiled code may be kept in, and taken from, the user's cache.
        treat_zeros_as_dense: multiply by weights that are zero as well, to measure what skipping them saves.
        programs: how many programs of different sizes to keep.
        memory: bytes that these may take: weights, code and activations. The one used last always stays.
        shapes: other shapes of inputs, by name: a number fixes a dimension, None or a name frees it.
        background: whether batches may run in pieces; without, each size waits for its own program. The last
            bits of a result may differ between the two.
        limits: that the model is to stay within.

    Raises:
        ModelError: the model can't be used.
        ArtifactError: the artifact is corrupt or of another version.
        TargetError: this CPU can't run the code.
        ResourceError: files or memory.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        threads: int | None = None,
        *,
        cache: bool = True,
        treat_zeros_as_dense: bool = False,
        programs: int = 8,
        streams: int = 1,
        requests: int | None = None,
        memory: int = 2 << 30,
        shapes: Mapping[str, Sequence[int | str | None]] | None = None,
        background: bool = True,
        limits: Limits = DEFAULT,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads; at least 1 is needed, or None for all physical cores")
        self.threads = threads or cpu.usable_cores().count
        if not 1 <= streams <= self.threads:
            raise InputError(
                f"{streams} streams; from 1 to as many as there are threads, {self.threads}, can be"
            )
        if requests is not None and requests < 1:
            raise InputError(f"room for {requests} requests; at least 1 is needed")
        self.streams = streams
        self._team = self.threads // streams
        self._streams = Streams(streams)
        self._requests = Requests(streams, 4 * streams if requests is None else requests)
        weakref.finalize(self, self._requests.close, wait=False).atexit = False
        self._free: FreeSizes | None = None
        self._fixed: Executor | None = None
        source = Source.of(model)
        if artifact.is_artifact(source.content):
            if treat_zeros_as_dense:
                raise InputError("an artifact is compiled already: treat_zeros_as_dense needs the model")
            if shapes:
                raise InputError("an artifact is compiled already: other shapes need the model")
            self._compiler = None
            self._ready(_chosen(source))
            return
        store = caches.open_cache(enabled=cache)
        self._compiler = _Compiler(
            source, store, self._team, shapes or {}, sparse=not treat_zeros_as_dense, limits=limits
        )
        program = self._compiler.fixed()
        if program is not None:
            self._compiler = None
            self._ready(program)
            return
        self._inputs, self._outputs = self._compiler.signature()
        self._dtypes = [np.dtype(one.dtype) for one in self._inputs]
        bound = [i for i, one in enumerate(self._inputs) if one.name in self._compiler.inputs_to_bind()]
        batches = [i for i, one in enumerate(self._inputs) if one.shape and not isinstance(one.shape[0], int)]
        self._free = FreeSizes(
            [one.name for one in self._inputs],
            bound,
            [i for i in batches if i not in bound],
            _Maker(self._compiler, self._inputs, self._loaded),
            self._infer,
            programs=programs,
            memory=memory,
            background=background,
        )

    def _ready(self, program: Program) -> None:
        """Set up for the one set of shapes that the model admits."""
        self._inputs = [NodeArg.of(port) for port in program.inputs]
        self._outputs = [NodeArg.of(port) for port in program.outputs if not port.hidden]
        self._dtypes = [np.dtype(one.dtype) for one in self._inputs]
        self._fixed = self._loaded(program)

    def _loaded(self, program: Program) -> Executor:
        return Executor(program, self._team, _features(), self.streams)

    def get_inputs(self) -> list[NodeArg]:
        """What `run` must be fed."""
        return list(self._inputs)

    def get_outputs(self) -> list[NodeArg]:
        """What `run` returns."""
        return list(self._outputs)

    def get_modelmeta(self) -> ModelMeta:
        """What the model says of itself."""
        if self._fixed is not None:
            return ModelMeta(dict(self._fixed.program.info.get("metadata", {})))
        assert self._compiler is not None
        return ModelMeta(self._compiler.metadata())

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """One inference.

        Args:
            output_names: which outputs, in this order; None for all, in the model's order.
            feeds: an array for each input, of its dtype; arrays that are not C-contiguous are copied.

        Returns:
            New C-contiguous arrays.

        Raises:
            InputError: the feeds do not fit the inputs, or there is no such output.
            ModelError: the model can't be compiled for these sizes.
            ResourceError: no memory.
        """
        chosen = None if output_names is None else self._chosen(output_names)
        arrays = self._arrays(feeds)
        if self._free is not None:
            outputs = self._free.run(arrays)
        else:
            outputs = self._infer(self._executor(arrays), arrays)
        return outputs if chosen is None else [outputs[i] for i in chosen]

    def run_async(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Array]
    ) -> Future[list[Array]]:
        """Have an inference made; as many run at once as there are streams, the others wait in order.

        Waits itself while as many wait as there is room for; a callback of an earlier future does not.

        Args:
            output_names, feeds: as for `run`. The arrays must not change until the future is done.

        Returns:
            The outputs, or the error that `run` would have raised.

        Raises:
            ResourceError: the session is closed, or the system starts no threads.
        """
        return self._requests.submit(lambda: self.run(output_names, feeds))

    def profile(self, feeds: Mapping[str, Array], repeats: int = 10) -> list[tuple[Step, float]]:
        """Every step of the program for these feeds, with the median seconds that it takes.

        Args:
            feeds: as for `run`.
            repeats: how many runs to measure.

        Raises:
            InputError, ModelError, ResourceError: as `run`.
        """
        arrays = self._arrays(feeds)
        executor = self._executor(arrays)
        return list(zip(executor.program.steps, executor.profile(arrays, repeats)))

    def program(self, feeds: Mapping[str, Array]) -> Program:
        """The program that runs these feeds.

        Raises:
            InputError, ModelError, ResourceError: as `run`.
        """
        return self._executor(self._arrays(feeds)).program

    def free_dimensions(self, feeds: Mapping[str, Array]) -> list[FreeDimension]:
        """The sizes that each call may choose, and whether a new one has to wait for its program.

        Args:
            feeds: as for `run`; the network is examined at their sizes.

        Raises:
            InputError: the feeds do not fit the inputs.
        """
        arrays = self._arrays(feeds)
        if self._free is None:
            return []
        why = self._free.why_not_in_pieces(arrays)
        return [
            FreeDimension(
                one.name, axis, size, *(_OTHER if axis or i in self._free.bound else (not why, why))
            )
            for i, one in enumerate(self._inputs)
            for axis, size in enumerate(one.shape)
            if not isinstance(size, int)
        ]

    def resident_bytes(self, feeds: Mapping[str, Array]) -> int:
        """Memory of the program for these feeds: code, weights, and the activations of a call on each stream.

        Raises:
            InputError, ModelError, ResourceError: as `run`.
        """
        return self._executor(self._arrays(feeds)).resident_bytes

    def close(self) -> None:
        """Give memory back now; calls under way end well, later ones raise ResourceError.

        Requests that `run_async` took are answered first.
        """
        self._requests.close()
        for one in (self._free, self._fixed):
            if one is not None:
                one.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(self, executor: Executor, arrays: Sequence[Array]) -> list[Array]:
        if self.streams == 1:  # the team itself lets one caller in at a time
            return executor.run(arrays)
        stream = self._streams.take()
        try:
            return executor.run(arrays, stream)
        finally:
            self._streams.give(stream)

    def _chosen(self, names: Sequence[str]) -> list[int]:
        have = [one.name for one in self._outputs]
        if unknown := [name for name in names if name not in have]:
            raise InputError(f"no output {_listed(unknown)}; the outputs are {_listed(have)}")
        return [have.index(name) for name in names]

    def _arrays(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The feeds in the order of the inputs, C-contiguous and of the right types."""
        if len(feeds) != len(self._inputs) or any(one.name not in feeds for one in self._inputs):
            have = [one.name for one in self._inputs]
            missing = [name for name in have if name not in feeds]
            unknown = [str(name) for name in feeds if name not in have]
            problems = [f"missing {_listed(missing)}"] * bool(missing) + [
                f"unknown {_listed(unknown)}"
            ] * bool(unknown)
            raise InputError(f"inputs: {', '.join(problems)}; the inputs are {_listed(have)}")
        return [_fitting(feeds[one.name], one, dtype) for one, dtype in zip(self._inputs, self._dtypes)]

    def _executor(self, arrays: Sequence[Array]) -> Executor:
        """The program for the shapes of some arrays, compiled now if there is none yet."""
        if self._free is not None:
            return self._free.executor(arrays)
        assert self._fixed is not None
        return self._fixed


_OTHER = False, "the code is for this size"


@dataclass(frozen=True)
class _Maker:
    """Makes what runs arrays of some sizes.

    Args:
        compiler: of the model.
        inputs: of the model.
        load: makes a program ready to run.
    """

    compiler: _Compiler
    inputs: Sequence[NodeArg]
    load: Callable[[Program], Executor]

    def executor(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]) -> Executor:
        _check_shapes(self.inputs, tuple(shapes.values()))
        return self.load(self.compiler.bound(shapes, values))

    def batch(
        self,
        size: int,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Array],
        pictures: Sequence[str],
    ) -> Batch:
        return self.compiler.batch(size, shapes, values, pictures)


class _Compiler:
    """Makes the programs of one model, or takes them from the cache; imports the real compiler when it must.

    Args:
        source: of the model.
        cache: to look in first.
        threads, sparse: options that change the code.
        given: shapes that the model's inputs are to have instead of their own.
        limits: that the model is to stay within.
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
    ) -> None:
        self._source: Source | None = source
        self._name = source.path.name if source.path else ""
        self._cache, self._threads, self._sparse, self._limits = cache, threads, sparse, limits
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

    def bound(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array]) -> Program:
        """The program for these shapes of the inputs, and these values of those that shapes depend on."""
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

        return compiler.Options(compiler.host_target(), self._threads, self._sparse, self._limits)

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


def _host() -> str:
    key = cpu.host_key()
    if key is not None:
        return key
    from coresident import compiler

    return compiler.host_target().key


def _features() -> frozenset[str]:
    """Of this CPU, by LLVM's names."""
    found = cpu.features()
    if found is not None:
        return found
    from coresident import compiler

    return compiler.host_target().features


def _chosen(source: Source) -> Program:
    """The program of an artifact that suits this CPU best."""
    try:
        return artifact.parse(source.content).program_for(cpu.machine(), _features())
    except (ArtifactError, TargetError) as error:
        raise error.at(file=source.path) from None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _fitting(array: object, wanted: NodeArg, dtype: np.dtype[Any]) -> Array:
    """An array as the executor takes it; its shape is checked there."""
    if type(array) is np.ndarray and array.dtype == dtype:
        flags = array.flags
        if flags.c_contiguous and flags.aligned:
            return array
    given = np.asarray(array)
    if given.dtype.newbyteorder("=") != dtype:
        raise InputError(f"input {wanted.name!r} is {given.dtype}; {dtype} is needed", shape=given.shape)
    # Not ascontiguousarray, which makes one dimension of none.
    return np.require(given, dtype, ["C", "A"]).view(np.ndarray)


def _check_shapes(inputs: Sequence[NodeArg], shapes: Shapes) -> None:
    for one, shape in zip(inputs, shapes):
        fits = all(want == have or not isinstance(want, int) for want, have in zip(one.shape, shape))
        if len(shape) != len(one.shape) or not fits:
            raise InputError(f"input {one.name!r} has shape {list(shape)}; {list(one.shape)} is needed")
