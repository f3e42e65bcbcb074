"""The forms that a layer can take, and how long the layers of a network take in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

DType = Literal["float32", "int8"]
Pattern = Literal["dense", "unstructured", "4block"]


@dataclass(frozen=True, order=True)
class Form:
    """How a layer's weights are kept.

    Args:
        dtype: of the products.
        pattern: where zeros may stand: nowhere, anywhere, or in blocks of four neighbouring input channels.
        sparsity: share of the weights that are zero, 0 for "dense".
    """

    dtype: DType
    pattern: Pattern = "dense"
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DType) or self.pattern not in get_args(Pattern):
            raise ValueError(f"no such form: {self.dtype} {self.pattern}")
        if not 0 <= self.sparsity < 1 or (self.pattern == "dense") != (self.sparsity == 0):
            raise ValueError(f"no such form: {self.pattern} with {self.sparsity} of the weights zero")

    @property
    def dense(self) -> Form:
        """The form of the same products without zeros."""
        return Form(self.dtype)

    def __str__(self) -> str:
        zeros = f"{100 * self.sparsity:.4g} % " if self.sparsity else ""
        return f"{self.dtype} {zeros}{self.pattern}"


FLOAT_DENSE = Form("float32")
INT8_DENSE = Form("int8")


@dataclass(frozen=True)
class Timings:
    """Seconds of a network's parts on one machine; they sum up to a call's latency.

    Args:
        layers: of each prunable layer in each form, never more than in one with fewer zeros and else alike.
        rest: of everything else: with all layers in float32, and with any in int8.
        measured: whole calls with all layers in one form, as they were timed.
    """

    layers: Mapping[str, Mapping[Form, float]]
    rest: Mapping[DType, float]
    measured: Mapping[Form, float]

    def rest_of(self, choice: Mapping[str, Form]) -> float:
        """Seconds of what is no prunable layer."""
        return self.rest["int8" if any(form.dtype == "int8" for form in choice.values()) else "float32"]

    def total(self, choice: Mapping[str, Form]) -> float:
        """Expected seconds of a call.

        Args:
            choice: the form of each prunable layer.
        """
        return self.rest_of(choice) + sum(self.layers[name][form] for name, form in choice.items())
