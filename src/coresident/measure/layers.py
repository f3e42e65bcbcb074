"""A network step by step: what ran, how fast, and which ceiling of the machine holds it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coresident.codegen.peak import Peak
from coresident.runtime.program import Step

OVERHEAD = 2.0
"""A step that takes this many times what the nearest ceiling allows is held down by something else."""
NEGLIGIBLE = 0.01
"""Steps with a smaller share of the time get no comment on their speed."""


@dataclass(frozen=True)
class Layer:
    """One step of a program, measured.

    Args:
        index: of the step.
        op, nodes, shape: of the graph, as the lowering named them; shape is the result's.
        kernel, tile: chosen for it.
        fused: the element-wise work done on the result in registers, "" if none.
        sparsity: share of the weights that are zero; None without weights.
        pattern: of the nonzeros that the kernel makes use of, "" if it does not skip zeros.
        seconds: median.
        share: of the sum over all steps.
        macs: multiply-adds of the layer, were it dense.
        nonzero_macs: those with weights that are not zero.
        bytes: of activations, weights and results, each counted once.
        estimated_cycles: what the cost model expects of one core; None where it was not asked.
        peak_share: nonzero multiply-adds a second, as a share of the peak of all threads; over 1 where a
            kernel makes do with fewer multiplications.
        bound: the ceiling that is nearest, and the level that it is about.
        bound_seconds: what that ceiling allows at best.
        why: reasons why it is not sparse, not fused or slow.
    """

    index: int
    op: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: str
    tile: str
    fused: str
    sparsity: float | None
    pattern: str
    seconds: float
    share: float
    macs: int
    nonzero_macs: int
    bytes: int
    estimated_cycles: float | None
    peak_share: float
    bound: str
    bound_seconds: float
    why: tuple[str, ...]

    @property
    def real_gmacs(self) -> float:
        """Nonzero multiply-adds a nanosecond."""
        return _rate(self.nonzero_macs, self.seconds)

    @property
    def effective_gmacs(self) -> float:
        """Multiply-adds a nanosecond that a dense kernel would have needed for this time."""
        return _rate(self.macs, self.seconds)

    @property
    def intensity(self) -> float:
        """Nonzero multiply-adds a byte."""
        return self.nonzero_macs / self.bytes if self.bytes else 0.0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        derived = ("real_gmacs", "effective_gmacs", "intensity")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def _rate(macs: int, seconds: float) -> float:
    return macs / seconds / 1e9 if seconds > 0 else 0.0


@dataclass(frozen=True)
class _Ceiling:
    name: str
    seconds: float


def layers(profile: Sequence[tuple[Step, float]], peak: Peak) -> list[Layer]:
    """Measured steps, judged against a machine's ceilings."""
    total = sum(seconds for _, seconds in profile)
    return [
        _layer(index, step.info, seconds, seconds / total if total else 0.0, peak)
        for index, (step, seconds) in enumerate(profile)
    ]


def _layer(index: int, info: dict[str, Any], seconds: float, share: float, peak: Peak) -> Layer:
    macs = int(info.get("macs", 0))
    nonzero = int(info.get("nonzero_macs", macs))
    size = int(info.get("bytes", 0))
    products = int(info.get("products", nonzero))
    bound = max(
        _ceilings(products, size, int(info.get("shared", 0)), peak), key=lambda ceiling: ceiling.seconds
    )
    why = [str(reason) for reason in info.get("why", ())]
    if share >= NEGLIGIBLE and bound.seconds > 0 and seconds > OVERHEAD * bound.seconds:
        why.append(f"slow: takes {seconds / bound.seconds:.1f} times what the {bound.name} would allow")
    sparsity = info.get("sparsity")
    return Layer(
        index=index,
        op=str(info.get("op", "")),
        nodes=tuple(map(str, info.get("nodes", ()))),
        shape=tuple(info.get("shape", ())),
        kernel=str(info.get("kernel", "")),
        tile=str(info.get("tile", "")),
        fused=str(info.get("epilogue") or ""),
        sparsity=None if sparsity is None else float(sparsity),
        pattern=str(info.get("pattern", "")),
        seconds=seconds,
        share=share,
        macs=macs,
        nonzero_macs=nonzero,
        bytes=size,
        estimated_cycles=info.get("estimated_cycles"),
        peak_share=nonzero / seconds / peak.total_macs if seconds > 0 else math.nan,
        bound=bound.name,
        bound_seconds=bound.seconds,
        why=tuple(why),
    )


def _ceilings(macs: int, size: int, shared: int, peak: Peak) -> list[_Ceiling]:
    """What each ceiling allows for so many multiply-adds over so many bytes.

    Args:
        shared: multiply-adds that a vector loaded serves where a sparse kernel goes through a stream, 0 for
            other kernels.
    """
    level = peak.level(size)
    found = [
        _Ceiling("multiply-add peak", macs / peak.total_macs),
        _Ceiling(f"{level.name} bandwidth", size / level.bandwidth),
    ]
    if shared:
        # Each nonzero takes its activations from cache anew; no register holds them.
        found.append(_Ceiling("loads from L1", 4 * macs / shared / peak.levels[0].bandwidth))
    return found
