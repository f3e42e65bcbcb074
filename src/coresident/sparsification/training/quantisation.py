"""Quantisation-aware training: a model's forward pass with its values rounded to bytes on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coresident.errors import UnsupportedModel
from coresident.sparsification.training.calls import (
    PRODUCTS,
    in_place,
    kind_of,
    nearest,
    norm_arguments,
    operands_of,
    tensors_in,
    weight_of,
)
from coresident.sparsification.training.placement import Plan
from coresident.sparsification.training.rounding import Method, Range, round_activation, round_weight


class Rewriting(TorchFunctionMode):
    """Follows a forward pass along a plan and changes its calls.

    Raises:
        UnsupportedModel: the pass makes other calls than the plan has, as where control flow depends on
            the data or on whether the model is in training.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.place = 0
        self.memory: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.moved:
            args, kwargs = self._replaced(args), self._replaced(kwargs)
        kind, name = kind_of(func)
        if kind == "average" and nearest(name, args, kwargs):
            kind = "pool"
        operands = operands_of(kind, args, kwargs) if kind else ()
        if not kind or not operands:
            return func(*args, **kwargs)
        place, self.place = self.place, self.place + 1
        if place >= len(self.plan.calls) or self.plan.calls[place][:2] != (kind, name):
            was = self.plan.calls[place][:2] if place < len(self.plan.calls) else "the end"
            raise UnsupportedModel(
                f"call {place} of the model's forward pass is {kind} {name!r}, the first pass had {was}; "
                "quantisation needs a forward pass that always makes the same calls"
            )
        rounded = [
            operand if number < 0 else self._once(operand, number)
            for operand, number in zip(operands, self.plan.ranges[place])
        ]
        if kind in PRODUCTS:
            key = "weight"
            weight = weight_of(args, kwargs)
            args, kwargs = _placed(args, kwargs, 0, "input", rounded[0])
            if self.plan.quantised[place]:
                args, kwargs = _placed(args, kwargs, 1, key, self.weight(place, kind, weight, kwargs, args))
            return self.product(place, func, args, kwargs)
        if kind == "norm":
            return self.norm(place, func, args, kwargs)
        if kind == "concat":
            args, kwargs = _placed(args, kwargs, 0, "tensors", rounded)
            return func(*args, **kwargs)
        args, kwargs = _placed(args, kwargs, 0, "input", rounded[0])
        if kind != "add":
            return func(*args, **kwargs)
        args, kwargs = _placed(args, kwargs, 1, "other", rounded[1])
        if not in_place(func) or rounded[0] is operands[0]:
            return func(*args, **kwargs)
        # A sum in place would be written to the rounded copy: later readers of the operand get the result.
        result = torch.add(rounded[0], rounded[1])
        self.moved[id(operands[0])] = (operands[0], result)
        return result

    def _once(self, x: Tensor, number: int) -> Tensor:
        key = (id(x), x._version, number)
        if key not in self.memory:
            self.memory[key] = (x, self.activation(x, number))
        return self.memory[key][1]

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.moved[id(value)][1] if id(value) in self.moved else value
        if isinstance(value, list | tuple) and tensors_in(value):
            items = [self._replaced(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self._replaced(item) for key, item in value.items()}
        return value

    def activation(self, x: Tensor, number: int) -> Tensor:
        """`x` rounded to the range of that number."""
        raise NotImplementedError

    def weight(self, place: int, kind: str, weight: Tensor, kwargs: Any, args: Any) -> Tensor:
        """The weight that a product is computed with."""
        raise NotImplementedError

    def product(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a product."""
        return func(*args, **kwargs)

    def norm(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a batch normalisation."""
        return func(*args, **kwargs)


def _placed(
    args: Sequence[Any], kwargs: Mapping[str, Any], index: int, key: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if index < len(args):
        return (*args[:index], value, *args[index + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, key: value}


class Training(Rewriting):
    """The pass of quantisation-aware training.

    Args:
        plan: of the model.
        ranges: one for each number in the plan.
        bits: of weights, 7 or 8.
        observing: the method by which ranges are measured on the way; None leaves them as they are.
        frozen_norms: batch normalisations use the statistics they have, and don't change them.
    """

    def __init__(
        self, plan: Plan, ranges: Sequence[Range], bits: int, observing: Method | None, frozen_norms: bool
    ) -> None:
        super().__init__(plan)
        self.ranges, self.bits, self.observing, self.frozen_norms = ranges, bits, observing, frozen_norms

    def activation(self, x: Tensor, number: int) -> Tensor:
        found = self.ranges[number]
        if self.observing is not None:
            found.observe(x, self.observing)
        return round_activation(x, found) if found.batches else x

    def weight(self, place: int, kind: str, weight: Tensor, kwargs: Any, args: Any) -> Tensor:
        return round_weight(weight, 1 if kind == "transposed" else 0, self.bits)

    def norm(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        found = norm_arguments(func, args, kwargs)
        if not self.frozen_norms or found["running_mean"] is None:
            return func(*args, **kwargs)
        return torch.nn.functional.batch_norm(**{**found, "training": False})
