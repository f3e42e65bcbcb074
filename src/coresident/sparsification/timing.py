"""How long each layer takes in each form, measured in its place in the network, on this machine.

For each form the whole network is compiled with random zeros of that form in all prunable layers. It takes
turns with the dense float32 network: a machine that others use as well is slow for seconds, and both see the
same of that. A form's time is the median over rounds of its ratio to the dense network's time in the same
round; a layer's is the median share that it has of its network's steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import coresident
from coresident import cache
from coresident.graph.graph import Graph
from coresident.onnx.writer import serialize
from coresident.runtime import cpu
from coresident.runtime.digest import digest
from coresident.session import Session
from coresident.sparsification.execution import Engine
from coresident.sparsification.forms import FLOAT_DENSE, DType, Form, Timings
from coresident.sparsification.network import Layer
from coresident.sparsification.progress import NO_PROGRESS, Progress
from coresident.sparsification.random_zeros import with_random_zeros
from coresident.sparsification.timing_store import Measured, Store

Array = np.ndarray[Any, Any]

ROUNDS = 5
TURN = 0.1
"""Seconds that a turn lasts at least: small networks are called several times."""
_MOST_CALLS = 50
_PROFILED = 3
"""Runs, at least, of which a profile takes the medians."""
_ENGINE = ("codegen/**/*.py", "kernels/**/*.py", "passes/**/*.py", "runtime/**/*.py", "schedule/**/*.py")
"""The files of this package that a network's speed depends on."""


def measure(
    graph: Graph,
    layers: Sequence[Layer],
    forms: Iterable[Form],
    feeds: Mapping[str, Array],
    *,
    engine: Engine,
    quantise: Callable[[Graph], Graph] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    store: Path | None = None,
    progress: Progress = NO_PROGRESS,
) -> Timings:
    """Time all prunable layers in the forms asked for and the dense ones beside them.

    Args:
        graph: prepared.
        layers: of the graph; those that are not prunable count as rest.
        forms: to measure; those that the store knows are not measured again.
        feeds: the network's inputs.
        engine: to run the networks by.
        quantise: from a prepared network to one of int8 products (QDQ) whose layers keep their nodes'
            names and weights' shapes; needed for forms of int8, and called once.
        seed: of the places of zeros.
        rounds: turns of each form.
        store: folder to keep timings in.
        progress: advances with each form.

    Raises:
        ModelError: the network can't be compiled.
        ResourceError: memory.
    """
    asked = list(forms)
    wanted = list(dict.fromkeys([FLOAT_DENSE, *(form.dense for form in asked), *asked]))
    with_bytes = any(form.dtype == "int8" for form in wanted)
    if with_bytes and quantise is None:
        raise ValueError("forms of int8 need a function that quantises")
    prunable = [layer for layer in layers if layer.prunable]
    names = [layer.name for layer in prunable]
    quantised = quantise(graph) if with_bytes and quantise is not None else None
    found: dict[Form, Measured] = {}
    dense: list[float] = []
    for dtype, base in (("float32", graph), ("int8", quantised)):
        if base is None:
            continue
        these = [form for form in wanted if form.dtype == dtype]
        kept = Store(store, _key(base, feeds, engine.threads, rounds))
        record = kept.read(names)
        missing = [form for form in these if form not in record.forms]
        if missing:
            progress.stage(f"timing layers in {dtype}", len(missing))
            with _session(graph, feeds, engine) as reference:
                for form in missing:
                    if form == FLOAT_DENSE:
                        measured, calls = _turns(reference, reference, feeds, names, rounds)
                    else:
                        zeroed = with_random_zeros(base, prunable, dict.fromkeys(names, form), seed)
                        with _session(zeroed, feeds, engine) as session:
                            measured, calls = _turns(reference, session, feeds, names, rounds)
                    record = record.with_form(form, measured, calls)
                    kept.write(record)
                    progress.advance(note=str(form))
        found |= {form: record.forms[form] for form in these}
        dense += record.dense
    return _timings(found, float(np.median(dense)), names)


def _session(graph: Graph, feeds: Mapping[str, Array], engine: Engine) -> Session:
    return engine.session(graph, {name: feeds[name].shape for name in graph.inputs})


