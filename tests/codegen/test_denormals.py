"""Numbers below the smallest normal float: zeros in sums of products on x86, themselves everywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import HOST, graph_of, run_graph

from coresident.codegen import driver, llvm
from coresident.codegen.builder import kernel, word
from coresident.codegen.types import F32
from coresident.graph.graph import Node
from coresident.runtime.executor import Executor
from coresident.runtime.program import Port, Program, Step

Array = np.ndarray[Any, Any]
TINY = np.float32(1e-40)
"""A denormal; 1e30 of it is none."""

ONLY_X86 = pytest.mark.skipif(HOST.arch != "x86_64", reason="denormals are slow on x86 alone")


def product(flushes: bool, early: bool, value: float) -> np.float32:
    """1e30 times a value, of a kernel that leaves by its end or by an early return."""
    f = kernel(HOST, "product", flushes=flushes)
    f.store(f.load(F32, word(f, 0)) * f.load(F32, word(f, 1)), word(f, 2))
    if early:
        f.ret()
    program = Program(
        inputs=(Port("x", "float32", (1,)), Port("w", "float32", (1,))),
        outputs=(Port("y", "float32", (1,)),),
        steps=(Step("product", (("input", 0), ("input", 1), ("output", 0)), 1),),
        objects=(driver.object_code(HOST), llvm.compile_object(llvm.module_text([f]), HOST)),
        constants=b"",
        arena_bytes=0,
        scratch_bytes=64,
        target=HOST.key,
        features=tuple(sorted(HOST.features)),
    )
    executor = Executor(program, 1)
    (y,) = executor.run([np.array([value], np.float32), np.array([1e30], np.float32)])
    executor.close()
    return np.float32(y[0])


@ONLY_X86
@pytest.mark.parametrize("early", [False, True])
def test_flushed_while_a_kernel_runs_and_no_longer(early: bool) -> None:
    assert product(True, early, TINY) == 0
    assert TINY * np.float32(1e30) > 0, "the caller's arithmetic is to be what it was"
    assert product(False, early, TINY) == TINY * np.float32(1e30)


def products() -> dict[str, tuple[Node, tuple[int, ...], Array]]:
    rng = np.random.default_rng(5)

    def ones(*shape: int, zeros: float = 0.0) -> Array:
        return np.where(rng.random(shape) < zeros, 0, 1e30).astype(np.float32)

    depthwise = {"group": 19}
    return {
        "dense": (Node("Conv", ("x", "w"), ("y",), {}, "a"), (1, 19, 9, 9), ones(24, 19, 1, 1)),
        "sparse": (Node("Conv", ("x", "w"), ("y",), {}, "a"), (1, 64, 9, 9), ones(64, 64, 1, 1, zeros=0.9)),
        "winograd": (Node("Conv", ("x", "w"), ("y",), {}, "a"), (1, 64, 28, 28), ones(64, 64, 3, 3)),
        "depthwise": (Node("Conv", ("x", "w"), ("y",), depthwise, "a"), (1, 19, 9, 9), ones(19, 1, 3, 3)),
        "matmul": (Node("MatMul", ("x", "w"), ("y",), {}, "a"), (19, 30), ones(30, 40)),
        "sparse matmul": (Node("MatMul", ("x", "w"), ("y",), {}, "a"), (19, 64), ones(64, 64, zeros=0.9)),
    }


@ONLY_X86
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", products())
def test_no_product_computes_with_them(name: str, threads: int) -> None:
    node, shape, weights = products()[name]
    x = np.full(shape, TINY)
    graph = graph_of([node], {"x": x}, ["y"], {"w": weights})
    (y,) = run_graph(graph, {"x": x}, threads=threads)
    np.testing.assert_array_equal(y, np.zeros_like(y))


@pytest.mark.parametrize(("op", "wanted"), [("Log", np.log(TINY)), ("Sign", 1.0), ("Neg", -TINY)])
def test_functions_do(op: str, wanted: float) -> None:
    x = np.full((3, 37), TINY)
    (y,) = run_graph(graph_of([Node(op, ("x",), ("y",), {}, "a")], {"x": x}, ["y"]), {"x": x})
    np.testing.assert_allclose(y, np.full_like(x, wanted), rtol=1e-6)
