"""What the result is, measured: speed beside the dense network and ONNX Runtime, agreement, sizes, layers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np

from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.measure.turns import Turn, take_turns
from coresident.session import Session
from coresident.sparsification.network import Layer
from coresident.sparsification.report import Latency

_OURS, _DENSE, _BYTES = "result", "dense", "dense in int8"
_PEER, _PEER_RESULT = "onnxruntime", "onnxruntime on the result"
_ROUNDS, _SECONDS, _REPEATS = 11, 0.3, 9


def latency(
    original: bytes, result: bytes, dense_bytes: bytes | None, feeds: Mapping[str, Array], threads: int
) -> tuple[Latency, tuple[str, ...]]:
    """Seconds of a call, the networks and engines taking turns, each in a process of its own.

    Args:
        original, result, dense_bytes: ONNX models; the last is the original with products of bytes.

    Returns:
        The latencies, and what is to be said of those that could not be measured.
    """
    turns = {_DENSE: Turn("coresident", original), _OURS: Turn("coresident", result)}
    if dense_bytes is not None:
        turns[_BYTES] = Turn("coresident", dense_bytes)
    if importlib.util.find_spec("onnxruntime") is not None:
        turns |= {_PEER: Turn("onnxruntime", original), _PEER_RESULT: Turn("onnxruntime", result)}
    results, failures = take_turns(turns, feeds, threads, rounds=_ROUNDS, seconds=_SECONDS)
    if missing := {_DENSE, _OURS} & failures.keys():
        name = min(missing)
        raise RuntimeError(f"{name}: {failures[name]}")
    dense = results[_DENSE]

    def seconds(name: str) -> float | None:
        # By ratios to the dense network in the same round: machines are slow for seconds.
        return dense.median / results[name].faster_than(dense) if name in results else None

    notes = tuple(f"{name} did not run: {reason}" for name, reason in failures.items())
    found = Latency(
        dense.median,
        seconds(_OURS) or dense.median,
        seconds(_BYTES),
        seconds(_PEER),
        seconds(_PEER_RESULT),
    )
    return found, notes


def layer_seconds(
    model: bytes, layers: Sequence[Layer], feeds: Mapping[str, Array], threads: int
) -> dict[str, float]:
    """Seconds of the steps of each layer, the median of some runs."""
    taken = dict.fromkeys((layer.name for layer in layers), 0.0)
    with Session(model, threads, cache=False, background=False) as session:
        session.run(None, feeds)
        for step, seconds in session.profile(feeds, _REPEATS):
            name = next((name for name in step.info.get("nodes", ()) if name in taken), None)
            if name is not None:
                taken[name] += seconds
    return taken


def zeros(graph: Graph, layer: Layer) -> float:
    """Share of a layer's weights that are zero, in floats or behind a DequantizeLinear."""
    node = next(node for node in graph.nodes if node.name == layer.name)
    weights = graph.constant(node.inputs[1])
    if weights is None:
        maker = graph.producers()[node.inputs[1]]
        weights = graph.initializers[maker.inputs[0]]
    return float((np.asarray(weights) == 0).mean())


def is_quantised(graph: Graph, layer: Layer) -> bool:
    """Whether a layer reads weights of bytes."""
    node = next(node for node in graph.nodes if node.name == layer.name)
    return graph.constant(node.inputs[1]) is None
