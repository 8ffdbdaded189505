"""A network as the smaller ones that its clusters are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modfast import checks
from modfast.clusters.labels import Clusters
from modfast.clusters.measure import clusterability
from modfast.clusters.wiring import Array, Layer, read_wiring
from modfast.network.inputs import Inputs, read_batches
from modfast.network.names import match_names, unwrapped
from modfast.network.run import running
from modfast.network.weights import has_weight, is_plain

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SplitNetwork(nn.Module):
    """The sum of one smaller network for each cluster; see `split_clusters`.

    Example:
        >>> import modfast
        >>> clusters = {"fc2": modfast.Clusters.equal(6, 6, 2)}
        >>> split = modfast.split_clusters(modfast.models.MLP([4, 6, 6, 3]), clusters, tolerance=1)
        >>> len(split.paths), split.path_weights, split.total_weights
        (2, (30, 30), 78)
    """

    dropped: dict[str, float]
    """By clustered layer, the share of its squared weights that lies between clusters, and which
    the paths lack."""
    path_weights: tuple[int, ...]
    """How many weights each path has of the layers that were split, and those around them."""
    total_weights: int
    """How many the whole network has there."""

    def __init__(
        self,
        paths: list[nn.Module],
        dropped: dict[str, float],
        path_weights: tuple[int, ...],
        total_weights: int,
    ) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.dropped, self.path_weights = dropped, path_weights
        self.total_weights = total_weights

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits: the sum of what the paths return.

        Raises:
            TypeError: the model returns something else than a tensor.
        """
        found = [path(*args, **kwargs) for path in self.paths]
        for each in found:
            if not isinstance(each, Tensor):
                raise TypeError(f"the model must return a tensor, got {type(each).__name__}")
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def difference(self, model: nn.Module, inputs: Inputs) -> float:
        """The largest absolute difference of its logits from those of the whole model.

        Args:
            model: what was split; runs in eval mode, as this does.
            inputs: one batch, or a stream of batches.

        Raises:
            TypeError, ValueError: inputs that the model does not take.
        """
        largest = 0.0
        for batch in read_batches(model, inputs):
            with running(model) as run:
                whole = run(batch)
            checks.floating("the model's logits", whole)
            with running(self) as run:
                own = run(batch)
            if own.shape != whole.shape:
                raise ValueError(
                    f"model must return what this does, {list(own.shape)}, got {list(whole.shape)}"
                )
            largest = max(largest, float((own - whole).abs().max()))
        return largest


