"""From a model to a program: read, bind the shapes, optimise, lower."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from coresident.codegen import llvm
from coresident.codegen.target import NAMED, Target
from coresident.errors import Error, InputError, ModelError, ResourceError, TargetError
from coresident.graph import batch
from coresident.graph.graph import Dimension, Fact, Graph
from coresident.graph.operator import Array, infer, inputs_to_bind
from coresident.limits import DEFAULT, Limits
from coresident.onnx import reader
from coresident.onnx.self_contained import self_contained
from coresident.passes import fuse_epilogue, pipeline
from coresident.runtime import artifact, cpu
from coresident.runtime.artifact import Artifact
from coresident.runtime.kernels import Kernels
from coresident.runtime.program import Pictures, Program
from coresident.schedule.planner import Planner


@dataclass(frozen=True)
class Model:
    """A model as read.

    Args:
        graph: the portable graph, free dimensions still free.
        path: of the file, for messages; None where the model was given as bytes.
        bound: the inputs whose values shapes depend on (`graph.operator.inputs_to_bind`).
    """

    graph: Graph
    path: Path | None = None
    bound: tuple[str, ...] = ()


def host_target() -> Target:
    """The CPU that this process runs on.

    Raises:
        TargetError: it has neither AVX2 and FMA nor NEON.
    """
    triple, name, features = llvm.host()
    bits, registers = 128, 32
    if triple.startswith("x86_64"):
        wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features
        bits, registers = (512, 32) if wide else (256, 16)
    caches = cpu.caches()
    return Target(triple, name, features, bits, registers, caches.l1d or 32 << 10, caches.l2 or 512 << 10)


def target_named(name: str) -> Target:
    """A target by its name; "host" is this machine.

    Raises:
        TargetError: no such name; lists them.
    """
    if name == "host":
        return host_target()
    if name not in NAMED:
        raise TargetError(f"no target {name!r}; there are host, {', '.join(NAMED)}")
    return NAMED[name]


@dataclass(frozen=True)
class Options:
    """What changes the code.

    Args:
        target: the CPU to compile for.
        threads: workers that will run it: the work is cut accordingly.
        sparse: False compiles zeros as if they were numbers (what the speed-up is measured against).
        limits: on the memory that the program may need.
        kernels: that are compiled already, and where those that are compiled now go.
    """

    target: Target = field(default_factory=host_target)
    threads: int = 1
    sparse: bool = True
    limits: Limits = DEFAULT
    kernels: Kernels | None = None


def load(source: str | os.PathLike[str] | bytes, limits: Limits = DEFAULT) -> Model:
    """Read a model, within limits.

    Raises:
        ModelError: it can't be used; says why.
    """
    path = None if isinstance(source, bytes) else Path(source)
    graph = reader.read(source if isinstance(source, bytes) else Path(source), limits)
    return Model(graph, path, inputs_to_bind(graph))


def reshaped(model: Model, shapes: Mapping[str, Sequence[int | str | None]]) -> Model:
    """The model with other shapes of its inputs.

    Args:
        shapes: by name; a number fixes a dimension, None frees it, and free dimensions of one name have the
            same size. What the model calls such a dimension elsewhere follows.

    Raises:
        InputError: no such input, another number of dimensions, or what is no size.
    """
    graph = model.graph
    if unknown := sorted(shapes.keys() - set(graph.inputs)):
        raise InputError(f"no input {unknown[0]!r}; the inputs are {', '.join(graph.inputs)}")
    known: dict[str, Dimension] = {}
    given: dict[str, tuple[Dimension, ...]] = {}
    freed = False
    for name, shape in shapes.items():
        old = graph.facts[name].shape
        if len(shape) != len(old):
            raise InputError(f"input {name!r} has {len(old)} dimensions, {list(old)}, not {list(shape)}")
        new: list[Dimension] = []
        for size in shape:
            if not (size is None or isinstance(size, str) or (type(size) is int and size >= 0)):
                raise InputError(f"input {name!r}: a size is a number, a name or None, not {size!r}")
            new.append("" if size is None else size)
        given[name] = tuple(new)
        for a, b in zip(old, new):
            freed |= isinstance(a, int) and a != b
            if isinstance(a, str) and a and known.setdefault(a, b) != b:
                raise InputError(f"input {name!r}: {a} is {known[a]!r} elsewhere, not {b!r}")

    def follow(size: Dimension) -> Dimension:
        return known.get(size, size) if isinstance(size, str) else size

    facts = dict(graph.facts)
    for name in graph.inputs:
        followed = tuple(follow(size) for size in facts[name].shape)
        facts[name] = replace(facts[name], shape=given.get(name, followed))
    for name in graph.outputs:
        if name in facts and name not in graph.inputs:
            declared = tuple("" if freed and isinstance(d, int) else follow(d) for d in facts[name].shape)
            facts[name] = replace(facts[name], shape=declared)
    return replace(model, graph=graph.with_(facts=facts))


def examined_batch(
    model: Model,
    sizes: tuple[int, int],
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, Array],
    pictures: Sequence[str],
) -> batch.Batch:
    """Whether results for one size of the batch can be put together from results for another.

    Args:
        sizes: of the batch, two different ones.
        shapes: of all inputs.
        values: of the inputs in `model.bound`.
        pictures: the inputs whose first dimension is the batch.
    """

    def inferred(size: int) -> Graph:
        own = {name: (size, *shape[1:]) if name in pictures else shape for name, shape in shapes.items()}
        return infer(bind(model.graph, own, values))

    try:
        return batch.examined(inferred(max(sizes)), inferred(min(sizes)), pictures)
    except Error as error:
        return batch.Batch(why=str(error))


def bind(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Array] | None = None
) -> Graph:
    """The graph with its inputs' shapes fixed; the same free name must have one size throughout.

    Args:
        shapes: of the inputs.
        values: of inputs that are to be constants from here on; they stay inputs, which nothing reads.

    Raises:
        InputError: a shape that the model does not admit.
    """
    sizes: dict[str, int] = {}
    facts = dict(graph.facts)
    for name in graph.inputs:
        fact = graph.facts[name]
        shape = shapes.get(name, fact.shape)
        if len(shape) != len(fact.shape):
            raise InputError(f"input {name!r} has {len(fact.shape)} dimensions, {fact.shape}", shape=shape)
        for want, have in zip(fact.shape, shape):
            if not isinstance(have, int):
                raise InputError(f"input {name!r}: the size of {have!r} must be given", shape=fact.shape)
            known = want if isinstance(want, int) else sizes.setdefault(want, have) if want else have
            if known != have:
                raise InputError(f"input {name!r}: {have} where the model takes {want}={known}", shape=shape)
        facts[name] = Fact(fact.dtype, tuple(shape))
    return graph.with_(facts=facts, initializers={**graph.initializers, **(values or {})})


def compile_graph(graph: Graph, options: Options, name: str = "") -> Program:
    """Optimise and lower a graph whose shapes are all known."""
    start = time.perf_counter()
    optimised = pipeline.optimise(graph)
    _check_values(optimised, options.limits)
    remarks = fuse_epilogue.reasons(optimised)
    remarks |= {node.outputs[0]: node.attributes["remark"] for node in optimised.nodes if node.get("remark")}
    planner = Planner(optimised, options.target, options.threads, options.sparse, remarks, options.kernels)
    program = planner.program({"model": name, "metadata": dict(graph.metadata)})
    _check_memory(program, options)
    program.info["compile_seconds"] = time.perf_counter() - start
    return program


def _check_values(graph: Graph, limits: Limits) -> None:
    for name, fact in graph.facts.items():
        size = prod(max(size, 1) for size in fact.sizes) * fact.dtype.itemsize
        if size > limits.memory_bytes:
            raise ResourceError(
                f"the value {name!r} needs {size} bytes of memory; {limits.memory_bytes} are allowed",
                shape=fact.shape,
            )


def _check_memory(program: Program, options: Options) -> None:
    ports = sum(
        prod(port.shape) * np.dtype(port.dtype).itemsize for port in (*program.inputs, *program.outputs)
    )
    own = program.arena_bytes + program.scratch_bytes * options.threads + len(program.constants)
    if own + ports > options.limits.memory_bytes:
        raise ResourceError(
            f"a call needs {own + ports} bytes of memory; {options.limits.memory_bytes} are allowed"
        )


def compile(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    options: Options,
    values: Mapping[str, Array] | None = None,
) -> Program:
    """Compile a model for these input shapes (inputs whose shapes are fixed may be left out).

    Args:
        values: of the inputs in `model.bound`: the program is for these alone.

    Raises:
        InputError: a shape that the model does not admit, or one that is missing.
        ModelError: the model contradicts itself, or needs what is not supported; names file and node.
        ResourceError: there is not enough memory.
    """
    graph = bind(model.graph, shapes, values)
    name = model.path.name if model.path else ""
    try:
        return _by_pictures(model, graph, options, values or {}, name) or compile_graph(graph, options, name)
    except (ModelError, ResourceError) as error:
        raise error.at(file=model.path) from error.__cause__
    except MemoryError as error:
        raise ResourceError(f"no memory to compile the model: {error}", file=model.path) from error


UNEVEN = 1.15
"""How much longer threads may take that get whole pictures of a batch, for one that is left over."""
WORTHWHILE = 4_000_000
"""Multiply-adds of a picture's convolutions from which on it is handed to a thread by itself."""
FAR_BYTES, FAR_RATE = 16 << 20, 2.0
"""Weights beyond so many bytes come from memory for each picture: bytes a cycle that each thread gets."""


