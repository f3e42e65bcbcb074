"""Dynamic programming against trying every choice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from coresident.sparsification import allocation
from coresident.sparsification.forms import FLOAT_DENSE, INT8_DENSE, Form, Timings

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
FLOATS = (FLOAT_DENSE, *(Form("float32", "unstructured", s) for s in SPARSITIES))
BYTES = (INT8_DENSE, *(Form("int8", "4block", s) for s in SPARSITIES))
Errors = dict[str, dict[Form, float]]


def network(rng: np.random.Generator, layers: int, forms: tuple[Form, ...]) -> tuple[Errors, Timings]:
    """Random errors that grow with the zeros, and times that fall with them."""
    errors: Errors = {}
    times: dict[str, dict[Form, float]] = {}
    for i in range(layers):
        dense = rng.uniform(1e-4, 1e-2)
        scale = rng.uniform(0.1, 10.0)
        errors[f"layer{i}"] = {
            form: scale * (form.sparsity**2 + (form.dtype == "int8") * 0.01) for form in forms
        }
        falling = np.sort(rng.uniform(0.1, 0.9, len(forms)))[::-1]
        falling[0] = 1.0
        times[f"layer{i}"] = {form: dense * share for form, share in zip(forms, falling.tolist())}
    return errors, Timings(times, {"float32": 1e-3, "int8": 5e-4}, {})


def best(errors: Errors, timings: Timings, budget: float) -> float:
    """The least error of all choices within a budget, infinity if there is none."""
    least = np.inf
    for picked in itertools.product(*(forms for forms in errors.values())):
        choice = dict(zip(errors, picked))
        if timings.total(choice) <= budget:
            least = min(least, sum(errors[name][form] for name, form in choice.items()))
    return least


def test_no_choice_is_better() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        errors, timings = network(rng, 5, FLOATS)
        dense = timings.total(dict.fromkeys(errors, FLOAT_DENSE))
        for speedup in (1.0, 1.5, 2.5):
            found = allocation.allocate(errors, timings, dense / speedup, profit=0)
            least = best(errors, timings, dense / speedup)
            assert found.feasible == np.isfinite(least), (seed, speedup)
            assert found.predicted == pytest.approx(timings.total(found.choice)), (seed, speedup)
            if not found.feasible:
                continue
            assert found.error == pytest.approx(sum(errors[n][f] for n, f in found.choice.items()))
            assert found.predicted <= dense / speedup * (1 + 1e-9), (seed, speedup)
            assert least - 1e-9 <= found.error <= best(errors, timings, dense / speedup * 0.995) + 1e-9, seed


def test_whole_times_are_allocated_exactly() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        errors, timings = network(rng, 4, FLOATS)
        whole = {
            n: {f: max(round(t * 1e4), 1) * 1.0 for f, t in times.items()}
            for n, times in timings.layers.items()
        }
        timings = Timings(whole, {"float32": 3.0}, {})
        least = timings.rest["float32"] + sum(min(times.values()) for times in whole.values())
        room = float(rng.integers(0, 60))
        found = allocation.allocate(errors, timings, least + room, buckets=max(int(room), 1), profit=0)
        assert found.feasible
        assert found.error == pytest.approx(best(errors, timings, least + room)), room


def test_bytes_are_taken_where_they_serve() -> None:
    for seed in range(6):
        errors, timings = network(np.random.default_rng(seed), 4, FLOATS[::2] + BYTES[::2])
        dense = timings.total(dict.fromkeys(errors, FLOAT_DENSE))
        for speedup in (1.2, 2.0):
            budget = dense / speedup
            found = allocation.allocate(errors, timings, budget, profit=0)
            least = best(errors, timings, budget)
            assert found.feasible == np.isfinite(least), (seed, speedup)
            if found.feasible:
                assert found.predicted <= budget * (1 + 1e-9)
                assert least - 1e-9 <= found.error <= best(errors, timings, budget * 0.995) + 1e-9, seed


def test_a_target_out_of_reach_says_what_holds_it() -> None:
    errors, timings = network(np.random.default_rng(1), 6, FLOATS)
    found = allocation.allocate(errors, timings, 1e-5)
    assert not found.feasible
    fastest = {name: min(times.values()) for name, times in timings.layers.items()}
    assert found.least == pytest.approx(found.predicted) == pytest.approx(1e-3 + sum(fastest.values()))
    assert [one.seconds for one in found.holding] == sorted(
        (one.seconds for one in found.holding), reverse=True
    )
    assert {one.layer for one in found.holding} == {*errors, ""}
    assert sum(one.share for one in found.holding) == pytest.approx(1)
    assert allocation.allocate(errors, timings, found.least).feasible
    assert not allocation.allocate(errors, timings, found.least * 0.999).feasible


def test_zeros_that_save_nothing_are_not_made() -> None:
    """Neither within the noise of the dense time, nor slower than what has fewer of them."""
    half, most = FLOATS[1], FLOATS[4]
    times = {
        "same": {FLOAT_DENSE: 1.0, half: 0.99, most: 0.98},
        "late": {FLOAT_DENSE: 1.0, half: 1.1, most: 0.3},
        "flat": {FLOAT_DENSE: 1.0, half: 0.5, most: 0.5},
    }
    errors = {name: {FLOAT_DENSE: 0.0, half: 0.1, most: 0.5} for name in times}
    timings = Timings(times, {"float32": 0.0}, {})
    found = allocation.allocate(errors, timings, 0.1)
    assert not found.feasible
    assert found.choice == {"same": FLOAT_DENSE, "late": most, "flat": half}


def test_an_asked_share_of_zeros_does_not_depend_on_timings() -> None:
    half, most = FLOATS[1], FLOATS[4]
    times = {
        "same": {FLOAT_DENSE: 1.0, half: 0.99, most: 0.98},
        "late": {FLOAT_DENSE: 1.0, half: 1.1, most: 0.3},
    }
    errors = {
        "same": {FLOAT_DENSE: 0.0, half: 0.1, most: 0.2},
        "late": {FLOAT_DENSE: 0.0, half: 0.3, most: 0.9},
    }
    timings, sizes = Timings(times, {"float32": 0.5}, {}), dict.fromkeys(times, 100)
    found = allocation.for_sparsity(errors, sizes, most.sparsity / 2, timings=timings)
    assert found.choice == {"same": most, "late": FLOAT_DENSE}
    assert found.choice == allocation.for_sparsity(errors, sizes, most.sparsity / 2).choice
    assert found.predicted == pytest.approx(0.5 + 0.98 + 1.0)


def test_an_ample_budget_costs_no_accuracy() -> None:
    errors, timings = network(np.random.default_rng(2), 5, FLOATS)
    found = allocation.allocate(errors, timings, 1.0)
    assert found.error == 0
    assert set(found.choice.values()) == {FLOAT_DENSE}


def fewest(errors: Errors, sizes: Mapping[str, int], sparsity: float) -> float:
    """The least error of all choices with such a share of zeros."""
    whole, least = sum(sizes.values()), np.inf
    for picked in itertools.product(*(forms for forms in errors.values())):
        zeros = sum(size * form.sparsity for size, form in zip(sizes.values(), picked))
        if zeros >= sparsity * whole * (1 - 1e-9):
            least = min(least, sum(errors[name][form] for name, form in zip(errors, picked)))
    return least


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.85, 0.9, 0.95])
def test_an_asked_share_of_zeros(sparsity: float) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        errors, _ = network(rng, 5, FLOATS)
        sizes = {name: int(size) for name, size in zip(errors, rng.integers(100, 10_000, 5))}
        found = allocation.for_sparsity(errors, sizes, sparsity)
        assert found.predicted is None
        assert found.least == pytest.approx(0.9)
        assert found.feasible == (sparsity <= 0.9), seed
        if not found.feasible:
            continue
        assert found.sparsity is not None
        assert found.sparsity >= sparsity - 1e-9, seed
        least = fewest(errors, sizes, sparsity)
        assert least - 1e-9 <= found.error <= fewest(errors, sizes, min(sparsity + 0.005, 0.9)) + 1e-9, seed


def test_many_layers_are_allocated_soon() -> None:
    """As many as ResNet-152 has: the search for coefficients allocates hundreds of times."""
    errors, timings = network(np.random.default_rng(3), 155, FLOATS + BYTES)
    dense = timings.total(dict.fromkeys(errors, FLOAT_DENSE))
    found = allocation.allocate(errors, timings, dense / 2)
    assert found.feasible
    assert found.predicted == pytest.approx(dense / 2, rel=1e-3)
