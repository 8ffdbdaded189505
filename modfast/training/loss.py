"""Clusterability as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.labels import Clusters
from modfast.clusters.weights import (
    equal_clusters,
    fit_labels,
    has_weight,
    input_first,
    weight_of,
)
from modfast.ops import cluster_sums
from modfast.ops.clusterability import penalty
from modfast.reference import ratio
from modfast.sites import nearest, resolve_modules


class ClusterabilityLoss(nn.Module):
    """Minus weight times the mean clusterability of chosen layers: add it to a loss.

    reg() = -weight * mean over layers of C(W),  C as in `modfast.clusterability`.

    Args:
        model: the network; its layers are looked up by name and are not copied.
        layers: a name or glob pattern, or several ("fc2", "h.*.mlp.c_fc"); Linear, convolutions
            and transformers' Conv1D.
        n_clusters: number of equal clusters of consecutive units, where `clusters` is None.
        clusters: `Clusters` for every layer, or a dict from layer name to `Clusters`, with rows for
            outputs and columns for inputs.
        weight: how much the clusterability counts against the rest of the loss.

    The labels are buffers: `state_dict()` keeps them, and they follow the weights' device. The
    gradient is exact; the sums behind it are taken in float64, in one pass over all layers. NaN
    weights give NaN.

    Raises:
        TypeError: a layer that has no weight between outputs and inputs; `weight` not a number.
        ValueError: unknown names (the nearest are listed), clusters that do not fit, grouped
            convolutions, weights that are not finite when it is built.

    Source: N1, the clusterability-training notebook.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 2])
        >>> reg = modfast.ClusterabilityLoss(model, "fc2", n_clusters=2)
        >>> loss = model(torch.randn(5, 8)).square().mean() + reg()
        >>> loss.backward()
        >>> reg.values.shape
        torch.Size([1])
    """

    labels: Tensor

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        n_clusters: int = 4,
        clusters: Clusters | Mapping[str, Clusters] | None = None,
        weight: float = 15.0,
    ) -> None:
        super().__init__()
        targets = resolve_modules(model, layers, predicate=has_weight)
        self.layers = tuple(targets)
        self.weight = checks.finite_number("weight", weight)
        # A plain list: the layers stay the model's, and are no submodules of this one.
        self._targets = list(targets.values())
        for name in clusters if isinstance(clusters, Mapping) else ():
            if name not in targets:
                raise ValueError(
                    f"clusters has {name!r}, which is not among the layers; "
                    f"{nearest(name, self.layers)}"
                )
        labels = []
        for name, module in targets.items():
            matrix, transposed = weight_of(module, name), input_first(module)
            chosen = clusters.get(name) if isinstance(clusters, Mapping) else clusters
            if chosen is None:
                chosen = equal_clusters(matrix, n_clusters, f"layer {name!r}", transposed)
            labels.append(fit_labels(chosen, matrix, f"the weight of {name!r}", transposed))
        self.register_buffer("labels", torch.cat(labels))

    def forward(self) -> Tensor:
        """-weight * mean clusterability, a scalar to add to the loss."""
        weights, labels = self._matrices()
        # What `cluster_penalty` checks was so when this was built, and the kernel checks the rest.
        return penalty(labels, -self.weight / len(weights), *weights)

    @property
    def sums(self) -> Tensor:
        """Float64 `[layers, 2]`: squares within clusters, and in total, of the current weights."""
        return cluster_sums(*self._matrices())

    @property
    def values(self) -> Tensor:
        """Float64 `[layers]`: each layer's clusterability as it is."""
        return ratio(self.sums)

    def extra_repr(self) -> str:
        """What print(reg) shows between the parentheses."""
        return f"layers={list(self.layers)}, weight={self.weight}"

    def _matrices(self) -> tuple[list[Tensor], Tensor]:
        weights = []
        for module in self._targets:
            weight: Tensor = module.weight  # type: ignore[assignment]
            weights.append(weight if weight.is_contiguous() else weight.contiguous())
        labels = self.labels
        if labels.device != weights[0].device:
            labels = self.labels = labels.to(weights[0].device)
        return weights, labels
