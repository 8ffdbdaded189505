"""Patching by plain hooks: the oracle of values, positions, metrics and sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ablation import oracle
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The logits, as the model gives them."""
    if isinstance(inputs, Mapping):
        found = model(**inputs)
    else:
        found = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return found if isinstance(found, Tensor) else found.logits


def hooked(model: nn.Module, inputs: Any, site: str, change: Change) -> Tensor:
    """The logits where what is at a site is changed."""
    name, of_input = site.removesuffix(":input"), site.endswith(":input")
    module = model.get_submodule(name)

    def before(module: nn.Module, args: Any) -> Any:
        return (change(args[0].clone()), *args[1:])

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return change(output.clone())

    handle = (
        module.register_forward_pre_hook(before)
        if of_input
        else module.register_forward_hook(after)
    )
    try:
        with torch.no_grad():
            return call(model.eval(), inputs)
    finally:
        handle.remove()


def seen(model: nn.Module, inputs: Any, site: str) -> Tensor:
    """What is there."""
    found = []

    def note(value: Tensor) -> Tensor:
        found.append(value.clone())
        return value

    hooked(model, inputs, site, note)
    return found[0]


def put(where: Any, units: list[int], value: Tensor | float, dim: int) -> Change:
    """Puts values `[n, ..., d]` at some units and positions (a bool mask, or slice(None))."""

    def change(a: Tensor) -> Tensor:
        a = a.movedim(dim, -1)
        new = torch.as_tensor(value, dtype=a.dtype).expand(a.shape)
        mask = torch.zeros(a.shape[-1], dtype=torch.bool)
        mask[units] = True
        keep = torch.ones(a.shape[:-1], dtype=torch.bool) if where is None else where
        return torch.where(keep[..., None] & mask, new, a).movedim(-1, dim)

    return change


def terms(before: Tensor, after: Tensor) -> Tensor:
    """The sums of `oracle.terms` over samples: `[3]`."""
    flat = [x.reshape(-1, x.shape[-1]).double() for x in (before, after)]
    return oracle.terms(*flat).sum(-1)
