"""Ctrl-C at every step of every function that touches a model: it gets out, nothing is left."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from inspect import CO_GENERATOR
from types import FrameType
from typing import Any

import pytest
import torch
from network.snapshot import Snapshot
from state.cases import CASES, OTHER, WIDE, Case, X, Y
from torch import nn

from modfast.network import run, turns
from modfast.network.interrupts import Interrupts

INPUTS = (X, OTHER, WIDE, Y)


class Steps:
    """Counts steps of Python, and sends SIGINT at one of them.

    They are where Python runs the handlers of signals: as a function begins, and after one of C's.
    """

    def __init__(self, at: int = -1) -> None:
        self.at, self.n = at, 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        # A generator that is closed is called, too, but runs no handler then; and what is raised
        # where numpy asks for a type's kind, it drops.
        is_one = event == "call" and not frame.f_code.co_flags & CO_GENERATOR
        if event == "c_return" or (is_one and frame.f_code.co_name != "npy_ctypes_check"):
            self.n += 1
            if self.n == self.at:
                sys.setprofile(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {event} {arg}"
                signal.raise_signal(signal.SIGINT)

    def during(self, call: Callable[[], Any]) -> None:
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def left(model: nn.Module, before: Snapshot, trains: bool) -> list[str]:
    """What an interrupt left behind."""
    found = before.changes(model, INPUTS)
    if trains:  # which is to change its parameters, and its buffers
        found = [x for x in found if not ("_parameters" in x or "_buffers" in x or ".seen" in x)]
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or Interrupts.current:
        found.append("signal handler")
    if turns._OWNERS or run._NO_FAST_PATH.n or run._NOT_COMPILED.n:
        found.append("turns")
    taken: list[bool] = []

    def take() -> None:
        taken.append(turns.RANDOM.acquire(blocking=False))
        if taken[0]:
            turns.RANDOM.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    return found if taken == [True] else [*found, "the lock of random states"]


def interrupt(case: Case, share: float, n: int | None = None) -> tuple[int, list[str]]:
    """Interrupts one call where `share` of its steps are done; how many there are, what is left."""
    model = case.make()
    if n is None:
        case.call(model)  # the first call of all does more
        model = case.make()
        count = Steps()
        count.during(lambda: case.call(model))
        n = count.n
        model = case.make()
    state = torch.get_rng_state()
    before = Snapshot(model, INPUTS)
    steps = Steps(1 + int(share * n))
    try:
        steps.during(lambda: case.call(model))
        got_out = steps.n < steps.at  # it was over before
    except KeyboardInterrupt:
        got_out = True
    found = left(model, before, case.trains)
    torch.set_rng_state(state)
    if not got_out:
        found.append("the interrupt did not get out")
    return n, [f"{each} ({steps.where})" for each in found]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left(case: Case) -> None:
    tries = 7
    n = None
    for i in range(tries):
        # Other places for each function, the same in each session.
        share = (i + (len(case.name) * 0.618) % 1) / tries
        n, found = interrupt(case, share, n)
        assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_at_many_steps(case: Case) -> None:
    tries, n, found = 50, None, []
    for i in range(tries):
        n, each = interrupt(case, (i + 0.5) / tries, n)
        found += each
    assert found == []
