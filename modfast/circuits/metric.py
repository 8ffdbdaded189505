"""What a circuit is judged by: a number that a network's logits give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from modfast.metrics import Function, mean_over_samples
from modfast.network.inputs import Batch
from modfast.scores import check_targets

MetricLike: TypeAlias = str | Function | None

NO_GRADIENT = (
    "metric='kl' has gradient zero at the clean run, where method='eap' takes it; give targets or "
    "another metric, or method='eap-ig'"
)


@dataclass(frozen=True)
class Metric:
    """A number for logits `[n, c]`, or several for `[..., n, c]`; float64, in nats.

    "kl": the mean over samples of KL(p | q) = sum p log(p / q), p being the whole network's class
    probabilities. "loss": the mean of -log q(target). Else the mean of what a function of logits,
    and their batch, gives.
    """

    kind: str
    log_p: Tensor
    targets: Tensor | None = None
    function: Function | None = None
    batch: Batch | None = None
    """What the function is given besides."""

    def __call__(self, logits: Tensor) -> Tensor:
        """One number for each `[n, c]`."""
        if self.function is not None:
            rows = [self._value(each) for each in logits.reshape(-1, *logits.shape[-2:])]
            return torch.stack(rows).reshape(logits.shape[:-2])
        log_q = logits.double().log_softmax(-1)
        if self.kind == "kl":
            return (self.log_p.exp() * (self.log_p - log_q)).sum(-1).mean(-1)
        assert self.targets is not None
        chosen = self.targets.expand(log_q.shape[:-1])
        return -log_q.gather(-1, chosen[..., None])[..., 0].mean(-1)

    def _value(self, logits: Tensor) -> Tensor:
        assert self.function is not None
        assert self.batch is not None
        return mean_over_samples(self.function, logits, self.batch)


def make_metric(
    metric: MetricLike, logits: Tensor, targets: Tensor | None, inputs: Tensor | None = None
) -> Metric:
    """By default the loss where there are targets, and else the divergence.

    Raises:
        TypeError, ValueError: targets that are not one class for each sample, or on another device;
            an unknown metric, the loss without targets.
    """
    log_p = logits.detach().double().log_softmax(-1)
    if targets is not None:
        if not isinstance(targets, Tensor):
            raise TypeError(f"targets must be a tensor, got {type(targets).__name__}")
        if targets.device != logits.device:
            raise ValueError(f"targets must be on {logits.device}, got {targets.device}")
        check_targets("targets", targets, *logits.shape)
        if targets.is_floating_point():
            raise TypeError(f"targets must be int64 classes, got {targets.dtype}")
    if callable(metric):
        batch = Batch(() if inputs is None else (inputs,), {}, targets)
        return Metric("callable", log_p, targets, metric, batch)
    kind = ("kl" if targets is None else "loss") if metric is None else metric
    if not isinstance(kind, str) or kind not in ("kl", "loss"):  # an array compares to several
        raise ValueError(f"metric must be 'kl', 'loss' or a function of logits, got {metric!r:.60}")
    if kind == "loss" and targets is None:
        raise ValueError("metric='loss' needs targets")
    return Metric(kind, log_p, targets)
