"""How well a network does: over all samples, and for each class or output."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import checks


def scores(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy for integer targets, R^2 for real ones; overall and split.

    Args:
        outputs: `[n, n_outputs]`, logits or predictions.
        targets: `[n]` integer classes, or `[n, n_outputs]` real values.

    Returns:
        For classes: the share of samples whose largest logit is the target, as a float64 scalar,
        and the same among the samples of each class, `[n_outputs]` (NaN for a class without
        samples). For real targets: the mean over outputs of the coefficient of determination
        1 - sum (y - f)^2 / sum (y - mean y)^2, and each output's, `[n_outputs]`.

    Example:
        >>> scores(torch.eye(3), torch.tensor([0, 1, 1]))
        (tensor(0.6667, dtype=torch.float64), tensor([1.0000, 0.5000,    nan], dtype=torch.float64))
    """
    if targets.is_floating_point():
        targets = targets.double()
        residual = (targets - outputs.double()).square().sum(0)
        spread = (targets - targets.mean(0)).square().sum(0)
        each = 1 - residual / spread
        return each.mean(), each
    return class_scores(outputs.argmax(1), targets, outputs.shape[1])


def class_scores(found: Tensor, targets: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """What `scores` gives for classes, of the classes `[n]` that were found.

    Example:
        >>> class_scores(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), 3)
        (tensor(0.6667, dtype=torch.float64), tensor([1.0000, 0.5000,    nan], dtype=torch.float64))
    """
    right = (found == targets).double()
    count = torch.zeros(n_classes, dtype=torch.float64, device=found.device)
    hits = count.index_add(0, targets, right)
    count = count.index_add(0, targets, torch.ones_like(right))
    return right.mean(), hits / count


def check_targets(argument: str, targets: Tensor, n_samples: int, n_outputs: int) -> None:
    """Refuses targets that do not go with `[n_samples, n_outputs]` model outputs.

    Raises:
        TypeError: neither integer classes nor real values.
        ValueError: sizes that differ, classes out of range, values that are not finite.
    """
    n_targets = len(targets) if targets.dim() else 1
    if n_targets != n_samples:
        raise ValueError(
            f"{argument} must have one target per sample, "
            f"got {n_samples} samples and {n_targets} targets"
        )
    if targets.is_floating_point():
        if tuple(targets.shape) != (n_samples, n_outputs):
            raise ValueError(
                f"{argument} must have real targets of shape {(n_samples, n_outputs)}, "
                f"as the model's outputs, got {tuple(targets.shape)}"
            )
        checks.finite(argument, targets)
        return
    if targets.dtype != torch.int64:
        raise TypeError(
            f"{argument} must have int64 classes or real values as targets, got {targets.dtype}"
        )
    if targets.dim() != 1:
        raise ValueError(
            f"{argument} must have one class per sample, got shape {tuple(targets.shape)}"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= n_outputs:
        raise ValueError(
            f"{argument} must have classes from 0 to {n_outputs - 1}, as many as the model has "
            f"outputs, got {low if low < 0 else high}"
        )
