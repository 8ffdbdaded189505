"""Clusterability and its gradient, of weights that are read as matrices.

A weight is read as a matrix, dimension 0 by all the others. Rows and columns carry integer cluster
labels, -1 for none: `labels` holds the row labels and then the column labels of each weight, one
after the other. All sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def same_cluster(rows: Tensor, cols: Tensor) -> Tensor:
    """Boolean `[len(rows), len(cols)]`: which entries join a row and a column of one cluster."""
    return (rows[:, None] == cols[None, :]) & (rows[:, None] >= 0)


def cluster_sums(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Sum of squares within clusters, and in total: float64 `[2]`."""
    squares = weight.reshape(len(rows), len(cols)).double().square()
    return torch.stack([(squares * same_cluster(rows, cols)).sum(), squares.sum()])


def ratio(sums: Tensor) -> Tensor:
    """Clusterability from sums `[..., 2]`: within / total.

    0 for an all-zero weight, NaN for one with NaN or infinite entries.
    """
    within, total = sums.unbind(-1)
    zero = total == 0
    found = torch.where(zero, torch.zeros_like(within), within / torch.where(zero, 1.0, total))
    return torch.where(total.isinf(), torch.nan, found)


def split_labels(weights: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each weight's row and column labels."""
    sizes = [size for w in weights for size in (w.shape[0], w.shape[1:].numel())]
    pieces = iter(labels.split(sizes))
    return list(zip(pieces, pieces, strict=True))


def cluster_penalty(
    weights: Sequence[Tensor], labels: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """scale * (sum of the weights' clusterabilities), and the float64 sums `[n, 2]`.

    The value is float64 if any weight is, else float32.
    """
    pairs = zip(weights, split_labels(weights, labels), strict=True)
    sums = torch.stack([cluster_sums(w, rows, cols) for w, (rows, cols) in pairs])
    double = any(w.dtype == torch.float64 for w in weights)
    value = scale * ratio(sums).sum()
    return value.to(torch.float64 if double else torch.float32), sums


def cluster_penalty_backward(
    grad: Tensor, weights: Sequence[Tensor], labels: Tensor, sums: Tensor, scale: float
) -> list[Tensor]:
    """Gradient of `cluster_penalty`'s value, times `grad`, for each weight.

    With C = S/T: dC/dw = 2 w (m - C) / T, m being 1 inside clusters and 0 outside.
    """
    return [
        (penalty_gradient(w, rows, cols, s, scale) * grad.double()).to(w.dtype)
        for w, (rows, cols), s in zip(weights, split_labels(weights, labels), sums, strict=True)
    ]


def penalty_gradient(
    weight: Tensor, rows: Tensor, cols: Tensor, sums: Tensor, scale: float
) -> Tensor:
    """Float64 gradient of scale * clusterability, in the weight's shape; 0 for a zero weight."""
    total = sums[1]
    mask = same_cluster(rows, cols).double().reshape(weight.shape)
    slope = 2 * scale * (mask - ratio(sums)) / torch.where(total == 0, 1.0, total)
    return weight.double() * slope
