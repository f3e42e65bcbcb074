"""Products of byte matrices against the reference, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import EMIT_TARGETS, TARGETS, WIDTHS, check_node, graph_of

from coresident.codegen.target import NAMED
from coresident.graph.expression import Apply, Expression
from coresident.graph.graph import Node
from coresident.kernels import integer_matmul_sparse
from coresident.schedule.planner import Planner

Array = np.ndarray[Any, Any]
INTEGER_TARGETS = EMIT_TARGETS | {name: NAMED[name] for name in ("x86-64-vnni", "aarch64-dotprod")}


SIZES = (1, 1, 2, 3, 5, 8, 17, 33)


def _case(seed: int, depths: tuple[int, ...] = SIZES) -> tuple[Node, dict[str, Array], dict[str, Array]]:
    """A product drawn by a seed; half of them end in bytes."""
    rng = np.random.default_rng(seed)
    a_type, b_type = rng.choice([np.uint8, np.int8], 2)
    rows, depth, columns = (int(rng.choice(s)) for s in (SIZES, depths, SIZES))

    def some(dtype: Any, shape: tuple[int, ...]) -> Array:
        bounds = np.iinfo(dtype)
        if rng.random() < 0.3:
            return rng.choice([bounds.min, bounds.max], shape).astype(dtype)
        return rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype)

    b = some(b_type, (depth, columns))
    b[rng.random(b.shape) < rng.choice([0.0, 0.85])] = 0
    constants = {"b": b}
    if rng.random() < 0.6:
        constants["az"] = some(a_type, ())
    if rng.random() < 0.5:
        constants["bz"] = some(b_type, () if rng.random() < 0.5 else (columns,))
    if rng.random() < 0.5:
        constants["c"] = rng.integers(-1000, 1000, columns).astype(np.int32)
    names = ["a", "b", *(name if name in constants else "" for name in ("az", "bz", "c"))]
    attributes: dict[str, Any] = {}
    if rng.random() < 0.5:
        steps = (
            Apply("Cast", (0,), (("to", "float32"),)),
            Apply("Mul", (4, 1)),
            Apply("QuantizeLinear", (5, 2, 3)),
        )
        attributes["epilogue"] = Expression(4, steps)
        constants["m"] = rng.uniform(1e-3, 1e-2, columns).astype(np.float32)
        constants["s"], constants["z"] = np.array(0.7, np.float32), some(rng.choice([np.uint8, np.int8]), ())
        names += ["m", "s", "z"]
    lead = (int(rng.integers(1, 3)),) if rng.random() < 0.3 else ()
    return (
        Node("MatMulInteger", tuple(names), ("y",), attributes, "product"),
        {"a": some(a_type, (*lead, rows, depth))},
        constants,
    )


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("seed", range(25))
def test_random_products(seed: int, target: str) -> None:
    node, feeds, constants = _case(seed)
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("seed", range(100, 115))
def test_blocks_that_are_not_zero(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_matmul_sparse, "estimated_cycles", lambda *_: 0.0)
    node, feeds, constants = _case(seed, (3, 33, 1023, 1024, 1031, 2100))
    check_node(node, feeds, constants, target=target, threads=1 + seed % 2, tolerance=0)


@pytest.mark.parametrize("target", [*TARGETS, *WIDTHS])
@pytest.mark.parametrize("largest", [64, 65, -64, -65])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_sums_at_the_bound_of_16_bits(dtype: Any, largest: int, target: str) -> None:
    bounds = np.iinfo(dtype)
    for a in (bounds.min, bounds.max):
        feeds = {"a": np.full((5, 37), a, dtype)}
        node = Node("MatMulInteger", ("a", "b"), ("y",), {}, "product")
        check_node(node, feeds, {"b": np.full((37, 19), largest, np.int8)}, target=target, tolerance=0)


@pytest.mark.parametrize("name", INTEGER_TARGETS)
def test_code_is_made_for_other_targets(name: str) -> None:
    for seed in (1, 2):
        node, feeds, constants = _case(seed)
        Planner(graph_of([node], feeds, ["y"], constants), INTEGER_TARGETS[name], 2).program()
