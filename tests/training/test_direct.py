"""Gradients that are set without autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modfast.models import MLP
from modfast.training.direct import covers


def test_direct_gradients_are_only_for_plain_mlps() -> None:
    class Doubled(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert covers(MLP([4, 3, 2]))
    assert not covers(Doubled([4, 3, 2]))
    assert not covers(nn.Sequential(nn.Linear(4, 2)))
    frozen = MLP([4, 3, 2])
    frozen.fc1.weight.requires_grad_(False)
    assert not covers(frozen)
    pruned = MLP([4, 3, 2])
    torch.nn.utils.parametrize.register_parametrization(pruned.fc1, "weight", nn.Identity())
    assert not covers(pruned)
    with torch.autocast("cpu"):
        assert not covers(MLP([4, 3, 2]))
