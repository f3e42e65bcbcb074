"""The arithmetic of `graph.expression` in PyTorch, which knows its gradients."""

from __future__ import annotations

import torch
from torch import Tensor


class TorchMath:
    """`graph.expression.Math` over tensors of floats and bools."""

    def constant(self, value: float, like: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=like.dtype)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)

    def equal(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.eq(a, b)

    def invert(self, a: Tensor) -> Tensor:
        return torch.logical_not(a)

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition, a, b)

    def is_nan(self, a: Tensor) -> Tensor:
        return torch.isnan(a)

    def absolute(self, a: Tensor) -> Tensor:
        return torch.abs(a)

    def sqrt(self, a: Tensor) -> Tensor:
        return torch.sqrt(a)

    def floor(self, a: Tensor) -> Tensor:
        return torch.floor(a)

    def ceil(self, a: Tensor) -> Tensor:
        return torch.ceil(a)

    def round_even(self, a: Tensor) -> Tensor:
        return torch.round(a)

    def exp(self, a: Tensor) -> Tensor:
        return torch.exp(a)

    def log(self, a: Tensor) -> Tensor:
        return torch.log(a)

    def sin(self, a: Tensor) -> Tensor:
        return torch.sin(a)

    def cos(self, a: Tensor) -> Tensor:
        return torch.cos(a)

    def tanh(self, a: Tensor) -> Tensor:
        return torch.tanh(a)

    def sigmoid(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)

    def erf(self, a: Tensor) -> Tensor:
        return torch.erf(a)

    def power(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.pow(a, b)

    def modulo(self, a: Tensor, b: Tensor, fmod: bool) -> Tensor:
        return torch.fmod(a, b) if fmod else torch.remainder(a, b)

    def divide(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def cast(self, a: Tensor, dtype: str) -> Tensor:
        return a.to(getattr(torch, dtype))
