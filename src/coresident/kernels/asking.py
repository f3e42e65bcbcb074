"""Lines that a cache is asked for, a few at a time, while rows of weights pass over a tile.

Tiles are short pieces of many planes, so that no hardware prefetcher sees what comes next. But a core waits
for so many lines at a time, and whatever loads behind more stands still: asked for channel by channel, 36
lines in a row, planes that come from memory were read as if nothing had been asked for. One by one, evenly
over the rows, what a tile reads arrives while the tile before is computed: layers of 512 x 512 pixels are
1.2-1.3 times as fast on Zen 5, of 256 x 256 1.1 times. (To look up runs of lines rather than each, and to ask
a tile further ahead as well, gained nothing.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coresident.codegen.builder import Function, Value
from coresident.codegen.target import Target
from coresident.codegen.types import I32, I64

NEAR_L2 = 4
"""L2 caches' worth of activations that lie in L2 or L3 when the next layer reads them."""


def is_far(target: Target, size: int) -> bool:
    """Whether bytes come from memory, since they are more than caches hold."""
    return size > NEAR_L2 * target.l2_bytes


def is_near(target: Target, size: int, packed: bool = True) -> bool:
    """Whether asking for bytes gains nothing, since caches hold them.

    What is read from where it lies should come from L2 at least: layers of striped rows that L3 holds are
    1.03-1.1 times as fast if it is asked for. To pack from L3 is as fast without.

    It takes loads, which bind where vectors are loaded whole: 1x1 layers of ResNet-50 as code are 1.05-1.2
    times as fast on Zen 5 without. Planes that come from memory must be asked for (1.35 times as fast).
    """
    if not packed:
        return 2 * size < target.l2_bytes
    return target.load_bits == 512 and not is_far(target, size)


def lines_of(runs: Iterable[tuple[int, int]], itemsize: int = 4, aligned: bool = False) -> list[int]:
    """Elements at which to ask for runs, (start, end) from an address that may lie anywhere in a line: each
    line once.

    Args:
        itemsize: bytes of an element.
        aligned: whether runs begin and end with a line, and so does what lies at the address.
    """
    line = 64 // itemsize
    found: list[int] = []
    for start, end in sorted(runs):
        first = max(start, found[-1] + line) if found else start
        # A run that begins within a line ends in one more.
        found += range(first, end + (0 if aligned else line - 1), line)
    return found


MOST_UNROLLED = 24
"""Lines of a share, up to which code asks for each."""


@dataclass(frozen=True)
class Shares:
    """The lines of some channels, in as many shares as rows of weights will ask for, or fewer.

    Args:
        channels: that a share has lines of.
        parts: shares that have lines of the same channels.
        lines: [parts, lines of a share] int32, elements from where its first channel begins.
    """

    channels: int
    parts: int
    lines: np.ndarray[Any, Any]

    @property
    def steps(self) -> list[int] | None:
        """Elements from the first line of a share to each, where they are the same for all parts, and few."""
        steps = self.lines - self.lines[:, :1]
        return steps[0].tolist() if len(steps[0]) <= MOST_UNROLLED and (steps == steps[0]).all() else None

    @staticmethod
    def of(lines: Sequence[int], stride: int, channels: int, rows: int) -> Shares:
        """Shares for a number of rows.

        Args:
            lines: of a channel, elements from where it begins.
            stride: elements from a channel to the next.
        """
        together = -(-channels // rows)
        parts = min(max(rows // channels, 1), len(lines))
        held = _in_parts(np.array(lines), parts)
        all_of = held[:, None, :] + stride * np.arange(together)[None, :, None]
        return Shares(together, parts, all_of.reshape(parts, -1).astype(np.int32))


def _in_parts(lines: np.ndarray[Any, Any], parts: int) -> np.ndarray[Any, Any]:
    """[parts, lines of each]: where lines are some in each of some rows, rectangles of these if that goes
    even, so that parts differ in where they begin alone; otherwise lines in turn, the last one again where
    the last part has fewer."""
    breaks = np.flatnonzero(np.diff(lines, 2)) + 1
    across = int(breaks[0]) + 1 if breaks.size else len(lines)
    if len(lines) % across == 0:
        rows = lines.reshape(-1, across)
        for below in range(1, parts + 1):
            if parts % below == 0 and len(rows) % below == 0 and across % (parts // below) == 0:
                cut = rows.reshape(below, len(rows) // below, parts // below, -1)
                return cut.swapaxes(1, 2).reshape(parts, -1)
    each = -(-len(lines) // parts)
    return np.pad(lines, (0, parts * each - len(lines)), mode="edge").reshape(parts, each)


@dataclass(frozen=True)
class Asking:
    """Asks for one share after another.

    Args:
        function: under construction.
        shares: of the lines.
        table: address of `Shares.lines`.
        stride: bytes from a channel to the next.
        itemsize: bytes of an element.
        near: whether L1 is asked rather than L2.
    """

    function: Function
    shares: Shares
    table: Value
    stride: int
    itemsize: int
    near: bool = False

    def ask(self, planes: Value, row: Value, channels: Value | int) -> None:
        """Ask for a row's share, or for the last one, rather than branch, where there are fewer.

        Args:
            planes: address of the first channel.
            row: number of it, of those that share.
            channels: that there are.
        """
        f, shares = self.function, self.shares
        each = shares.lines.shape[1]
        count = (f.value(channels, I64) + (shares.channels - 1)) / shares.channels * shares.parts
        share = f.minimum(row, count - 1)
        first = f.offset(planes, share / shares.parts * (shares.channels * self.stride))
        lines = f.offset(self.table, share % shares.parts * each, I32)

        def line(i: Value | int) -> Value:
            return f.convert(f.load(I32, lines, i), I64) * self.itemsize

        if (steps := shares.steps) is not None:
            # A load for each line, not two: layers of 32 channels at 512 x 512 are 1.03 times as fast.
            start = f.offset(first, line(0))
            for step in steps:
                f.prefetch(start, step * self.itemsize, near=self.near)
            return
        with f.loop(0, each) as i:
            f.prefetch(first, line(i), near=self.near)
