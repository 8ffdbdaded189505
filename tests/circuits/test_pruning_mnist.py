"""Every decision on MNIST whose margin exceeds rounding is that of brute force."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from circuits.oracle import replayed
from torch import Tensor

import modfast
from modfast.models import MLP

ROUNDING = 1e-6
SAMPLES = (
    48  # of a label: brute force takes a thousandth of a second for each weight and 50 of them
)


@cache
def trained(root: Path) -> tuple[MLP, Tensor, Tensor]:
    data = modfast.data.load("mnist", root=root)
    torch.manual_seed(0)
    model = MLP([784, 64, 64, 10], bias=False)
    modfast.fit(
        model,
        (data.train_x[:12800], data.train_y[:12800]),
        epochs=2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        seed=0,
        progress=False,
    )
    return model.requires_grad_(False), data.test_x.flatten(1), data.test_y


@pytest.mark.parametrize("against", ["running", "original"])
@pytest.mark.parametrize("label", [1, 4, 8])
@pytest.mark.slow
def test_all_decisions(mnist_root: Path, against: str, label: int) -> None:
    model, x, y = trained(mnist_root)
    rows = (y == label).nonzero()[:SAMPLES, 0]
    x, y = x[rows], y[rows]
    circuit = modfast.prune_circuit(model, x, y, baseline=against)
    assert 0 < circuit.kept < circuit.total == 54912
    layers = {f"fc{i}": model.get_submodule(f"fc{i}").weight.clone() for i in (1, 2, 3)}
    original = float(circuit.original_loss) if against == "original" else None
    close = 0
    for first, (name, mask) in zip((3, 2, 1), circuit.mask.items(), strict=True):
        weights = [layers[f"fc{i}"] for i in range(first, 4)]
        given = x.double()
        for i in range(1, first):
            given = (given @ layers[f"fc{i}"].double().T).relu()
        margins = circuit.margins[name]
        exact = replayed(given, weights, y, margins, circuit.threshold, original)
        assert (margins - exact).abs().max() < ROUNDING
        far = exact.abs() > ROUNDING
        assert torch.equal((exact > 0)[far], mask[far])
        close += int((~far).sum())
        layers[f"fc{first}"][~mask] = 0
    # Near ties are few, and the circuit can tell how many.
    assert close < 200
    assert abs(circuit.close_calls() - close) < 20
