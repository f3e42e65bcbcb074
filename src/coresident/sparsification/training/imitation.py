"""A sparse network trained to make what the dense one makes, of pictures alone: no labels are needed.

Layers that are solved one by one (`correction`) each make up for what is behind them; trained together they
share it out. The values between layers tell as much as the outputs, and of many more places: so few pictures
are enough, seen in parts, mirrored and mixed. Where the zeros are stays as it was solved for: choosing them
anew on the way, by weights and gradients, lost more than training won (SqueezeNet).

Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531); values between layers, Romero et al. 2015 (arXiv
1412.6550); parts of few pictures, Asano and Saeed 2023 (arXiv 2112.00725); mixtures, Beyer et al. 2022 (arXiv
2106.05237).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

from coresident.graph.graph import Fact, Graph
from coresident.graph.operator import Array
from coresident.runtime import cpu
from coresident.sparsification.agreement import Task
from coresident.sparsification.correction import is_own
from coresident.sparsification.execution import activations, cut
from coresident.sparsification.network import Layer, last_layers
from coresident.sparsification.preparation import bound
from coresident.sparsification.project import Project
from coresident.sparsification.samples import Samples
from coresident.sparsification.sources import Augmented, Item, Values, takes_pictures
from coresident.sparsification.training.differentiable import Differentiable
from coresident.sparsification.training.distillation import divergence
from coresident.sparsification.walk import live

BATCH = 16
"""Samples of a step at most."""

WORK, STEPS = 3e13, 3000
"""Multiply-adds of all steps, which take five to ten minutes on two cores, and steps at most. (Twice as many
left SqueezeNet's agreement at 86 %.)"""

RATE, WARM = 5e-3, 50
"""How far a step moves a weight, in units of the root mean square of its layer's; and the steps in which
that is reached. It falls to nothing like a cosine. (Of SqueezeNet with 40 % zeros, 2e-3 to 5e-3 make little
difference.)"""

ERRORS = 40.0
"""How much relative errors count beside a divergence of classes: those of the values between layers, and of
outputs that are no classes. The divergence alone is learnt by heart. (SqueezeNet with 40 % zeros, 600 steps,
divergence for pictures not seen: 0.052 with 3, 0.046 with 10, 0.044 with 40 and 200.)"""

LEAST_PART = 0.08
"""Of a picture's area that a step may see."""

MIXED = 0.5
"""Share of the steps that see mixtures of two samples."""

JUDGED, JUDGING = 0.0625, 8
"""Share of the samples that are not trained on, and batches of their parts: by them it is decided whether
training helped."""

_SAVED = 60.0
"""Seconds after which what is learnt so far is kept for an interrupted run."""
_TIMED = 10
"""Steps by which is told how many there is time for."""
_LEAST = 1e-7
"""A probability is taken to be at least this, as its logarithm."""


def imitate(
    project: Project, sparse: Graph, pruned: Sequence[Layer], share: float = 1.0
) -> tuple[Graph, str]:
    """The sparse network trained to imitate the dense one, if that brings it nearer for samples kept aside.

    Weights that are zero in pruned layers stay zero.

    Args:
        project: its graph is the dense network, its calibration samples are what is seen.
        sparse: the same network with other weights.
        pruned: layers that have zeros there.
        share: of `WORK` and `STEPS`.

    Returns:
        The network, and what became of it in words.

    Raises:
        UnsupportedModel: operators that have no gradient here, all of them named.
        InputError, ModelError, ResourceError: as `activations` has them.
        MemoryError: PyTorch gets none.
    """
    student = _Student(project, sparse, pruned)
    seen, judged = project.calibration.split(JUDGED, project.settings.seed)
    with _threads(project.engine.threads), _allocations():
        unseen = _Stream(project, judged, student.batch)
        before = _mean_loss(project, student, unseen)
        trained = _trained(project, student, _Stream(project, seen, student.batch), share)
        after = _mean_loss(project, student, unseen)
    note = f"error {before:.3g} -> {after:.3g} for samples kept aside"
    if after < before:
        return trained, f"trained to imitate the dense network: {note}"
    return sparse, f"training to imitate the dense network was given up: {note}"


class _Student:
    """The part of the sparse network that differs from the dense one, and its weights in training.

    `given` are the values that it reads, `between` and `outputs` those that it is to make.
    """

    def __init__(self, project: Project, sparse: Graph, pruned: Sequence[Layer]) -> None:
        dense = project.graph
        changed = {n for n, a in sparse.initializers.items() if not np.array_equal(a, dense.initializers[n])}
        first = next((node for node in sparse.nodes if changed.intersection(node.inputs)), sparse.nodes[0])
        place = {node.name: i for i, node in enumerate(sparse.nodes)}
        layers = [
            layer
            for layer in project.layers
            if place[layer.name] >= place[first.name] and is_own(sparse, layer)
        ]
        self.given = tuple(live(sparse, first.name))
        made = {name for node in sparse.nodes[place[first.name] :] for name in node.outputs}
        # What the last ones make is seen before it is averaged, say, into classes.
        last = last_layers(sparse, layers)
        between = dict.fromkeys(layer.input for layer in layers)
        between |= dict.fromkeys(layer.output for layer in layers if layer.name in last)
        self.outputs = tuple(name for name in sparse.outputs if name in made)
        self.between = tuple(name for name in between if name in made and name not in self.outputs)
        self.macs = sum(layer.macs for layer in project.layers)
        self.sparse = sparse
        self._built: dict[tuple[tuple[int, ...], ...], Differentiable] = {}
        self.weights: dict[str, Tensor] = {}
        self.rates: list[float] = []
        self._masks: dict[str, Tensor] = {}
        for layer in layers:
            weight = sparse.initializers[layer.weight]
            rate = RATE * float(np.sqrt(np.mean(np.square(weight, dtype=np.float64))))
            if any(layer.name == one.name for one in pruned):
                self._masks[layer.weight] = torch.from_numpy(weight != 0).float()
            for name in (layer.weight, layer.bias):
                self.weights[name] = torch.from_numpy(sparse.initializers[name].copy()).requires_grad_()
                self.rates.append(rate)
        self.batch = project.calibration.fixed_batch or _batch(project)

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Tensor]:
        """What it makes of what it is given, by name."""
        facts = {name: Fact(values[name].dtype, values[name].shape) for name in self.given}
        key = tuple(fact.sizes for fact in facts.values())
        if key not in self._built:
            part = cut(self.sparse.with_(inputs=self.given, facts=facts), (*self.between, *self.outputs))
            self._built[key] = Differentiable(part, dict(zip(self.given, key)))
        return self._built[key]({**{name: _tensor(values[name]) for name in self.given}, **self._masked()})

    def _masked(self) -> dict[str, Tensor]:
        return {n: w * self._masks[n] if n in self._masks else w for n, w in self.weights.items()}

    @property
    def wanted(self) -> list[str]:
        """Values of the dense network that it is given, or is to make."""
        return [*self.given, *self.between, *self.outputs]

    def graph(self) -> Graph:
        """The sparse network with the weights as they are now."""
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in self._masked().items()}
        return self.sparse.with_(initializers={**self.sparse.initializers, **arrays})


