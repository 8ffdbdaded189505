"""A step of `Modularity` against torch's own fused step, which has no penalty."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timing import Compare
from torch import nn

import modfast
from modfast import reference

# A step with the penalty may cost 1.15 times torch's step without any.
TARGET = 1 / 1.15
# name, torch's class, options, and how many arrays of the weights' size a step reads or writes
Base = tuple[str, Any, dict[str, Any], int]
BASES: list[Base] = [
    ("sgd", torch.optim.SGD, {}, 3),
    ("sgd", torch.optim.SGD, {"momentum": 0.9}, 5),
    ("adam", torch.optim.Adam, {}, 7),
]


def with_gradients(model: nn.Module) -> nn.Module:
    """A copy, with the same random gradients each time."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator).to(p.device)
    return model


@pytest.mark.short
@pytest.mark.parametrize("base", BASES, ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize("n", [64, 4096])
def test_step(compare: Compare, device: str, base: Base, n: int) -> None:
    name, torch_class, options, arrays = base
    title, layer, model = f"one {n} x {n} weight", "0", nn.Sequential(nn.Linear(n, n, False))
    if n == 64:
        title, layer = "784-64-64-10 MLP", "fc2"
        model = modfast.models.MLP([784, n, n, 10], bias=False)
    model.to(device)
    check_step(model, layer, name, torch_class, options)
    ours, theirs = with_gradients(model), with_gradients(model)
    optimizer = modfast.Modularity(
        ours.named_parameters(), lr=1e-3, layers=layer, base=name, **options
    )
    plain = torch_class(theirs.parameters(), lr=1e-3, fused=True, **options)

    # The same steps but for the penalty: without it they must agree.
    for group in optimizer.param_groups:
        alpha, group["alpha"] = group["alpha"], 0.0
    for _ in range(3):
        optimizer.step()
        plain.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    for group in optimizer.param_groups:
        group["alpha"] = alpha
    words = " ".join(f"{key}={value}" for key, value in options.items())
    compare(
        f"step of {name} {words}".strip() + f", {title}",
        {"modfast, with penalty": optimizer.step, "torch fused, without": plain.step},
        {"torch fused, without": TARGET},
        rounds=21,
        device=device,
        bytes=arrays * sum(p.nbytes for p in ours.parameters()),
    )


def check_step(
    model: nn.Module, layer: str, base: str, torch_class: Any, options: dict[str, Any]
) -> None:
    """A step under a penalty far stronger than the gradients, against float64 without kernels."""
    alpha = 2000.0
    ours, exact = with_gradients(model), with_gradients(model).double()
    weight = exact.get_parameter(f"{layer}.weight")
    labels = modfast.Clusters.equal(*weight.shape, 4).to(weight.device).labels
    with torch.no_grad():
        one, old = weight.new_ones(()), [weight]
        _, sums = reference.cluster_penalty(old, labels, -alpha)
        penalty = reference.cluster_penalty_backward(one, old, labels, sums, -alpha)[0]
        assert weight.grad is not None
        weight.grad += penalty
    torch_class(exact.parameters(), lr=1e-3, **options).step()
    modfast.Modularity(
        ours.named_parameters(), lr=1e-3, layers=layer, alpha=alpha, base=base, **options
    ).step()
    for before, p, q in zip(model.parameters(), ours.parameters(), exact.parameters(), strict=True):
        # By norms: Adam divides, and so magnifies rounding where both gradients cancel.
        error, moved = (p.double() - q).norm(), (q - before.double()).norm()
        assert error <= 1e-3 * moved + 1e-7 * q.norm(), f"off by {error}, moved {moved}"
