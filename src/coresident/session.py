"""Sessions: a model, ready to run on arrays."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from coresident import cache as caches
from coresident.cached_compiler import CachedCompiler, host_features, program_of_artifact
from coresident.errors import InputError
from coresident.limits import DEFAULT, Limits
from coresident.ports import FreeDimension, ModelMeta, NodeArg, in_order, positions
from coresident.runtime import artifact, cpu
from coresident.runtime.kernels import Kernels
from coresident.runtime.pictures import AnyExecutor, executor_of
from coresident.runtime.program import Program, Step
from coresident.runtime.streams import Requests, Streams
from coresident.sizes import FreeSizes
from coresident.source import Source

if TYPE_CHECKING:
    from concurrent.futures import Future

Array = np.ndarray[Any, Any]


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
        kernels: compiled by other sessions, to take from and to add to; worth it for networks that differ in
            the numbers of their weights alone.

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
        kernels: Kernels | None = None,
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
        self._fixed: AnyExecutor | None = None
        source = Source.of(model)
        if artifact.is_artifact(source.content):
            if treat_zeros_as_dense:
                raise InputError("an artifact is compiled already: treat_zeros_as_dense needs the model")
            if shapes:
                raise InputError("an artifact is compiled already: other shapes need the model")
            self._compiler = None
            self._ready(program_of_artifact(source))
            return
        store = caches.open_cache(enabled=cache)
        self._compiler = CachedCompiler(
            source,
            store,
            self._team,
            shapes or {},
            sparse=not treat_zeros_as_dense,
            limits=limits,
            kernels=kernels,
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
            self._compiler,
            self._loaded,
            self._infer,
            programs=programs,
            memory=memory,
            background=background,
        )

    def _ready(self, program: Program) -> None:
        """Set up for the one set of shapes that the model admits."""
        inputs, outputs = program.ports
        self._inputs = [NodeArg.of(port) for port in inputs]
        self._outputs = [NodeArg.of(port) for port in outputs if not port.hidden]
        self._dtypes = [np.dtype(one.dtype) for one in self._inputs]
        self._fixed = self._loaded(program)

    def _loaded(self, program: Program) -> AnyExecutor:
        return executor_of(program, self._team, host_features(), self.streams)

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
        chosen = None if output_names is None else positions(output_names, self._outputs)
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
        fixed = False, "the code is for this size"
        return [
            FreeDimension(one.name, axis, size, *(fixed if axis or i in self._free.bound else (not why, why)))
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

    def _infer(self, executor: AnyExecutor, arrays: Sequence[Array]) -> list[Array]:
        if self.streams == 1:  # the team itself lets one caller in at a time
            return executor.run(arrays)
        stream = self._streams.take()
        try:
            return executor.run(arrays, stream)
        finally:
            self._streams.give(stream)

    def _arrays(self, feeds: Mapping[str, Array]) -> list[Array]:
        return in_order(feeds, self._inputs, self._dtypes)

    def _executor(self, arrays: Sequence[Array]) -> AnyExecutor:
        """The program for the shapes of some arrays, compiled now if there is none yet."""
        if self._free is not None:
            return self._free.executor(arrays)
        assert self._fixed is not None
        return self._fixed
