"""Gradients and their groups, the long way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradients_after(rest: Callable[[Tensor], Tensor], activations: Tensor, task: int) -> Tensor:
    """d rest(a)[task] / d a, sample by sample: `[n, ...]`."""
    found = []
    for row in activations.detach():
        leaf = row[None].clone().requires_grad_()
        found.append(torch.autograd.grad(rest(leaf)[0, task], leaf)[0][0])
    return torch.stack(found)


def brute_groups(rows: Tensor, apart: float = 1e-9) -> list[tuple[Tensor, int]]:
    """The different rows of float64 gradients, and how often each occurs."""
    groups: list[list[Tensor]] = []
    for row in rows:
        for group in groups:
            if torch.linalg.vector_norm(row - group[0]) <= apart:
                group.append(row)
                break
        else:
            groups.append([row])
    return [(group[0], len(group)) for group in groups]


def assert_same_groups(found: Tensor, counts: Tensor, rows: Tensor) -> None:
    """Distinct gradients against the groups of all rows, in any order."""
    groups = brute_groups(rows)
    assert len(found) == len(groups)
    for vector, count in groups:
        distance = (found - vector).norm(dim=1)
        assert distance.min() <= 1e-9
        assert counts[distance.argmin()] == count
