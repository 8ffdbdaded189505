"""Greedy pruning of single weights, which sets, runs, and restores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def prune_layer(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    sizes: Tensor,
    order: Tensor,
    original: Tensor | None,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """Greedy pruning of single weights of one layer, by brute force in float64.

    The layer has weight `weights[0]` `[g, n_out, n_in]`; those after it, with ReLU in between,
    have the others. Group i of samples, of `sizes` `[g]`, has weights `[i]` and goes by itself. In
    `order` `[v]`, of indices into the flattened weight, each is zeroed, and put back if the loss
    rises by more than the threshold over the running loss, or over `original` `[g]` if given.

    Returns each visit's margin, the rise less the threshold, `[g, v]`: a weight stays zero where it
    is at most 0; and the loss before and after each visit, `[g, v + 1]`.
    """
    all_margins, all_losses = [], []
    parts = zip(inputs.split(sizes.tolist()), targets.split(sizes.tolist()), strict=True)
    for group, (x, y) in enumerate(parts):
        layers = [
            (weight[group].double().clone(), bias[group].double())
            for weight, bias in zip(weights, biases, strict=True)
        ]

        def loss(x: Tensor = x, y: Tensor = y, layers: Sequence[Any] = layers) -> float:
            z = x.double()
            for i, (weight, bias) in enumerate(layers):
                z = functional.linear(z.relu() if i else z, weight, bias)
            return float(functional.cross_entropy(z, y))

        running, margins = loss(), []
        losses, first = [running], layers[0][0].view(-1)
        for index in order.tolist():
            kept = float(first[index])
            first[index] = 0.0
            after = loss()
            over = running if original is None else float(original[group])
            margins.append(after - over - threshold)
            if margins[-1] > 0.0:
                first[index] = kept
            else:
                running = after
            losses.append(running)
        all_margins.append(margins)
        all_losses.append(losses)
    found = torch.tensor(all_margins, dtype=torch.float64, device="cpu").view(
        len(sizes), len(order)
    )
    return found.to(inputs.device), torch.tensor(all_losses, dtype=torch.float64, device="cpu").to(
        inputs.device
    )
