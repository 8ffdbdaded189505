"""Pruning one layer of any network: what comes before the layer runs once, not for each weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from modfast.ablation.batches import Batch
from modfast.ablation.chain import is_linear, read_steps
from modfast.ablation.routes import Split, check_calls
from modfast.ablation.trace import find_route
from modfast.clusters.weights import input_first
from modfast.scores import check_targets


def input_of(
    model: nn.Module, name: str, batch: Batch, parameters: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What the module `name` gets when the model runs with these parameters, and the output.

    Raises:
        TypeError: the module gets, or the model returns, something other than one tensor.
        ValueError: it is not called just once, the output is no `[n, c]` logits, or the targets are
            not among its classes.
    """
    found: list[Any] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args)

    handle = model.get_submodule(name).register_forward_pre_hook(keep)
    try:
        if parameters:
            output = functional_call(model, parameters, batch.args, batch.kwargs)
        else:
            output = model(*batch.args, **batch.kwargs)
    finally:
        handle.remove()
    if len(found) != 1:
        check_calls(name, len(found))
    if len(found[0]) != 1 or not isinstance(found[0][0], Tensor):
        raise TypeError(f"layer {name!r} must be called with one tensor alone")
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return logits, got {type(output).__name__}")
    if output.dim() != 2:
        raise ValueError(f"the model must return logits [n, c], got shape {tuple(output.shape)}")
    if batch.targets is not None:
        check_targets("targets", batch.targets, *output.shape)
    return found[0][0], output


def linear_suffix(model: nn.Module, name: str, batch: Batch) -> list[str] | None:
    """Names of the linear layers after a linear layer, if nothing but ReLU is in between.

    None where anything else is, so that `modfast.ops.prune_layer` cannot take it.
    """
    if not is_linear(model.get_submodule(name)):
        return None
    route = find_route(model, name, batch.args, batch.kwargs)
    if not isinstance(route, Split) or not isinstance(route.suffix, fx.GraphModule):
        return None
    steps = read_steps(model, route.suffix.graph)
    if steps is None or len(steps) % 2 or any(step != "relu" for step in steps[::2]):
        return None
    names = {module: each for each, module in model.named_modules()}
    linears = [step for step in steps[1::2] if isinstance(step, nn.Linear)]
    return [names[step] for step in linears] if 2 * len(linears) == len(steps) else None


def prune_module(
    model: nn.Module,
    name: str,
    batch: Batch,
    order: Tensor,
    threshold: float,
    against: str,
    original: float | None,
    shown: Callable[[list[int]], Any],
) -> tuple[Tensor, Tensor]:
    """As `modfast.ops.prune_layer` for one group, with any module that has a weight.

    A weight changes one channel of the module's output. That is computed anew, and then what
    follows the module runs. `model` is a copy to be changed; `original`, by default the loss at
    first, is what `against="original"` means. `shown` wraps the loop in a progress bar.
    """
    assert batch.targets is not None
    module, targets = model.get_submodule(name), batch.targets
    x, _ = input_of(model, name, batch, {})
    start = find_route(model, name, batch.args, batch.kwargs).start(batch.args, batch.kwargs)
    weight = module.weight
    assert isinstance(weight, Tensor)
    flat, out = weight.detach().view(-1), int(input_first(module))
    # Channels stand before the positions of a kernel, or last.
    channels = start.site.dim() - 1 - (weight.dim() - 2)
    per_output = weight.stride(out)

    def loss(site: Tensor) -> float:
        # A copy, as what follows may work in place.
        logits = start.resume(site.clone())
        return float(functional.cross_entropy(logits.double(), targets))

    site = start.site.clone()
    running, margins = loss(site), []
    losses = [running]
    original = running if original is None else original
    for index in shown(order.tolist()):
        value = flat[index].clone()
        channel = index // per_output % weight.shape[out]
        place = site.select(channels, channel)
        before = place.clone()
        after = running
        if value != 0:
            flat[index] = 0.0
            place.copy_(_channel(module, x, channel, out).select(channels, 0))
            after = loss(site)
        margins.append(after - (running if against == "running" else original) - threshold)
        if margins[-1] > 0.0:
            flat[index] = value
            place.copy_(before)
        else:
            running = after
        losses.append(running)
    return torch.tensor(margins, dtype=torch.float64), torch.tensor(losses, dtype=torch.float64)


def _channel(module: nn.Module, x: Tensor, channel: int, out: int) -> Tensor:
    """One channel of a module's output, by its part of the weight."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    parameters = {"weight": weight.narrow(out, channel, 1)}
    if isinstance(bias, Tensor):
        parameters["bias"] = bias[channel : channel + 1]
    if weight.dim() == 2:  # transformers' Conv1D shapes its output by an attribute
        matrix = parameters["weight"].t() if out else parameters["weight"]
        return functional.linear(x, matrix, parameters.get("bias"))
    found: Tensor = functional_call(module, parameters, (x,))
    return found
