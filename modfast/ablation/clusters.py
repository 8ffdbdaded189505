"""What breaks when a cluster is removed?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modfast import checks, plots
from modfast.clusters.labels import Clusters
from modfast.clusters.weights import fit_labels, has_weight, input_first, weight_of
from modfast.network.names import in_mode, resolve_modules
from modfast.results import Result
from modfast.scores import check_targets, scores

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class ClusterEvaluation(Result):
    """What a network can do whole, without each cluster, and with each cluster alone.

    All are float64 tensors on the CPU; k clusters, c classes. For real targets every accuracy is an
    R^2 and classes are outputs (`modfast.scores.scores`).
    """

    accuracy: Tensor
    """Of the whole network: scalar."""
    class_accuracy: Tensor
    """Of the whole network, by class: `[c]`."""
    off_accuracy: Tensor
    """Without cluster i: `[k]`."""
    on_accuracy: Tensor
    """With cluster i as the only one: `[k]`."""
    off_class_accuracy: Tensor
    """Without cluster i, by class: `[k, c]`."""
    on_class_accuracy: Tensor
    """With cluster i as the only one, by class: `[k, c]`."""
    backend: str = ""
    """Which way it was computed."""

    def plot(self, score: str = "accuracy", class_names: Sequence[str] | None = None) -> Figure:
        """Accuracy by class, whole, with each cluster off, and with each alone, as heat maps.

        Args:
            score: what the accuracy is called; "R²" for a regression.
            class_names: `[c]`, by default "class 0", ...

        Raises:
            ValueError: another number of names than classes.
        """
        return plots.cluster_evaluation(
            self.accuracy,
            self.class_accuracy,
            self.off_accuracy,
            self.off_class_accuracy,
            self.on_accuracy,
            self.on_class_accuracy,
            score,
            class_names,
        )


@torch.no_grad()
def evaluate_clusters(
    model: nn.Module,
    layer: str,
    clusters: Clusters,
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
) -> ClusterEvaluation:
    """Accuracy with each cluster of a layer off, and with it as the only one on.

    Off: the weight's rows of the cluster's outputs and columns of its inputs are zero. On: the rows
    and columns of every other cluster are. Units in no cluster stay in both. Only the weight is
    changed: a bias stays, as in the notebook's networks, which have none.

    Args:
        model: maps a batch of samples to `[n, n_outputs]`; runs in eval mode and is left as it was.
        layer: name of the clustered layer, a Linear, convolution or transformers Conv1D.
        clusters: labels of its outputs and inputs.
        data: samples and targets as a pair of tensors, or batches of such pairs (a DataLoader).
            Targets are int64 classes, or real `[n, n_outputs]` for a regression.

    Raises:
        TypeError: a layer without such a weight; targets of another kind.
        ValueError: an unknown layer (the nearest are listed), clusters that do not fit it, no
            samples, samples or weights that are not finite, classes out of range.

    Source: N1, the clusterability-training notebook.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> data = torch.randn(20, 8), torch.arange(20) % 3
        >>> result = modfast.evaluate_clusters(model, "fc2", modfast.Clusters.equal(6, 6, 2), data)
        >>> result.off_class_accuracy.shape
        torch.Size([2, 3])
    """
    (name, module), *others = resolve_modules(model, layer, "layer", has_weight).items()
    if others:
        raise ValueError(f"layer must name one layer, got {layer!r}, which matches several")
    weight = weight_of(module, name)
    labels = fit_labels(clusters, weight, f"the weight of {name!r}", input_first(module))
    rows, cols = labels[: len(weight)], labels[len(weight) :]
    variants = [weight, *_off(weight, rows, cols, clusters), *_on(weight, rows, cols, clusters)]

    outputs: list[list[Tensor]] = [[] for _ in variants]
    targets: list[Tensor] = []
    with in_mode(model, training=False):
        for batch in _batches(data):
            x, y = (each.to(weight.device) for each in checks.pair("data", batch))
            checks.finite("data", x)
            for found, variant in zip(outputs, variants, strict=True):
                found.append(functional_call(model, {f"{name}.weight": variant}, (x,)))
            check_targets("data", y, len(outputs[0][-1]), outputs[0][-1].shape[1])
            targets.append(y)
    if not targets:
        raise ValueError("data must not be empty, got no batches")
    found_scores = [scores(torch.cat(found), torch.cat(targets)) for found in outputs]
    overall = torch.stack([each for each, _ in found_scores]).cpu()
    split = torch.stack([each for _, each in found_scores]).cpu()
    k = clusters.n_clusters
    return ClusterEvaluation(
        overall[0], split[0], overall[1 : k + 1], overall[k + 1 :], split[1 : k + 1], split[k + 1 :]
    )


def _off(weight: Tensor, rows: Tensor, cols: Tensor, clusters: Clusters) -> list[Tensor]:
    return [
        _keep(weight, rows != cluster, cols != cluster) for cluster in range(clusters.n_clusters)
    ]


def _on(weight: Tensor, rows: Tensor, cols: Tensor, clusters: Clusters) -> list[Tensor]:
    return [
        _keep(weight, (rows == cluster) | (rows < 0), (cols == cluster) | (cols < 0))
        for cluster in range(clusters.n_clusters)
    ]


def _keep(weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return torch.where((rows[:, None] & cols[None, :]).reshape(weight.shape), weight, 0.0)


def _batches(
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(data, (tuple, Tensor)):
        x, y = checks.pair("data", data)
        if len(x) == 0:
            raise ValueError("data must not be empty, got 0 samples")
        return [(x, y)]
    return data
