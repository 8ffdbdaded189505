"""Which single weights does a network need for the samples of a label?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from modfast import checks
from modfast._extension import cuda_loaded, has_ops
from modfast.ablation.batches import Batch, Inputs, is_stream, read_batches
from modfast.circuits.result import Circuit
from modfast.circuits.trials import input_of, linear_suffix, prune_module
from modfast.clusters.weights import has_weight, weight_of
from modfast.network.names import check_patterns, in_mode, nearest, resolve_modules
from modfast.ops import prune_layer
from modfast.ops.pruning import PRUNING_DTYPES
from modfast.progress import bar

Order = str | Tensor | Mapping[str, Tensor]
ORDERS = ("row", "column", "magnitude")
AGAINST = ("running", "original")
PATHS = ("fused", "modules")


@overload
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    against: str = "running",
    labels: int | None = None,
    *,
    progress: bool = True,
    path: str | None = None,
) -> Circuit: ...


@overload
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    against: str = "running",
    labels: Literal["all"] | Sequence[int] = "all",
    *,
    progress: bool = True,
    path: str | None = None,
) -> dict[int, Circuit]: ...


@torch.no_grad()
def prune_circuit(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    layers: str | Sequence[str] | None = None,
    order: Order = "row",
    threshold: float = 1e-4,
    against: str = "running",
    labels: int | str | Sequence[int] | None = None,
    *,
    progress: bool = True,
    path: str | None = None,
) -> Circuit | dict[int, Circuit]:
    """Zeroes weights one by one, and puts back those without which the loss rises.

    Layer by layer, each weight is set to 0 and the mean cross-entropy on the samples is compared.
    It stays 0 if the loss is at most `threshold` above the running loss, which then becomes the new
    one, or above the loss of the whole network. A weight that is 0 already changes nothing, and so
    goes by the same rule. Biases stay. The model itself is not changed.

    Only what follows from a weight is computed anew: for linear layers with ReLU up to the logits
    (on the CPU or CUDA, float32 or float64) by `modfast.ops.prune_layer`, for any other module by
    running what comes after it. In float32 a decision whose margin is less than about 1e-6 may be
    another than in exact arithmetic (`Circuit.close_calls`).

    Args:
        model: any module that returns logits `[n, c]`; it runs in eval mode, all samples at once.
        inputs: its input, a tuple of positional inputs or a mapping of keyword inputs, on its
            device, every tensor with one row a sample.
        targets: int64 classes `[n]`.
        layers: names or patterns of the layers to prune, in turn: Linear, convolutions or
            transformers' Conv1D. What one pattern matches is pruned last layer first, and so are by
            default all layers, as the model registers them.
        order: in which the weights of a layer are visited, as they lie in the parameter: `"row"`
            by row, `"column"` by column (a kernel's entries are of their input's), `"magnitude"`
            smallest first; or int64 indices into the flattened weight, by layer name or, for a
            single layer, alone. Weights that are not visited are kept.
        threshold: at least 0, in nats.
        against: `"running"` or `"original"`: over which loss a rise is counted.
        labels: prune on the samples of this label; of each label that occurs (`"all"`), or of
            several, which share work and threads; by default on all samples.
        progress: show a progress bar, where standard error is a terminal.
        path: `"fused"` for the operator, `"modules"` for the general way; by default the first that
            can be taken.

    Returns:
        A `Circuit`; with several labels one by label, in ascending order or as they were given.

    Raises:
        TypeError: arguments of a wrong type.
        ValueError: unknown layers (the nearest are listed), grouped convolutions, weights that are
            shared or not plain parameters, unknown options, labels without samples, inputs, weights
            or a loss that are not finite.

    Source: N1, its circuit complexity reduction, whose restore writes back a view of the weight
    that is zero by then, so that every weight it visits stays zero.

    Example:
        >>> import torch, modfast
        >>> model = modfast.models.MLP([8, 6, 6, 3])
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> circuit = modfast.prune_circuit(model, x, y, labels=2)
        >>> list(circuit.mask)
        ['fc3.weight', 'fc2.weight', 'fc1.weight']
        >>> circuit.kept <= circuit.total == 102
        True
    """
    for argument, value, known in (("against", against, AGAINST), ("path", path, (None, *PATHS))):
        if value not in known:
            raise ValueError(f"{argument} must be one of {known}, got {value!r}")
    threshold = checks.finite_number("threshold", threshold)
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    weights = _layers(model, layers)
    if isinstance(order, Mapping) and not order.keys() <= weights.keys():
        unknown = next(name for name in order if name not in weights)
        raise ValueError(
            f"order has {unknown!r}, which is no layer to prune; {nearest(unknown, weights)}"
        )
    orders = {name: _order(order, name, weights) for name in weights}
    batch = _read(inputs, targets)
    chosen = _groups(labels, targets)
    groups = [_Group(label, _rows(batch, rows)) for label, rows in chosen.items()]
    rule = _Rule(threshold, against, path)
    with in_mode(model, training=False):
        for name in bar(weights, "pruning", progress):
            _prune(model, name, weights, orders[name], groups, rule, progress)
    circuits = {group.label: _circuit(group, rule) for group in groups}
    if not isinstance(labels, Iterable):
        return next(iter(circuits.values()))
    return {label: circuit for label, circuit in circuits.items() if label is not None}


@dataclass(frozen=True)
class _Rule:
    threshold: float
    against: str
    path: str | None


class _Group:
    """Samples that have a circuit of their own, and how far that is found."""

    def __init__(self, label: int | None, batch: Batch) -> None:
        self.label, self.batch = label, batch
        self.margins: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []

    @property
    def original_loss(self) -> Tensor:
        return self.losses[0][0]

    def add(self, name: str, weight: Tensor, order: Tensor, found: tuple[Tensor, Tensor]) -> None:
        """Takes a pruned layer over: the margins and losses of its visits."""
        margins, losses = (tensor.cpu() for tensor in found)
        of = "" if self.label is None else f" of label {self.label}"
        checks.finite(f"pruning {name!r}, the loss on the samples{of}", losses)
        by_weight = torch.full((weight.numel(),), torch.nan, dtype=torch.float64)
        by_weight[order] = margins
        self.margins[f"{name}.weight"] = by_weight.view(weight.shape)
        self.masks[f"{name}.weight"] = ~(by_weight <= 0.0).view(weight.shape)
        self.losses.append(losses)

    def pruned(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the layers pruned so far, by parameter."""
        found = {}
        for name, weight in weights.items():
            mask = self.masks.get(f"{name}.weight")
            if mask is not None:
                found[f"{name}.weight"] = weight.masked_fill(~mask.to(weight.device), 0)
        return found


