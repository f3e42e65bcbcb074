"""What is asked of `sparsify`: a target, and how to go about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from coresident.errors import InputError

Pattern = Literal["auto", "unstructured", "4block"]
Quantise = Literal["auto", "int8", "none"]
Effort = Literal["fast", "default", "max"]
TARGETS = ("target_speedup", "latency_ms", "sparsity", "max_drop")
SPEEDUP = 2.0
"""The target where none is named."""


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Args:
        target_speedup: times as fast as the dense float32 network in this engine.
        latency_ms: milliseconds of a call.
        sparsity: share of the prunable weights that are to be zero.
        max_drop: share of the pictures (for segmenters and detectors, of the agreement) that may come out
            otherwise than with the dense network, or of the accuracy lost where there are labels.
        pattern: of the zeros; auto takes the one with the smaller loss at the target.
        quantize: to bytes or not; auto decides with the pattern.
        effort: how much time goes into selection and search; max trains the result to imitate the dense
            network, too, where PyTorch is installed.
        budget: seconds for everything; optional stages are left out when they would not fit.
        skip: names of layers that stay as they are; "re:..." is a regular expression.
        threads: that it is to be fast on, None for the physical cores of this process.
        seed: of everything random.
        task: what the outputs mean (`agreement.TASKS`); None looks at their shapes.

    Raises:
        InputError: contradictory or out of bounds; says what is accepted.
    """

    target_speedup: float | None = None
    latency_ms: float | None = None
    sparsity: float | None = None
    max_drop: float | None = None
    pattern: Pattern = "auto"
    quantize: Quantise = "auto"
    effort: Effort = "default"
    budget: float | None = None
    skip: tuple[str, ...] = ()
    threads: int | None = None
    seed: int = 0
    task: str | None = None

    def __post_init__(self) -> None:
        named = [name for name in TARGETS if getattr(self, name) is not None]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)}: only one target can be asked")
        _bounded("target_speedup", self.target_speedup, 1.0, 1000.0)
        _bounded("latency_ms", self.latency_ms, 1e-3, 1e6)
        _bounded("sparsity", self.sparsity, 0.0, 0.99)
        _bounded("max_drop", self.max_drop, 0.0, 1.0)
        _bounded("budget", self.budget, 1.0, 30 * 86400.0)
        _one_of("pattern", self.pattern, get_args(Pattern))
        _one_of("quantize", self.quantize, get_args(Quantise))
        _one_of("effort", self.effort, get_args(Effort))
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}; at least 1 is needed")

    @property
    def target(self) -> tuple[str, float]:
        """Which target, and its value."""
        for name in TARGETS:
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        return "target_speedup", SPEEDUP

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _bounded(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise InputError(f"{name} is {value}; from {least:g} to {most:g} is accepted")


def _one_of(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; accepted are {', '.join(accepted)}")