def split_clusters(
    model: nn.Module, clusters: Mapping[str, Clusters], *, tolerance: float = 0.0
) -> SplitNetwork:
    """A network cut along the clusters of its layers into one smaller network for each.

    The path of a cluster has its block of each clustered layer, the outputs of the layer before
    that its block reads, and the inputs of the layer after that its block writes; the paths'
    results are added, with that layer's bias counted once. All earlier layers are shared (the same
    modules, which run in each path). Where nothing lies between the clusters the logits are the
    model's to rounding; else they are those of the model without what lies between, and
    `SplitNetwork.difference` tells how far off that is: a share of .0002 of the squared weights
    can move a logit by 1.

    The layers must follow one another, with nothing between them that counts or mixes units (as
    norms do), and the layer after the clustered ones must be the last and give the logits. Units
    in no cluster go to the first path.

    Args:
        model: the network; it is not changed, and shares no split weight with what is returned.
        clusters: by name of layers that follow one another, such as `find_clusters` gives.
        tolerance: the largest share of a layer's squared weights that may lie between clusters, and
            is left out.

    Raises:
        TypeError: arguments of a wrong type; a layer that is no Linear and no convolution.
        ValueError: no or unknown layers, some that do not follow one another or are the first or
            last, or whose weights are computed in each pass; clusters that do not fit or disagree;
            more than `tolerance` between clusters.

    Example:
        >>> import torch, modfast
        >>> model, clusters = modfast.models.MLP([4, 6, 6, 3]), modfast.Clusters.equal(6, 6, 2)
        >>> with torch.no_grad():
        ...     _ = model.fc2.weight.mul_(clusters.mask())
        >>> split = split_clusters(model, {"fc2": clusters})
        >>> split.difference(model, torch.randn(10, 4)) < 1e-5
        True
    """
    checks.module("model", model)
    if not isinstance(clusters, Mapping):
        raise TypeError(f"clusters must be a mapping, got {type(clusters).__name__}")
    tolerance = checks.finite_number("tolerance", tolerance)
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must be from 0 to 1, got {tolerance}")
    inner = unwrapped(model)
    order = [name for name, each in inner.named_modules() if name and has_weight(each)]
    names = match_names(order, list(clusters), "clusters", "suitable layer")
    first, last = order.index(names[0]), order.index(names[-1])
    if first == 0 or last + 2 != len(order):
        raise ValueError(
            "clusters must be of layers between the first and the last, and up to the one before "
            f"the last, got {names} of {order}"
        )
    near = order[first - 1 :]
    for name in near:
        _require_plain(name, inner.get_submodule(name))
    wiring, inside = read_wiring(inner, near), read_wiring(inner, names)
    if names != near[1:-1] or len(wiring.sizes) != len(near) + 1:
        raise ValueError(f"clusters must be of layers that follow each other, got {names}")
    found = inside.labels({name: clusters[name] for name in names})
    k = max(each.n_clusters for each in clusters.values())
    layers = {each.name: each for each in wiring.layers}
    labels: dict[int, Array] = {}
    for each in inside.layers:
        labels[layers[each.name].rows] = np.maximum(found[each.rows], 0)
        labels[layers[each.name].cols] = np.maximum(found[each.cols], 0)
    whole = inside.clusters([np.maximum(each, 0) for each in found], k)
    dropped = {}
    for name in names:
        weight: Any = inner.get_submodule(name).weight
        dropped[name] = 1.0 - float(clusterability(weight.detach().double(), whole[name]))
        if dropped[name] > tolerance + 1e-12:
            raise ValueError(
                f"clusters must leave at most tolerance={tolerance:g} of a layer's squared weights "
                f"between them, got {dropped[name]:.3g} in {name!r}"
            )
    shared = [inner.get_submodule(name) for name in order[: first - 1]]
    paths, counts = [], []
    for c in range(k):
        path = copy.deepcopy(inner, {id(each): each for each in shared})
        counts.append(sum(_cut(path, layers[name], labels, c) for name in near))
        if c:
            path.get_submodule(near[-1]).bias = None  # type: ignore[assignment]
        paths.append(path)
    total = sum(layers[name].values.size for name in near)
    return SplitNetwork(paths, dropped, tuple(counts), total)


def _require_plain(name: str, module: nn.Module) -> None:
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        raise TypeError(f"layer {name!r} must be a Linear or a convolution, got {module}")
    if not is_plain(module) or "weight" not in module._parameters:
        raise ValueError(f"layer {name!r} must compute with its own weight, got {module}")


def _cut(path: nn.Module, layer: Layer, labels: Mapping[int, Array], c: int) -> int:
    """Leaves a layer the units of a cluster; returns how many weights that is."""
    module: Any = path.get_submodule(layer.name)
    weight, bias = module.weight.detach(), module.bias
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    if layer.rows in labels:
        rows = torch.from_numpy(labels[layer.rows] == c).to(weight.device)
        weight = weight[rows]
        if bias is not None:
            module.bias = nn.Parameter(bias.detach()[rows], bias.requires_grad)
        setattr(module, f"out_{kind}", len(weight))
    if layer.cols in labels:
        cols = torch.from_numpy((labels[layer.cols] == c).repeat(layer.spread))
        weight = weight[:, cols.to(weight.device)]
        setattr(module, f"in_{kind}", weight.shape[1])
    module.weight = nn.Parameter(weight.clone(), module.weight.requires_grad)
    return int(weight.numel())