def _prune(
    model: nn.Module,
    name: str,
    weights: Mapping[str, Tensor],
    order: Tensor,
    groups: list[_Group],
    rule: _Rule,
    progress: bool,
) -> None:
    """One layer, for all groups."""
    weight = weights[name]
    before = [group.pruned(weights) for group in groups]
    compiled = {"cpu": has_ops(), "cuda": cuda_loaded}.get(weight.device.type, False)
    plain = rule.path != "modules" and compiled
    after = linear_suffix(model, name, groups[0].batch) if plain else None
    if after is not None:
        whole = [weight, *(weight_of(model.get_submodule(each), each).detach() for each in after)]
        chain = dict(zip([name, *after], whole, strict=True))
        if _prune_fused(model, chain, before, order, groups, rule):
            return
    if rule.path == "fused":
        raise ValueError(
            f"path='fused': layer {name!r} is not followed by linear layers and ReLU alone"
        )
    for group, parameters in zip(groups, before, strict=True):
        pruned = copy.deepcopy(model)
        own = dict(pruned.named_parameters())
        for parameter, value in parameters.items():
            own[parameter].copy_(value)
        original = float(group.original_loss) if group.losses else None
        shown = partial(bar, description=name, shown=progress)
        found = prune_module(
            pruned, name, group.batch, order, rule.threshold, rule.against, original, shown
        )
        group.add(name, weight, order, found)


def _prune_fused(
    model: nn.Module,
    chain: dict[str, Tensor],
    before: list[dict[str, Tensor]],
    order: Tensor,
    groups: list[_Group],
    rule: _Rule,
) -> bool:
    """The first of a chain of linear layers by the operator; False where it cannot take them."""
    name, whole = next(iter(chain.items()))
    inputs = [
        input_of(model, name, group.batch, pruned)[0]
        for group, pruned in zip(groups, before, strict=True)
    ]
    dtype = inputs[0].dtype
    if (
        dtype not in PRUNING_DTYPES
        or inputs[0].dim() != 2
        or any(weight.dtype != dtype for weight in chain.values())
    ):
        return False
    weights = [
        torch.stack([pruned.get(f"{each}.weight", weight) for pruned in before])
        for each, weight in chain.items()
    ]
    biases = [
        weight.new_zeros(weight.shape[:2])
        if not isinstance(bias := model.get_submodule(each).bias, Tensor)
        else bias.detach().expand(weight.shape[:2])
        for each, weight in zip(chain, weights, strict=True)
    ]
    targets = torch.cat([_targets(group) for group in groups])
    device = inputs[0].device
    sizes, order_there = torch.tensor([len(x) for x in inputs], device=device), order.to(device)
    joined = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
    network = (joined, weights, biases, targets, sizes)
    original = None
    if rule.against == "original":
        if groups[0].losses:
            original = torch.stack([group.original_loss for group in groups]).to(device)
        else:  # the operator's own, by a visit of no weight
            original = prune_layer(*network, order_there[:0])[1][:, 0]
    margins, losses = prune_layer(*network, order_there, original, rule.threshold)
    for i, group in enumerate(groups):
        group.add(name, whole, order, (margins[i], losses[i]))
    return True


