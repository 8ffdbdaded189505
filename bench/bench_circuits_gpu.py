"""Greedy pruning of single weights on a GPU, beside brute force there, 784-64-64-10.

Brute force sets a weight to 0, runs the samples through the network, takes the loss and puts the
weight back: in torch, for some of the weights, and its time is scaled to all of them. Samples are
normal numbers, four fifths of them zeros, as pixels are; the network was not trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from timing import Compare
from torch import Tensor
from torch.nn import functional

from modfast import ops, reference
from modfast.models import MLP

BRUTE = "brute force in torch"
LAYERS = ("fc1", "fc2", "fc3")
# How often modfast's time must at least go into brute force's, for ten groups.
TARGET = 100.0
VISITS = 100  # of brute force
THRESHOLD = 1e-4
# The operator's inputs, weights, biases, targets and sizes.
Network = tuple[Tensor, list[Tensor], list[Tensor], Tensor, Tensor]


def network(layer: str, n: int, n_groups: int, width: int, device: str) -> Network:
    """From a layer on."""
    torch.manual_seed(0)
    hidden = 64 if width > 64 else 6
    model = MLP([width, hidden, hidden, 10], bias=False).requires_grad_(False)
    x = torch.randn(n, width) * (torch.rand(n, width) < 0.2)
    targets = model(x).argmax(1)
    model, x, targets = model.to(device), x.to(device), targets.to(device)
    first = LAYERS.index(layer)
    for name in LAYERS[:first]:
        x = model.get_submodule(name)(x).relu()
    weights = [model.get_submodule(name).weight for name in LAYERS[first:]]
    groups = [each.expand(n_groups, *each.shape).contiguous() for each in weights]
    biases = [each.new_zeros(each.shape[:2]) for each in groups]
    sizes = torch.full((n_groups,), n // n_groups, device=device)
    return x, groups, biases, targets, sizes


def brute(weights: list[Tensor], indices: list[int], x: Tensor, targets: Tensor) -> None:
    """Trials of weights: one forward pass each, as the loss before is known."""
    first = weights[0].view(-1)
    for index in indices:
        before = first[index].item()
        first[index] = 0
        z = x
        for i, weight in enumerate(weights):
            z = functional.linear(z.relu() if i else z, weight)
        float(functional.cross_entropy(z, targets))
        first[index] = before


@pytest.mark.short
@pytest.mark.parametrize(("n", "n_groups"), [(10_000, 10), (1000, 1)])
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_pruning(compare: Compare, gpu: str, layer: str, n: int, n_groups: int) -> None:
    least = {BRUTE: TARGET} if n_groups == 10 else {}
    width = 784 if gpu == "cuda" else 12
    n, n_groups = (n, n_groups) if gpu == "cuda" else (40, 2)
    arguments = network(layer, n, n_groups, width, gpu)
    x, groups, _, targets, _ = arguments
    n_weights = groups[0][0].numel()
    order = torch.arange(n_weights, device=gpu)
    found = [each.cpu() for each in ops.prune_layer(*arguments, order, None, THRESHOLD)]
    some = torch.randperm(n_weights, generator=torch.Generator().manual_seed(0))[:VISITS]
    check(arguments, found, some[:20].sort().values.tolist())
    per_group = n // n_groups
    parts = [[each[g] for each in groups] for g in range(n_groups)]

    def brute_force() -> None:
        for g, weights in enumerate(parts):
            rows = slice(g * per_group, (g + 1) * per_group)
            brute([each.clone() for each in weights], some.tolist(), x[rows], targets[rows])

    compare(
        f"pruning {layer}, {n_groups} groups of {per_group} samples",
        {
            "modfast": lambda: ops.prune_layer(*arguments, order, None, THRESHOLD),
            BRUTE: brute_force,
        },
        least,
        rounds=3,
        device=gpu,
        parts={BRUTE: len(some) / n_weights},
    )


def check(arguments: Network, found: Sequence[Tensor], visits: list[int]) -> None:
    """Some visits, each in the state it was made in, as one within rounding changes those after."""
    x, groups, biases, targets, sizes = arguments
    margins, losses = found
    whole, gone = groups[0], (margins <= 0).to(groups[0].device)
    for visit in visits:
        first = whole.double().clone()
        first.flatten(1)[:, :visit][gone[:, :visit]] = 0
        exact = [first, *(each.double() for each in groups[1:])]
        index = torch.tensor([visit])
        wanted = reference.prune_layer(x, exact, biases, targets, sizes, index, None, THRESHOLD)
        torch.testing.assert_close(margins[:, visit], wanted[0][:, 0].cpu(), rtol=0, atol=1e-6)
        torch.testing.assert_close(losses[:, visit], wanted[1][:, 0].cpu(), rtol=0, atol=1e-6)
