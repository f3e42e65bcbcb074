"""How the work of a convolution is cut into tasks, and how a task finds its part."""

from __future__ import annotations

from dataclasses import dataclass

from coresident.codegen.builder import Function, Value


@dataclass(frozen=True)
class Cut:
    """Tasks = pictures x row chunks x tile chunks, tiles fastest.

    Args:
        tiles: runs of pixels in all.
        tile_chunk: runs in a task.
        rows: output rows (or groups of rows) in all.
        row_chunk: rows in a task.
        batch: pictures (times groups of the convolution).
    """

    tiles: int
    tile_chunk: int
    rows: int
    row_chunk: int
    batch: int

    @property
    def tile_chunks(self) -> int:
        return -(-self.tiles // self.tile_chunk)

    @property
    def row_chunks(self) -> int:
        return -(-self.rows // self.row_chunk)

    @property
    def tasks(self) -> int:
        return self.batch * self.row_chunks * self.tile_chunks

    def part(self, f: Function) -> tuple[Value, Value, Value, Value, Value]:
        """(picture, first row, last row, first tile, last tile) of the task; the last ones are exclusive."""
        task = f["task"]
        tile = (task % self.tile_chunks) * self.tile_chunk
        rest = task / self.tile_chunks
        row = (rest % self.row_chunks) * self.row_chunk
        picture = rest / self.row_chunks
        last_row = f.minimum(row + self.row_chunk, self.rows)
        last_tile = f.minimum(tile + self.tile_chunk, self.tiles)
        return picture, row, last_row, tile, last_tile


def cut(tiles: int, rows: int, batch: int, threads: int, cycles: float, row_unit: int = 1) -> Cut:
    """Cut so that every thread gets several tasks, none much under 5 us, splitting pixels before channels.

    Args:
        tiles, rows, batch: in all.
        threads: that will share the work.
        cycles: of all the work on one core, as estimated.
        row_unit: rows are split at multiples of it.
    """
    wanted = min(threads * 6, max(1, int(cycles // 15000))) if threads > 1 else 1
    wanted = max(wanted, threads if cycles > 6000 else 1)
    tile_parts = min(tiles, max(1, -(-wanted // batch)))
    row_units = -(-rows // row_unit)
    row_parts = min(row_units, max(1, -(-wanted // (batch * tile_parts))))
    if threads > 1 and batch * tile_parts * row_parts % threads and tile_parts * row_parts < 4 * threads:
        # Few large tasks: make their number one that the threads share evenly.
        row_parts = min(row_units, row_parts * threads)
    tile_chunk = -(-tiles // tile_parts)
    row_chunk = -(-row_units // row_parts) * row_unit
    return Cut(tiles, tile_chunk, rows, row_chunk, batch)
