"""What tests share: graphs run through the compiler and compared with the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import banded
import emulation
import numpy as np
import pytest

from coresident.codegen.target import NAMED, Target
from coresident.compiler import Options, compile_graph, host_target
from coresident.graph import operators
from coresident.graph.graph import Fact, Graph, Node
from coresident.graph.operator import evaluate, infer
from coresident.runtime.executor import Executor
from coresident.runtime.kernels import Kernels
from coresident.runtime.program import Program
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]

assert operators, "importing them fills the table"

HOST = host_target()
_NARROWER = {"x86-64-avx2": NAMED["x86-64-avx2"]} if HOST.arch == "x86_64" and HOST.vector_bits > 256 else {}
_EMULATED = [name for name in os.environ.get("CORESIDENT_TEST_TARGETS", "").split(",") if name]
RUN_TARGETS = {"host": HOST} | _NARROWER if not _EMULATED else {name: NAMED[name] for name in _EMULATED}
"""Targets whose code this machine runs; one that would make the code that the host's does is left out. The
variable `CORESIDENT_TEST_TARGETS` names others, for `emulation` to run: "aarch64-neon,aarch64-dotprod"."""
TARGETS = tuple(RUN_TARGETS)
"""Their names."""
WIDTHS = {
    "4 lanes": replace(HOST, vector_bits=128, registers=32),
    "16 lanes": replace(HOST, vector_bits=512, registers=32),
}
"""This machine, with the vectors and registers of NEON and of AVX-512: LLVM makes its own instructions of
them, so the code that those CPUs get is run here but for the choice of instructions."""
EMIT_TARGETS = {name: NAMED[name] for name in ("x86-64-avx512", "aarch64-neon")}
"""Targets that code is made for without running it."""


def few(seeds: Sequence[int], count: int) -> list[Any]:
    """Parameters of a sweep: so many of the seeds always, the others with `-m slow`."""
    return [*seeds[:count], *(pytest.param(seed, marks=pytest.mark.slow) for seed in seeds[count:])]


def graph_of(
    nodes: Sequence[Node],
    inputs: Mapping[str, Array | Fact],
    outputs: Sequence[str],
    initializers: Mapping[str, Array] | None = None,
) -> Graph:
    """A graph with facts for all values, its inputs described by arrays or facts."""
    facts = {name: x if isinstance(x, Fact) else Fact(x.dtype, x.shape) for name, x in inputs.items()}
    return infer(Graph(tuple(inputs), tuple(outputs), tuple(nodes), dict(initializers or {}), facts))


class _Written(Kernels):
    """Says of every kernel that it is compiled already."""

    def get(self, target: str, symbol: str) -> bytes | None:
        return b"compiled"


def planned(graph: Graph, target: Target = HOST, threads: int = 1) -> Program:
    """The program that a graph becomes, for tests of what was chosen: its kernels are written, but not
    compiled, which takes most of the time."""
    return Planner(graph, target, threads, kernels=_Written()).program()


def run_graph(
    graph: Graph, feeds: Mapping[str, Array], target: Target = HOST, threads: int = 1, sparse: bool = True
) -> list[Array]:
    """The outputs of a graph, compiled for a target that this machine runs or emulates.

    Memory holds NaN before: what is read without having been written shows. The program also runs step by
    step between guard bands (`banded`), to the same bits.
    """
    with banded.planners() as planners:
        program = compile_graph(graph, Options(target=target, threads=threads, sparse=sparse))
    if target.arch != HOST.arch:
        return emulation.run(program, [feeds[name] for name in graph.inputs])
    executor = Executor(program, threads)
    context = executor._context()
    before_job = context.job - context._memory.address
    context._memory.view[:before_job] = b"\xff" * before_job
    context.prepare()
    executor._release(context, 0)
    arrays = [np.ascontiguousarray(feeds[name]) for name in graph.inputs]
    try:
        results = executor.run(arrays)
    finally:
        executor.close()
    between = banded.run(planners[-1], program, arrays)
    for got, again, port in zip(results, between, program.outputs):
        for axis, counting in port.counts:
            again = again[(*[slice(None)] * axis, slice(int(between[counting].item())))]
        assert got.tobytes() == again.tobytes(), f"{port.name} differs between guard bands"
    return results


def check_node(
    node: Node,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    *,
    target: str = "host",
    threads: int = 1,
    sparse: bool = True,
    tolerance: float = 1e-5,
) -> None:
    """Run a network of one node through the compiler and compare all its outputs with the reference.

    Args:
        target: a name of `TARGETS` or `WIDTHS`.
        tolerance: of the largest difference, relative to the largest magnitude of the output.
    """
    outputs = [name for name in node.outputs if name]
    graph = graph_of([node], feeds, outputs, constants)
    check_graph(graph, feeds, ({"host": HOST} | RUN_TARGETS | WIDTHS)[target], threads, sparse, tolerance)


def check_graph(
    graph: Graph,
    feeds: Mapping[str, Array],
    target: Target = HOST,
    threads: int = 1,
    sparse: bool = True,
    tolerance: float = 1e-5,
) -> None:
    """Run a network through the compiler and compare all its outputs with the reference; as `check_node`."""
    wanted = evaluate(graph, dict(feeds))
    for name, got in zip(graph.outputs, run_graph(graph, feeds, target, threads, sparse)):
        want = wanted[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        scale = float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want)))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(scale, 1e-30), err_msg=name)
