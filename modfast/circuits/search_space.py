"""How much of a network need a circuit search look at, if one of its clusters is enough?"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import nn

from modfast import checks
from modfast.clusters import Clusters, fit_labels
from modfast.network.names import match_names, resolve_modules
from modfast.network.weights import current_weight, has_weight, input_first, weight_of


def search_space_reduction(
    model: nn.Module, clusters: Clusters, keep: int | Sequence[int] = 1, layer: str | None = None
) -> float:
    """The share of weights that a circuit search need not look at if only some clusters are kept.

    Of the clustered layer, rows and columns of the other clusters go; so do the rows of the layer
    before it that make these columns' inputs, and the columns of the layer after it that read these
    rows' outputs. Units in no cluster stay. Layers are Linear, convolutions and transformers'
    Conv1D, in the order in which the model registers them; biases do not count.

    Args:
        model: whose weights are counted.
        clusters: of one layer's outputs and inputs.
        keep: how many clusters are kept: the mean over all choices, which are alike if clusters are
            of one size; or which, by their numbers.
        layer: name of the clustered layer; by default the only one that `clusters` fits.

    Returns:
        (weights - weights left) / weights.

    Raises:
        TypeError: arguments of a wrong type.
        ValueError: an unknown layer (the nearest are listed), clusters that fit no layer or
            several, a neighbor of another width, clusters to keep that are not there.

    Source: N1: (54912 - 12960) / 54912 for 784-64-64-10 without biases, one of four clusters kept.

    Example:
        >>> import modfast
        >>> model = modfast.models.MLP([784, 64, 64, 10], bias=False)
        >>> print(f"{modfast.search_space_reduction(model, modfast.Clusters.equal(64, 64, 4)):.4f}")
        0.7640
    """
    checks.module("model", model)
    if not isinstance(clusters, Clusters):
        raise TypeError(f"clusters must be a Clusters, got {type(clusters).__name__}")
    if 0 in clusters.shape:
        raise ValueError(f"clusters must have rows and columns, got shape {clusters.shape}")
    modules = resolve_modules(model, "*", "layers", has_weight)
    place = list(modules).index(_clustered(modules, clusters, layer))
    names = list(modules)
    weights = [weight_of(module, name) for name, module in modules.items()]
    sizes = [_size(module) for module in modules.values()]
    n_out, n_in = clusters.shape
    if place > 0:
        _require_multiple(names[place - 1], "outputs", n_in, sizes[place - 1][0])
    if place + 1 < len(weights):
        _require_multiple(names[place + 1], "inputs", sizes[place + 1][1], n_out)

    rows, cols, within = _shares(clusters, keep)
    removed = (1 - within) * weights[place].numel()
    if place > 0:
        removed += (1 - cols) * weights[place - 1].numel()
    if place + 1 < len(weights):
        removed += (1 - rows) * weights[place + 1].numel()
    return removed / sum(weight.numel() for weight in weights)


def _clustered(modules: dict[str, nn.Module], clusters: Clusters, layer: str | None) -> str:
    if layer is None:
        fitting = [name for name, module in modules.items() if _size(module) == clusters.shape]
        if len(fitting) != 1:
            raise ValueError(
                f"clusters for {clusters.shape[0]} outputs and {clusters.shape[1]} inputs must fit "
                f"one layer, they fit {fitting or 'none'}; name the layer"
            )
        return fitting[0]
    name, *others = match_names(modules, layer, "layer", "suitable module")
    if others:
        raise ValueError(f"layer must name one layer, got {layer!r}, which matches several")
    module = modules[name]
    fit_labels(clusters, weight_of(module, name), f"the weight of {name!r}", input_first(module))
    return name


def _size(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    first, second = current_weight(module).shape[:2]
    return (second, first) if input_first(module) else (first, second)


def _require_multiple(name: str, what: str, large: int, small: int) -> None:
    # A layer after flattened channels reads each of them at several positions.
    if not small or large % small:
        raise ValueError(
            f"the {what} of {name!r}, the clustered layer's neighbor, do not fit it: "
            f"{large} is no multiple of {small}"
        )


def _shares(clusters: Clusters, keep: int | Sequence[int]) -> tuple[float, float, float]:
    """Shares that are left of the rows, of the columns and of the entries."""
    k, n_labels = clusters.n_clusters, 1 + max(clusters.labels.tolist())
    kind: Any = {"dtype": torch.float64, "device": "cpu"}
    # Chances that one cluster, and that two different ones, are kept: of those that have units.
    if isinstance(keep, SupportsIndex):
        n = checks.count("keep", keep)
        if n > k:
            raise ValueError(f"keep must be at most {k}, the clusters, got {n}")
        one = torch.full((n_labels,), n / k, **kind)
        share = n * (n - 1) / max(k * (k - 1), 1)
        two = torch.full((n_labels, n_labels), share, **kind)
        two.fill_diagonal_(n / k)
    else:
        try:
            chosen = [index(each) for each in keep]
        except TypeError as error:
            raise TypeError(f"keep must be how many clusters, or which, got {keep!r}") from error
        found = set(chosen)
        if not chosen or len(found) < len(chosen) or min(found) < 0 or max(found) >= k:
            raise ValueError(f"keep must be different clusters from 0 to {k - 1}, got {keep!r}")
        one = torch.zeros(n_labels, **kind)
        one[[each for each in chosen if each < n_labels]] = 1.0
        two = one[:, None] * one
    # The first count is of units in no cluster, which stay.
    rows, cols = (
        torch.bincount(labels.cpu() + 1, minlength=n_labels + 1).double()
        for labels in (clusters.rows, clusters.cols)
    )
    always = torch.ones(1, **kind)
    single = torch.cat([always, one])
    pairs = torch.cat([single[None], torch.cat([one[:, None], two], 1)])
    n_rows, n_cols = clusters.shape
    left = float(rows @ pairs @ cols) / (n_rows * n_cols)
    return float(rows @ single) / n_rows, float(cols @ single) / n_cols, left
