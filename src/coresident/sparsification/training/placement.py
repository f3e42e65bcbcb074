"""Where a model's values become bytes: planned from one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from coresident.sparsification.training.calls import PRODUCTS, Call, Trace


@dataclass(frozen=True)
class Plan:
    """What becomes bytes.

    Args:
        calls: kind, name and weight of each call of the forward pass, to tell when another pass differs.
        ranges: for each call, for each operand, the number of the range that it is rounded to; -1 leaves it.
        quantised: whether each call is a product of bytes.
        folded: call of a batch normalisation -> call of the product that it can be folded into, as nothing
            else reads what it normalises.
        count: of ranges.
    """

    calls: tuple[tuple[str, str, str], ...]
    ranges: tuple[tuple[int, ...], ...]
    quantised: tuple[bool, ...]
    folded: dict[int, int]
    count: int


def plan(trace: Trace, skip: Collection[str] = (), *, quantise: bool = True) -> Plan:
    """Place the roundings as the engine's integer kernels want them.

    Rounded are the inputs of products, and of the sums, concatenations and pools whose result reaches a
    product; a model's tail behind its last products stays in floats. What only moves values (max pools,
    reshapes, slices, concatenations) has one range for all it reads and makes, so that bytes are copied.

    Args:
        trace: of a forward pass.
        skip: names of weights whose products stay in floats.
        quantise: False plans the folding of norms only.
    """
    calls = trace.calls
    products = [
        call.kind in PRODUCTS and bool(call.weight) and call.weight not in skip and quantise for call in calls
    ]
    needed: set[int] = set()
    active: set[int] = set()
    for read, made, place in reversed(trace.steps):
        if place >= 0 and products[place]:
            active.add(place)
            needed.update(calls[place].operands)
        elif needed.intersection(made):
            if place >= 0 and calls[place].kind not in (*PRODUCTS, "norm"):
                active.add(place)
            if place < 0 or calls[place].kind not in PRODUCTS:
                needed.update(read)
    groups = _groups([calls[place] for place in active])
    rounded: set[int] = set()
    for place in sorted(active, reverse=True):
        call = calls[place]
        if call.kind != "move" or rounded.intersection(call.results):
            rounded.update(call.operands)
    numbers: dict[int, int] = {}
    ranges = []
    for place, call in enumerate(calls):
        chosen = place in active and (call.kind != "move" or rounded.intersection(call.results))
        ranges.append(
            tuple(numbers.setdefault(groups.get(v, v), len(numbers)) if chosen else -1 for v in call.operands)
        )
    return Plan(
        tuple((call.kind, call.name, call.weight) for call in calls),
        tuple(ranges),
        tuple(products),
        _folded(trace),
        len(numbers),
    )


def _groups(calls: list[Call]) -> dict[int, int]:
    """Value -> a value that stands for all that share its range."""
    parent: dict[int, int] = {}

    def root(value: int) -> int:
        while parent.get(value, value) != value:
            value = parent[value]
        return value

    for call in calls:
        if call.kind in ("move", "pool", "concat"):
            first, *others = (*call.operands, *call.results)
            for other in others:
                low, high = sorted((root(first), root(other)))
                parent[high] = low
    return {value: root(value) for value in list(parent)}


def _folded(trace: Trace) -> dict[int, int]:
    readers = Counter(value for read, _, _ in trace.steps for value in set(read))
    readers.update(trace.outputs)
    makers = {call.results[0]: place for place, call in enumerate(trace.calls) if call.kind in PRODUCTS}
    return {
        place: makers[call.operands[0]]
        for place, call in enumerate(trace.calls)
        if call.kind == "norm"
        and call.operands[0] in makers
        and readers[call.operands[0]] == 1
        and trace.calls[makers[call.operands[0]]].weight
    }
