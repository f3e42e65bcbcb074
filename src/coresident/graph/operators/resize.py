"""Resize: nearest, linear and cubic interpolation along each axis on its own. Source: ONNX Resize-19.

Interpolation is separable, so that it is told whole by `AxisResize`: for each output index of an axis, which
input indices weigh how much. References and kernels both read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.errors import InvalidModel
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import register
from coresident.graph.operators.conversion import converting
from coresident.graph.operators.operands import axes_in, integers, optional, required, values

Array = np.ndarray[Any, Any]

MODES = ("nearest", "linear", "cubic")
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
COORDINATE_MODES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)


@dataclass(frozen=True, eq=False)
class AxisResize:
    """How one axis is resized: output i is the sum over t of weights[i, t] * input[indices[i, t]].

    Args:
        axis: dimension of the data.
        indices: int64[output, taps], all within the input.
        weights: float32[output, taps].
        outside: bool[output], where the output is the extrapolation value.
    """

    axis: int
    indices: Array
    weights: Array
    outside: Array


@dataclass(frozen=True)
class _Scaling:
    """How one axis is scaled.

    Args:
        size: the new one.
        length: the same before it was rounded down.
        scale: asked for, or new size by old.
        start, end: the part of the input that tf_crop_and_resize looks at.
    """

    size: int
    length: np.float32
    scale: np.float32
    start: np.float32
    end: np.float32


def resize_axes(node: Node, shape: tuple[int, ...], operands: Sequence[Array | None]) -> list[AxisResize]:
    """How each axis that changes is resized.

    Args:
        node: its attributes are read.
        shape: of the data.
        operands: roi, scales, sizes; None where left out.

    Raises:
        InvalidModel: scales and sizes are both there or both left out, do not fit the data, or
            a mode does not exist.
    """
    scalings = _scalings(node, shape, operands)
    _check_modes(node)
    axes = []
    for axis, scaling in sorted(scalings.items()):
        same = scaling.size == shape[axis] and scaling.scale == 1
        if (
            not same
            or _attribute(node, "coordinate_transformation_mode", COORDINATE_MODES) == "tf_crop_and_resize"
        ):
            axes.append(_axis(node, axis, shape[axis], scaling))
    return axes


def _attribute(node: Node, name: str, allowed: Sequence[str]) -> str:
    found: str = node.get(name, allowed[0])
    if found not in allowed:
        raise InvalidModel(f"{name} {found!r} is none of {', '.join(allowed)}")
    return found


def _present(operand: Array | None) -> Array | None:
    """Resize-11 says "left out" with an empty tensor."""
    return operand if operand is not None and operand.size else None


def _check_modes(node: Node) -> None:
    _attribute(node, "mode", MODES)
    _attribute(node, "nearest_mode", NEAREST_MODES)


def _scalings(node: Node, shape: tuple[int, ...], operands: Sequence[Array | None]) -> dict[int, _Scaling]:
    roi, scales, sizes = (_present(operand) for operand in operands)
    named = axes_in(node.get("axes") or tuple(range(len(shape))), len(shape))
    if (scales is None) == (sizes is None):
        raise InvalidModel("exactly one of scales and sizes is needed", shape=shape)
    given = scales if scales is not None else sizes
    if given is None or given.shape != (len(named),):
        raise InvalidModel(
            f"scales or sizes must be [{len(named)}], one number an axis",
            shape=None if given is None else given.shape,
        )
    crop = _attribute(node, "coordinate_transformation_mode", COORDINATE_MODES) == "tf_crop_and_resize"
    if crop and (roi is None or roi.shape != (2 * len(named),)):
        raise InvalidModel(f"roi must be [{2 * len(named)}], the starts and then the ends")
    corners = np.asarray(roi, np.float32) if crop else np.repeat(np.array([0, 1], np.float32), len(named))
    starts, ends = corners[: len(named)], corners[len(named) :]
    old: Array = np.array([float(shape[a]) for a in named], dtype=np.float32)
    if scales is not None:
        factors = scales.astype(np.float32)
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise InvalidModel(f"scales {factors.tolist()} must be finite and greater than 0")
        # Runtimes multiply in float32, which may round up to a whole number.
        lengths = old * (ends - starts) * factors if crop else old * factors
        news = [int(v) for v in np.floor(lengths)]
    else:
        news, factors = _sizes(node, old, integers(given, "sizes"))
        lengths = np.asarray(news, np.float32)
    return {axis: _Scaling(*each) for axis, each in zip(named, zip(news, lengths, factors, starts, ends))}


def _sizes(node: Node, old: Array, wanted: tuple[int, ...]) -> tuple[list[int], Array]:
    if min(wanted, default=0) < 0:
        raise InvalidModel(f"sizes {wanted} must be at least 0")
    if not old.all():
        raise InvalidModel("data without elements can't be resized")
    factors = np.asarray(wanted, np.float32) / old
    policy = _attribute(node, "keep_aspect_ratio_policy", ("stretch", "not_larger", "not_smaller"))
    if policy == "stretch":
        return list(wanted), factors
    factor = factors.min() if policy == "not_larger" else factors.max()
    return [int(v) for v in np.floor(old * factor + np.float32(0.5))], np.full_like(factors, factor)


def _coordinates(mode: str, size: int, scaling: _Scaling) -> Array:
    """Where each output index lies in the input, float32[output] as runtimes reckon it: ties depend on it."""
    number = np.float32
    i, scale = np.arange(scaling.size, dtype=number), scaling.scale
    half, last, last_out = number(0.5), number(size - 1), number(scaling.size - 1)
    if mode == "align_corners":
        return i * last / (scaling.length - 1) if scaling.size > 1 else np.zeros_like(i)
    if mode == "asymmetric":
        return np.asarray(i / scale)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((i + half) / scale)
    if mode == "tf_crop_and_resize":
        if scaling.size > 1:
            return scaling.start * last + i * (scaling.end - scaling.start) * last / last_out
        return np.full_like(i, half * (scaling.start + scaling.end) * last)
    if mode == "pytorch_half_pixel" and scaling.size <= 1:
        return np.zeros_like(i)
    offset = number(0)
    if mode == "half_pixel_symmetric":
        offset = number(size) / 2 * (1 - number(scaling.size) / (scale * number(size)))
    return np.asarray(offset + (i + half) / scale - half)


def _nearest(mode: str, x: Array) -> Array:
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    return np.ceil(x - np.float32(0.5)) if mode == "round_prefer_floor" else np.floor(x + np.float32(0.5))


def _axis(node: Node, axis: int, size: int, scaling: _Scaling) -> AxisResize:
    mode = _attribute(node, "mode", MODES)
    coordinate_mode = _attribute(node, "coordinate_transformation_mode", COORDINATE_MODES)
    x = _coordinates(coordinate_mode, size, scaling)
    outside = (x < 0) | (x > size - 1)
    if coordinate_mode != "tf_crop_and_resize":
        outside = np.zeros_like(outside)
    if mode == "nearest":
        positions = _nearest(_attribute(node, "nearest_mode", NEAREST_MODES), x)[:, None]
        weights = np.ones((len(x), 1), np.float32)
    else:
        base = np.floor(x)
        share = x - base
        if node.get("antialias", 0) and scaling.scale < 1 and scaling.size:
            positions, weights = _wide(base, share, scaling.scale, mode, _sharpness(node))
        elif mode == "linear":
            positions = base[:, None] + np.arange(2, dtype=np.float32)
            weights = np.stack([1 - share, share], 1)
        else:
            positions = base[:, None] + np.arange(-1, 3, dtype=np.float32)
            weights = _cubic(share, _sharpness(node))
        if node.get("exclude_outside", 0):
            weights = np.where((positions >= 0) & (positions < size), weights, np.float32(0))
            weights = weights / weights.sum(1, keepdims=True)
    indices = np.clip(positions, 0, size - 1).astype(np.int64)
    return AxisResize(axis, indices, weights.astype(np.float32), outside)


def _sharpness(node: Node) -> np.float32:
    return np.float32(node.get("cubic_coeff_a", -0.75))


def _wide(base: Array, share: Array, scale: np.float32, mode: str, a: np.float32) -> tuple[Array, Array]:
    """Positions and weights of the kernel stretched by 1 / scale, so that each input counts (antialias)."""
    radius = np.float32(1 if mode == "linear" else 2)
    first = np.floor(-radius / scale) + 1
    steps = first + np.arange(2 * (radius - first), dtype=np.float32)
    distances = np.abs(steps - share[:, None]) * scale
    weights = np.maximum(1 - distances, 0) if mode == "linear" else _keys(distances, a)
    return base[:, None] + steps, weights / weights.sum(1, keepdims=True)


def _cubic(share: Array, a: np.float32) -> Array:
    """Weights of the four neighbours at distances 1 + s, s, 1 - s, 2 - s."""
    return _keys(np.stack([share + 1, share, 1 - share, 2 - share], 1), a)


def _keys(d: Array, a: np.float32) -> Array:
    """The weight of an input at a distance. Source: Keys 1981, equation 4."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, np.float32(0)))


