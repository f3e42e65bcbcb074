"""Which layers lose how much: the least loss that reaches what was asked, checked against the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification.agreement import Task
from coresident.sparsification.allocation import Allocation, allocate, for_sparsity
from coresident.sparsification.candidates import Family
from coresident.sparsification.database import Database
from coresident.sparsification.forms import Form, Timings
from coresident.sparsification.project import Project, joined
from coresident.sparsification.samples import Samples
from coresident.sparsification.speed import latencies
from coresident.sparsification.walk import Walk

PROBES: Mapping[Task, int] = {"classifier": 256, "segmenter": 64, "detector": 64, "other": 64}
"""Samples that losses are compared on while searching, at most: a class is one decision, a map is many. (A
ResNet-20 without half of its blocks lost 1.5 to 4.3 points in six runs by 64 samples, which had chance decide
whether to solve layers again; 1.2 to 1.8 by 205.)"""
SENSITIVE = 5e12
"""Multiply-adds of dense layers by which the effects of single layers are measured, at most, while there are
`FEWEST` samples: of each it takes a pass through what comes after it."""
FEWEST = 64
_PROBE = {"unstructured": 0.8, "4block": 0.6}
"""Share of zeros at which a layer's effect on the network is measured: about where it will end."""
_CLOSE = 0.03
"""A speed that is short of what was asked by less is as asked: timings vary by as much."""
_CORRECTIONS = 3
"""How often timings that were too hopeful are corrected by the clock."""
_TRIES = {"fast": 0, "default": 12, "max": 80}
"""Other allocations to try, by effort."""

Quantise = Callable[[Graph], Graph]
Errors = Mapping[str, Mapping[Form, float]]


@dataclass(frozen=True)
class Losses:
    """What each form of each layer is expected to cost.

    Args:
        family: of the forms.
        errors: by layer and form, in units of the agreement's loss.
        base: the loss of the network in the family's dense form.
    """

    family: Family
    errors: Errors
    base: float


