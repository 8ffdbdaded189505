"""Calls leave no memory behind, and take no more than they say."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from state.cases import CALLS, CASES, Case, mlp


def grown(call: Callable[[], object], n_calls: int) -> float:
    """By how many of Python's blocks of memory, each tensor's among them, a call makes it grow."""
    call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(n_calls):
        call()
    gc.collect()
    return (sys.getallocatedblocks() - before) / n_calls


def require_none(call: Callable[[], object]) -> None:
    gc.freeze()  # what was there before need not be looked at
    try:
        # The first calls fill caches and lists of free objects, by some blocks each; a leak, of a
        # hook or a graph, takes more and goes on.
        if all((found := grown(call, n)) >= 3.0 for n in (4, 10, 20, 40, 80)):
            pytest.fail(f"each call leaves {found} blocks")
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("case", [case for case in CASES if case.make is mlp], ids=str)
def test_of_models(case: Case) -> None:
    model = case.make()
    require_none(lambda: case.call(model))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.make is not mlp], ids=str)
def test_of_other_models(case: Case) -> None:
    model = case.make()
    require_none(lambda: case.call(model))


@pytest.mark.parametrize("name", CALLS)
def test_of_tensors(name: str) -> None:
    require_none(CALLS[name])


def test_growth_is_seen() -> None:
    kept: list[object] = []
    with pytest.raises(pytest.fail.Exception):
        require_none(lambda: kept.extend(bytearray(200) for _ in range(5)))
    with pytest.raises(pytest.fail.Exception):
        require_none(lambda: kept.extend(torch.zeros(2) for _ in range(5)))


PEAK = """
import resource, sys, torch, modfast

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

x = torch.rand(1_000_000, 16)
modfast.entropy(x[:1000], pairing="pairwise")
modfast.joint_entropy(x[:1000], x[:1000, :1], pairing="pairwise")
before = peak()
if sys.argv[1] == "entropy":
    modfast.entropy(x, pairing="pairwise")
else:
    modfast.joint_entropy(x, x[:, :1], pairing="pairwise")
print((peak() - before) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such count of memory")
@pytest.mark.parametrize("function", ["entropy", "joint_entropy"])
def test_entropies_of_columns_take_little_more_than_the_codes(function: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, function], capture_output=True, text=True, check=True
    )
    # Codes are a quarter of the values; counting them took another four times the values.
    assert float(done.stdout) < 1.0
