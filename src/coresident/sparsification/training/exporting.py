"""Writes a trained model as ONNX: norms folded, weights as bytes, roundings as QuantizeLinear pairs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coresident.sparsification.training.calls import kind_of, norm_arguments, weight_of
from coresident.sparsification.training.placement import Plan
from coresident.sparsification.training.quantisation import Rewriting, _placed
from coresident.sparsification.training.rounding import LEVELS, Range, weight_scales

OPSET = 17
Tail = Callable[[Any], Any]


@dataclass(frozen=True)
class _Product:
    """A product as it is written: its weight and bias with the norm behind it folded in."""

    weight: Tensor
    bias: Tensor | None
    axis: int


class _Rounded(torch.autograd.Function):
    """QuantizeLinear to uint8 and DequantizeLinear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero: int) -> Tensor:
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LEVELS)
        return rounded

    @staticmethod
    def symbolic(g: Any, x: Any, scale: float, zero: int) -> Any:
        step = g.op("Constant", value_t=torch.tensor(scale, dtype=torch.float32))
        point = g.op("Constant", value_t=torch.tensor(zero, dtype=torch.uint8))
        made = g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, point), step, point)
        made.setType(x.type())
        return made


class _Dequantised(torch.autograd.Function):
    """DequantizeLinear of constant integers with a scale a channel."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, scales: Tensor, axis: int) -> Tensor:
        sizes = [1] * numbers.ndim
        sizes[axis] = -1
        return numbers.float() * scales.reshape(sizes)

    @staticmethod
    def symbolic(g: Any, numbers: Any, scales: Any, axis: int) -> Any:
        dtype = torch.int8 if numbers.type().scalarType() == "Char" else torch.int32
        count = scales.type().sizes()[0]
        zeros = g.op("Constant", value_t=torch.zeros(count, dtype=dtype))
        made = g.op("DequantizeLinear", numbers, scales, zeros, axis_i=axis)
        made.setType(numbers.type().with_dtype(torch.float32))
        return made


class _Collecting(Rewriting):
    """Reads off what every product multiplies by and adds, with the norms folded in."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.products: dict[int, _Product] = {}

    def activation(self, x: Tensor, number: int) -> Tensor:
        return x

    def weight(self, place: int, kind: str, weight: Tensor, kwargs: Any, args: Any) -> Tensor:
        return weight

    def product(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.plan.calls[place][2]:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            axis = 1 if kind_of(func)[0] == "transposed" else 0
            self.products[place] = _Product(weight_of(args, kwargs), bias, axis)
        return func(*args, **kwargs)

    def norm(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        maker = self.plan.folded.get(place)
        found = norm_arguments(func, args, kwargs)
        if maker is not None and foldable(self.products[maker], found):
            self.products[maker] = _with_norm(self.products[maker], found)
        return func(*args, **kwargs)


def foldable(product: _Product, norm: Mapping[str, Any]) -> bool:
    """Whether a norm has statistics, and one channel for each output channel of the weight's axis."""
    mean = norm["running_mean"]
    return mean is not None and mean.numel() == product.weight.shape[product.axis]


def _with_norm(product: _Product, norm: Mapping[str, Any]) -> _Product:
    mean, variance = norm["running_mean"].double(), norm["running_var"].double()
    factor = torch.rsqrt(variance + norm["eps"])
    if norm["weight"] is not None:
        factor = factor * norm["weight"].double()
    bias = -mean if product.bias is None else product.bias.double() - mean
    bias = bias * factor
    if norm["bias"] is not None:
        bias = bias + norm["bias"].double()
    sizes = [1] * product.weight.ndim
    sizes[product.axis] = -1
    # A negative factor makes zeros negative: + 0.0 makes them positive again.
    weight = product.weight.double() * factor.reshape(sizes) + 0.0
    return _Product(weight.float(), bias.float(), product.axis)


@dataclass(frozen=True)
class _Integers:
    """A product's weight and bias as integers, each with its scales; the bias is None where it has none."""

    weight: tuple[Tensor, Tensor]
    bias: tuple[Tensor, Tensor] | None


def _integers(product: _Product, step: float, bits: int) -> _Integers:
    limit = 2 ** (bits - 1) - 1
    scales = weight_scales(product.weight, product.axis, bits)
    sizes = [1] * product.weight.ndim
    sizes[product.axis] = -1
    weight = (product.weight.float() / scales.reshape(sizes)).round().clamp(-limit, limit).to(torch.int8)
    if product.bias is None or product.bias.numel() != len(scales):
        return _Integers((weight, scales), None)
    steps = scales * step
    bias = (product.bias.double() / steps.double()).round().clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)
    return _Integers((weight, scales), (bias, steps))


class _Writing(Rewriting):
    """The pass that the exporter follows: constants are what it finds, norms that are folded are gone."""

    def __init__(
        self,
        plan: Plan,
        ranges: Sequence[Range],
        products: Mapping[int, _Product],
        integers: Mapping[int, _Integers],
    ) -> None:
        super().__init__(plan)
        self.ranges, self.products, self.integers = ranges, products, integers

    def activation(self, x: Tensor, number: int) -> Tensor:
        rounded: Tensor = _Rounded.apply(x, *self.ranges[number].scale())
        return rounded

    def weight(self, place: int, kind: str, weight: Tensor, kwargs: Any, args: Any) -> Tensor:
        return weight

    def product(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        product = self.products.get(place)
        if product is None:
            return func(*args, **kwargs)
        weight, bias = product.weight, product.bias
        if place in self.integers:
            numbers = self.integers[place]
            weight = _Dequantised.apply(*numbers.weight, product.axis)
            bias = bias if numbers.bias is None else _Dequantised.apply(*numbers.bias, 0)
        args, kwargs = _placed(args, kwargs, 1, "weight", weight)
        if product.bias is not None:
            args, kwargs = _placed(args, kwargs, 2, "bias", bias)
        return func(*args, **kwargs)

    def norm(self, place: int, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        maker = self.plan.folded.get(place)
        found = norm_arguments(func, args, kwargs)
        if (
            maker is not None
            and self.products[maker].bias is not None
            and foldable(self.products[maker], found)
        ):
            return found["input"]
        return func(*args, **kwargs)


class _Written(nn.Module):
    def __init__(self, model: nn.Module, tail: Tail | None, make: Callable[[], Rewriting]) -> None:
        super().__init__()
        self.model, self.tail, self.make = model, tail, make

    def forward(self, *inputs: Any) -> Any:
        with self.make():
            outputs = self.model(*inputs)
        return outputs if self.tail is None else self.tail(outputs)


@torch.no_grad()
def onnx_bytes(
    model: nn.Module,
    inputs: Sequence[Tensor],
    plan: Plan,
    ranges: Sequence[Range],
    *,
    bits: int = 8,
    tail: Tail | None = None,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """The ONNX file of a model, as it computes in inference.

    Args:
        model: with its weights; its modes and weights are as before afterwards.
        inputs: examples, on the CPU.
        plan: from a trace of the same model.
        ranges: of activations, one for each number in the plan.
        bits: of weights where the plan quantises.
        tail: applied to what the model returns, such as `torch.sigmoid`.
        input_names, output_names, dynamic_axes: as `torch.onnx.export` has them.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _Collecting(plan) as collected:
            model(*inputs)
        products = collected.products
        integers = {
            place: _integers(product, ranges[plan.ranges[place][0]].scale()[0], bits)
            for place, product in products.items()
            if plan.quantised[place]
        }
        written = _Written(model, tail, lambda: _Writing(plan, ranges, products, integers)).eval()
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecation, and of every size that the trace fixes
            torch.onnx.export(
                written,
                tuple(inputs),
                stream,
                dynamo=False,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_axes={name: dict(axes) for name, axes in (dynamic_axes or {}).items()},
            )
    finally:
        for module, training in modes.items():
            module.training = training
    return stream.getvalue()
