"""Clusterability as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modfast import checks
from modfast._renamed import renamed, warn_renamed
from modfast.clusters import (
    Clusters,
    equal_clusters,
    fit_labels,
    is_sharded,
    penalty_of,
    sums_of,
)
from modfast.network.names import WRAPPED, nearest, resolve_modules
from modfast.network.weights import current_weight, has_weight, input_first, weight_of
from modfast.ops import cluster_sums
from modfast.ops.clusterability import penalty
from modfast.reference import ratio


class ClusterabilityLoss(nn.Module):
    """Minus alpha times the mean clusterability of chosen layers: add it to a loss.

    reg() = -alpha * mean over layers of C(W),  C as in `modfast.clusterability`.

    Args:
        model: the network; its layers are looked up by name and are not copied.
        layers: a name or glob pattern, or several ("fc2", "h.*.mlp.c_fc"); Linear, convolutions
            and transformers' Conv1D. A weight that layers share counts once, for the first.
        n_clusters: number of equal clusters of consecutive units, where `clusters` is None.
        clusters: `Clusters` for every layer, or a dict from layer name to `Clusters`, with rows for
            outputs and columns for inputs.
        alpha: how much the clusterability counts against the rest of the loss; an attribute, to be
            changed during training if wished.

    Each call reads the weights as the layers compute them (`modfast.network.weights`): through
    parametrizations, pruning and weight or spectral norm, whose vectors it does not move. DTensor
    weights (FSDP2) count whole, and all their processes must call; of LoRA it is the base weight.

    The labels are buffers: `state_dict()` keeps them, and they follow the weights' device. The
    gradient is exact; the sums behind it are taken in float64, in one pass over all layers. NaN
    weights give NaN.

    Raises:
        TypeError: a layer that has no weight between outputs and inputs, or an 8-bit one; `alpha`
            not a number.
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

    @renamed(weight="alpha")
    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str],
        n_clusters: int = 4,
        clusters: Clusters | Mapping[str, Clusters] | None = None,
        alpha: float = 15.0,
    ) -> None:
        super().__init__()
        targets = _distinct(resolve_modules(model, layers, predicate=has_weight))
        self.layers = tuple(targets)
        self.alpha = checks.finite_number("alpha", alpha)
        # A plain list: the layers stay the model's, and are no submodules of this one.
        self._targets = list(targets.items())
        if isinstance(clusters, Mapping):
            for name in clusters:
                checks.text("clusters' keys", name)
            clusters = {name.removeprefix(WRAPPED): each for name, each in clusters.items()}
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
            what = f"the weight of {name!r}"
            if chosen is None:
                chosen = equal_clusters(matrix, n_clusters, what, transposed)
            labels.append(fit_labels(chosen, matrix, what, transposed))
        self._sizes = [len(each) for each in labels]
        self.register_buffer("labels", torch.cat(labels))

    def forward(self) -> Tensor:
        """-alpha * mean clusterability, a scalar to add to the loss."""
        weights, labels = self._matrices()
        scale = -self.alpha / len(weights)
        if any(map(is_sharded, weights)):
            return penalty_of(weights, labels.split(self._sizes), scale)
        # What `cluster_penalty` checks was so when this was built, and the kernel checks the rest.
        return penalty(labels, scale, *weights)

    @property
    def sums(self) -> Tensor:
        """Float64 `[layers, 2]`: squares within clusters, and in total, of the current weights."""
        weights, labels = self._matrices()
        if any(map(is_sharded, weights)):
            return sums_of(weights, labels.split(self._sizes))
        return cluster_sums(weights, labels)

    @property
    def values(self) -> Tensor:
        """Float64 `[layers]`: each layer's clusterability as it is."""
        return ratio(self.sums)

    @property
    def weight(self) -> float:
        """The old name of `alpha`."""
        warn_renamed("ClusterabilityLoss.weight", "ClusterabilityLoss.alpha")
        return self.alpha

    @weight.setter
    def weight(self, value: float) -> None:
        warn_renamed("ClusterabilityLoss.weight", "ClusterabilityLoss.alpha", stacklevel=3)
        self.alpha = value

    def extra_repr(self) -> str:
        """What print(reg) shows between the parentheses."""
        return f"layers={list(self.layers)}, alpha={self.alpha}"

    def _matrices(self) -> tuple[list[Tensor], Tensor]:
        weights = []
        for name, module in self._targets:
            weight = current_weight(module, name)
            weights.append(weight if weight.is_contiguous() else weight.contiguous())
        labels = self.labels
        if labels.device != weights[0].device:
            labels = self.labels = labels.to(weights[0].device)
        return weights, labels


def _distinct(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Without layers whose weight is one that an earlier layer has."""
    first: dict[int, str] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        first.setdefault(id(module if weight is None else weight), name)
    return {name: modules[name] for name in first.values()}
