"""A step of `Modularity` against torch's own fused step, which has no penalty."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from compare import Case
from torch import nn

import modfast

# A step with the penalty may cost 1.15 times torch's step without any.
TARGET = 1 / 1.15
BASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9}),
    ("adam", torch.optim.Adam, {}),
]


def cases() -> Iterator[Case]:
    mlp = modfast.models.MLP([784, 64, 64, 10], bias=False)
    large = nn.Sequential(nn.Linear(4096, 4096, bias=False))
    for base, torch_class, options in BASES:
        yield step_case("784-64-64-10 MLP", mlp, "fc2", base, torch_class, options)
    for base, torch_class, options in BASES:
        yield step_case("one 4096 x 4096 weight", large, "0", base, torch_class, options)


def step_case(
    title: str, model: nn.Module, layer: str, base: str, torch_class: Any, options: dict[str, Any]
) -> Case:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator)
        q.grad = p.grad.clone()
    optimizer = modfast.Modularity(
        ours.named_parameters(), lr=1e-3, layers=layer, base=base, **options
    )
    plain = torch_class(theirs.parameters(), lr=1e-3, fused=True, **options)

    # The same steps but for the penalty: without it they must agree.
    for group in optimizer.param_groups:
        alpha, group["cluster_alpha"] = group["cluster_alpha"], 0.0
    for _ in range(3):
        optimizer.step()
        plain.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    for group in optimizer.param_groups:
        group["cluster_alpha"] = alpha
    words = " ".join(f"{key}={value}" for key, value in options.items())
    return Case(
        f"step of {base} {words}".strip() + f", {title}",
        {"modfast, with penalty": optimizer.step, "torch fused, without": plain.step},
        {"torch fused, without": TARGET},
        rounds=21,
    )
