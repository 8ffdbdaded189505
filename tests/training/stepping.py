"""A small network, and steps of an optimizer on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from modfast.models import MLP


def batch(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 20, generator=generator)
    return x.to(device), torch.randint(0, 5, (64,), generator=generator).to(device)


def network(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> MLP:
    torch.manual_seed(0)
    return MLP([20, 17, 13, 11, 5]).to(device, dtype)


def closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, reg: Callable[[], Tensor | float]
) -> Callable[[], Tensor]:
    p = next(model.parameters())
    x, y = batch(p.device)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x.to(p.dtype)), y) + reg()
        loss.backward()
        return loss

    return evaluate


def trained(optimizer: torch.optim.Optimizer, evaluate: Callable[[], Tensor], steps: int) -> None:
    for _ in range(steps):
        if isinstance(getattr(optimizer, "_base", optimizer), torch.optim.LBFGS):
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()


def no_term() -> float:
    return 0.0
