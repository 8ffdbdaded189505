"""Which of an optimizer's parameters are trained into clusters, and into which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from modfast import checks
from modfast.clusters import Clusters, equal_clusters, fit_labels, is_sharded, sums_of
from modfast.network.names import WRAPPED, check_patterns, match_names, nearest
from modfast.network.weights import hidden_weights, require_dense, require_matrix


def choose_labels(
    groups: Sequence[dict[str, Any]],
    layers: str | Sequence[str] | None,
    n_clusters: int,
    clusters: Clusters | Mapping[str, Clusters] | None,
) -> list[list[Tensor | None]]:
    """For each parameter of each group its labels (`modfast.clusters.fitting.fit_labels`), or None.

    The arguments are those of `modfast.Modularity`, which documents them and their errors.
    """
    weights = _choose_weights(groups, layers)
    if isinstance(clusters, Mapping):
        for name in clusters:
            checks.text("clusters' keys", name)
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
        require_dense(what, weight)
        each = given[name] if name in given else equal_clusters(weight, n_clusters, what)
        labels[weight] = fit_labels(each, weight, what)
        _require_finite(what, weight, labels[weight])
    if not any(weight.requires_grad for weight in labels):
        raise ValueError(
            f"layers must name weights to train, got frozen ones: {', '.join(weights)}"
        )
    return [[labels.get(p) for p in group["params"]] for group in groups]


def _choose_weights(
    groups: Sequence[dict[str, Any]], layers: str | Sequence[str] | None
) -> dict[str, Tensor]:
    """The weights to cluster, by name (by position where parameters have no names)."""
    tensors = [p for group in groups for p in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    if layers is not None and not names:
        raise ValueError(f"layers={layers!r} needs names: pass model.named_parameters() as params")
    named = dict(zip(names or map(str, range(len(tensors))), tensors, strict=True))
    if layers is None:
        picked = hidden_weights(named, named=bool(names))
        return {_short(name): named[name] for name in picked}
    weights = {_short(name): name for name, p in named.items() if p.dim() >= 2}
    check_patterns([layers] if isinstance(layers, str) else layers, "layers")
    patterns = _short(layers) if isinstance(layers, str) else [_short(x) for x in layers]
    short = match_names(weights, patterns, "layers", "weight")
    for name in short:
        require_matrix(weights[name], named[weights[name]])
    return {name: named[weights[name]] for name in short}


def _require_finite(what: str, weight: Tensor, labels: Tensor) -> None:
    if not is_sharded(weight):
        checks.finite(what, weight.detach())
    elif not sums_of([weight], [labels]).isfinite().all():  # so that no process goes on alone
        raise ValueError(f"{what} must be finite, got values NaN or infinite")


def _short(name: str) -> str:
    """A layer's name for its weight: "fc2" for "fc2.weight", and for "_orig_mod.fc2.weight"."""
    return name.removesuffix(".weight").removeprefix(WRAPPED)
