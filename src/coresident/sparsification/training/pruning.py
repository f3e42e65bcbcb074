"""The masks of a model as a recipe makes them grow, alternate and stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coresident.errors import InputError
from coresident.sparsification.training.masks import Layer, by_magnitude, choose, enforce
from coresident.sparsification.training.recipe import Alternate, Constant, Prune, Recipe
from coresident.sparsification.training.schedule import sparse_phase, sparsity_at


@dataclass
class _Part:
    """A modifier at work: its layers with their final share of zeros, and the epoch of its last choice."""

    modifier: Prune | Alternate | Constant
    layers: tuple[Layer, ...]
    final: dict[str, float] = field(default_factory=dict)
    chosen: float = -1.0


class Pruning:
    """All masks of a model.

    Args:
        layers: of the model.
        recipe: what to do with them.
        optimizer: whose momentum of dead weights is zeroed too.
    """

    def __init__(
        self, layers: Sequence[Layer], recipe: Recipe, optimizer: torch.optim.Optimizer | None
    ) -> None:
        self.layers, self.optimizer = layers, optimizer
        self.masks: dict[str, Tensor] = {}
        self.parts = [
            _part(layers, modifier)
            for modifier in recipe.modifiers
            if isinstance(modifier, Prune | Alternate | Constant)
        ]

    def at(self, epoch: float) -> None:
        """Bring the masks to where they are to be at an epoch, and the dead weights to zero."""
        for part in self.parts:
            modifier = part.modifier
            if epoch < modifier.start:
                continue
            if isinstance(modifier, Alternate):
                self._alternate(part, modifier, epoch)
            elif isinstance(modifier, Constant):
                if part.chosen < 0:
                    self.masks |= {layer.name: layer.weight.detach() != 0 for layer in part.layers}
                    part.chosen = epoch
            else:
                self._grow(part, modifier, epoch)
        enforce(self.layers, self.masks, self.optimizer)

    def _grow(self, part: _Part, modifier: Prune, epoch: float) -> None:
        due = part.chosen < 0 or epoch >= part.chosen + modifier.every - 1e-9
        ends = epoch >= modifier.end > part.chosen
        if part.chosen >= modifier.end or not (due or ends):
            return
        shares = {name: sparsity_at(modifier, final, epoch) for name, final in part.final.items()}
        self._choose(part, shares, modifier, epoch)

    def _alternate(self, part: _Part, modifier: Alternate, epoch: float) -> None:
        sparse = sparse_phase(modifier, epoch)
        masked = bool(part.layers) and part.layers[0].name in self.masks
        if sparse and not masked:
            self._choose(part, part.final, modifier, epoch)
        elif not sparse and masked:
            for layer in part.layers:
                del self.masks[layer.name]

    def _choose(
        self, part: _Part, shares: Mapping[str, float], modifier: Prune | Alternate, epoch: float
    ) -> None:
        found = by_magnitude(part.layers, shares, modifier.pattern, together=modifier.together)
        for layer in part.layers:
            self.masks[layer.name] = found[layer.name].to(layer.weight.device)
        part.chosen = epoch

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {
            "masks": {name: mask.cpu().clone() for name, mask in self.masks.items()},
            "chosen": [part.chosen for part in self.parts],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another was.

        Raises:
            InputError: the masks are not of these layers, or the recipe was another.
        """
        shapes = {layer.name: layer.weight.shape for layer in self.layers}
        for name, mask in state["masks"].items():
            if shapes.get(name) != mask.shape:
                raise InputError(
                    f"the state has a mask for {name!r} that does not fit", shape=list(mask.shape)
                )
        if len(state["chosen"]) != len(self.parts):
            raise InputError("the state was made with another recipe")
        self.masks = {name: mask.clone() for name, mask in state["masks"].items()}
        for part, chosen in zip(self.parts, state["chosen"]):
            part.chosen = float(chosen)


def _part(layers: Sequence[Layer], modifier: Prune | Alternate | Constant) -> _Part:
    if isinstance(modifier, Constant):
        return _Part(modifier, choose(layers, modifier.layers, modifier.skip))
    if isinstance(modifier.sparsity, Mapping):
        final: dict[str, float] = {}
        for pattern, share in modifier.sparsity.items():
            final |= {layer.name: share for layer in choose(layers, (pattern,))}
        chosen = tuple(layer for layer in choose(layers, tuple(final), modifier.skip) if layer.name in final)
    else:
        chosen = choose(layers, modifier.layers, modifier.skip)
        final = {layer.name: modifier.sparsity for layer in chosen}
    return _Part(modifier, chosen, {layer.name: final[layer.name] for layer in chosen})
