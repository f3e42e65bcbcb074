"""How long a convolution will take, in cycles of one core: what kernels and tiles are chosen by.

The figures are those of recent x86 cores: two vector loads and two multiply-adds a cycle from L1 with
256-bit vectors (one of each with 512-bit ones, twice a cycle on some: `Machine.pace`), about one vector a
cycle or less from L2. `bench/cost.py` compares the model's answers with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from coresident.codegen.integers import Dot
from coresident.codegen.target import Target

OUTSTANDING_LINES = 28
"""Cache lines that may be asked for at once: loads stand still behind more, since a core waits for so many at
a time (Zen 4 has 24 miss address buffers)."""
LINE_STALL = 9.0
"""Cycles for each line more, measured with tiles that read a residual."""
REMOTE_LINE, SHARED_LINE = 6.0, 15.0
"""Cycles that a line takes longer to be read from another core's L2 than from the own one, and to be written
when another core has read it, even if it was asked for; where they have a cache in common."""


FETCH, LARGE_CODE = 0.12, 2 << 20
"""Cycles for each byte of code and weights that a core gets for the first time since the last call; and bytes
of a layer from which on that takes twice as long: they come from memory, no faster where cores are."""


@dataclass(frozen=True)
class Machine:
    """Rates of one core, a cycle; all of the model's cycles are halves of one where a core loads and
    multiplies two whole vectors of 512 bits in each.

    Args:
        pace: of the model's cycles that a core has in one of its own.
        loads: vectors loaded from L1.
        fmas: vector multiply-adds.
        issue: instructions.
        l2_bytes, l3_bytes: streamed from those caches.
        refetch: cycles for each byte of code that comes from L2.
        mispredict: cycles lost to a mispredicted branch.
        crossing: loads that one of which half or more touch two cache lines is worth.
        l1_bytes, dense_l1_bytes: of L1 that a tile's activations may fill; the weights of a dense kernel
            stream through it beside them.
        panel_l1_bytes: of L1 that a panel's weights may fill, activations passing beside them.
        cache: of L2.
    """

    pace: float
    loads: float
    fmas: float
    issue: float
    l2_bytes: float
    l3_bytes: float
    refetch: float
    mispredict: float
    crossing: float
    l1_bytes: int
    dense_l1_bytes: int
    panel_l1_bytes: int
    cache: int

    @staticmethod
    def of(target: Target) -> Machine:
        wide = target.vector_bits == 512
        narrow = target.vector_bits == 128
        whole = target.load_bits == 512
        return Machine(
            pace=2 if whole else 1,
            loads=1 if wide else 2,
            fmas=1 if wide else 2,
            issue=5 if not narrow else 4,
            l2_bytes=32 if wide else 27,
            l3_bytes=6 if whole else 10,
            refetch=0.03 if target.shuffles_apart else 0.06,
            mispredict=18,
            crossing=1.9 if whole else 1.5,
            l1_bytes=target.l1_bytes * 3 // 4,
            dense_l1_bytes=target.l1_bytes // 2,
            panel_l1_bytes=target.l1_bytes * 3 // 8,
            cache=target.l2_bytes * 3 // 4,
        )


def copy(machine: Machine, size: int) -> float:
    """Cycles to move so many bytes, reads and writes, with a shuffle in between."""
    return 2 * size / machine.l3_bytes


def dense_tile(
    machine: Machine,
    vectors: int,
    rows: int,
    depth: float,
    vector_bytes: int,
    resident: bool,
    unaligned: bool,
    extras: int,
) -> float:
    """Cycles for one tile of `vectors` x `rows` accumulators over `depth` products each.

    Args:
        resident: whether the tile's activations lie in L1.
        unaligned: half of the vectors of activations then touch two cache lines.
        extras: tensors that the epilogue reads.
    """
    fma = vectors * rows / machine.fmas
    load = (vectors + rows) / machine.loads
    # One multiply-add for each broadcast keeps the front end from running ahead: measured half as fast.
    issue = (
        (vectors + rows + vectors * rows + 1) / machine.issue * (1.8 if vectors == 1 and rows > 1 else 1.0)
    )
    # A multiply-add's result can be added to four cycles later; with few sums in flight any delay shows.
    latency = 4.0 if vectors * rows > 8 * machine.fmas / 2 else 4.8
    far = 0.0 if resident else vectors * vector_bytes / machine.l2_bytes * 1.5
    slow = 1.15 if unaligned else 1.03
    # What is written and read at the end is asked for at once.
    lines = rows * vectors * vector_bytes / 64 * (1 + extras)
    stall = LINE_STALL * max(lines - OUTSTANDING_LINES, 0.0)
    return depth * max(fma, load, issue, latency, far) * slow + 40 + rows * vectors * 2.5 + stall


def adds_at_once(target: Target, dot: Dot) -> bool:
    """Whether products of bytes are added to 32 bits at once, by the widest vectors."""
    return target.vector_bits == 512 and not dot.held


def panel_products(machine: Machine, vectors: int, pixels: int, products: int, instructions: int) -> float:
    """Cycles in which `vectors` vectors of weights meet so many broadcast elements of bytes.

    Args:
        products, instructions: of a vector and an element: multiplications, and all arithmetic.
    """
    count = vectors * pixels
    load = (vectors + pixels) / machine.loads
    return max(products * count / machine.fmas, integer_issue(machine, instructions * count), load)


def integer_issue(machine: Machine, instructions: int) -> float:
    """Cycles for so many integer vector instructions: three a cycle where two multiply-adds are, although
    there are four pipes (measured on Zen 3)."""
    return instructions / (1.55 * machine.fmas)


def panel_strip(machine: Machine, vectors: int, pixels: int, depth: float, blocks: int) -> float:
    """Cycles for one strip of pixels and one panel of `vectors` vectors of output channels, `depth` products
    deep.

    Args:
        blocks: of input channels, between which the sums wait in scratch.
    """
    fma = vectors * pixels / machine.fmas
    load = (vectors + pixels) / machine.loads
    issue = (vectors * pixels + vectors + pixels + 1) / machine.issue
    waits = (3 * vectors * pixels + 20) * (blocks - 1)
    return depth * max(fma, load, issue, 4.0) * 1.06 + waits + 60 + 15 * vectors * pixels


def sparse_rows(
    machine: Machine,
    vectors: int,
    shared: int,
    nonzeros: float,
    rows: float,
    blocks: int,
    changes: float,
    extras: int,
    unaligned: bool,
    block_bytes: float,
    vector_bytes: int,
    packed: bool = False,
) -> float:
    """Cycles for one tile over `rows` groups of `shared` output channels that hold `nonzeros` products each.

    Args:
        rows: in all blocks of input channels.
        blocks: of input channels, between which sums wait.
        changes: how many of the rows have another number of nonzeros than the row before: each is a
            mispredict.
        extras: tensors that the epilogue reads.
        unaligned: half of the vectors then touch two cache lines.
        block_bytes: of the activations that a block reads again and again.
        packed: whether these lie side by side, so that no cache set has more of them than others.
    """
    sums = vectors * shared
    words = 1.6 if shared == 1 else 1.5 + shared
    load = (vectors * (machine.crossing if unaligned else 1.0) + words) / machine.loads
    # Beside the weights and sums that pass through, about half of L1 keeps a block's activations.
    missed = min(max(block_bytes - 0.6 * machine.l1_bytes, 0.0) / (2.8 * machine.l1_bytes), 1.0)
    far = vectors * (1.25 * vector_bytes / machine.l2_bytes - 1 / machine.loads) * (0.6 if packed else 1.0)
    # A sum can be added to four cycles later; meanwhile other rows' products run, as far as the core sees.
    ahead = nonzeros * (sums + 1.8) + 2 * sums + 10
    latency = 4.0 * min(ahead / 180, 1.0)
    fma = sums / machine.fmas * (1.0 if shared == 1 else 1.0 + 0.08 * shared)
    issue = (sums + (vectors if shared > 1 else 0) + shared + 1.5) / machine.issue
    body = nonzeros * max(load + missed * far, fma, issue, latency)
    last = rows / blocks
    waiting = last * sums * vector_bytes
    # Sums that wait pass through L2, where what the tile reads next and writes wants to stay; and L1 has less
    # room for them where activations are packed.
    share, each = (6.0, 1.5) if packed else (3.0, 1.0)
    crowded = 1 + 2 * min(share * waiting / machine.cache, 2.0)
    waits = each * sums * vector_bytes / machine.l2_bytes * crowded
    stores = sums * vector_bytes / 32 * (2.0 + 3.5 * extras)
    return rows * (body + 10) + (rows - last) * waits + last * stores + changes * machine.mispredict


def packed_rows(
    machine: Machine, vectors: int, nonzeros: float, rows: float, blocks: int, block_bytes: float
) -> float:
    """Cycles for one tile of packed segments, as `sparse_rows` takes them, where vectors are loaded whole.

    Measured on Zen 5: within 5 % of 460 cuts of 20 layers.
    """
    missed = min(max(block_bytes - 0.81 * machine.l1_bytes, 0.0) / (1.74 * machine.l1_bytes), 1.0)
    # The offset and the weight take as long as 1.2 vectors; loads take longer where sums fill the registers.
    body = (1.0 if vectors <= 16 else 1.1) * (vectors + 1.2) / machine.loads * (1 + 0.4 * missed)
    return rows * (nonzeros * body + 4) + (rows - rows / blocks) * 3.2 * vectors


@dataclass(frozen=True)
class Chunks:
    """What weights hold that are chunks of code (`wired.py`).

    Args:
        products: nonzeros.
        loads: positions of chunks that have any.
        rows: output channels.
        parts: of the output channels.
        blocks: of input channels.
    """

    products: int
    loads: int
    rows: int
    parts: int
    blocks: int

    @property
    def size(self) -> int:
        """Bytes of code and weights, about."""
        return 11 * self.products + 10 * self.loads

    def fetch(self, machine: Machine) -> float:
        """Cycles for a core to get all of them."""
        return (FETCH if self.size < LARGE_CODE else 2 * machine.pace * FETCH) * self.size

    def refetch(self, machine: Machine) -> float:
        """Cycles to get them once more for the next tile."""
        return (machine.refetch if self.size < machine.cache else FETCH) * self.size

    def fetched_again(self, machine: Machine, threads: int, row_parts: int) -> float:
        """Cycles of all threads but the first to get what the first has, too.

        Args:
            row_parts: parts of the rows that tasks have.
        """
        return self.fetch(machine) * max(0.0, threads / row_parts - 1)


def wired_tile(
    machine: Machine,
    chunks: Chunks,
    vectors: int,
    unaligned: bool,
    extras: int,
    direct: bool,
    tile_bytes: float = 0.0,
    pages: float = 0.0,
) -> float:
    """Cycles for one tile whose pixels meet chunks of code.

    Args:
        unaligned: most vectors then touch two cache lines.
        extras: tensors that the epilogue reads.
        direct: whether chunks store results themselves.
        tile_bytes: of the pixels that all chunks of a block read, where they are not packed.
        pages: of memory that they lie in.
    """
    fma = chunks.products / machine.fmas
    # A broadcast element takes half of what a vector takes; both more where there are few products between.
    load = 1.3 * (0.5 * chunks.products + chunks.loads * (1.8 if unaligned else 1.0)) / machine.loads
    # Pixels come from L2, at least to the first chunk that reads them, and the first TLB has 72 entries.
    missed = min(max(tile_bytes - 0.6 * machine.l1_bytes, 0.0) / (2.8 * machine.l1_bytes), 1.0)
    missed = max(missed, min(2 / chunks.parts, 1.0) if tile_bytes else 0.0)
    far = chunks.loads * (0.7 * missed + 1.2 * max(0.0, 1 - 72 / max(pages, 1.0)))
    ends = 3.0 * chunks.rows * (chunks.blocks + extras) + 25 * chunks.parts * chunks.blocks
    finish = 0.0 if direct else chunks.rows * (vectors * (3.5 + 3.5 * extras) + 12)
    return vectors * (max(fma, load) * 1.1 + far + ends) + finish