class _Stream:
    """Batches, each of them the same whenever it is asked for."""

    def __init__(self, project: Project, samples: Samples, batch: int) -> None:
        self._seed, self._batch, self._inputs = project.settings.seed, batch, samples.inputs
        self._groups = samples.groups()
        size = sum(
            fact.dtype.itemsize * prod(shape)
            for item in samples.items
            for fact, shape in zip(samples.inputs.values(), item.shapes)
        )
        kept = size <= project.engine.memory // 4
        self._items: list[Item] = [
            Values(item.load(), item.digest) if kept else item for item in samples.items
        ]

    def at(self, step: int) -> dict[str, Array]:
        """The batch of a step, by the names of the inputs."""
        rng = np.random.default_rng((self._seed, step))
        sizes = np.array([last - first for first, last in self._groups])
        first, last = self._groups[rng.choice(len(sizes), p=sizes / sizes.sum())]
        parts = [self._part(self._items[i], rng) for i in rng.integers(first, last, self._batch)]
        values = {name: np.concatenate([part[name] for part in parts]) for name in self._inputs}
        if self._batch > 1 and rng.random() < MIXED:
            share = rng.random(self._batch).astype(np.float32)
            other = rng.permutation(self._batch)
            values = {name: _mixed(value, other, share) for name, value in values.items()}
        return values

    def _part(self, item: Item, rng: np.random.Generator) -> dict[str, Array]:
        if not any(map(takes_pictures, self._inputs.values())):
            return item.load()
        area, shape = rng.uniform(LEAST_PART, 1), math.exp(rng.uniform(-0.25, 0.25))
        height, width = (min(math.sqrt(area * each), 1.0) for each in (shape, 1 / shape))
        window = (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
        return Augmented(item, self._inputs, window, bool(rng.random() < 0.5)).load()


def _mixed(value: Array, other: Array, share: Array) -> Array:
    if value.dtype.kind != "f" or len(value) != len(share):
        return value
    column = share.astype(value.dtype).reshape(-1, *(1,) * (value.ndim - 1))
    return np.asarray(column * value + (1 - column) * value[other])


def _trained(project: Project, student: _Student, stream: _Stream, share: float) -> Graph:
    # The dense network, the sparse one, and gradients of its values and of its weights.
    work = 4 * max(student.macs, 1) * student.batch
    total = max(int(share * min(WORK / work, STEPS)), 1)
    groups = [
        {"params": [weight], "lr": rate}
        for weight, rate in zip(student.weights.values(), student.rates, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    name = f"imitation {share} {_digest(student.sparse)}"
    first = _restored(project.checkpoint.load(name), student, optimizer)
    project.progress.stage("imitating the dense network", total)
    project.progress.advance(first)
    batches = (stream.at(step) for step in range(first, total))
    narrow = bool({"avx512bf16", "amx-bf16", "bf16"} & (cpu.features() or frozenset()))
    started = saved = time.monotonic()
    step = first
    for values in activations(project.graph, student.wanted, batches, project.engine):
        if step == first + _TIMED:
            each = (time.monotonic() - started) / _TIMED
            # What follows needs some of it, too.
            total = min(total, first + int(0.7 * min(project.seconds_left, 1e9) / each))
        if step >= total or project.seconds_left <= 0:
            break
        for group, rate in zip(optimizer.param_groups, student.rates):
            group["lr"] = rate * min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / total))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            made = student(values)
        loss = _loss(project.task, student, values, made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        project.progress.advance(note=f"error {float(loss.detach()):.4f}")
        if time.monotonic() - saved > _SAVED:
            saved = time.monotonic()
            project.checkpoint.store(name, _state(step, student, optimizer))
    return student.graph()


def _mean_loss(project: Project, student: _Student, stream: _Stream) -> float:
    """Over some batches; the values between layers are of so many places that few samples tell."""
    batches = (stream.at(step) for step in range(JUDGING))
    with torch.no_grad():
        losses = [
            float(_loss(project.task, student, values, student(values)))
            for values in activations(project.graph, student.wanted, batches, project.engine)
        ]
    return float(np.mean(losses))


def _loss(task: Task, student: _Student, wanted: Mapping[str, Array], made: Mapping[str, Tensor]) -> Tensor:
    loss = torch.zeros(())
    for name in student.between:
        loss = loss + ERRORS / len(student.between) * _error(_tensor(wanted[name]), made[name].float())
    for name in student.outputs:
        want, have = _tensor(wanted[name]), made[name].float()
        if task in ("classifier", "segmenter") and want.ndim > 1 and want.shape[1] > 1:
            loss = loss + divergence(*_logits(have, want), 1.0)
        else:
            loss = loss + ERRORS / len(student.outputs) * _error(want, have)
    return loss


def _error(want: Tensor, have: Tensor) -> Tensor:
    if not want.is_floating_point():
        return torch.zeros(())
    return torch.mean((have - want) ** 2) / torch.mean(want**2).clamp(min=1e-12)


def _logits(have: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    """Both as logits over axis 1; probabilities, which networks with a softmax at their end give, as their
    logarithms."""
    if bool(want.min() >= 0) and torch.allclose(want.sum(1), torch.ones(()), atol=1e-3):
        return have.clamp(min=_LEAST).log(), want.clamp(min=_LEAST).log()
    return have, want


def _tensor(array: Array) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _batch(project: Project) -> int:
    """As many samples as fit the memory with all that is kept of them for the gradient."""
    known = bound(project.graph, project.shapes)
    one = sum(prod(known.facts[name].sizes) for node in known.nodes for name in node.outputs if name)
    return int(np.clip(project.engine.memory // max(12 * one, 1), 1, BATCH))


def _digest(graph: Graph) -> str:
    digest = hashlib.sha256()
    for name in sorted(graph.initializers):
        digest.update(name.encode() + graph.initializers[name].tobytes())
    return digest.hexdigest()


def _state(step: int, student: _Student, optimizer: torch.optim.Adam) -> dict[str, Array]:
    """All that training goes on from."""
    arrays: dict[str, Array] = {"step": np.array(step)}
    for number, weight in enumerate(student.weights.values()):
        arrays[f"{number} weight"] = weight.detach().numpy()
        for key in ("exp_avg", "exp_avg_sq"):
            arrays[f"{number} {key}"] = optimizer.state[weight][key].numpy()
    return arrays


def _restored(state: Mapping[str, Array] | None, student: _Student, optimizer: torch.optim.Adam) -> int:
    """The step to go on with."""
    if state is None:
        return 0
    with torch.no_grad():
        for number, weight in enumerate(student.weights.values()):
            weight.copy_(torch.from_numpy(state[f"{number} weight"]))
            moments = {key: torch.from_numpy(state[f"{number} {key}"]) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.tensor(float(state["step"])), **moments}
    return int(state["step"])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _allocations() -> Iterator[None]:
    """Gives memory that PyTorch does not get the type of error that it lacks."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(str(error)) from error
