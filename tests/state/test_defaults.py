"""Other default devices and dtypes change no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from state.cases import CALLS, CASES, Case, differences


@contextmanager
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS: dict[str, Callable[[], Any]] = {
    "device": meta,
    "device, in a block": lambda: torch.device("meta"),
    "dtype": float64,
}


@pytest.mark.parametrize("other", DEFAULTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_of_models(case: Case, other: str) -> None:
    model, again = case.make(), case.make()
    expected = case.call(model)
    with DEFAULTS[other]():
        found = case.call(again)
    assert differences(expected, found) == []


@pytest.mark.parametrize("other", DEFAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_of_tensors(name: str, other: str) -> None:
    expected = CALLS[name]()
    with DEFAULTS[other]():
        found = CALLS[name]()
    assert differences(expected, found) == []
