"""The stages of `sparsify` in their order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from coresident.cache import default_folder
from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification import agreement, database, search, timing
from coresident.sparsification.agreement import Agreement
from coresident.sparsification.candidates import Family, families, weight_bits
from coresident.sparsification.checkpoint import Checkpoint
from coresident.sparsification.database import Database
from coresident.sparsification.finishing import activation_ranges, finish
from coresident.sparsification.forms import FLOAT_DENSE, INT8_DENSE, Form, Timings
from coresident.sparsification.network import SKIPPED
from coresident.sparsification.placement import float_tail
from coresident.sparsification.project import Project
from coresident.sparsification.quantization import quantize
from coresident.sparsification.search import Choice, Losses

BISECTIONS = 5
"""Networks that are built on the way to the fastest one that drops no more than was allowed."""


class Made(NamedTuple):
    """A network, and how its held-out outputs agree with the dense network's."""

    graph: Graph
    choice: Choice
    agreement: Agreement
    outputs: list[Array]
    floating: Mapping[str, str]
    notes: tuple[str, ...]


class Run:
    """One run.

    Args:
        project: what it works on.
        feeds: of a call, by which it is timed.
    """

    def __init__(self, project: Project, feeds: dict[str, Array]) -> None:
        self._project, self._feeds = project, feeds
        self._families = families(project.settings)
        skipped = {layer.name for layer in project.layers if layer.why == SKIPPED}
        self._floating = frozenset(float_tail(project.graph)) | skipped

    def made(self) -> Made:
        """The network that does what was asked, or comes nearest.

        Raises:
            InputError: labels that are not for this network; before anything is worked out.
        """
        _ = self.accuracy
        kind, value = self._project.settings.target
        if not self._project.prunable or (kind == "sparsity" and not value):
            return self._finished(self._without_zeros())
        if kind == "max_drop":
            return self._fastest_within(value)
        if kind == "sparsity":
            choice = search.with_sparsity(self._project, self._losses, value, self._timings)
            return self._finished(self._refined(choice))
        return self._finished(self._as_fast(self._factor(kind, value)))

    def _factor(self, kind: str, value: float) -> float:
        """How many times as fast as the dense network is asked."""
        dense = self._timings.measured[FLOAT_DENSE]
        return value if kind == "target_speedup" else dense / (value / 1e3)

    @cached_property
    def _dense_ranges(self) -> Any:
        return activation_ranges(self._project, self._project.graph)

    def _quantised(self, graph: Graph) -> Graph:
        """A network with products of bytes that is as fast as the one that will be: its ranges are the dense
        one's."""
        return quantize(graph, self._dense_ranges, skip=self._floating, weight_bits=weight_bits())

    @cached_property
    def dense_in_bytes(self) -> Graph | None:
        """The dense network with products of bytes, where some are considered."""
        if not any(family.dtype == "int8" for family in self._families):
            return None
        return self._quantised(self._project.graph)

    @cached_property
    def _timings(self) -> Timings:
        return timing.measure(
            self._project.graph,
            self._project.layers,
            [form for family in self._families for form in family.forms],
            self._feeds,
            engine=self._project.engine,
            quantise=self._quantised,
            seed=self._project.settings.seed,
            store=default_folder() / "timings",
            progress=self._project.progress,
        )

    @cached_property
    def _database(self) -> Database:
        return database.build(self._project, {family.pattern: family.sparsities for family in self._families})

    @cached_property
    def _reference(self) -> list[Array]:
        return self._project.outputs(self._project.graph, search.probes(self._project))

    @cached_property
    def held_out(self) -> list[Array]:
        """The dense network's outputs for the samples held out."""
        return self._project.outputs(self._project.graph, self._project.held_out)

    @cached_property
    def _losses(self) -> tuple[Losses, ...]:
        return tuple(self._losses_of(family) for family in self._families)

    def _losses_of(self, family: Family) -> Losses:
        base = 0.0
        if family.dtype == "int8":
            assert self.dense_in_bytes is not None
            outputs = self._project.outputs(self.dense_in_bytes, search.probes(self._project))
            base = self._project.compare(self._reference, outputs).loss
        return search.losses(self._project, family, self._database, self._reference, base)

    def _without_zeros(self) -> Choice:
        """Of a network whose layers can't, or needn't, lose weights."""
        by_bytes = self.dense_in_bytes is not None and (
            self._project.settings.quantize == "int8"
            or self._timings.measured[INT8_DENSE] < self._timings.measured[FLOAT_DENSE]
        )
        family = next(one for one in self._families if one.dtype == ("int8" if by_bytes else "float32"))
        return search.within([Losses(family, {}, 0.0)], self._timings, math.inf)

    def _as_fast(self, factor: float) -> Choice:
        """The choice of least loss that makes the network so many times as fast."""
        losses, timings = self._losses, self._timings
        dense = timings.measured[FLOAT_DENSE]

        def choose(wanted: float) -> Choice:
            return search.within(losses, timings, dense / wanted)

        # The clock's word is kept: the same command gives the same network again.
        memory = Checkpoint(default_folder() / "factors", {"timings": repr(timings), "losses": repr(losses)})
        known = memory.load(f"{factor}")
        if known is not None:
            choice = choose(float(known["asked"]))
        else:
            choice, asked = search.at_speed(
                self._project, self._database, factor, choose, self._quantised, self._feeds
            )
            memory.store(f"{factor}", {"asked": np.array(asked)})
        return self._refined(choice)

    def _refined(self, choice: Choice) -> Choice:
        return search.refined(self._project, choice, self._database, self._reference)

    def _fastest_within(self, drop: float) -> Made:
        """The fastest network found that drops no more, by bisection over how fast it is asked to be."""
        losses, timings = self._losses, self._timings
        dense = timings.measured[FLOAT_DENSE]
        least = min(search.within(losses, timings, 0.0).allocation.least, dense)
        slow, fast = 0.0, math.log(dense / least)
        best: Made | None = None
        for _ in range(BISECTIONS):
            middle = (slow + fast) / 2
            choice = search.within(losses, timings, dense / math.exp(middle))
            made = self._finished(choice, share=1 / BISECTIONS)
            if self.drop(made) <= drop:
                slow, best = middle, made
            else:
                fast = middle
        return best or self._finished(search.within(losses[:1], timings, math.inf))

    def _finished(self, choice: Choice, share: float = 1.0) -> Made:
        forms = choice.allocation.choice
        pruned = [one for one in self._project.prunable if one.name in forms and forms[one.name].sparsity]
        sparse = self._project.graph
        if pruned:  # or nothing has to be worked out
            sparse = self._database.stitched(sparse, pruned, forms)
        made = finish(
            self._project,
            sparse,
            pruned,
            choice.losses.family.dtype,
            self._floating,
            search.probes(self._project),
            self._reference,
            share,
        )
        outputs = self._project.outputs(made.graph, self._project.held_out)
        agrees = self._project.compare(self.held_out, outputs)
        return Made(made.graph, choice, agrees, outputs, made.floating, made.notes)

    def error(self, layer: str, form: Form) -> float:
        """Squared error of a layer's output in a form, before it was solved again in the sparse network."""
        if form.pattern == "dense":
            return 0.0
        return self._database.errors[form.pattern][layer][form.sparsity]

    def drop(self, made: Made) -> float:
        """What it lost on the samples held out: accuracy where there are labels, otherwise agreement."""
        before, after = self.accuracy, self.accuracy_of(made)
        return 1.0 - made.agreement.share if before is None or after is None else before - after

    @cached_property
    def accuracy(self) -> float | None:
        """The dense network's on the samples held out, if they have labels."""
        return self._accuracy(self.held_out)

    def accuracy_of(self, made: Made) -> float | None:
        """The same of another network."""
        return self._accuracy(made.outputs)

    def _accuracy(self, outputs: Sequence[Array]) -> float | None:
        labels = self._project.held_out.labels
        if labels is None:
            return None
        return agreement.accuracy(self._project.task, outputs, labels, self._project.picture)
