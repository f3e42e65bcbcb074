"""What the benchmark's programs share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from coresident import Session
from coresident.measure.feeds import fixed_shapes, random_feeds

Array = np.ndarray[Any, Any]


def feeds_of(session: Session) -> dict[str, Array]:
    """Random inputs for a model; free dimensions are batches of 1, others must be fixed."""
    inputs = session.get_inputs()
    shapes = fixed_shapes({one.name: one.shape for one in inputs}, {})
    return random_feeds(shapes, {one.name: np.dtype(one.dtype) for one in inputs})


def print_markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as markdown; all columns but the first are numbers."""
    print("| " + " | ".join(titles) + " |")
    print("|" + "|".join(["---", *["---:"] * (len(titles) - 1)]) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
