"""Labels of clusters, in the order of a weight's rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from modfast import checks
from modfast.clusters.labels import Clusters


def fit_labels(clusters: Clusters, weight: Tensor, name: str, transposed: bool = False) -> Tensor:
    """Labels of the weight's rows and then its columns, as `modfast.ops` takes them.

    Rows run over dimension 0 of the weight, columns over all the others; the labels are on its
    device.

    Args:
        clusters: labels of outputs and inputs.
        weight: `[n_out, n_in, *kernel]`, or `[n_in, n_out, *kernel]` if `transposed`.
        name: how messages call the weight.
        transposed: whether dimension 0 runs over inputs.

    Raises:
        TypeError: `clusters` is not a `Clusters`.
        ValueError: a weight of fewer than two dimensions, or of other sizes than the clusters.
    """
    if not isinstance(clusters, Clusters):
        raise TypeError(f"clusters must be a Clusters, got {type(clusters).__name__}")
    checks.flag("transposed", transposed)
    checks.text("name", name)
    checks.some_tensor("weight", weight)
    if weight.shape == clusters.shape and not transposed:
        labels = clusters.labels
    else:
        _require_matrix(weight, name)
        first, second = clusters.rows, clusters.cols
        if transposed:
            first, second = second, first
        if weight.shape[:2] != (len(first), len(second)):
            raise ValueError(
                f"clusters for {clusters.shape[0]} outputs and {clusters.shape[1]} inputs do not "
                f"fit {name} of shape {tuple(weight.shape)}"
            )
        labels = torch.cat([first, second.repeat_interleave(weight.shape[2:].numel())])
    return labels if labels.device == weight.device else labels.to(weight.device)


def equal_clusters(weight: Tensor, k: int, name: str, transposed: bool = False) -> Clusters:
    """`Clusters.equal` for the weight's sizes; see `fit_labels` for the arguments."""
    checks.text("name", name)
    _require_matrix(weight, name)
    k = checks.count("n_clusters", k)
    checks.flag("transposed", transposed)
    n_out, n_in = weight.shape[:2]
    if not n_out or not n_in:
        raise ValueError(f"{name} must not be empty, got shape {tuple(weight.shape)}")
    if transposed:
        n_out, n_in = n_in, n_out
    try:
        return Clusters.equal(n_out, n_in, k)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _require_matrix(weight: Tensor, name: str) -> None:
    checks.some_tensor("weight", weight)
    if weight.is_nested or weight.dim() < 2:
        raise ValueError(
            f"{name} must have at least two dimensions, got shape {tuple(weight.shape)}"
        )
