"""Prunes, distils and quantises a model while its user's own loop trains it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coresident.errors import InputError
from coresident.runtime.files import write_atomically
from coresident.sparsification.training.calls import Call, record
from coresident.sparsification.training.distillation import divergence
from coresident.sparsification.training.exporting import Tail, onnx_bytes
from coresident.sparsification.training.masks import BLOCK, Layer, choose, find_layers, mark_ends, sparsity_of
from coresident.sparsification.training.placement import Plan, plan
from coresident.sparsification.training.pruning import Pruning
from coresident.sparsification.training.quantisation import Training
from coresident.sparsification.training.recipe import Distil, LearningRate, Quantise, Recipe, WeightDecay
from coresident.sparsification.training.recipe_files import load
from coresident.sparsification.training.rounding import Range
from coresident.sparsification.training.schedule import rate_at

_VERSION = 1


class Sparsifier:
    """Follows a recipe while a model trains.

        with Sparsifier.attach(model, optimizer, len(loader), "recipe.yaml") as sparsifier:
            for epoch in range(sparsifier.epochs):
                for images, labels in loader:
                    outputs = model(images)
                    loss = sparsifier.loss(criterion(outputs, labels), outputs, images)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            sparsifier.export("model.onnx", images[:1])

    Weights that are pruned stay zero: after every `optimizer.step` they and the momentum that the optimiser
    has of them are zeroed. A shared layer has one mask; mixed precision, gradient scaling and parameter
    groups need nothing else. `torch.compile` hides the calls that quantisation follows: attach to the model
    before it is compiled, and train it uncompiled from the epoch on at which the recipe quantises.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        steps_per_epoch: int,
        recipe: Recipe,
        teacher: nn.Module | None,
        example: Any = None,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.steps_per_epoch = steps_per_epoch
        self.steps = 0
        self.layers: tuple[Layer, ...] = find_layers(model) if example is None else _traced(model, example)
        self._pruning = Pruning(self.layers, recipe, optimizer)
        self._quantise: Quantise | None = next(iter(recipe.of(Quantise)), None)
        self._distil: Distil | None = next(iter(recipe.of(Distil)), None)
        self._skip = _skipped(self.layers, self._quantise)
        self._plan: Plan | None = None
        self._ranges: list[Range] = []
        self._pass: Training | None = None
        self._busy = False
        if teacher is None and self._distil is not None:
            teacher = deepcopy(model)
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.step()))
        self._apply()

    @staticmethod
    def attach(
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        steps_per_epoch: int,
        recipe: Recipe | str | os.PathLike[str],
        *,
        teacher: nn.Module | None = None,
        example: Tensor | tuple[Any, ...] | None = None,
    ) -> Sparsifier:
        """Start to follow a recipe.

        Args:
            model: dense or already pruned; the one whose forward pass the loop calls.
            optimizer: what steps it; each step is counted. None where the loop calls `step` itself.
            steps_per_epoch: optimiser's steps an epoch.
            recipe: the recipe, its file, or its text.
            teacher: what to distil from; None for a copy of the model as it is now.
            example: the model's inputs. With them, layers are found by running the model once, which also
                finds those that are no modules, as in what `torch.export` made.

        Raises:
            InputError: the recipe is not one, or names layers that the model doesn't have.
        """
        if steps_per_epoch < 1:
            raise InputError(f"an epoch of {steps_per_epoch} steps")
        found = recipe if isinstance(recipe, Recipe) else load(recipe)
        return Sparsifier(model, optimizer, steps_per_epoch, found, teacher, example)

    def __enter__(self) -> Sparsifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.finalize()

    @property
    def epoch(self) -> float:
        """Epochs done, with the part of the one under way."""
        return self.steps / self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs of the recipe, a part of one counted whole."""
        return -int(-self.recipe.epochs // 1)

    @property
    def quantising(self) -> bool:
        """Whether the model computes as with bytes by now."""
        return self._quantise is not None and self.epoch >= self._quantise.start

    def step(self) -> None:
        """One optimiser's step is done; called by the optimiser's own hook where one was attached."""
        self.steps += 1
        self._apply()

    def set_epoch(self, epoch: float) -> None:
        """Say where training is, where that is not the number of steps over the steps of an epoch."""
        self.steps = round(epoch * self.steps_per_epoch)
        self._apply()

    def _apply(self) -> None:
        self._pruning.at(self.epoch)
        if self.optimizer is None:
            return
        for rate in self.recipe.of(LearningRate):
            if self.epoch >= rate.start:
                self._set("lr", rate_at(rate, self.epoch, self.recipe.epochs), rate.groups)
        for decay in self.recipe.of(WeightDecay):
            if self.epoch >= decay.start:
                self._set("weight_decay", decay.value, ())

    def _set(self, key: str, value: float, groups: Sequence[int]) -> None:
        assert self.optimizer is not None
        for number, group in enumerate(self.optimizer.param_groups):
            if not groups or number in groups:
                group[key] = value

    def loss(self, loss: Tensor, outputs: Tensor, *inputs: Any) -> Tensor:
        """The loss to train with: the user's, and the distance from the dense network's answers.

        Args:
            loss: the user's, a scalar.
            outputs: logits of the model, [N, C] or [N, C, ...].
            inputs: what the model was called with; the teacher is called with the same.
        """
        distil = self._distil
        if distil is None or self.teacher is None or self.epoch < distil.start:
            return loss
        if distil.end is not None and self.epoch >= distil.end:
            return loss
        with torch.no_grad():
            answers = self.teacher(*inputs)
        distance = divergence(outputs, answers, distil.temperature, distil.answer)
        return (1 - distil.share) * loss + distil.share * distance

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._quantise is None or not self.quantising or self._busy:
            return
        if self._plan is None:
            self._busy = True
            try:
                self._plan = plan(record(model, args, kwargs), self._skip)
            finally:
                self._busy = False
            self._ranges = self._ranges or [Range() for _ in range(self._plan.count)]
            if len(self._ranges) != self._plan.count:
                raise InputError(
                    f"{len(self._ranges)} ranges of activations were kept, the model has {self._plan.count}"
                )
        middle = (self._quantise.start + self.recipe.epochs) / 2
        freeze = self._quantise.freeze_ranges
        until = middle if freeze is None else freeze
        norms = self._quantise.freeze_norms
        frozen = self.epoch >= (until if norms is None else norms)
        unseen = any(not one.batches for one in self._ranges)
        observing = model.training and (self.epoch < until or unseen)
        self._pass = Training(
            self._plan,
            self._ranges,
            self._quantise.weight_bits,
            self._quantise.ranges if observing else None,
            frozen,
        )
        self._pass.__enter__()

    def _leave(self, model: nn.Module, args: Any, outputs: Any) -> None:
        if self._pass is None:
            return
        self._pass.__exit__(None, None, None)
        self._pass = None
        for one in self._ranges:
            one.settle()

    def finalize(self) -> None:
        """Take the hooks off; weights keep their zeros, and are no longer watched."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def sparsity(self) -> dict[str, float]:
        """The share of zeros in every layer's weights, by name."""
        return {layer.name: sparsity_of(layer.weight) for layer in self.layers}

    def state_dict(self) -> dict[str, Any]:
        """What training is resumed from, beside the model's and the optimiser's own states."""
        return {
            "version": _VERSION,
            "steps": self.steps,
            "pruning": self._pruning.state(),
            "ranges": [(one.low, one.high, one.batches) for one in self._ranges],
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; the model's and the optimiser's states are to be loaded before.

        Raises:
            InputError: the state is of another version, or of another model.
        """
        if state.get("version") != _VERSION:
            raise InputError(f"a state of version {state.get('version')!r}; {_VERSION} is read")
        self.steps = int(state["steps"])
        self._ranges = [Range(float(low), float(high), int(n)) for low, high, n in state["ranges"]]
        self._plan = None
        if self.teacher is not None and state["teacher"] is not None:
            self.teacher.load_state_dict(state["teacher"])
        self._pruning.restore(state["pruning"])
        self._apply()

    def export(
        self,
        path: str | os.PathLike[str],
        *inputs: Tensor,
        tail: Tail | None = None,
        input_names: Sequence[str] = ("input",),
        output_names: Sequence[str] = ("output",),
        dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    ) -> bytes:
        """Write the model as ONNX, quantised if it was trained so; also returned.

        Args:
            path: of the file, written whole or not at all.
            inputs: an example of each input.
            tail: applied to what the model returns, such as `torch.sigmoid`.
            input_names, output_names: of the ONNX model.
            dynamic_axes: free dimensions, as `torch.onnx.export` has them: name -> axis -> name.

        Raises:
            InputError: the recipe quantises, but no batch was trained on since.
        """
        quantise = self._quantise if self.quantising else None
        self._busy = True
        try:
            made = plan(record(self.model, inputs), self._skip, quantise=quantise is not None)
            if quantise is not None and (
                len(self._ranges) != made.count or any(not one.batches for one in self._ranges)
            ):
                raise InputError("ranges of activations were not measured yet: train at least one batch")
            content: bytes = onnx_bytes(
                self.model,
                inputs,
                made,
                self._ranges,
                bits=8 if quantise is None else quantise.weight_bits,
                tail=tail,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=dynamic_axes,
            )
        finally:
            self._busy = False
        write_atomically(Path(path), [content])
        return content


def _traced(model: nn.Module, example: Any) -> tuple[Layer, ...]:
    trace = record(model, example if isinstance(example, tuple) else (example,))
    weights = dict(model.named_parameters())
    found = {
        call.weight: Layer(
            call.weight, weights[call.weight], call.kind == "transposed", _narrow(call, weights)
        )
        for call in trace.calls
        if call.weight
    }
    return mark_ends(found.values())


def _narrow(call: Call, weights: Mapping[str, nn.Parameter]) -> str:
    grouped = call.kind == "convolution" and weights[call.weight].shape[1] < BLOCK
    return "depthwise" if grouped else ""


def _skipped(layers: Sequence[Layer], quantise: Quantise | None) -> set[str]:
    if quantise is None or not quantise.skip:
        return set()
    return {layer.name for layer in choose(layers, quantise.skip)}


class ScheduledModifierManager:
    """The names that SparseML's users know, on `Sparsifier`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.sparsifier: Sparsifier | None = None

    @staticmethod
    def from_yaml(file_path: str | os.PathLike[str]) -> ScheduledModifierManager:
        """Read a recipe."""
        return ScheduledModifierManager(load(file_path))

    @property
    def max_epochs(self) -> int:
        """Epochs of the recipe."""
        return -int(-self.recipe.epochs // 1)

    def modify(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps_per_epoch: int,
        *,
        distillation_teacher: nn.Module | None = None,
    ) -> torch.optim.Optimizer:
        """Attach; returns the optimiser, which is the same object."""
        self.sparsifier = Sparsifier.attach(
            module, optimizer, steps_per_epoch, self.recipe, teacher=distillation_teacher
        )
        return optimizer

    def finalize(self, module: nn.Module | None = None) -> None:
        """Take the hooks off."""
        if self.sparsifier is not None:
            self.sparsifier.finalize()
