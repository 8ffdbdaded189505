"""Optimizer steps on a loss and clusterability at once; labels as in `cluster_penalty`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modfast.reference.clusterability import cluster_sums, penalty_gradient, split_labels


def _total_gradients(
    weights: Sequence[Tensor], grads: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """The loss's gradients plus the penalty's, in the precision in which updates are computed."""
    totals = [g.double() if g.dtype == torch.float64 else g.float() for g in grads]
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        penalty = penalty_gradient(weights[i], rows, cols, sums[i], scale)
        totals[i] = totals[i] + penalty.to(totals[i].dtype)
    return totals


def _retake(weights: Sequence[Tensor], labels: Tensor, sums: Tensor) -> None:
    for i, (rows, cols) in enumerate(split_labels(weights[: len(sums)], labels)):
        sums[i] = cluster_sums(weights[i], rows, cols)


def clustered_sgd_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None:
    """One torch.optim.SGD step on loss + scale * sum of clusterabilities, in place.

    `sums` `[k, 2]` holds the cluster sums of the first k weights on entry and those of the new
    weights on return; `labels` are of these k, the others take the plain step. `first` sets the
    momentum buffers instead of reading them; without momentum they may be an empty list.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, step) in enumerate(zip(weights, totals, strict=True)):
        step = step + weight_decay * w.to(step.dtype)
        if momentum != 0:
            buffer = momentum_buffers[i]
            old = buffer.to(step.dtype)
            new = step if first else momentum * old + (1 - dampening) * step
            buffer.copy_(new)
            step = step + momentum * new if nesterov else new
        w.copy_(w.to(step.dtype) - lr * step)
    _retake(weights, labels, sums)


def clustered_adam_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    labels: Tensor,
    sums: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One torch.optim.Adam (`decoupled`: AdamW) step on loss + scale * clusterabilities, in place.

    `steps` are float32 scalars on the CPU, counted up here. For the rest see `clustered_sgd_`.
    """
    totals = _total_gradients(weights, grads, labels, sums, scale)
    for i, (w, grad) in enumerate(zip(weights, totals, strict=True)):
        steps[i] += 1
        step = steps[i].item()
        old = w.to(grad.dtype)
        if decoupled:
            old = old * (1 - lr * weight_decay)
        else:
            grad = grad + weight_decay * old
        mean = beta1 * exp_avgs[i].to(grad.dtype) + (1 - beta1) * grad
        square = beta2 * exp_avg_sqs[i].to(grad.dtype) + (1 - beta2) * grad.square()
        exp_avgs[i].copy_(mean)
        exp_avg_sqs[i].copy_(square)
        denominator = square.sqrt() / (1 - beta2**step) ** 0.5 + eps
        w.copy_(old - lr / (1 - beta1**step) * mean / denominator)
    _retake(weights, labels, sums)
