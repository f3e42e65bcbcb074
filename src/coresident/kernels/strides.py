"""What the taps of a kernel read along one dimension, by phase of the stride: within a phase it is 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phases:
    """The taps of one dimension: position p is quotient p // stride of phase p % stride.

    Args:
        stride: of the dimension.
        spans: of each phase that occurs, its least and greatest quotient.
    """

    stride: int
    spans: dict[int, tuple[int, int]]

    @staticmethod
    def of(positions: Iterable[int], stride: int) -> Phases:
        """Of taps at these positions, relative to the output pixel times the stride."""
        found: dict[int, list[int]] = {}
        for a in positions:
            found.setdefault(a % stride, []).append(a // stride)
        return Phases(stride, {phase: (min(found[phase]), max(found[phase])) for phase in sorted(found)})

    @property
    def count(self) -> int:
        return len(self.spans)

    def extent(self, phase: int) -> int:
        """How many pixels a phase reads beyond the first."""
        low, high = self.spans[phase]
        return high - low

    def first(self, phase: int) -> int:
        """The first position that a phase reads."""
        return self.spans[phase][0] * self.stride + phase

    @property
    def extents(self) -> list[int]:
        """Of all phases."""
        return [self.extent(phase) for phase in self.spans]

    @property
    def firsts(self) -> list[int]:
        """Of all phases."""
        return [self.first(phase) for phase in self.spans]

    def place(self, position: int) -> tuple[int, int]:
        """Which of the phases a tap is in, and how many pixels after its first."""
        phase = position % self.stride
        return list(self.spans).index(phase), position // self.stride - self.spans[phase][0]
