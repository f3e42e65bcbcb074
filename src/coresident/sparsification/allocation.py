"""Which layer is pruned how far: least error within a time, or within a number of weights.

Dynamic programming over discretised time, as in SPDY (Frantar and Alistarh, 2022): each layer takes one of
its forms, errors and times add up. Costs are counted above each layer's cheapest form and rounded up, so the
result never exceeds what was asked; what rounding left over then goes to single layers, by exact times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.sparsification.forms import Form, Timings

Array = np.ndarray[Any, Any]

BUCKETS = 4096
PROFIT = 0.03
"""Share of its dense time that a form with zeros must save: less is within what measurements vary by."""


@dataclass(frozen=True)
class Holding:
    """What the time of the fastest network goes to.

    Args:
        layer: its name, "" for all that is no prunable layer.
        form: its fastest, None for what is no layer.
        seconds: that it takes.
        share: of the whole.
    """

    layer: str
    form: Form | None
    seconds: float
    share: float


@dataclass(frozen=True)
class Allocation:
    """A form for each layer.

    Args:
        choice: by layer; the fastest (or sparsest) there is where the target can't be reached.
        predicted: seconds of a call, None where no timings were given.
        error: sum of the layers' errors.
        sparsity: share of the layers' weights that are zero, None where their sizes were not given.
        feasible: whether the target is reached.
        least: seconds of the fastest choice, or for an asked sparsity the largest share of zeros there is.
        holding: where the target is not reached, what its fastest network's time goes to, longest first.
    """

    choice: Mapping[str, Form]
    predicted: float | None
    error: float
    sparsity: float | None
    feasible: bool
    least: float
    holding: tuple[Holding, ...] = ()


@dataclass(frozen=True)
class _Option:
    form: Form
    cost: float
    error: float


def allocate(
    errors: Mapping[str, Mapping[Form, float]],
    timings: Timings,
    budget: float,
    *,
    buckets: int = BUCKETS,
    profit: float = PROFIT,
) -> Allocation:
    """The choice of least error that takes no longer than a budget.

    A network of float32 layers alone and one with any int8 layers differ in what everything else takes; both
    are considered.

    Args:
        errors: of each prunable layer, the error of each form that it may take, on one scale for all layers.
        timings: of the same layers in these forms.
        budget: seconds of a call.
        buckets: that time is counted in.
        profit: share of its dense time that a form with zeros must save to be considered.
    """
    rooms = [name for name in ("float32", "int8") if _can_be(errors, name)]
    found = [_within(errors, timings, budget, dtype, buckets, profit) for dtype in rooms]
    reached = [one for one in found if one.feasible]
    if reached:
        return min(reached, key=lambda one: (one.error, one.predicted))
    return min(found, key=lambda one: one.least)


def for_sparsity(
    errors: Mapping[str, Mapping[Form, float]],
    sizes: Mapping[str, int],
    sparsity: float,
    *,
    timings: Timings | None = None,
    buckets: int = BUCKETS,
) -> Allocation:
    """The choice of least error in which a share of all weights is zero.

    Whether zeros make a layer faster is not asked: those that one layer may not have others must. (A
    ResNet-20 without half of its four-blocks lost 2.1 points where forms had to be faster than dense ones, by
    timings of the moment, and 1.1 where not; both were 2.4 times as fast as the original.)

    Args:
        errors: of each prunable layer, the error of each form that it may take, on one scale for all layers.
        sizes: of each layer, its number of weights; or of multiply-adds, to spare a share of these.
        sparsity: the share.
        timings: of the same layers, to tell what the choice takes.
        buckets: that weights are counted in.
    """
    options = {
        name: _front(_Option(form, sizes[name] * (1 - form.sparsity), error) for form, error in forms.items())
        for name, forms in errors.items()
    }
    whole = sum(sizes[name] for name in errors)
    chosen, feasible = _solve(list(options.values()), whole * (1 - sparsity), buckets)
    choice = {name: option.form for name, option in zip(options, chosen)}

    def zeros(picked: Sequence[_Option]) -> float:
        return 1 - sum(option.cost for option in picked) / whole if whole else 0.0

    return Allocation(
        choice,
        timings.total(choice) if timings else None,
        sum(option.error for option in chosen),
        zeros(chosen),
        feasible,
        zeros([front[0] for front in options.values()]),
    )


def _can_be(errors: Mapping[str, Mapping[Form, float]], dtype: str) -> bool:
    """Whether there is a network of float32 layers alone, or one with an int8 layer."""
    if dtype == "float32":
        return all(any(form.dtype == "float32" for form in forms) for forms in errors.values())
    return any(form.dtype == "int8" for forms in errors.values() for form in forms)


def _within(
    errors: Mapping[str, Mapping[Form, float]],
    timings: Timings,
    budget: float,
    dtype: str,
    buckets: int,
    profit: float,
) -> Allocation:
    options = {
        name: _front(
            _Option(form, timings.layers[name][form], error)
            for form, error in forms.items()
            if (dtype == "int8" or form.dtype == dtype) and _pays(timings.layers[name], form, profit)
        )
        for name, forms in errors.items()
    }
    rest = timings.rest["int8" if dtype == "int8" else "float32"]
    chosen, feasible = _solve(list(options.values()), budget - rest, buckets)
    fastest = {name: front[0] for name, front in options.items()}
    least = rest + sum(option.cost for option in fastest.values())
    return Allocation(
        {name: option.form for name, option in zip(options, chosen)},
        rest + sum(option.cost for option in chosen),
        sum(option.error for option in chosen),
        None,
        feasible,
        least,
        () if feasible else _holding(fastest, rest, least),
    )


def _pays(times: Mapping[Form, float], form: Form, profit: float) -> bool:
    """Whether a form with zeros is faster than the dense one, where that was measured."""
    if form.pattern == "dense" or form.dense not in times:
        return True
    return times[form] < (1 - profit) * times[form.dense]


def _front(options: Iterable[_Option]) -> list[_Option]:
    """The options of which no other is as cheap and no worse, cheapest first."""
    front: list[_Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.error)):
        if not front or option.error < front[-1].error:
            front.append(option)
    return front


def _holding(fastest: Mapping[str, _Option], rest: float, whole: float) -> tuple[Holding, ...]:
    found = [Holding(name, one.form, one.cost, one.cost / whole) for name, one in fastest.items()]
    found.append(Holding("", None, rest, rest / whole))
    return tuple(sorted(found, key=lambda one: -one.seconds))


def _solve(options: Sequence[Sequence[_Option]], budget: float, buckets: int) -> tuple[list[_Option], bool]:
    """An option for each layer, of least error within a budget, and whether the budget admits any.

    Args:
        options: of each layer, cheapest first; the cheapest are the answer where nothing fits.
    """
    cheapest = [front[0] for front in options]
    room = budget - sum(option.cost for option in cheapest)
    if room < -1e-9 * abs(budget):
        return cheapest, False
    extra = sum(front[-1].cost - front[0].cost for front in options)
    if extra <= room:
        return [front[-1] for front in options], True
    best = np.zeros(buckets + 1)
    picks: list[Array] = []
    counts = [[_count(one.cost - front[0].cost, room, buckets) for one in front] for front in options]
    for front, spent in zip(options, counts):
        table = np.full((len(front), buckets + 1), np.inf)
        for row, (option, count) in enumerate(zip(front, spent)):
            if count <= buckets:
                table[row, count:] = best[: buckets + 1 - count] + option.error
        picks.append(table.argmin(axis=0))
        best = table.min(axis=0)
    left, chosen = buckets, []
    for front, spent, pick in zip(reversed(options), reversed(counts), reversed(picks)):
        chosen.append(front[pick[left]])
        left -= spent[pick[left]]
    return _improved(options, chosen[::-1], budget), True


def _count(cost: float, room: float, buckets: int) -> int:
    """Buckets that a cost takes, rounded up but for what floating point adds."""
    if cost <= 0:
        return 0
    return buckets + 1 if cost > room else math.ceil(cost / room * buckets - 1e-6)


def _improved(options: Sequence[Sequence[_Option]], chosen: list[_Option], budget: float) -> list[_Option]:
    """The same with single layers in better forms, as long as there is room for one."""
    while True:
        room = budget - sum(option.cost for option in chosen)
        better = [
            (now.error - one.error, i, one)
            for i, (front, now) in enumerate(zip(options, chosen))
            for one in front
            if one.error < now.error and one.cost - now.cost <= room
        ]
        if not better:
            return chosen
        _, i, one = max(better, key=lambda entry: (entry[0], -entry[1]))
        chosen[i] = one