OPERANDS = ("roi", "scales", "sizes")


def _infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x = required(facts, 0, "X")
    # The region is read by one mode alone; exporters leave it empty, or let it be computed.
    crop = node.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    region = values(facts, 1, OPERANDS[:1]) if crop else [None]
    operands = [*region, *values(facts, 2, OPERANDS[1:])]
    scalings = _scalings(node, x.sizes, operands)
    shape = tuple(scalings[i].size if i in scalings else size for i, size in enumerate(x.sizes))
    if min(x.sizes, default=1) == 0 and min(shape, default=1) > 0:
        raise InvalidModel("data without elements can't be resized", shape=x.shape)
    _check_modes(node)
    return [Fact(x.dtype, shape)]


@np.errstate(all="ignore")
def _reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "X")
    operands = [optional(arrays, i) for i in range(1, 4)]
    nearest = _attribute(node, "mode", MODES) == "nearest"
    y = x if nearest or x.dtype.kind == "f" else x.astype(np.float32)
    axes = resize_axes(node, x.shape, operands)
    for each in axes:
        taps = [np.take(y, each.indices[:, t], each.axis) for t in range(each.indices.shape[1])]
        if nearest:
            y = taps[0]
            continue
        column = (-1, *(1,) * (x.ndim - each.axis - 1))
        weights = each.weights.astype(y.dtype)
        y = sum((tap * weights[:, t].reshape(column) for t, tap in enumerate(taps)), np.zeros((), y.dtype))
    for each in axes:
        column = (-1, *(1,) * (x.ndim - each.axis - 1))
        y = np.where(
            each.outside.reshape(column), np.asarray(node.get("extrapolation_value", 0.0), y.dtype), y
        )
    return [np.asarray(y).astype(x.dtype)]


register("Resize", *converting(_infer, _reference), operands=[1, 2, 3])
