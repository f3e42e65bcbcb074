"""Other looks at a strided layout, where no element has to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coresident.kernels.layout import Layout


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The same elements, counted in C order, under another shape; None if strides can't say it."""
    shape = tuple(shape)
    if shape == layout.shape:
        return layout
    if 0 in shape:
        return layout.view(shape, Layout.contiguous(shape).strides, 0)
    old = [(size, stride) for size, stride in zip(layout.shape, layout.strides) if size != 1]
    strides = [1] * len(shape)
    first, at = 0, 0
    while at < len(shape):
        if shape[at] == 1:
            at += 1
            continue
        # The fewest new dimensions from `at` and old ones from `first` that hold as many elements.
        end, last, new_count, old_count = at, first, 1, 1
        while new_count != old_count or end == at:
            if new_count <= old_count:
                new_count *= shape[end]
                end += 1
            else:
                old_count *= old[last][0]
                last += 1
        if any(old[i][1] != old[i + 1][1] * old[i + 1][0] for i in range(first, last - 1)):
            return None
        step = old[last - 1][1]
        for d in range(end - 1, at - 1, -1):
            strides[d] = step
            step *= shape[d]
        first, at = last, end
    return layout.view(shape, strides, 0)


def permuted(layout: Layout, order: Sequence[int]) -> Layout:
    """Dimension i of the result is dimension order[i]."""
    return layout.view([layout.shape[d] for d in order], [layout.strides[d] for d in order], 0)


def sliced(layout: Layout, axis: int, taken: range) -> Layout:
    """The indices `taken` of one dimension."""
    if taken.step == 1 or len(taken) <= 1:
        return layout if len(taken) == layout.shape[axis] else layout.narrow(axis, taken.start, len(taken))
    kept = layout.narrow(axis, taken.start, len(taken))
    strides = tuple(s * taken.step if d == axis else s for d, s in enumerate(layout.strides))
    return replace(kept, strides=strides, slack=0)


def repeated(layout: Layout, shape: Sequence[int]) -> Layout:
    """Broadcast onto a shape by numpy's rule: stride 0 where it repeats."""
    missing = len(shape) - len(layout.shape)
    sizes, strides = (1,) * missing + layout.shape, (0,) * missing + layout.strides
    return layout.view(shape, [0 if size == 1 else stride for size, stride in zip(sizes, strides)], 0)
