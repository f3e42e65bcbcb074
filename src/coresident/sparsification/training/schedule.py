"""What a recipe asks for at a given epoch: sparsities, and the rate of learning."""

from __future__ import annotations

import math

from coresident.sparsification.training.recipe import Alternate, LearningRate, Prune


def sparsity_at(modifier: Prune, final: float, epoch: float) -> float:
    """The share of zeros that a gradual pruning wants at an epoch, from its start on."""
    length = modifier.end - modifier.start
    share = 1.0 if length <= 0 else min(max((epoch - modifier.start) / length, 0.0), 1.0)
    left = (1.0 - share) if modifier.curve == "linear" else (1.0 - share) ** 3
    return final + (min(modifier.initial, final) - final) * left


def sparse_phase(modifier: Alternate, epoch: float) -> bool:
    """Whether alternating training is sparse at an epoch."""
    if epoch >= modifier.end:
        return True
    if epoch < modifier.start:
        return False
    return int((epoch - modifier.start) / modifier.every) % 2 == 0


def rate_at(modifier: LearningRate, epoch: float, end: float) -> float:
    """The learning rate at an epoch, from the modifier's start on."""
    last = modifier.first if modifier.last is None else modifier.last
    if modifier.curve == "constant":
        return modifier.first
    until = end if modifier.end is None else modifier.end
    length = until - modifier.start
    share = 1.0 if length <= 0 else min(max((epoch - modifier.start) / length, 0.0), 1.0)
    if modifier.curve == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return modifier.first + (last - modifier.first) * share
