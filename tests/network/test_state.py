"""What a forward pass may change is put back."""

# ruff: noqa: NPY002 (numpy's global state is what is tested)

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import modfast

DRAWS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "torch": lambda: torch.rand(3),
    "Python": random.random,
    "Python, a normal number in store": lambda: random.gauss(0, 1),
    "numpy": np.random.random,
    "numpy, a normal number in store": np.random.standard_normal,
    "numpy, seeded anew": lambda: np.random.seed(3),
}


class Drawing(nn.Module):
    """Draws from a global generator on the way."""

    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self.fc, self.draw = nn.Linear(4, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        self.draw()
        return self.fc(x)


def drawn() -> tuple[list[float], float, float]:
    return torch.rand(2).tolist(), random.gauss(0, 1), float(np.random.standard_normal())


@pytest.mark.parametrize("n_before", [0, 1, 2])
@pytest.mark.parametrize("name", DRAWS)
def test_random_states_are_put_back(name: str, n_before: int) -> None:
    model, x, found = Drawing(DRAWS[name]), torch.randn(5, 4), []
    for run in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        for _ in range(n_before):  # one leaves a normal number in store
            drawn()
        if run:
            modfast.capture(model, x, "fc")
        found.append([drawn() for _ in range(3)])
    assert found[0] == found[1]


def test_another_generator_of_numpys_is_put_back() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        modfast.capture(Drawing(np.random.random), torch.randn(5, 4), "fc")
        found = np.random.random()
        np.random.set_bit_generator(np.random.PCG64(0))
        assert found == np.random.random()
    finally:
        np.random.set_bit_generator(before)
