"""How pixels are cut into tiles, and tiles into the tasks of threads."""

from __future__ import annotations

import numpy as np
import pytest

from coresident.kernels.geometry import can_run_flat, tiles, tiles_of_spans
from coresident.kernels.layout import Layout
from coresident.kernels.tiling import cut, unevenness


@pytest.mark.parametrize("spans", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 13, 14, 28, 56])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_spans_are_equal_and_cover_each_vector_once(lanes: int, size: int, spans: int) -> None:
    layout = Layout.planar((1, 1, size, size), (0, 1), ((0, 0), (0, 0)), lanes)
    strides = layout.strides[2:]
    assert can_run_flat(strides, layout, [layout], lanes)
    pixels = (size - 1) * strides[0] + size
    found = 0
    for vectors in range(1, 12):
        t = tiles_of_spans(strides, layout, [layout], lanes, vectors, True, spans)
        if t is None:
            continue
        found += 1
        held = [(int(row[1]) // lanes, size) for row, size in zip(t.table, t.sizes)]
        covered = [first + i for first, size in held for i in range(size)]
        assert covered == list(range(-(-pixels // lanes)))
        assert t.vector_steps == len(covered)
        assert sum(size == t.vectors for _, size in held) == t.full
        bounds = [-(-len(covered) * i // spans) for i in range(spans)]
        assert not set(bounds) - {first for first, _ in held} - {len(covered)}
    assert found


def test_tiles_of_rows_know_which_are_full() -> None:
    layout = Layout.planar((1, 1, 3, 21), (0, 0), ((0, 0), (0, 0)), 8)
    t = tiles(layout.strides[2:], layout, [], 8, 2, flat=False)
    assert t.mixed
    assert (t.full, t.rest_vectors, t.rest_last) == (3, 1, 5)
    np.testing.assert_array_equal(t.table[:, -1], [1, 0] * 3)
    assert t.sizes == [2, 1] * 3


def test_threads_that_share_evenly_wait_for_nobody() -> None:
    assert unevenness(cut(34, 64, 1, 2, 1e6), [3] * 34, 2) == 1
    assert unevenness(cut(13, 64, 1, 2, 1e6), [4] * 13, 2) == pytest.approx(14 / 13)
    sizes = [5, 5, 5, 5, 5, 1, 5, 5, 5, 5, 5]
    assert unevenness(cut(11, 64, 1, 2, 1e6), sizes, 2) == pytest.approx(52 / 51)
