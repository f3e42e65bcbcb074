"""What a model computes, read off one forward pass: its products, sums and pools, and what feeds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Kind = Literal["convolution", "transposed", "linear", "add", "concat", "pool", "average", "move", "norm"]
PRODUCTS: tuple[Kind, ...] = ("convolution", "transposed", "linear")

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "convolution"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "transposed"),
    "linear": "linear",
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__"), "add"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "concat"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "upsample_nearest2d"), "pool"),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), "pool"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"), "average"),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), "average"),
    **dict.fromkeys(("interpolate", "upsample_bilinear2d"), "average"),
    **dict.fromkeys(("flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze"), "move"),
    **dict.fromkeys(("__getitem__", "slice", "chunk", "split", "pad", "contiguous", "pixel_shuffle"), "move"),
    "batch_norm": "norm",
}


@dataclass(frozen=True)
class Call:
    """One call of a function that quantisation is concerned with.

    Args:
        kind: what it does.
        name: the function's.
        operands: numbers of the values that it computes with, in order.
        results: numbers of the values that it returns.
        weight: name of the parameter that a product multiplies by; "" where it is no parameter.
    """

    kind: Kind
    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    weight: str = ""


@dataclass(frozen=True)
class Trace:
    """A forward pass: each step's values read and made, and the call where it is one of concern.

    Args:
        steps: in order: numbers of the values read, of those made, and the place in `calls` or -1.
        calls: in order.
        outputs: numbers of the values that the model returns.
    """

    steps: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]
    calls: tuple[Call, ...]
    outputs: tuple[int, ...]


def kind_of(function: Callable[..., Any]) -> tuple[Kind | None, str]:
    """What a function does, and its name; None where quantisation is not concerned with it."""
    name = str(getattr(function, "__name__", "")).split(".")[0]
    plain = name if name.startswith("__") else name.rstrip("_").removeprefix("_")
    return _KINDS.get(plain), plain


def in_place(function: Callable[..., Any]) -> bool:
    """Whether a sum is written to its first operand."""
    name = str(getattr(function, "__name__", "")).split(".")[0]
    return name == "__iadd__" or (name.endswith("_") and not name.endswith("__"))


def operands_of(kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The tensors that a call computes with; none where it is not one that bytes can be put into."""
    first = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
    if kind == "concat":
        parts = tuple(first) if isinstance(first, list | tuple) else ()
        return parts if parts and all(_activation(part) for part in parts) else ()
    if kind == "add":
        second = args[1] if len(args) > 1 else kwargs.get("other")
        plain = kwargs.get("alpha", 1) == 1 and len(args) < 3
        return (first, second) if plain and _activation(first) and _activation(second) else ()
    return (first,) if _activation(first) else ()


def _activation(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and not isinstance(value, nn.Parameter)
        and value.is_floating_point()
        and value.ndim >= 2
    )


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    return []


def nearest(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call named `interpolate` repeats pixels, so that no new levels arise."""
    mode = kwargs.get("mode", args[3] if len(args) > 3 else "nearest")
    return name == "interpolate" and mode == "nearest"


def norm_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a batch normalisation by name, of `functional.batch_norm` or `torch.batch_norm`."""
    heads = ("running_mean", "running_var", "weight", "bias")
    if function is not functional.batch_norm:
        heads = ("weight", "bias", "running_mean", "running_var")
    names = ("input", *heads, "training", "momentum", "eps")
    return {"training": False, "momentum": 0.1, "eps": 1e-5, "weight": None, "bias": None} | {
        **dict(zip(names, args)),
        **{name: value for name, value in kwargs.items() if name in names},
    }


@dataclass
class _Numbers:
    """Numbers of tensors; one written in place is another value afterwards."""

    known: dict[tuple[int, int], int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def of(self, tensor: Tensor) -> int:
        key = (id(tensor), tensor._version)
        if key not in self.known:
            self.known[key] = len(self.known)
            self.alive.append(tensor)  # or another could get its id
        return self.known[key]


class _Recorder(TorchFunctionMode):
    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.numbers = _Numbers()
        self.calls: list[Call] = []
        self.steps: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind, name = kind_of(func)
        if kind == "average" and nearest(name, args, kwargs):
            kind = "pool"
        operands = operands_of(kind, args, kwargs) if kind else ()
        read = [self.numbers.of(tensor) for tensor in tensors_in([list(args), dict(kwargs)])]
        numbers = tuple(self.numbers.of(tensor) for tensor in operands)
        result = func(*args, **kwargs)
        made = tuple(self.numbers.of(tensor) for tensor in tensors_in(result))
        if not made:
            return result
        place = -1
        if kind and operands:
            place = len(self.calls)
            weight = weight_of(args, kwargs) if kind in PRODUCTS else None
            self.calls.append(Call(kind, name, numbers, made, self.names.get(id(weight), "")))
        self.steps.append((tuple(read), made, place))
        return result


def weight_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a product multiplies by."""
    return args[1] if len(args) > 1 else kwargs.get("weight")


@torch.no_grad()
def record(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Trace:
    """Run a model once as for inference, and return what it computed; statistics of norms stay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _Recorder(names) as recorder:
            outputs = model(*inputs, **(keywords or {}))
    finally:
        for module, training in modes.items():
            module.training = training
    made = tuple(recorder.numbers.of(tensor) for tensor in tensors_in(outputs))
    return Trace(tuple(recorder.steps), tuple(recorder.calls), made)
