"""What an estimate is of: a number that gradients go through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modfast import checks
from modfast.ablation.arguments import MEASURED
from modfast.metrics import Function, name_of, samplewise
from modfast.network.inputs import Batch
from modfast.network.logits import Rows, log_softmax
from modfast.precision import full_precision


@dataclass(frozen=True)
class Objective:
    """What the logits are judged by, as something that gradients go through."""

    name: str
    function: Function | None = None
    draws: int = 1
    seed: int = 0

    @property
    def is_squared(self) -> bool:
        """Whether scores are halves of squares, of second order."""
        return self.name == "kl" and self.function is None

    def values(self, logits: Tensor, rows: Rows, batch: Batch) -> list[Tensor]:
        """What to take the gradient of, at the unchanged run."""
        with full_precision():
            if self.is_squared:
                log_p = log_softmax(rows.logits)
                return [self._drawn(log_p, batch.first, i) for i in range(self.draws)]
            return [self.value(logits, rows, batch)]

    def value(
        self, logits: Tensor, rows: Rows, batch: Batch, log_p: Tensor | None = None
    ) -> Tensor:
        """The sum over samples; of "kl", from log-probabilities `log_p` of the unchanged run."""
        if self.function is not None:
            found = samplewise(self.function, logits, batch).double()
            return found.expand(len(batch)).sum()
        log_q = log_softmax(rows.logits).double()
        if self.name == "loss":
            if rows.targets is None:
                raise ValueError("targets must be given with metric='loss'")
            return -log_q.gather(1, rows.targets[:, None]).sum()
        log_of = log_q if log_p is None else log_q - log_p
        return (log_q.exp() * log_of).sum()  # -H(q), or KL(q | p)

    def _drawn(self, log_p: Tensor, first: int, i: int) -> Tensor:
        """What has a gradient of variance F, Fisher's, by random signs for all classes.

        Drawn classes would do as well, but rare ones among them come seldom and count much.
        """
        seed = (self.seed * 7919 + i) * 104729 + first
        generator = torch.Generator(log_p.device).manual_seed(seed)
        with torch.no_grad():
            p = log_p.exp()
            signs = torch.empty_like(p).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
            each = p.sqrt().mul_(signs)
            each -= p.mul_(each.sum(1, keepdim=True))
        return (log_p * each).sum()


def read_objective(metric: Any, draws: int, seed: int) -> Objective:
    """What is estimated.

    Raises:
        TypeError, ValueError: another metric, several, or one without a gradient.
    """
    draws, seed = checks.count("draws", draws), checks.seed("seed", seed)
    if isinstance(metric, str):
        if metric == "accuracy":
            raise ValueError("metric must have a gradient, got 'accuracy'")
        checks.choice("metric", metric, MEASURED)
        return Objective(metric, None, draws, seed)
    if not callable(metric):
        raise TypeError(f"metric must be a name or a function, got {checks.shown(metric)}")
    return Objective(name_of(metric), metric, draws, seed)
