"""A step of `Modularity` against torch's own fused step, which has no penalty."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from compare import Case
from torch import nn

import modfast
from modfast import reference

# A step with the penalty may cost 1.15 times torch's step without any.
TARGET = 1 / 1.15
# name, torch's class, options, and how many arrays of the weights' size a step reads or writes
BASES: list[tuple[str, Any, dict[str, Any], int]] = [
    ("sgd", torch.optim.SGD, {}, 3),
    ("sgd", torch.optim.SGD, {"momentum": 0.9}, 5),
    ("adam", torch.optim.Adam, {}, 7),
]


def cases() -> Iterator[Case]:
    mlp, large = models(4096)
    for base in BASES:
        yield step_case("784-64-64-10 MLP", mlp, "fc2", *base)
    for base in BASES:
        yield step_case("one 4096 x 4096 weight", large, "0", *base)


def gpu_cases(device: str) -> Iterator[partial[Case]]:
    n = 4096 if device == "cuda" else 256
    mlp, large = (model.to(device) for model in models(n))
    for base in BASES:
        yield partial(step_case, "784-64-64-10 MLP", mlp, "fc2", *base)
        yield partial(step_case, f"one {n} x {n} weight", large, "0", *base)


def models(n: int) -> tuple[nn.Module, nn.Module]:
    mlp = modfast.models.MLP([784, 64, 64, 10], bias=False)
    return mlp, nn.Sequential(nn.Linear(n, n, bias=False))


def with_gradients(model: nn.Module) -> nn.Module:
    """A copy, with the same random gradients each time."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator).to(p.device)
    return model


def step_case(
    title: str,
    model: nn.Module,
    layer: str,
    base: str,
    torch_class: Any,
    options: dict[str, Any],
    arrays: int,
) -> Case:
    check_step(model, layer, base, torch_class, options)
    ours, theirs = with_gradients(model), with_gradients(model)
    optimizer = modfast.Modularity(
        ours.named_parameters(), lr=1e-3, layers=layer, base=base, **options
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
    return Case(
        f"step of {base} {words}".strip() + f", {title}",
        {"modfast, with penalty": optimizer.step, "torch fused, without": plain.step},
        {"torch fused, without": TARGET},
        rounds=21,
        device=next(ours.parameters()).device.type,
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
