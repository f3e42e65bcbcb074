"""Dropout. Source: ONNX Dropout-22.

While training it drops elements by random numbers. ONNX does not say which; those of a seed are the ones that
its reference implementation draws, the same in every run, so that the mask is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coresident.errors import InvalidModel, UnsupportedModel
from coresident.graph.composite import Body, expands
from coresident.graph.graph import Fact, Node
from coresident.graph.operator import Array, register
from coresident.graph.operators.operands import floating, optional, required

_RATIO = 0.5
"""Where the node has none."""


def _dropped(ratio: Array | None, training: Array | None) -> float:
    """The share of elements to drop; 0 in the inference form."""
    if training is None or not np.any(training):
        return 0.0
    if ratio is not None and ratio.size != 1:
        raise InvalidModel("the ratio must be one number", shape=ratio.shape)
    share = _RATIO if ratio is None else float(ratio.item())
    if not 0 <= share < 1:
        raise InvalidModel(f"a ratio of {share}; it must be in [0, 1)")
    return share


def _mask(node: Node, shape: tuple[int, ...], share: float) -> Array:
    """Which elements stay."""
    if not share:
        return np.ones(shape, bool)
    return np.random.RandomState(int(node.attributes["seed"]) & 0xFFFFFFFF).uniform(size=shape) >= share


def _infer(node: Node, facts: Sequence[Fact | None]) -> list[Fact]:
    x, ratio, training = required(facts, 0, "the data"), optional(facts, 1), optional(facts, 2)
    if training is not None and training.value is None:
        raise UnsupportedModel("whether Dropout is in training mode is computed while the network runs")
    if training is not None and np.any(training.value):
        if ratio is not None and ratio.value is None:
            raise UnsupportedModel("the ratio of Dropout in training mode is computed while the network runs")
        if _dropped(None if ratio is None else ratio.value, training.value) and "seed" not in node.attributes:
            raise UnsupportedModel("Dropout in training mode without a seed")
    return [Fact(floating(x), x.sizes), Fact(np.dtype(bool), x.sizes)]


def _reference(node: Node, arrays: Sequence[Array | None]) -> list[Array]:
    x = required(arrays, 0, "the data")
    share = _dropped(optional(arrays, 1), optional(arrays, 2))
    mask = _mask(node, x.shape, share)
    return [(x * mask * x.dtype.type(1 / (1 - share))) if share else x, mask]


@expands("Dropout")
def _training(body: Body) -> list[str] | None:
    ratio, training = (body.value(body.input(i)) for i in (1, 2))
    share, x = _dropped(ratio, training), body.inputs[0]
    if not share:
        return None
    mask = _mask(body.node, body.shape(x), share)
    scaled = body.constant(mask / (1 - share), body.dtype(x))
    return [body.add("Mul", x, scaled), body.constant(mask)]


register("Dropout", _infer, _reference, operands=[1, 2])