def _circuit(group: _Group, rule: _Rule) -> Circuit:
    return Circuit(
        mask=group.masks,
        kept=sum(int(each.sum()) for each in group.masks.values()),
        total=sum(each.numel() for each in group.masks.values()),
        loss=group.losses[-1][-1].clone(),
        original_loss=group.original_loss.clone(),
        loss_path=torch.cat([losses[1:] for losses in group.losses]),
        margins=group.margins,
        threshold=rule.threshold,
        against=rule.against,
        n_samples=len(_targets(group)),
    )


def _targets(group: _Group) -> Tensor:
    assert group.batch.targets is not None
    return group.batch.targets


def _layers(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The weights by layer, in the order in which they are pruned."""
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else layers
    check_patterns(patterns, "layers")
    names: dict[str, None] = {}
    for pattern in patterns:
        found = resolve_modules(model, pattern, "layers", has_weight)
        names |= dict.fromkeys(reversed(found))
    parameters = list(model.named_parameters(remove_duplicate=False))
    weights = {}
    for name in names:
        weight = weight_of(model.get_submodule(name), name)
        holders = [each for each, parameter in parameters if parameter is weight]
        if holders != [f"{name}.weight"]:
            raise ValueError(
                f"the weight of {name!r} must be a parameter of this layer alone, "
                f"it is {' and '.join(holders) or 'none'}"
            )
        weights[name] = weight.detach()
    return weights


def _order(order: Order, name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """The flat indices of a layer's weights in the order of their visits, on the CPU."""
    weight = weights[name]
    n = weight.numel()
    if isinstance(order, str):
        if order == "row":
            return torch.arange(n)
        if order == "column":
            rows = torch.arange(n).view(weight.shape)
            return rows.transpose(0, 1).reshape(-1)
        if order == "magnitude":
            return weight.abs().flatten().argsort(stable=True).cpu()
        raise ValueError(f"order must be one of {ORDERS}, or indices, got {order!r}")
    if isinstance(order, Tensor):
        if len(weights) > 1:
            raise ValueError(f"order must give indices by layer name, of {list(weights)}")
        index = order
    elif isinstance(order, Mapping):
        if name not in order:
            raise ValueError(f"order has no layer {name!r}; {nearest(name, order)}")
        index = order[name]
    else:
        raise TypeError(f"order must be a name, indices or a mapping, got {type(order).__name__}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else repr(index)
        raise TypeError(f"order of {name!r} must be a tensor of int64 indices [v], got {found}")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"order of {name!r} must be from 0 to {n - 1}, got {int(outside[0])}")
    if len(index.unique()) < len(index):
        raise ValueError(f"order of {name!r} must visit no weight twice")
    return index.cpu()


def _read(inputs: Inputs, targets: Tensor) -> Batch:
    if is_stream(inputs):
        raise TypeError("inputs must be one batch, got a stream: all samples are needed at once")
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        found = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"targets must be an int64 tensor of classes, got {found}")
    if targets.dim() != 1 or len(targets) == 0:
        raise ValueError(f"targets must be [n] and not empty, got shape {tuple(targets.shape)}")
    (batch,) = read_batches(inputs, targets, None)
    for value in tree_leaves((batch.args, batch.kwargs)):
        if isinstance(value, Tensor) and value.shape[:1] != targets.shape:
            raise ValueError(
                f"every tensor of inputs must have one row a target, {len(targets)}, "
                f"got shape {tuple(value.shape)}"
            )
    return batch


def _groups(
    labels: int | str | Sequence[int] | None, targets: Tensor
) -> dict[int | None, Tensor | None]:
    """The samples of each label; None stands for all."""
    if labels is None:
        return {None: None}
    if isinstance(labels, str):
        if labels != "all":
            raise ValueError(f"labels must be a label, several, 'all' or None, got {labels!r}")
        wanted = targets.unique().tolist()
    else:
        wanted = list(labels) if isinstance(labels, Iterable) else [labels]
    wanted = [checks.integer("each of labels", label) for label in wanted]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"labels must be different labels, at least one, got {labels!r}")
    found: dict[int | None, Tensor | None] = {}
    for label in wanted:
        rows = (targets == label).nonzero()[:, 0]
        if len(rows) == 0:
            raise ValueError(f"labels must have samples, {label} has none")
        found[label] = rows
    return found


def _rows(batch: Batch, rows: Tensor | None) -> Batch:
    if rows is None:
        return batch
    args, kwargs, targets = tree_map(
        lambda x: x[rows] if isinstance(x, Tensor) else x,
        (batch.args, batch.kwargs, batch.targets),
    )
    return Batch(args, kwargs, targets)
