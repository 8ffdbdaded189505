"""Fair timing of peers on a shared, noisy machine: alternating blocks, ratios within each round.

A block calls one peer until its time is up; its first call, which finds the caches as another peer
left them, does not count. A round has one block of each peer. The time of a peer is the median
over rounds of a block's mean, and its ratio to modfast the median over rounds of the ratio in that
round, so that a machine that slows down for a while slows both sides of a ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Peers = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """Peers to time side by side; the first is modfast.

    `targets` are, by peer, how often modfast's time must go into its time; a target below 1 allows
    modfast to be slower. A peer in `parts` does only this part of the work, as it would take too
    long: its time is divided by it.
    """

    name: str
    peers: Peers
    targets: dict[str, float] = field(default_factory=dict)
    rounds: int = 15
    block: float = 0.1
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds a call, and how often modfast's time goes into it."""

    seconds: float
    ratio: float
    low: float
    high: float


def compare(case: Case) -> dict[str, Timing]:
    """Times a case; low and high are the quartiles of a ratio over the rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in case.peers}
    for _ in range(case.rounds):
        for name, call in case.peers.items():
            call()
            rounds[name].append(_block(call, case.block) / case.parts.get(name, 1.0))
    first = rounds[next(iter(case.peers))]
    result = {}
    for name, seconds in rounds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds, first, strict=True))
        quarter = len(ratios) // 4
        result[name] = Timing(
            statistics.median(seconds),
            statistics.median(ratios),
            ratios[quarter],
            ratios[-1 - quarter],
        )
    return result


def _block(call: Callable[[], object], seconds: float) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return elapsed / calls
