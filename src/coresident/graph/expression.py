"""Element-wise arithmetic as data: one definition of each operator serves numpy and the code generator.

`ELEMENTWISE[name](m, x, ..., **attributes)` writes the operator in terms of a `Math`, of which there are
two: numpy's
(`graph/numpy_math.py`) and the code builder's (`codegen/math.py`). An `Expression` chains such operators;
fusion makes them, kernels evaluate them on what they hold in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Math(Protocol):
    """What an element-wise operator may use beside + - * / & | ^ and comparisons (< <= > >=)."""

    def constant(self, value: float, like: Any) -> Any: ...
    def maximum(self, a: Any, b: Any) -> Any: ...
    def minimum(self, a: Any, b: Any) -> Any: ...
    def equal(self, a: Any, b: Any) -> Any: ...
    def invert(self, a: Any) -> Any: ...
    def where(self, condition: Any, a: Any, b: Any) -> Any: ...
    def is_nan(self, a: Any) -> Any: ...
    def absolute(self, a: Any) -> Any: ...
    def sqrt(self, a: Any) -> Any: ...
    def floor(self, a: Any) -> Any: ...
    def ceil(self, a: Any) -> Any: ...
    def round_even(self, a: Any) -> Any: ...
    def exp(self, a: Any) -> Any: ...
    def log(self, a: Any) -> Any: ...
    def sin(self, a: Any) -> Any: ...
    def cos(self, a: Any) -> Any: ...
    def tanh(self, a: Any) -> Any: ...
    def sigmoid(self, a: Any) -> Any: ...
    def erf(self, a: Any) -> Any: ...
    def power(self, a: Any, b: Any) -> Any: ...
    def modulo(self, a: Any, b: Any, fmod: bool) -> Any: ...
    def divide(self, a: Any, b: Any) -> Any: ...
    def cast(self, a: Any, dtype: str) -> Any: ...
    def quantize(self, a: Any, scale: Any, zero_point: Any) -> Any: ...
    def dequantize(self, a: Any, scale: Any, zero_point: Any) -> Any: ...


@dataclass(frozen=True)
class Apply:
    """One operator applied: `arguments` index the expression's inputs, then earlier steps."""

    op: str
    arguments: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Expression:
    """A straight-line element-wise program; its result is the last step (or input 0 if there is none).

    Args:
        inputs: how many values it reads.
        steps: in order.
    """

    inputs: int
    steps: tuple[Apply, ...] = ()

    def evaluate(self, math: Math, values: Sequence[Any]) -> Any:
        """The result for these inputs, in the arithmetic of `math`."""
        known = list(values)
        for step in self.steps:
            arguments = [known[i] for i in step.arguments]
            known.append(ELEMENTWISE[step.op](math, *arguments, **dict(step.attributes)))
        return known[-1] if self.steps else known[0]

    def then(self, step: Apply, extra: int = 0) -> Expression:
        """This expression, `extra` inputs more, and one more step.

        The step's arguments count the old inputs and steps as before, with -1, -2, ... for the first,
        second, ... of the new inputs.
        """

        def place(i: int, old_inputs: int = self.inputs) -> int:
            if i < 0:
                return old_inputs + (-i - 1)
            return i if i < old_inputs else i + extra

        steps = tuple(Apply(s.op, tuple(place(i) for i in s.arguments), s.attributes) for s in self.steps)
        last = Apply(step.op, tuple(place(i) for i in step.arguments), step.attributes)
        return Expression(self.inputs + extra, (*steps, last))

    @property
    def result(self) -> int:
        """The index of the result, as a later step would name it."""
        return self.inputs + len(self.steps) - 1 if self.steps else 0

    def __str__(self) -> str:
        return " ".join(step.op for step in self.steps)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Identity": lambda m, x: x,
    "Add": lambda m, a, b: a + b,
    "Sub": lambda m, a, b: a - b,
    "Mul": lambda m, a, b: a * b,
    "Div": lambda m, a, b: m.divide(a, b),
    "Neg": lambda m, x: -x,
    "Abs": lambda m, x: m.absolute(x),
    "Sqrt": lambda m, x: m.sqrt(x),
    "Reciprocal": lambda m, x: m.divide(m.constant(1, x), x),
    "Floor": lambda m, x: m.floor(x),
    "Ceil": lambda m, x: m.ceil(x),
    "Round": lambda m, x: m.round_even(x),
    "Sign": lambda m, x: m.where(
        x > 0, m.constant(1, x), m.where(x < 0, m.constant(-1, x), m.constant(0, x) * x)
    ),
    "Exp": lambda m, x: m.exp(x),
    "Log": lambda m, x: m.log(x),
    "Sin": lambda m, x: m.sin(x),
    "Cos": lambda m, x: m.cos(x),
    "Tanh": lambda m, x: m.tanh(x),
    "Sigmoid": lambda m, x: m.sigmoid(x),
    "Erf": lambda m, x: m.erf(x),
    "Pow": lambda m, a, b: m.power(a, b),
    "Mod": lambda m, a, b, fmod=0: m.modulo(a, b, bool(fmod)),
    "Max": lambda m, a, b: m.where(m.is_nan(b), b, m.maximum(a, b)),
    "Min": lambda m, a, b: m.where(m.is_nan(b), b, m.minimum(a, b)),
    "Relu": lambda m, x: m.maximum(x, m.constant(0, x)),
    "Clip": lambda m, x, low=None, high=None: _clip(m, x, low, high),
    "LeakyRelu": lambda m, x, alpha=0.01: m.where(x < 0, x * m.constant(alpha, x), x),
    "PRelu": lambda m, x, slope: m.where(x < 0, x * slope, x),
    "ThresholdedRelu": lambda m, x, alpha=1.0: m.where(x > m.constant(alpha, x), x, m.constant(0, x)),
    "Elu": lambda m, x, alpha=1.0: m.where(x < 0, m.constant(alpha, x) * (m.exp(x) - m.constant(1, x)), x),
    "Celu": lambda m, x, alpha=1.0: (
        m.maximum(x, m.constant(0, x))
        + m.minimum(
            m.constant(alpha, x) * (m.exp(x / m.constant(alpha, x)) - m.constant(1, x)), m.constant(0, x)
        )
    ),
    "Selu": lambda m, x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: (
        m.constant(gamma, x) * m.where(x > 0, x, m.constant(alpha, x) * (m.exp(x) - m.constant(1, x)))
    ),
    "Softplus": lambda m, x: (
        m.maximum(x, m.constant(0, x)) + m.log(m.constant(1, x) + m.exp(m.minimum(x, -x)))
    ),
    "Softsign": lambda m, x: x / (m.constant(1, x) + m.absolute(x)),
    "HardSigmoid": lambda m, x, alpha=0.2, beta=0.5: _clip(
        m, x * m.constant(alpha, x) + m.constant(beta, x), m.constant(0, x), m.constant(1, x)
    ),
    "HardSwish": lambda m, x: (
        x * _clip(m, x * m.constant(1 / 6, x) + m.constant(0.5, x), m.constant(0, x), m.constant(1, x))
    ),
    "Swish": lambda m, x, alpha=1.0: x * m.sigmoid(x if alpha == 1.0 else x * m.constant(alpha, x)),
    "Mish": lambda m, x: (
        x * m.tanh(m.maximum(x, m.constant(0, x)) + m.log(m.constant(1, x) + m.exp(m.minimum(x, -x))))
    ),
    "Gelu": lambda m, x, approximate="none": _gelu(m, x, approximate),
    "Where": lambda m, c, a, b: m.where(c, a, b),
    "Equal": lambda m, a, b: m.equal(a, b),
    "Less": lambda m, a, b: a < b,
    "LessOrEqual": lambda m, a, b: a <= b,
    "Greater": lambda m, a, b: a > b,
    "GreaterOrEqual": lambda m, a, b: a >= b,
    "And": lambda m, a, b: a & b,
    "Or": lambda m, a, b: a | b,
    "Xor": lambda m, a, b: a ^ b,
    "Not": lambda m, a: m.invert(a),
    "IsNaN": lambda m, x: m.is_nan(x),
    "Cast": lambda m, x, to="float32": m.cast(x, to),
    "QuantizeLinear": lambda m, x, scale, zero_point: m.quantize(x, scale, zero_point),
    "DequantizeLinear": lambda m, x, scale, zero_point: m.dequantize(x, scale, zero_point),
}
"""Name -> the operator, written in terms of a `Math`. A new element-wise operator is one line here."""

COMPARISONS = frozenset(
    ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "And", "Or", "Xor", "Not")
)
"""Those whose result is bool."""


def _clip(m: Math, x: Any, low: Any, high: Any) -> Any:
    x = x if low is None else m.maximum(x, low)
    return x if high is None else m.minimum(x, high)


def _gelu(m: Math, x: Any, approximate: str) -> Any:
    half, one = m.constant(0.5, x), m.constant(1, x)
    if approximate == "tanh":
        inner = m.constant(0.7978845608028654, x) * (x + m.constant(0.044715, x) * x * x * x)
        return half * x * (one + m.tanh(inner))
    return half * x * (one + m.erf(x * m.constant(0.7071067811865476, x)))
