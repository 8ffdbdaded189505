"""Fair timing of peers on a shared, noisy machine: alternating blocks, ratios within each round.

A block calls one peer until its time is up; its first call, which finds the caches as another peer
left them, does not count. A round has one block of each peer, modfast's last. The time of a peer is
the median over rounds of a block's mean, and its ratio to modfast the median over rounds of the
ratio in that round, so that a machine that slows down for a while slows both sides of a ratio.

On a GPU a block is timed by the device's own events.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Peers = dict[str, Callable[[], object]]
Input = TypeVar("Input")

# How fast the machine can be, and the cases that are done.
RATES = pytest.StashKey[dict[str, float]]()
CASES = pytest.StashKey[list[dict[str, Any]]]()

_timed = 0.0


def clock() -> float:
    """pytest-benchmark's timer: advances by one call for each block of modfast's, not by the block.

    So the times that it tells of a round are those of one call, however many a block has.
    """
    return _timed


class Compare:
    """Times a case, whose answer the test has checked, and holds it to its targets."""

    def __init__(self, benchmark: BenchmarkFixture, config: pytest.Config) -> None:
        self.benchmark, self.config = benchmark, config

    def __call__(
        self,
        name: str,
        peers: Peers,
        targets: dict[str, float] | None = None,
        *,
        rounds: int = 15,
        block: float = 0.1,
        device: str = "cpu",
        bytes: int | None = None,
        ops: int | None = None,
        parts: dict[str, float] | None = None,
        warm: bool = True,
    ) -> None:
        """Times peers side by side; the first is modfast.

        `targets` are, by peer, how often modfast's time must go into its time; a target below 1
        allows modfast to be slower. `bytes` (`ops`) is the least that modfast must move (compute)
        in a call; the target "ceiling" is which part of the machine's measured rate it must reach
        at that. A peer in `parts` does only this part of the work. Calls of seconds need no first
        one that does not count: `warm=False`.
        """
        option, self.benchmark.group = self.config.option, name
        with torch.enable_grad():  # what is timed turns it off by itself
            if self.benchmark.disabled:
                self.benchmark.pedantic(next(iter(peers.values())))
                if device == "cuda":
                    torch.cuda.synchronize()  # what fails there is this case's
                return
            timings = _rounds(
                self.benchmark,
                peers,
                option.rounds or rounds,
                option.block or block,
                device,
                parts or {},
                warm,
            )
        sizes = {"bytes": bytes, "ops": ops}
        case = {"case": name, "targets": targets or {}, **sizes, "peers": timings}
        _judge(case, self.config.stash[RATES])
        self.benchmark.extra_info.update(case)
        self.config.stash[CASES].append(case)
        if option.lines:
            with option.lines.open("a") as lines:
                lines.write(json.dumps(case) + "\n")
        if option.targets and case["missed"]:
            pytest.fail("\n".join(case["missed"]), pytrace=False)

    def ceiling(self, unit: str) -> None:
        """What was just timed is as fast as the machine can be."""
        if case := self.benchmark.extra_info:
            least = min(timing["seconds"] for timing in case["peers"].values())
            self.config.stash[RATES][unit] = case[unit] / least


def _rounds(
    benchmark: BenchmarkFixture,
    peers: Peers,
    rounds: int,
    block: float,
    device: str,
    parts: dict[str, float],
    warm: bool,
) -> dict[str, dict[str, float]]:
    """For each peer seconds a call, and the ratio with its quartiles over the rounds.

    The first peer is modfast. A peer in `parts` does only this part of the work, as all would take
    too long; its time is divided by it.
    """
    (ours, *others), seconds = peers, {name: list[float]() for name in peers}

    def measure(name: str) -> float:
        call = peers[name]
        if warm:
            call()
        found = (_block if device == "cpu" else _device_block)(call, block)
        seconds[name].append(found / parts.get(name, 1.0))
        return found

    def setup() -> None:
        for name in others:
            measure(name)

    def target() -> None:
        global _timed
        _timed += measure(ours)

    benchmark.pedantic(target, setup=setup, rounds=rounds)
    timings = {}
    for name, theirs in seconds.items():
        ratios = sorted(t / o for t, o in zip(theirs, seconds[ours], strict=True))
        quarter = len(ratios) // 4
        timings[name] = {
            "seconds": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "low": ratios[quarter],
            "high": ratios[-1 - quarter],
        }
    return timings


def _judge(case: dict[str, Any], rates: dict[str, float]) -> None:
    """Adds floor, share of the ceiling, and what was found for each target and missed.

    A share that could not be measured counts as 0.
    """
    ours, *_ = case["peers"].values()
    found = {peer: timing["ratio"] for peer, timing in case["peers"].items()}
    for unit in ("bytes", "ops"):
        if case[unit] and unit in rates:
            case["floor"] = case[unit] / rates[unit]
            case["share"] = found["ceiling"] = case["floor"] / ours["seconds"]
    case["found"] = {name: found.get(name, 0.0) for name in case["targets"]}
    case["missed"] = [
        f"{case['case']}: {name}: {case['found'][name]:.2f}, wanted {least:.2f}"
        for name, least in case["targets"].items()
        if case["found"][name] < least
    ]


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
