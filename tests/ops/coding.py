"""Codes of two sides."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import reference
from modfast.ops.information import Pairing

PAIRINGS: list[Pairing] = ["aligned", "all", "pairwise"]


def codes(n: int, d: int, bins: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
    """Random codes, of which the lower ones are more frequent."""
    generator = torch.Generator().manual_seed(seed)
    found = (torch.rand(n, d, generator=generator).square() * bins).long()
    return found.to(device, reference.code_dtype(bins))


def sides(
    shape: tuple[int, int, int], bins_x: int, bins_y: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Codes of x and of y, which depends on x."""
    n, dx, dy = shape
    x, y = codes(n, dx, bins_x, device), codes(n, dy, bins_y, device, 1)
    if dx and dy:
        y[: n // 3, 0] = (x[: n // 3, 0].long() % bins_y).to(y.dtype)
    return x, y
