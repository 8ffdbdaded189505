"""Which layers are pruned, and in which order their weights are visited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modfast import checks
from modfast.network.names import check_patterns, nearest, resolve_modules
from modfast.network.weights import has_weight, weight_of

Order = str | Tensor | Mapping[str, Tensor]
ORDERS = ("row", "column", "magnitude")


def layers_to_prune(model: nn.Module, layers: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The weights by layer, in the order in which they are pruned."""
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else layers
    check_patterns(patterns, "layers")
    modules: dict[str, nn.Module] = {}
    for pattern in patterns:
        found = resolve_modules(model, pattern, "layers", has_weight)
        modules |= {name: found[name] for name in reversed(found) if name not in modules}
    parameters = list(model.named_parameters(remove_duplicate=False))
    weights = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"layers={name!r}: its weight must be a parameter, but is computed from others in "
                "each pass (a parametrization, weight_norm, prune): make that permanent first, as "
                "by torch.nn.utils.parametrize.remove_parametrizations or prune.remove, or name "
                "other layers"
            )
        if not weight_of(module, name).numel():
            raise ValueError(f"model must have weights in {name!r}, got shape {[*weight.shape]}")
        holders = [each for each, parameter in parameters if parameter is weight]
        if holders != [f"{name}.weight"]:
            raise ValueError(
                f"layers={name!r}: its weight must be a parameter of this layer alone, it is "
                f"{' and '.join(holders)}; name other layers"
            )
        weights[name] = weight.detach()
    return weights


def read_order(order: Order, name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """The flat indices of a layer's weights in the order of their visits, on the CPU."""
    weight = weights[name]
    n = weight.numel()
    if isinstance(order, str):
        if order == "row":
            return torch.arange(n, device="cpu")
        if order == "column":
            rows = torch.arange(n, device="cpu").view(weight.shape)
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
    if isinstance(index, Tensor):
        checks.dense("order", index)
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else repr(index)
        raise TypeError(f"order of {name!r} must be a tensor of int64 indices [v], got {found}")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"order of {name!r} must be from 0 to {n - 1}, got {int(outside[0])}")
    if len(index.unique()) < len(index):
        raise ValueError(f"order of {name!r} must visit no weight twice")
    return index.cpu()
