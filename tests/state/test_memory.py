"""Calls leave no memory behind, and take no more than they say."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
import torch
from state.cases import CALLS, CASES, Case, mlp


@pytest.fixture(autouse=True, scope="module")
def only_what_is_new() -> Iterator[None]:
    """Looking at all objects there are takes long."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def grown(call: object, n_calls: int) -> tuple[float, float]:
    """Bytes of Python's and tensors by which each call makes the process grow."""
    assert callable(call)
    sizes: list[tuple[int, int]] = []
    for n in (3, n_calls):  # the first calls fill caches
        for _ in range(n):
            call()
        gc.collect()
        tensors = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
        sizes.append((tracemalloc.get_traced_memory()[0], tensors))
    (before, tensors_before), (after, tensors_after) = sizes
    return (after - before) / n_calls, (tensors_after - tensors_before) / n_calls


def require_none(call: object) -> None:
    tracemalloc.start()
    try:
        bytes_each, tensors = grown(call, 8)
        if bytes_each > 100:  # a cache that grew once, maybe
            bytes_each, tensors = grown(call, 40)
    finally:
        tracemalloc.stop()
    assert bytes_each < 100
    assert tensors < 0.5


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
    with pytest.raises(AssertionError):
        require_none(lambda: kept.append(bytearray(200)))
    with pytest.raises(AssertionError):
        require_none(lambda: kept.append(torch.zeros(2)))


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
