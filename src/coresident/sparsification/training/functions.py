"""Operators of the portable graph as PyTorch computes them, with gradients.

Element-wise operators need no line here: they come from their definitions (`graph.expression`), in
PyTorch's arithmetic. Nor do those that only move data: where they move an index tells how (`_moved`).
Geometry comes from the operators' own files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coresident.graph.expression import ELEMENTWISE
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import Array, operator
from coresident.graph.operators.elementwise import VARIADIC, attributes_of
from coresident.graph.operators.operands import axis_in
from coresident.graph.operators.pooling import average_counts, pool_geometry
from coresident.graph.operators.reduction import reduced_axes
from coresident.graph.operators.resize import resize_axes
from coresident.graph.operators.windows import TransposedWindow, Window
from coresident.sparsification.training.torch_math import TorchMath


@dataclass(frozen=True)
class Call:
    """One node, at one set of sizes.

    Args:
        node: of a prepared graph.
        facts: of its inputs, None for one left out; those of constants hold their values.
        results: facts of its outputs.
        kept: what is worked out once for all runs.
    """

    node: Node
    facts: Sequence[Fact | None]
    results: Sequence[Fact]
    kept: dict[str, Any] = field(default_factory=dict)

    def constant(self, index: int) -> Array | None:
        """The value of an input that is constant; None for one left out."""
        fact = self.facts[index] if index < len(self.facts) else None
        return None if fact is None else fact.value

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first run."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


Function = Callable[[Call, Sequence[Any]], Any]
"""From the inputs, tensors or None, to the output, or a sequence of all of them."""


def elementwise(call: Call, inputs: Sequence[Any]) -> Tensor:
    """An operator of `ELEMENTWISE`."""
    function, math = ELEMENTWISE[call.node.op], TorchMath()
    if call.node.op in VARIADIC:
        folded: Tensor = reduce(lambda a, b: function(math, a, b), inputs)
        return folded
    result: Tensor = function(math, *inputs, **attributes_of(call.node))
    return result


def _clip(call: Call, inputs: Sequence[Any]) -> Tensor:
    bounds = [None if b is None else b.reshape(()) for b in (*inputs[1:3], None, None)[:2]]
    return inputs[0] if bounds == [None, None] else torch.clamp(inputs[0], *bounds)


def _selu(call: Call, inputs: Sequence[Any]) -> Tensor:
    values = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
    values |= attributes_of(call.node)
    return functional.elu(inputs[0], values["alpha"]) * values["gamma"]


def _sum(call: Call, inputs: Sequence[Any]) -> Tensor:
    total: Tensor = reduce(torch.add, inputs)
    return total / len(inputs) if call.node.op == "Mean" else total


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_LARGEST = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def _around(x: Tensor, begin: Sequence[int], end: Sequence[int], fill: float = 0.0) -> Tensor:
    """x [N, C, spatial...] with elements around it; where there are fewer than none, without some."""
    widths = [width for pair in reversed(list(zip(begin, end))) for width in pair]
    return functional.pad(x, widths, value=fill) if any(widths) else x


def _reached(x: Tensor, window: Window, output: Sequence[int], fill: float = 0.0) -> Tensor:
    """What the windows reach of x and of the padding around it."""
    ends = [
        (count - 1) * stride + extent - begin - size
        for size, begin, extent, stride, count in zip(
            x.shape[2:], window.pads_begin, window.extent, window.strides, output
        )
    ]
    return _around(x, window.pads_begin, ends, fill)


def _convolution(call: Call, inputs: Sequence[Any]) -> Tensor:
    x, w, b = (*inputs, None)[:3]
    window = Window.of(call.node, x.shape[2:], w.shape[2:])
    padding = window.pads_begin
    if window.pads_begin != window.pads_end:
        x, padding = _around(x, window.pads_begin, window.pads_end), (0,) * len(window.kernel)
    convolve = _CONVOLUTIONS[len(window.kernel) - 1]
    groups = int(call.node.get("group", 1))
    result: Tensor = convolve(x, w, b, window.strides, padding, window.dilations, groups)
    return result


def _transposed(call: Call, inputs: Sequence[Any]) -> Tensor:
    x, w, b = (*inputs, None)[:3]
    window = TransposedWindow.of(call.node, x.shape[2:], w.shape[2:])
    convolve = _TRANSPOSED[len(window.kernel) - 1]
    full = convolve(
        x, w, stride=window.strides, groups=int(call.node.get("group", 1)), dilation=window.dilations
    )
    # PyTorch's own padding can't cut more at one end than at the other.
    ends = [o + p - size for o, p, size in zip(window.output, window.pads_begin, full.shape[2:])]
    cut = _around(full, [-p for p in window.pads_begin], ends)
    return cut if b is None else cut + b.reshape(-1, *(1,) * len(window.kernel))


def _max_pool(call: Call, inputs: Sequence[Any]) -> Tensor:
    (x,) = inputs
    window, output = pool_geometry(call.node, x.shape[2:])
    padded = _reached(x, window, output, -torch.inf)
    pool = _LARGEST[len(window.kernel) - 1]
    result: Tensor = pool(padded, window.kernel, window.strides, 0, window.dilations)
    return result


def _average_pool(call: Call, inputs: Sequence[Any]) -> Tensor:
    (x,) = inputs
    window, output = pool_geometry(call.node, x.shape[2:])
    padded: Any = _reached(x, window, output)
    taps = (window.tap(padded, place, output) for place in product(*(range(k) for k in window.kernel)))
    total: Any = reduce(torch.add, taps)  # `tap` slices tensors as it does arrays
    for d, counts in enumerate(average_counts(call.node, window, x.shape[2:], output)):
        total = total / torch.from_numpy(counts).to(total.dtype).reshape(-1, *(1,) * (len(output) - d - 1))
    return torch.as_tensor(total)


def _over_plane(call: Call, inputs: Sequence[Any]) -> Tensor:
    axes = tuple(range(2, inputs[0].ndim))
    reduction = torch.mean if call.node.op == "GlobalAveragePool" else torch.amax
    return reduction(inputs[0], axes, keepdim=True)


def _gemm(call: Call, inputs: Sequence[Any]) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    node = call.node
    product = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    product = product * node.get("alpha", 1.0)
    return product if c is None else product + c * node.get("beta", 1.0)


def _split(call: Call, inputs: Sequence[Any]) -> Sequence[Tensor]:
    axis = axis_in(int(call.node.get("axis", 0)), inputs[0].ndim)
    parts: Sequence[Tensor] = torch.split(inputs[0], [fact.sizes[axis] for fact in call.results], axis)
    return parts


def _transpose(call: Call, inputs: Sequence[Any]) -> Tensor:
    order = call.node.get("perm") or tuple(reversed(range(inputs[0].ndim)))
    result: Tensor = inputs[0].permute(*order)
    return result


def _moved(call: Call, inputs: Sequence[Any]) -> Tensor:
    """Of an operator that only moves what its first input holds, or fills in one number."""

    def places() -> Tensor:
        fact = call.facts[0]
        assert fact is not None
        numbers = np.arange(1, prod(fact.sizes) + 1).reshape(fact.sizes)
        arrays = [numbers, *(call.constant(i) for i in range(1, len(call.facts)))]
        if call.node.op == "Pad" and len(arrays) > 2 and arrays[2] is not None:
            arrays[2] = np.zeros_like(arrays[2], np.int64)
        (found,) = operator(call.node).reference(call.node, arrays)
        return torch.from_numpy(np.ascontiguousarray(found))

    filled = call.constant(2) if call.node.op == "Pad" else None
    fill = inputs[0].new_full((1,), 0.0 if filled is None else float(filled.reshape(())))
    result: Tensor = torch.cat([fill, inputs[0].reshape(-1)])[call.once("places", places)]
    return result


def _resize(call: Call, inputs: Sequence[Any]) -> Tensor:
    x: Tensor = inputs[0]
    axes = call.once(
        "axes", lambda: resize_axes(call.node, tuple(x.shape), [call.constant(i) for i in range(1, 4)])
    )
    y = x
    for each in axes:
        column = (-1, *(1,) * (x.ndim - each.axis - 1))
        weights = torch.from_numpy(each.weights).to(y.dtype)
        taps = [
            y.index_select(each.axis, torch.from_numpy(indices)) * weights[:, t].reshape(column)
            for t, indices in enumerate(each.indices.T.copy())
        ]
        y = reduce(torch.add, taps)
    for each in axes:
        column = (-1, *(1,) * (x.ndim - each.axis - 1))
        outside = torch.from_numpy(each.outside).reshape(column)
        y = torch.where(outside, y.new_tensor(call.node.get("extrapolation_value", 0.0)), y)
    return y


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True),
    "ReduceMean": lambda x, axes: x.mean(axes, keepdim=True),
    "ReduceMax": lambda x, axes: x.amax(axes, keepdim=True),
    "ReduceMin": lambda x, axes: x.amin(axes, keepdim=True),
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: torch.linalg.vector_norm(x, dim=axes, keepdim=True),
    "ReduceSumSquare": lambda x, axes: x.square().sum(axes, keepdim=True),
    "ReduceLogSumExp": lambda x, axes: x.logsumexp(axes, keepdim=True),
}


def _reduce(call: Call, inputs: Sequence[Any]) -> Tensor:
    x: Tensor = inputs[0]
    axes = reduced_axes(call.node, x.ndim, call.constant(1))
    y = _REDUCTIONS[call.node.op](x, axes) if axes else x
    return y.reshape(call.results[0].sizes)


def _batch_norm(call: Call, inputs: Sequence[Any]) -> Tensor:
    x, scale, b, mean, variance = inputs[:5]
    return functional.batch_norm(x, mean, variance, scale, b, False, 0.0, call.node.get("epsilon", 1e-5))


def _group_norm(call: Call, inputs: Sequence[Any]) -> Tensor:
    x, scale, b = inputs
    groups = int(call.node.get("num_groups", x.shape[1]))
    scale, b = (one.repeat_interleave(x.shape[1] // one.numel()) for one in (scale, b))
    return functional.group_norm(x, groups, scale, b, call.node.get("epsilon", 1e-5))


def _layer_norm(call: Call, inputs: Sequence[Any]) -> Sequence[Tensor]:
    x, scale, b = (*inputs, None)[:3]
    axis, epsilon = axis_in(int(call.node.get("axis", -1)), x.ndim), call.node.get("epsilon", 1e-5)
    if call.node.op == "RMSNormalization":
        axes = tuple(range(axis, x.ndim))
        y = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
    else:
        y = functional.layer_norm(x, x.shape[axis:], eps=epsilon)
    return (y * scale if b is None else y * scale + b,)


FUNCTIONS: dict[str, Function] = {
    "Relu": lambda call, inputs: torch.relu(inputs[0]),
    # As they are defined they compute, beside what is wanted, a power that may be infinite: its gradient,
    # infinity times 0, is not a number.
    "Elu": lambda call, inputs: functional.elu(inputs[0], call.node.get("alpha", 1.0)),
    "Celu": lambda call, inputs: functional.celu(inputs[0], call.node.get("alpha", 1.0)),
    "Selu": _selu,
    "Clip": _clip,
    "Sum": _sum,
    "Mean": _sum,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": lambda call, inputs: inputs[0] @ inputs[1],
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _over_plane,
    "GlobalMaxPool": _over_plane,
    "Concat": lambda call, inputs: torch.cat(list(inputs), int(call.node.get("axis", 0))),
    "Split": _split,
    "Transpose": _transpose,
    "Resize": _resize,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _group_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Softmax": lambda call, inputs: torch.softmax(inputs[0], int(call.node.get("axis", -1))),
    "LogSoftmax": lambda call, inputs: torch.log_softmax(inputs[0], int(call.node.get("axis", -1))),
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        lambda call, inputs: inputs[0].reshape(call.results[0].sizes),
    ),
    **dict.fromkeys(
        ("Slice", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Gather", "GatherElements"), _moved
    ),
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
"""By operator: those of `ELEMENTWISE` that are not here are computed as they are defined."""

_CONSTANT = {"Gather": (1,), "GatherElements": (1,), "Pad": (2,)}
"""Inputs that are to be constant here, beside operands."""


def has_gradient(call: Call) -> bool:
    """Whether a node can be computed here: its operator is known, in as many dimensions and with as many
    outputs, and what says how to move is constant."""
    node = call.node
    if node.op not in FUNCTIONS:
        return node.op in ELEMENTWISE and node.op not in ("QuantizeLinear", "DequantizeLinear")
    if node.op != "Split" and any(node.outputs[1:]):
        return False
    if node.op in ("Conv", "ConvTranspose", "MaxPool"):
        fact = call.facts[0]
        if fact is None or not 3 <= len(fact.shape) <= 5:
            return False
    operands = (*operator(node).operands, *_CONSTANT.get(node.op, ()))
    return all(
        index >= len(call.facts) or call.facts[index] is None or call.constant(index) is not None
        for index in operands
    )
