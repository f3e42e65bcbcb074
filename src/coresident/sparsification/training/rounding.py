"""Numbers as they are after a trip through bytes, with gradients; and the ranges that activations get."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from coresident.errors import InputError

Method = Literal["minmax", "mse"]
LEVELS = 255
"""The largest number of an activation's byte."""
_SHRINKS = 30
_POWER = 2.4
"""Of the error that ranges are searched by (Frantar and Alistarh, Optimal Brain Compression, 2022)."""
_SAMPLE = 8192


@dataclass
class Range:
    """The range of an activation: a moving average over batches until it is frozen.

    Args:
        low: at most 0.
        high: at least 0.
        batches: that were seen.
    """

    low: float = 0.0
    high: float = 0.0
    batches: int = 0
    _seen: tuple[float, float] | None = field(default=None, repr=False, compare=False)

    @torch.no_grad()
    def observe(self, x: Tensor, method: Method) -> None:
        """Widen what was seen in this pass by a tensor's range."""
        low, high = (min(float(x.min()), 0.0), max(float(x.max()), 0.0))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError("an activation is not finite while ranges are measured", shape=list(x.shape))
        if method == "mse":
            low, high = _least_error(x, low, high)
        old = self._seen or (0.0, 0.0)
        self._seen = min(old[0], low), max(old[1], high)

    def settle(self, rate: float = 0.05) -> None:
        """Move towards what was seen since the last call, all the way at the first."""
        if self._seen is None:
            return
        rate = 1.0 if self.batches == 0 else rate
        self.low += rate * (self._seen[0] - self.low)
        self.high += rate * (self._seen[1] - self.high)
        self.batches, self._seen = self.batches + 1, None

    def scale(self) -> tuple[float, int]:
        """The scale and zero point of uint8."""
        scale = max(self.high - self.low, 1e-8) / LEVELS
        scale = float(torch.tensor(scale, dtype=torch.float32))
        return scale, min(max(round(-self.low / scale), 0), LEVELS)


def _least_error(x: Tensor, low: float, high: float) -> tuple[float, float]:
    flat = x.detach().flatten().float()
    flat = flat[:: max(1, flat.numel() // _SAMPLE)]
    best, chosen = float("inf"), (low, high)
    for step in range(_SHRINKS):
        share = 1.0 - step / (1.5 * _SHRINKS)
        scale = max((high - low) * share, 1e-8) / LEVELS
        zero = round(-low * share / scale)
        rounded = torch.fake_quantize_per_tensor_affine(flat, scale, min(max(zero, 0), LEVELS), 0, LEVELS)
        error = float((rounded - flat).abs().pow(_POWER).sum())
        if error < best:
            best, chosen = error, (low * share, high * share)
    return chosen


def round_activation(x: Tensor, found: Range) -> Tensor:
    """`x` as uint8 and back, float; gradients pass where it is within the range."""
    scale, zero = found.scale()
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, LEVELS).to(x.dtype)
    return rounded


def weight_scales(weight: Tensor, axis: int, bits: int) -> Tensor:
    """The scale of each output channel, float32 [channels]: its largest weight is the largest number.

    Channels of zeros get the largest of the others' scales, so that their bias is not rounded to nothing.
    """
    most = weight.detach().float().abs().amax([d for d in range(weight.ndim) if d != axis])
    scales: Tensor = most / (2 ** (bits - 1) - 1)
    largest = scales.max().clamp(min=1e-8)
    return torch.where(scales > 1e-12, scales, largest)


def round_weight(weight: Tensor, axis: int, bits: int) -> Tensor:
    """`weight` as int8 with a scale an output channel and back, float; zeros stay zeros."""
    limit = 2 ** (bits - 1) - 1
    scales = weight_scales(weight, axis, bits)
    zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(
        weight.float(), scales, zeros, axis, -limit, limit
    )
    return rounded.to(weight.dtype)
