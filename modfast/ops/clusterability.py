"""Operator family `cluster_penalty`: the clusterability of weights, and its gradient.

A weight is read as a matrix, dimension 0 by all the others. `labels` is an int32 vector on its
device: the row labels and then the column labels of each weight, one after the other, -1 for "in no
cluster".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modfast import checks, reference
from modfast._extension import operator

WEIGHT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake_penalty(weights: list[Tensor], labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    double = any(w.dtype == torch.float64 for w in weights)
    value = weights[0].new_empty((), dtype=torch.float64 if double else torch.float32)
    return value, weights[0].new_empty((len(weights), 2), dtype=torch.float64)


def _fake_gradient(
    grad: Tensor, weights: list[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


_penalty = operator("cluster_penalty", _fake_penalty)
_penalty_backward = operator("cluster_penalty_backward", _fake_gradient)


class _Penalty(torch.autograd.Function):
    """`cluster_penalty` with its gradient; differentiable twice, the second time by plain torch."""

    @staticmethod
    def forward(ctx: Any, labels: Tensor, scale: float, *weights: Tensor) -> Tensor:
        value: Tensor
        value, sums = _penalty(weights, labels, scale)
        ctx.save_for_backward(*weights)
        # Neither input nor output of the graph, so nothing that saving would guard.
        ctx.rest = labels, sums, scale
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weights = ctx.saved_tensors
        labels, sums, scale = ctx.rest
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            again, _ = reference.cluster_penalty(weights, labels, scale)
            moving = [w for w in weights if w.requires_grad]
            found = iter(torch.autograd.grad(again, moving, grads[0], create_graph=True))
            return None, None, *(next(found) if w.requires_grad else None for w in weights)
        return None, None, *_penalty_backward(grads[0], weights, labels, sums, scale)


penalty: Callable[..., Tensor] = _Penalty.apply
"""`cluster_penalty` as (labels, scale, *weights), for callers that have checked their arguments."""


def cluster_penalty(weights: Sequence[Tensor], labels: Tensor, scale: float) -> Tensor:
    """scale * sum over weights of C(w).

    C(w) = S/T with S the sum of squares of the entries whose row and column share a cluster and T
    that of all entries; C of an all-zero weight is 0. All weights in one call, one pass over each.

    Args:
        weights: float32, float64, bfloat16 or float16 tensors on one device.
        labels: for each weight its row labels and then its column labels, int32.
        scale: factor of the sum.

    Returns:
        A scalar (float64 if any weight is, else float32), differentiable. Sums are taken in float64
        and are the same for any number of threads. A weight that holds NaN or inf gives NaN.

    Raises:
        TypeError: a weight of another dtype; labels that are not int32.
        ValueError: no weights, sizes or devices that do not match.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0, 1, 0, 1], dtype=torch.int32)
        >>> cluster_penalty([torch.tensor([[3.0, 1.0], [1.0, 1.0]])], labels, scale=1.0)
        tensor(0.8333)
    """
    weights, labels = checked_weights(weights, labels)
    return penalty(labels, checks.finite_number("scale", scale), *weights)


def cluster_sums(weights: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The sums S and T of `cluster_penalty`: float64 `[n, 2]`, without a graph."""
    weights, labels = checked_weights(weights, labels)
    with torch.no_grad():
        sums: Tensor = _penalty(weights, labels, 1.0)[1]
    return sums


def cluster_penalty_gradient(
    weights: Sequence[Tensor], labels: Tensor, scale: float, sums: Tensor | None = None
) -> list[Tensor]:
    """The gradient of `cluster_penalty`'s value for each weight, without autograd.

    d(scale C)/dw = 2 scale w (m - C) / T, m being 1 inside clusters and 0 outside. `sums`, where
    the weights are shards, are those of the whole weights.
    """
    weights, labels = checked_weights(weights, labels)
    scale = checks.finite_number("scale", scale)
    if sums is not None:
        checks.tensor("sums", sums, torch.float64)
        if sums.shape != (len(weights), 2) or sums.device != labels.device:
            raise ValueError(
                f"sums must be [{len(weights)}, 2] on {labels.device}, "
                f"got {list(sums.shape)} on {sums.device}"
            )
        sums = sums.contiguous()
    with torch.no_grad():
        if sums is None:
            sums = _penalty(weights, labels, scale)[1]
        one = torch.ones((), device=labels.device)
        gradients: list[Tensor] = _penalty_backward(one, weights, labels, sums, scale)
    return gradients


def checked_weights(weights: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Contiguous; refuses those that no kernel should see, as `cluster_penalty` says."""
    weights = checks.several("weights", weights)
    if not weights:
        raise ValueError("weights must not be empty")
    checks.tensor("labels", labels, torch.int32)
    device, needed = labels.device, 0
    for w in weights:
        checks.tensor("weights", w, *WEIGHT_DTYPES)
        if w.dim() == 0:
            raise ValueError("weights must have dimensions, got a scalar")
        if w.device != device:
            raise ValueError(
                f"weights and labels must be on one device, "
                f"got a weight on {w.device} and labels on {device}"
            )
        rows, *others = w.shape
        needed += rows + math.prod(others)
    if labels.numel() != needed:
        raise ValueError(
            f"labels must have one entry per row and column of each weight, {needed} for shapes "
            f"{[tuple(w.shape) for w in weights]}, got {labels.numel()}"
        )
    return [w.contiguous() for w in weights], labels.contiguous()