def _turns(
    reference: Session, session: Session, feeds: Mapping[str, Array], names: Sequence[str], rounds: int
) -> tuple[Measured, tuple[float, ...]]:
    """What a form takes, and the times of the dense network beside it."""
    ratios, calls, profiles = [], [], []
    for one in (reference, session):
        one.run(None, feeds)
    for _ in range(rounds):
        dense = _seconds(reference, feeds)
        sparse = _seconds(session, feeds)
        calls.append(dense)
        ratios.append(sparse / dense)
        repeats = min(max(_PROFILED, int(TURN / sparse)), _MOST_CALLS)
        profiles.append(_shares(session, feeds, names, repeats))
    shares = {name: float(np.median([profile[name] for profile in profiles])) for name in names}
    return Measured(float(np.median(ratios)), shares), tuple(calls)


def _seconds(session: Session, feeds: Mapping[str, Array]) -> float:
    """Median of the calls of one turn, after one that finds other networks' data in the caches."""
    session.run(None, feeds)
    times: list[float] = []
    while len(times) < 2 or (sum(times) < TURN and len(times) < _MOST_CALLS):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _shares(
    session: Session, feeds: Mapping[str, Array], names: Sequence[str], repeats: int
) -> dict[str, float]:
    """The share of the steps' time that the steps of each layer take."""
    taken = dict.fromkeys(names, 0.0)
    whole = 0.0
    for step, seconds in session.profile(feeds, repeats):
        whole += seconds
        name = next((name for name in step.info.get("nodes", ()) if name in taken), None)
        if name is not None:
            taken[name] += seconds
    return {name: seconds / whole if whole else 0.0 for name, seconds in taken.items()}


def _timings(found: Mapping[Form, Measured], dense: float, names: Sequence[str]) -> Timings:
    seconds = {form: measured.ratio * dense for form, measured in found.items()}
    layers = {
        name: _falling({form: seconds[form] * measured.shares[name] for form, measured in found.items()})
        for name in names
    }
    rest: dict[DType, float] = {}
    for dtype in ("float32", "int8"):
        rests = [
            seconds[form] * (1 - sum(measured.shares.values()))
            for form, measured in found.items()
            if form.dtype == dtype
        ]
        if rests:
            rest[dtype] = max(float(np.median(rests)), 0.0)
    return Timings(layers, rest, seconds)


def _falling(times: Mapping[Form, float]) -> dict[Form, float]:
    """The times made so that more zeros never take longer, which but for noise they do not.

    Among forms with zeros neighbours that contradict each other get their mean (isotonic regression); none is
    slower than the dense form, since the engine would choose that.
    """
    result = dict(times)
    groups: dict[tuple[str, str], list[Form]] = {}
    for form in sorted(times):
        if form.pattern != "dense":
            groups.setdefault((form.dtype, form.pattern), []).append(form)
    for forms in groups.values():
        pools: list[tuple[float, int]] = []
        for form in forms:
            mean, size = times[form], 1
            while pools and pools[-1][0] < mean:
                other, count = pools.pop()
                mean, size = (mean * size + other * count) / (size + count), size + count
            pools.append((mean, size))
        smooth = [mean for mean, size in pools for _ in range(size)]
        bound = times.get(forms[0].dense, np.inf)
        result.update((form, min(value, bound)) for form, value in zip(forms, smooth))
    return result


def _key(graph: Graph, feeds: Mapping[str, Array], threads: int, rounds: int) -> str:
    """Of all that the times of a network and its sparser forms depend on."""
    return cache.key(
        {
            "network": _digest(graph),
            "feeds": {name: [str(array.dtype), *array.shape] for name, array in feeds.items()},
            "threads": threads,
            "rounds": rounds,
            "host": cpu.host_key() or cpu.machine(),
            "coresident": coresident.__version__,
            "engine": cache.fingerprint("coresident", *_ENGINE),
        }
    )


def _digest(graph: Graph) -> str:
    """Of a network without its numbers, which its speed depends on as little as to be left out.

    But for the largest of int8 weights: where products are added in 16 bits, it says how many can be.
    """
    blank, largest = {}, []
    for name, array in graph.initializers.items():
        if array.dtype == np.int8 and array.size:
            largest.append(int(np.abs(array.astype(np.int16)).max()))
        numbers = array.dtype.kind == "f" or array.dtype.itemsize == 1 or array.dtype == np.int32
        blank[name] = np.zeros(array.shape, array.dtype) if numbers else array
    content = serialize(graph.with_(initializers=blank))
    return digest(content) + f"-{max(largest, default=0)}"
