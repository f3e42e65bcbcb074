"""What every stage of `sparsify` works on: the network, its layers, samples, and how to go about it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.sparsification import agreement
from coresident.sparsification.agreement import Agreement, Task
from coresident.sparsification.checkpoint import Checkpoint
from coresident.sparsification.data import Samples
from coresident.sparsification.execution import Engine
from coresident.sparsification.network import Layer
from coresident.sparsification.progress import Progress
from coresident.sparsification.settings import Settings
from coresident.sparsification.sources import takes_pictures
from coresident.vision.tensors import form_of


@dataclass(frozen=True)
class Project:
    """A network that is being sparsified.

    Args:
        graph: prepared: plain ONNX operators, float32.
        layers: in graph order.
        shapes: of the inputs for one sample, at which layers are counted and timed.
        calibration: samples that weights are worked out from.
        held_out: samples that nothing is worked out from; the result is judged by them.
        task: what the outputs mean.
        settings: what is asked.
        engine: to run networks by, on the threads that the network is timed on.
        checkpoint: what is known from an interrupted run.
        progress: is told what happens.
        deadline: of `time.monotonic`, after which optional work is left out; None without.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    calibration: Samples
    held_out: Samples
    task: Task
    settings: Settings
    engine: Engine
    checkpoint: Checkpoint
    progress: Progress
    deadline: float | None

    @property
    def prunable(self) -> tuple[Layer, ...]:
        """The layers that may lose weights."""
        return tuple(layer for layer in self.layers if layer.prunable)

    @property
    def picture(self) -> tuple[int, int] | None:
        """Height and width of what the network sees, if it sees a picture."""
        for name, fact in self.calibration.inputs.items():
            if takes_pictures(fact) and len(shape := self.shapes[name]) == 4:
                rows = 2 if form_of(fact.shape).layout == "nchw" else 1
                return shape[rows], shape[rows + 1]
        return None

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return np.inf if self.deadline is None else self.deadline - time.monotonic()

    def outputs(self, graph: Graph, samples: Samples) -> list[Array]:
        """The network's outputs for samples, batches joined: see `joined`."""
        with self.engine.session(graph, skip_zeros=False) as session:
            return joined([session.run(None, batch) for batch in samples.batches()])

    def compare(self, reference: Sequence[Array], outputs: Sequence[Array]) -> Agreement:
        """How far outputs agree with the dense network's."""
        return agreement.compare(self.task, reference, outputs)


def joined(parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Outputs of several batches as those of one.

    Samples of different sizes have outputs that do not stack: those are joined flattened but for the sample
    axis, in so far as that keeps each sample's numbers in their order.
    """
    results = []
    for values in zip(*parts):
        shapes = {value.shape[1:] for value in values}
        results.append(np.concatenate(values) if len(shapes) == 1 else _stacked(values))
    return results


def _stacked(values: Sequence[Array]) -> Array:
    """Arrays [n, C, ...] of several sizes as one [1, C, everything]."""
    flat = [np.moveaxis(value, 1, 0).reshape(value.shape[1], -1) for value in values]
    return np.concatenate(flat, axis=1)[None]
