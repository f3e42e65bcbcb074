"""How long calls of several networks take, in turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import numpy as np

from coresident.graph.graph import Graph
from coresident.graph.operator import Array
from coresident.session import Session
from coresident.sparsification.execution import Engine

ROUNDS = 7
SECONDS = 0.15
"""Of a network in a round."""


def latencies(
    networks: Mapping[str, Graph],
    feeds: Mapping[str, Array],
    engine: Engine,
    *,
    rounds: int | None = None,
    seconds: float | None = None,
) -> dict[str, float]:
    """Seconds of a call of each network: the median over rounds of each round's median.

    Args:
        networks: with the same inputs, by any names; the first is what the others are compared
            with: their ratio to it in the same round counts, since what else a machine does comes in phases.
        feeds: of every call.
        engine: to run them by.
        rounds: how often each has its turn; None for `ROUNDS`.
        seconds: of a turn, at least three calls; None for `SECONDS`.
    """
    length = SECONDS if seconds is None else seconds
    with contextlib.ExitStack() as stack:
        sessions = {name: stack.enter_context(engine.session(network)) for name, network in networks.items()}
        for session in sessions.values():
            session.run(None, feeds)
        medians = np.array(
            [
                [_turn(session, feeds, length) for session in sessions.values()]
                for _ in range(rounds or ROUNDS)
            ]
        )
    first = float(np.median(medians[:, 0]))
    ratios = np.median(medians / medians[:, :1], axis=0)
    return {name: first * float(ratio) for name, ratio in zip(networks, ratios)}


def _turn(session: Session, feeds: Mapping[str, Array], seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
