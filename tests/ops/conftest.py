"""Operators are tested on one device more than what is built on them: CUDA kernels on the host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def small(request: pytest.FixtureRequest) -> bool:
    """Whether sizes must be small: on "simt" an access to memory takes about 0.1 µs."""
    return bool(request.node.callspec.params.get("device") == "simt")


@pytest.fixture(params=["cpu", "simt", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device in turn; "simt": CPU tensors, CUDA kernels run and checked by tests/simt."""
    if request.param == "simt":
        with request.getfixturevalue("simt").running():
            yield torch.device("cpu")
    else:
        yield request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")
