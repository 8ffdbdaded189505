"""Which of an optimizer's parameters are trained into clusters, and into which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from modfast import checks
from modfast.clusters.labels import Clusters
from modfast.clusters.weights import equal_clusters, fit_labels
from modfast.sites import match_names, nearest


def choose_labels(
    groups: Sequence[dict[str, Any]],
    layers: str | Sequence[str] | None,
    n_clusters: int,
    clusters: Clusters | Mapping[str, Clusters] | None,
) -> list[list[Tensor | None]]:
    """For each parameter of each group its labels (`modfast.clusters.weights.fit_labels`), or None.

    The arguments are those of `modfast.Modularity`, which documents them and their errors.
    """
    weights = _choose_weights(groups, layers)
    if isinstance(clusters, Mapping):
        given = {_short(name): each for name, each in clusters.items()}
    else:
        given = {} if clusters is None else dict.fromkeys(weights, clusters)
    for name in given:
        if name not in weights:
            raise ValueError(
                f"clusters has {name!r}, which is not among the chosen weights; "
                f"{nearest(name, weights)}"
            )
    labels: dict[Tensor, Tensor] = {}
    for name, weight in weights.items():
        what = f"parameter {name!r}"
        checks.finite(what, weight.detach())
        each = given[name] if name in given else equal_clusters(weight, n_clusters, what)
        labels[weight] = fit_labels(each, weight, what)
    return [[labels.get(p) for p in group["params"]] for group in groups]


def _choose_weights(
    groups: Sequence[dict[str, Any]], layers: str | Sequence[str] | None
) -> dict[str, Tensor]:
    """The weights to cluster, by name (by position where parameters have no names)."""
    tensors = [p for group in groups for p in group["params"]]
    names = [_short(name) for group in groups for name in group.get("param_names", ())]
    if layers is not None and not names:
        raise ValueError(f"layers={layers!r} needs names: pass model.named_parameters() as params")
    if not names:
        names = [str(i) for i in range(len(tensors))]
    named = dict(zip(names, tensors, strict=True))
    if layers is None:
        matrices = [name for name, p in named.items() if p.dim() == 2]
        picked = matrices[1:-1]
        if not picked:
            raise ValueError(
                f"layers=None takes every hidden 2-D weight, all but the first and the last, "
                f"but params has only {len(matrices)} 2-D weights; name the layers instead"
            )
    else:
        weights = [name for name, p in named.items() if p.dim() >= 2]
        patterns = _short(layers) if isinstance(layers, str) else [_short(x) for x in layers]
        picked = match_names(weights, patterns, "layers", "weight")
    return {name: named[name] for name in picked}


def _short(name: str) -> str:
    """A layer's name for its weight: "fc2" for "fc2.weight"."""
    return name.removesuffix(".weight")
