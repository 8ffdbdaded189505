"""Fair timing of peers on a shared, noisy machine: alternating blocks, ratios within each round.

A block calls one peer until its time is up; its first call, which finds the caches as another peer
left them, does not count. A round has one block of each peer. The time of a peer is the median
over rounds of a block's mean, and its ratio to modfast the median over rounds of the ratio in that
round, so that a machine that slows down for a while slows both sides of a ratio.

On a GPU a block is timed by the device's own events.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

Peers = dict[str, Callable[[], object]]
Input = TypeVar("Input")


@dataclass(frozen=True)
class Case:
    """Peers to time side by side; the first is modfast.

    `targets` are, by peer, how often modfast's time must go into its time; a target below 1 allows
    modfast to be slower. `bytes` (`ops`) is the least that modfast must move (compute) in a call;
    the target "ceiling" is which part of the machine's measured rate it must reach at that. A peer
    in `parts` does only this part of the work, as it would take too long: its time is divided by
    it.
    """

    name: str
    peers: Peers
    targets: dict[str, float] = field(default_factory=dict)
    rounds: int = 15
    block: float = 0.1
    device: str = "cpu"
    bytes: int | None = None
    ops: int | None = None
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
    block = _block if case.device == "cpu" else _device_block
    rounds: dict[str, list[float]] = {name: [] for name in case.peers}
    for _ in range(case.rounds):
        for name, call in case.peers.items():
            call()
            rounds[name].append(block(call, case.block) / case.parts.get(name, 1.0))
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


def _device_block(call: Callable[[], object], seconds: float) -> float:
    # Calls only queue work, so their number is settled beforehand.
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = max(1, round(seconds / (time.perf_counter() - begun)))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


def in_turn(call: Callable[[Input], object], inputs: Sequence[Input]) -> Callable[[], object]:
    """`call` on one input after the other, round and round."""
    turn = itertools.cycle(inputs)
    return lambda: call(next(turn))


def n_inputs(n_bytes: int, device: str) -> int:
    """How many inputs to take in turn so that a GPU's cache, of some 50 MB, never holds the next.

    On the CPU one: its numbers are those of a weight that is at hand.
    """
    return 1 if device == "cpu" else max(1, 2**30 // n_bytes)