def probes(project: Project) -> Samples:
    """Some of the calibration samples."""
    count, most = len(project.calibration), PROBES[project.task]
    step = max(count // most, 1)
    return project.calibration.subset(range(0, count, step)[:most])


def losses(
    project: Project, family: Family, database: Database, reference: Sequence[Array], base: float
) -> Losses:
    """Measure how much the network suffers from each layer alone, and scale the layer's errors by it.

    Args:
        reference: the dense network's outputs for `probes`.
        base: loss of the family's dense form.
    """
    samples = probes(project)
    some = sorted({int(i) for i in np.linspace(0, len(samples) - 1, _telling(project, len(samples)))})
    if len(some) < len(samples):
        samples = samples.subset(some)
        reference = project.outputs(project.graph, samples)
    errors: dict[str, dict[Form, float]] = {}
    project.progress.stage(f"sensitivity of layers ({family.pattern})", len(project.prunable))
    found: list[float] = []
    walk = Walk(samples.batches, project.engine, project.engine.memory)
    for layer in project.prunable:
        own = database.errors[family.pattern][layer.name]
        scale = 1.0
        if project.settings.effort != "fast" and project.seconds_left > 0:
            at = min(own, key=lambda s: abs(s - _PROBE[family.pattern]))
            choice = {layer.name: Form(family.dtype, family.pattern, at)}
            graph = database.stitched(project.graph, [layer], choice)
            values = walk.values(graph, layer.name, graph.outputs)
            outputs = joined([[batch[name] for name in graph.outputs] for batch in values])
            loss = project.compare(reference, outputs).loss
            scale = loss / own[at] if own[at] > 0 else 0.0
            found.append(scale)
        errors[layer.name] = {family.dense: 0.0} | {
            Form(family.dtype, family.pattern, s): scale * error for s, error in own.items()
        }
        project.progress.advance(note=layer.name)
    return Losses(family, _floored(errors, found), base)


def _telling(project: Project, count: int) -> int:
    """Of so many samples, those that the effects of single layers are measured by."""
    macs = sum(layer.macs for layer in project.layers) * len(project.prunable) / 2
    return min(count, max(FEWEST, int(SENSITIVE / max(macs, 1))))


def _floored(
    errors: Mapping[str, Mapping[Form, float]], scales: Sequence[float]
) -> dict[str, dict[Form, float]]:
    """Layers whose effect was too small to measure get a little of the others': they are not free."""
    least = 0.05 * float(np.median(scales)) if scales else 0.0
    return {
        name: {form: error + least * form.sparsity**2 for form, error in forms.items()}
        for name, forms in errors.items()
    }


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Args:
        losses: of the family it is from.
        allocation: a form for each layer.
        again: allocates as much for other errors.
    """

    losses: Losses
    allocation: Allocation
    again: Callable[[Errors], Allocation]

    @property
    def expected(self) -> float:
        """The loss."""
        return self.losses.base + self.allocation.error


def within(found: Sequence[Losses], timings: Timings, budget: float) -> Choice:
    """The family and allocation of least expected loss that takes no longer than so many seconds; the fastest
    where none does."""

    def allocated(errors: Errors) -> Allocation:
        return allocate(errors, timings, budget)

    choices = [Choice(each, allocated(each.errors), allocated) for each in found]
    reached = [choice for choice in choices if choice.allocation.feasible]
    if reached:
        return min(reached, key=lambda choice: choice.expected)
    return min(choices, key=lambda choice: choice.allocation.least)


def with_sparsity(
    project: Project, found: Sequence[Losses], sparsity: float, timings: Timings | None
) -> Choice:
    """The same for a share of all weights that is to be zero."""
    sizes = {layer.name: layer.size for layer in project.prunable}

    def allocated(errors: Errors) -> Allocation:
        return for_sparsity(errors, sizes, sparsity, timings=timings)

    choices = [Choice(each, allocated(each.errors), allocated) for each in found]
    return min(choices, key=lambda choice: (not choice.allocation.feasible, choice.expected))


def refined(
    project: Project,
    choice: Choice,
    database: Database,
    reference: Sequence[Array],
) -> Choice:
    """Try other allocations of the same time, or the same share of zeros, by the network's real loss.

    Layers' errors do not simply add up. Scaling them at random, a few at a time around the best so far, and
    allocating anew finds what does better together (SPDY, Frantar and Alistarh 2022).
    """
    tries = _TRIES[project.settings.effort]
    if not tries or not choice.allocation.feasible:
        return choice
    rng = np.random.default_rng(project.settings.seed)
    samples = probes(project)

    def loss(one: Choice) -> float:
        graph = database.stitched(project.graph, project.prunable, one.allocation.choice)
        return project.compare(reference, project.outputs(graph, samples)).loss

    project.progress.stage("searching allocations", tries)
    best, least = choice, loss(choice)
    seen = {tuple(choice.allocation.choice.items())}
    scales = dict.fromkeys(choice.losses.errors, 1.0)
    for number in range(tries):
        if project.seconds_left < 0:
            break
        share = 0.5 * (1 - number / tries)
        now = {
            name: scale * float(np.exp(rng.normal())) if rng.random() < max(share, 2 / len(scales)) else scale
            for name, scale in scales.items()
        }
        errors = {
            name: {form: now[name] * error for form, error in forms.items()}
            for name, forms in choice.losses.errors.items()
        }
        other = replace(choice, allocation=choice.again(errors))
        key = tuple(other.allocation.choice.items())
        if key not in seen and other.allocation.feasible:
            seen.add(key)
            if (found := loss(other)) < least:
                best, least, scales = other, found, now
        project.progress.advance(note=f"loss {least:.4g}")
    return best


def at_speed(
    project: Project,
    database: Database,
    wanted: float,
    choose: Callable[[float], Choice],
    quantise: Quantise,
    feeds: Mapping[str, Array],
) -> tuple[Choice, float]:
    """A choice that the clock agrees with: where a network built so is slower than its layers' timings say,
    the budget is tightened by as much.

    Args:
        wanted: how many times as fast as the dense network.
        choose: from such a factor to a choice.
        quantise: makes a network of bytes of one of floats.
        feeds: of the calls.

    Returns:
        The choice, and the factor that it was allocated for.
    """
    asked = wanted
    project.progress.stage("checking the speed", 0)
    best: tuple[float, Choice, float] | None = None
    for _ in range(_CORRECTIONS):
        choice = choose(asked)
        graph = database.stitched(project.graph, project.prunable, choice.allocation.choice)
        if choice.losses.family.dtype == "int8":
            graph = quantise(graph)
        times = latencies({"dense": project.graph, "choice": graph}, feeds, project.engine)
        speedup = times["dense"] / times["choice"]
        project.progress.advance(note=f"{speedup:.2f} times as fast")
        if best is None or speedup > best[0]:
            best = speedup, choice, asked
        if speedup >= wanted * (1 - _CLOSE) or not choice.allocation.feasible:
            break
        asked *= wanted / speedup
    assert best is not None
    return best[1], best[2]