def _by_pictures(
    model: Model, graph: Graph, options: Options, values: Mapping[str, Array], name: str
) -> Program | None:
    """The program of one picture, for a batch whose pictures do not meet and that threads can share; None
    otherwise, and where weights take as long to come from memory as they would serve one picture."""
    shapes = {one: graph.facts[one].sizes for one in graph.inputs}
    pictures = [one for one in graph.inputs if one not in model.bound and shapes[one]]
    counts = {shapes[one][0] for one in pictures}
    count = counts.pop() if len(counts) == 1 else 1
    rounds = -(-count // options.threads)
    if count < max(2, options.threads) or rounds * options.threads > UNEVEN * count:
        return None
    free = reshaped(model, {one: ("", *shapes[one][1:]) for one in pictures})
    own = {one: (1, *shape[1:]) if one in pictures else shape for one, shape in shapes.items()}
    single = bind(free.graph, own, values)
    if _convolutions(single) < WORTHWHILE:
        return None
    found = examined_batch(free, (count, 1), shapes, values, pictures)
    if found.why or all(axis is None for axis in found.axes):
        return None
    program = compile_graph(single, replace(options, threads=1), name)
    cycles = sum(float(step.info.get("estimated_cycles") or 0.0) for step in program.steps)
    weights = len(program.constants)
    counted = any(port.hidden or port.counts for port in program.outputs)
    if counted or (weights > FAR_BYTES and weights / FAR_RATE > cycles):
        return None
    inputs = tuple(i for i, one in enumerate(graph.inputs) if one in pictures)
    program.info["pictures"] = Pictures(count, inputs, found.axes).record()
    return program


def _convolutions(graph: Graph) -> int:
    """Multiply-adds of all convolutions; 0 where shapes contradict, which compiling will say."""
    try:
        whole = infer(graph)
    except Error:
        return 0
    total = 0
    for node in whole.nodes:
        if "Conv" in node.op:
            weights = whole.fact(node.inputs[3 if node.op == "QLinearConv" else 1])
            pixels = whole.fact(node.outputs[0])
            if weights is not None and pixels is not None:
                total += prod(weights.sizes) * prod(pixels.sizes[2:])
    return total


def compile_file(
    model: str | os.PathLike[str] | bytes,
    output: str | os.PathLike[str],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    targets: str | Sequence[str] = "host",
    threads: int | None = None,
    keep_model: bool = True,
    limits: Limits = DEFAULT,
) -> None:
    """Compile a model ahead of time to an artifact, which `coresident.Session` loads without compiling.

    The same model, options and versions give the same bytes.

    Args:
        model: path or content of an ONNX model, or of an artifact that holds its model; an artifact's shapes
            stay as they are if `shapes` does not say otherwise.
        output: the file to write.
        shapes: sizes of the inputs that the model leaves open, by name.
        targets: names of `codegen.target.NAMED`, or "host" for this machine; a session takes the program that
            uses most of what its CPU has.
        threads: that the work is cut for; None for the physical cores that this process may use. The artifact
            runs on any number.
        keep_model: whether the model goes into the file, compressed, so that it can be compiled again for a
            CPU that it was not built for. Weights without zeros hardly shrink: the file is larger by about
            the model then.
        limits: that the model is to stay within.

    Raises:
        ModelError: the model can't be used.
        ArtifactError: the artifact to compile again is corrupt, or does not hold its model.
        InputError: a shape that the model does not admit, or a size that is open still.
        TargetError: no such target.
        ResourceError: the file can't be written.
    """
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads; at least 1 is needed, or None for all physical cores")
    names = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
    if not names:
        raise TargetError(f"no target is named; there are host, {', '.join(NAMED)}")
    chosen = [target_named(name) for name in names]
    loaded, sizes, content = _to_compile(model, keep_model, limits)
    sizes |= {name: tuple(shape) for name, shape in (shapes or {}).items()}
    if unknown := sorted(sizes.keys() - set(loaded.graph.inputs)):
        raise InputError(f"no input {unknown[0]!r}; the inputs are {', '.join(loaded.graph.inputs)}")
    programs, workers = [], threads or cpu.usable_cores().count
    for target in chosen:
        program = compile(loaded, sizes, Options(target, workers, limits=limits))
        del program.info["compile_seconds"]
        programs.append(program)
    artifact.write(Artifact(tuple(programs), artifact.packed(content) if content else b""), Path(output))


def _to_compile(
    model: str | os.PathLike[str] | bytes, keep: bool, limits: Limits
) -> tuple[Model, dict[str, tuple[int, ...]], bytes]:
    """A model, the shapes that it was compiled for before, and what is to be kept of it."""
    path = None if isinstance(model, bytes) else Path(model)
    try:
        if artifact.is_artifact(model if isinstance(model, bytes) else _head(Path(model))):
            found = artifact.parse(model) if isinstance(model, bytes) else artifact.read(Path(model))
            content = found.model_content()
            shapes = {port.name: port.shape for port in found.programs[0].ports[0]}
            return replace(load(content, limits), path=path), shapes, content if keep else b""
        if not keep:
            return load(model, limits), {}, b""
        # Read once: what is kept is what was compiled.
        content = self_contained(model if isinstance(model, bytes) else Path(model), limits)
        return replace(load(content, limits), path=path), {}, content
    except Error as error:
        raise error.at(file=path) from error.__cause__


def _head(path: Path) -> bytes:
    """The first bytes of a file, none where the reader of models will say why."""
    if not path.is_file():
        return b""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(artifact.MAGIC))
    except OSError:
        return b""
