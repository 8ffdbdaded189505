"""Edges and circuits by their definitions, one edge at a time, for the small networks here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Masks = list[Tensor]


class Plain:
    """Layers, what comes after each, and the node of each unit, as lists written by hand."""

    def __init__(
        self,
        layers: list[nn.Module],
        after: list[Callable[[Tensor], Tensor]],
        labels: list[Tensor] | None = None,
        columns: list[int] | None = None,
    ) -> None:
        self.layers, self.after = layers, after
        # How many columns of a layer's weight a unit before it takes.
        self.columns = columns or [1] * len(layers)
        sizes = [layers[0].weight.shape[1]] + [len(layer.weight) for layer in layers]
        self.labels = labels or [torch.arange(n) for n in sizes]

    def full(self, value: bool = True) -> Masks:
        n = [int(labels.max()) + 1 for labels in self.labels]
        return [torch.full((s, r), value) for s, r in pairwise(n)]

    def carried(self, level: int, h: Tensor, s: int, r: int) -> Tensor:
        """What unit s brings to unit r."""
        layer, k = self.layers[level], self.columns[level]
        weight, h = layer.weight[r : r + 1, s * k : s * k + k], h[:, s * k : s * k + k]
        if isinstance(layer, nn.Linear):
            return functional.linear(h, weight)
        return functional.conv2d(h, weight, None, layer.stride, layer.padding)

    @torch.no_grad()
    def logits(self, clean: Tensor, corrupted: Tensor, masks: Masks) -> Tensor:
        h, other = clean, corrupted
        for level, layer in enumerate(self.layers):
            units = []
            for r, receiver in enumerate(self.labels[level + 1].tolist()):
                z = torch.zeros(()) if layer.bias is None else layer.bias[r]
                for s, sender in enumerate(self.labels[level].tolist()):
                    kept = bool(masks[level][sender, receiver])
                    z = z + self.carried(level, h if kept else other, s, r)
                units.append(z)
            h = self.after[level](torch.cat(units, 1))
            other = self.after[level](layer(other))
        return h

    def exact(
        self, clean: Tensor, corrupted: Tensor, metric: Callable[[Tensor], float]
    ) -> list[Tensor]:
        """The rise of the metric for each edge alone."""
        base = metric(self.logits(clean, corrupted, self.full()))
        found = [torch.zeros(mask.shape, dtype=torch.float64) for mask in self.full()]
        for level, scores in enumerate(found):
            for s, r in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
                masks = self.full()
                masks[level][s, r] = False
                scores[s, r] = metric(self.logits(clean, corrupted, masks)) - base
        return found

    def acdc(
        self, clean: Tensor, corrupted: Tensor, metric: Callable[[Tensor], float], tau: float
    ) -> Masks:
        """Algorithm 1 of Conmy et al.: a whole forward pass for each edge."""
        masks = self.full()
        value = metric(self.logits(clean, corrupted, masks))
        for mask in reversed(masks):
            for r in range(mask.shape[1]):
                for s in range(mask.shape[0]):
                    mask[s, r] = False
                    without = metric(self.logits(clean, corrupted, masks))
                    if without - value < tau:
                        value = without
                    else:
                        mask[s, r] = True
        return masks


def identity(x: Tensor) -> Tensor:
    return x


def kl(whole: Tensor) -> Callable[[Tensor], float]:
    """KL(p | q), the mean over samples, against the whole network's logits."""
    p = whole.double().softmax(1)

    def divergence(logits: Tensor) -> float:
        return float((p * (p / logits.double().softmax(1)).log()).sum(1).mean())

    return divergence
